"""``logvmamba peers``: a row per network, with sizes of a plan or as published, and reasons for what cannot be had."""

from dataclasses import replace

import pytest
import small_dataset

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.networks.costs import times
from nnunet_logvmamba.plugin import trainers

SOME = ("LoGVMamba", "LoGVMambaSwin", "UMambaBot", "SwinUNETR")


def rows(capsys, *words: object) -> dict[str, str]:
    """What is printed for each trainer."""
    assert main(["peers", *map(str, words)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line for line in lines[1:] if line.startswith("nnUNetTrainer")}


def test_every_network_is_listed_with_what_its_row_says(capsys):
    found = rows(capsys)
    assert set(found) == {f"nnUNetTrainer{network.trainer}" for network in catalogue.NETWORKS}
    for network in catalogue.NETWORKS:
        line = found[f"nnUNetTrainer{network.trainer}"]
        for said in (network.name, network.recipe, network.paper, network.licence):
            assert said in line
        assert (f" {network.parameters:,} " in line) == (network.parameters is not None)
        assert f"nnUNetTrainer{network.trainer}" in dir(trainers)


@pytest.fixture
def few(monkeypatch):
    """Counting all takes a minute: our own and two others stand for them."""
    rows = [network for network in catalogue.NETWORKS if network.trainer in SOME]
    monkeypatch.setattr(catalogue, "NETWORKS", tuple(rows))


@pytest.mark.slow
def test_every_published_size_is_counted(capsys):
    found = rows(capsys, "--published")
    for network in catalogue.NETWORKS:
        line = found[f"nnUNetTrainer{network.trainer}"]
        assert line.endswith(f"{network.preset}, {times(network.load().preset['patch_size'])}")
        assert f" {network.parameters:,} " in line


def test_published_sizes_are_counted_at_their_patches(few, capsys):
    found = rows(capsys, "--published")
    assert "20,551,641 391.94 paper" in " ".join(found["nnUNetTrainerLoGVMamba"].split())
    assert found["nnUNetTrainerLoGVMamba"].endswith("paper3d, 128x128x128")


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_sizes_of_a_plan_are_those_that_the_summary_shows(configuration, few, nnunet_folders, capsys):
    small_dataset.copy_into(nnunet_folders)
    found = rows(capsys, "-d", small_dataset.NUMBER, "-c", configuration)
    assert list(found)[0] == "nnUNetTrainerStockNetwork"
    for trainer in ("nnUNetTrainerLoGVMamba", "nnUNetTrainerStockNetwork"):
        assert main(["summary", "-d", str(small_dataset.NUMBER), "-c", configuration, "-tr", trainer]) == 0
        said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("parameters"))
        assert f" {said.split()[1]} " in found[trainer]
    swin = found["nnUNetTrainerLoGVMambaSwin"]
    assert ("LoGVMambaSwinUNet is a 2D network and this configuration is 3D" in swin) == (configuration != "2d")
    assert "too small for this network" in found["nnUNetTrainerSwinUNETR"]


def test_a_network_without_its_package_is_listed_with_the_reason_and_stops_no_other(capsys, monkeypatch):
    lacking = replace(catalogue.NETWORKS[0], package="x_y")
    monkeypatch.setattr(catalogue, "NETWORKS", (lacking, catalogue.NETWORKS[1]))
    found = rows(capsys, "--published")
    assert found["nnUNetTrainerLoGVMamba"].endswith("LoGVMambaUNet needs x_y, which is not installed: pip install x_y")
    assert "30,389,092" in found["nnUNetTrainerLoGVMambaSwin"]


def test_a_data_set_that_is_not_there_is_named(nnunet_folders, capsys):
    small_dataset.copy_into(nnunet_folders)
    assert main(["peers", "-d", "7"]) == 2
    assert "7" in capsys.readouterr().err
    assert main(["peers", "-d", str(small_dataset.NUMBER), "-c", "4d"]) == 2
    assert "there is no configuration '4d'" in capsys.readouterr().err
