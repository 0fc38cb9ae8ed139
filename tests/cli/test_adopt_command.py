"""``logvmamba adopt``: what it prints, and how it ends."""

import re

import forks
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.plugin.plans import build_network

BOT = "nnUNetTrainerUMambaBot"


@pytest.fixture
def source(nnunet_folders, tmp_path):
    """Two folds of a small fork."""
    configuration = forks.old_configuration([16, 16], 1)
    resolved = PlansManager(forks.plans("2d", forks.old_configuration([16, 16], 1), 1)).get_configuration("2d")
    network = build_network(resolved, 1, 3, True, catalogue.row("UMambaBot").path)
    state = forks.with_duplicates(network.state_dict())
    return forks.write_fork(tmp_path / "fork", BOT, state, configuration, 1, 3, folds=(0, 1))


def test_it_prints_what_was_taken_and_left_and_where_it_is(source, nnunet_folders, capsys):
    assert main(["adopt", str(source), "-d", "701"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("U-Mamba-Bot, folds 0, 1\n")
    rows = {
        (row[0], row[1]): tuple(int(number.replace(",", "")) for number in row[2:])
        for row in re.findall(r"^(taken|left) +(\S.*?) {2,}([\d,]+) +([\d,]+)$", printed, re.M)
    }
    parts = [rows["taken", part] for part in ("encoder", "decoder", "mamba_layer")]
    assert rows["taken", "in all"] == tuple(map(sum, zip(*parts)))
    assert rows["left", "stored a second time"][0] > 0
    assert "left: state of the optimizer: a training that goes on begins with a new one\n" in printed
    model = nnunet_folders.results / forks.NAME / f"{BOT}__nnUNetPlans__2d"
    for fold in (0, 1):
        assert f"{model}/fold_{fold}/checkpoint_final.pth: 3 epoch(s)\n" in printed
    assert printed.endswith(f"predict with nnUNetv2_predict_from_modelfolder -m {model}\n")


def test_weights_alone_say_what_they_do_not_know(nnunet_folders, tmp_path, capsys, source):
    base = nnunet_folders.preprocessed / forks.NAME
    base.mkdir()
    for name, theirs in (("nnUNetPlans.json", "plans.json"), ("dataset.json", "dataset.json")):
        (base / name).write_text((source / theirs).read_text())
    content = torch.load(source / "fold_0" / "checkpoint_final.pth", weights_only=False)
    torch.save({"state_dict": content["network_weights"]}, tmp_path / "weights.pth")
    assert main(["adopt", str(tmp_path / "weights.pth"), "-d", "701", "--fold", "all"]) == 0
    printed = capsys.readouterr().out
    assert "left: how its images were prepared, which the file does not say: nnU-Net follows the plans\n" in printed
    assert "fold_all/checkpoint_final.pth: 0 epoch(s)\n" in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-d", "701", "-c", "3d_fullres"], "was trained with the configuration 2d"),
        (["-d", "701", "--fold", "7"], "has no fold 7"),
        (["-d", "9"], "one data set Dataset009_* is needed"),
    ],
)
def test_what_does_not_fit_ends_with_one_sentence_and_nothing_written(source, words, sentence, nnunet_folders, capsys):
    assert main(["adopt", str(source), *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("logvmamba: ")
    assert sentence in line
    assert list(nnunet_folders.results.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "nnUNet_results is not set: export it"),
        ("", "nnUNet_results is not set: export it"),
        ("~/results", "nnUNet_results is ~/results, in which nnU-Net does not replace ~ by your home"),
    ],
)
def test_folders_of_nnunet_that_are_not_set_are_named(value, said, source, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_results")
    if value is not None:
        monkeypatch.setenv("nnUNet_results", value)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["adopt", str(source.absolute()), "-d", "701"]) == 2
    assert said in capsys.readouterr().err
    assert list((tmp_path / "here").iterdir()) == []
