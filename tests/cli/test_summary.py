"""``logvmamba summary``: counts against the published network, against counting by hand, and against memory held."""

import json
import math
import os
import re
import shutil

import numpy as np
import pytest
import small_dataset
import torch
from commands import run_command
from PIL import Image
from torch import nn

from nnunet_logvmamba.cli import build_parser, main
from nnunet_logvmamba.cli.summary import network_of_plans
from nnunet_logvmamba.networks import LoGVMambaSwinUNet, LoGVMambaUNet
from nnunet_logvmamba.networks.catalogue import PRESETS
from nnunet_logvmamba.networks.costs import summarize
from nnunet_logvmamba.plugin import startup

# Parts of the published network at 128 cubed, counted by running it: parameters without the fixed unfold kernels.
STEM, RESIDUAL = 86_944, (112_032, 389_952, 1_558_144, 2_688_768, 5_060_800)
BLOCKS = (9_655 - 729, 87_257 - 729, 215_209 - 729, 357_504, 367_400)
DECODER, LAST_STEP, HEAD = 9_563_520, 1_056 + 55_488, 99


@pytest.fixture(scope="module")
def paper():
    preset = LoGVMambaUNet.preset
    with torch.device("meta"):
        network = LoGVMambaUNet(**preset["arguments"])
    return summarize(network, 4, preset["patch_size"], batch_size=1)


def test_the_papers_network_has_the_published_parameters_part_by_part(paper):
    rows = {row.stage: row for row in paper.rows}
    assert rows["stem"].parameters == STEM
    assert tuple(rows[f"mixing {i}"].block_parameters for i in range(5)) == BLOCKS
    assert tuple(rows[f"mixing {i}"].parameters - rows[f"mixing {i}"].block_parameters for i in range(5)) == RESIDUAL
    assert sum(rows[f"decoder {i}"].parameters for i in range(4)) == DECODER
    assert rows["decoder 4"].parameters == LAST_STEP
    assert rows["heads (1)"].parameters == HEAD
    assert paper.parameters == sum(row.parameters for row in paper.rows) == 20_551_641


def test_the_papers_network_has_the_published_multiply_adds_and_state_updates(paper):
    # 394.68 as published, with the 1x1 convolutions of the way up behind the interpolation and not ahead of it.
    assert paper.multiply_adds / 1e9 == pytest.approx(391.94, abs=0.05)
    assert paper.multiply_adds == sum(row.multiply_adds for row in paper.rows)
    rows = {row.stage: row for row in paper.rows}
    assert rows["stem"].multiply_adds / 1e9 == pytest.approx(181.5, abs=0.05)
    assert paper.state_updates / 1e9 == pytest.approx(0.301, abs=0.0005)


def test_the_table_shows_the_published_tokens(paper):
    shown = [(row.size[0], row.mixer, row.tokens, row.global_tokens) for row in paper.rows if row.mixer != "-"]
    assert shown == [
        (64, "L-VMamba", "262,144", "-"),
        (32, "LoG-VMamba", "32,768 + 108", "stride 4x4x4, q 1, G 108, grid 8x8x8"),
        (16, "LoG-VMamba", "4,096 + 216", "stride 2x2x2, q 1, G 216, grid 8x8x8"),
        (8, "G-VMamba", "512 + 128", "stride 1x1x1, q 2, G 128, grid 8x8x8"),
        (4, "G-VMamba", "64 + 40", "stride 1x1x1, q 8, G 40, grid 4x4x4"),
    ]
    assert paper.rows[1].local_tokens == "R 3, S 16, width 54"


# The same of the published 2D network at 512 squared; blocks of the decoder without the fixed unfold kernels, 81 each.
SWIN_PATCHES, SWIN_MERGERS = 4_896, (0, 74_496, 296_448, 1_182_720)
SWIN_ENCODER = (210_816, 679_680, 10_761_984, 8_911_872)
SWIN_DECODER = (3_755_586 - 162, 1_745_250 - 162, 680_034 - 162)
SWIN_STEPS = (1_180_416 + 295_296, 295_296 + 73_920, 73_920 + 18_528)  # expansion and fusion
SWIN_END, SWIN_HEADS = 147_648, 385 + 193 + 97 + 97


@pytest.fixture(scope="module")
def paper2d():
    preset = LoGVMambaSwinUNet.preset
    with torch.device("meta"):
        network = LoGVMambaSwinUNet(**preset["arguments"])
    return summarize(network, 3, preset["patch_size"], batch_size=1)


def test_the_papers_2d_network_has_the_published_parameters_part_by_part(paper2d):
    rows = {row.stage: row for row in paper2d.rows}
    assert rows["patches"].parameters == SWIN_PATCHES
    assert tuple(rows[f"encoder {i}"].block_parameters for i in range(4)) == SWIN_ENCODER
    assert tuple(rows[f"encoder {i}"].parameters - SWIN_ENCODER[i] for i in range(4)) == SWIN_MERGERS
    assert tuple(rows[f"decoder {i}"].block_parameters for i in range(3)) == SWIN_DECODER
    assert tuple(rows[f"decoder {i}"].parameters - SWIN_DECODER[i] for i in range(3)) == SWIN_STEPS
    assert rows["decoder 3"].parameters == SWIN_END
    assert rows["heads (4)"].parameters == SWIN_HEADS
    assert paper2d.parameters == sum(row.parameters for row in paper2d.rows) == 30_389_092


def test_the_papers_2d_network_has_the_published_multiply_adds_and_state_updates(paper2d):
    # The unfold by fixed kernels, which ours does by indexing, is 0.11 of the published 34.66 GMAC.
    assert paper2d.multiply_adds == 34_658_111_232 - 111_476_736
    assert paper2d.multiply_adds == sum(row.multiply_adds for row in paper2d.rows)
    rows = {row.stage: row for row in paper2d.rows}
    encoder = rows["patches"].multiply_adds + sum(rows[f"encoder {i}"].multiply_adds for i in range(4))
    assert encoder == 19_206_242_304
    assert paper2d.state_updates / 1e9 == pytest.approx(1.325, abs=0.0005)


def test_the_table_shows_the_published_2d_tokens(paper2d):
    shown = [(row.size, row.mixer, row.tokens, row.local_tokens, row.global_tokens) for row in paper2d.rows]
    assert shown[1:-1] == [
        ((128, 128), "2 VSS, 4 directions", "16,384", "-", "-"),
        ((64, 64), "2 VSS, 4 directions", "4,096", "-", "-"),
        ((32, 32), "9 VSS, 4 directions", "1,024", "-", "-"),
        ((16, 16), "2 VSS, 4 directions", "256", "-", "-"),
        ((32, 32), "2 LoG-VMamba", "1,024 + 432", "R 3, S 8, width 864", "stride 2x2, q 2, G 432, grid 16x16"),
        ((64, 64), "2 LoG-VMamba", "4,096 + 432", "R 3, S 8, width 432", "stride 2x2, q 1, G 432, grid 32x32"),
        ((128, 128), "2 LoG-VMamba", "16,384 + 216", "R 3, S 8, width 216", "stride 4x4, q 1, G 216, grid 32x32"),
        ((512, 512), "-", "-", "-", "-"),
    ]


@pytest.mark.parametrize(
    ("preset", "parameters", "multiply_adds", "blocks"),
    [
        ("paper3d", "20,551,641", "391.94", ["1,034,838", "3.47"]),
        ("paper2d", "30,389,092", "34.55", ["26,744,736", "29.31"]),
    ],
)
def test_the_command_writes_totals_with_separators(preset, parameters, multiply_adds, blocks, capsys):
    assert main(["summary", "--preset", preset]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"parameters    {parameters}" in lines
    assert any(line.startswith(f"multiply-adds {multiply_adds} GMAC") for line in lines)
    total = next(line for line in lines if line.startswith("total"))
    assert total.split() == ["total", parameters, blocks[0], multiply_adds, blocks[1]]


class OneConvolution(nn.Module):
    """A network whose cost is known by hand: kernel 3, from 2 to 5 channels."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.stages = nn.ModuleList([nn.Conv2d(2, 5, 3, padding=1)])
        self.decoder.stages, self.decoder.seg_layers = nn.ModuleList(), nn.ModuleList()

    def forward(self, x):
        return torch.relu(self.encoder.stages[0](x))


def test_one_convolution_is_counted_as_by_hand():
    with torch.device("meta"):
        network = OneConvolution()
    summary = summarize(network, 2, (7, 11), batch_size=3)
    assert [(row.stage, row.size) for row in summary.rows] == [("encoder.stages.0", (7, 11))]
    assert summary.parameters == 5 * (2 * 9 + 1)
    assert summary.multiply_adds == 7 * 11 * 5 * 2 * 9
    # The convolution keeps its input, the rectifier its output.
    assert summary.activation_bytes == 4 * 3 * 7 * 11 * (2 + 5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_counted_on_a_dry_run_is_the_memory_that_real_tensors_hold(checkpointing):
    arguments = {**LoGVMambaUNet.preset["arguments"], "features_per_stage": [16, 16, 32, 32, 32, 32], "n_stages": 6}
    arguments.update(input_channels=1, checkpointing=checkpointing, seg_heads="all", deep_supervision=True)
    with torch.device("meta"):
        counted = summarize(LoGVMambaUNet(**arguments), 1, (32, 32, 64), batch_size=1).activation_bytes
    network = LoGVMambaUNet(**arguments).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(torch.rand(1, 1, 32, 32, 64))
    assert len(outputs) == 5
    assert counted == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.02)


def test_checkpointing_lowers_the_estimate():
    arguments = LoGVMambaUNet.preset["arguments"]
    with torch.device("meta"):
        plain, saving = (LoGVMambaUNet(**arguments, checkpointing=flag) for flag in (False, True))
    assert (
        summarize(saving, 4, (64, 64, 64), batch_size=1).activation_bytes
        < 0.9 * summarize(plain, 4, (64, 64, 64), batch_size=1).activation_bytes
    )


def test_another_patch_changes_tokens_work_and_memory_but_no_parameter(planned, capsys):
    for words, patch, tokens in (
        (["--preset", "paper3d"], ["64", "96", "128"], f"{32 * 48 * 64:,}"),
        (["--preset", "paper2d"], ["100", "70"], f"{32 * 24:,}"),  # padded to what the strides divide
        (["-d", small_dataset.NUMBER, "-c", "2d"], ["32", "64"], f"{16 * 32:,}"),
    ):
        printed = []
        for size in ([], ["--patch-size", *patch]):
            assert main(["summary", *words, *size]) == 0
            printed.append(capsys.readouterr().out)
        assert f"patch {'x'.join(patch)}" in printed[1].splitlines()[0]
        assert tokens in printed[1].split()
        kept = [[line for line in text.splitlines() if line.startswith("parameters")] for text in printed]
        assert kept[0] == kept[1]
        for line in ("multiply-adds", "scan", "training"):
            ours, other = (next(text for text in page.splitlines() if text.startswith(line)) for page in printed)
            assert ours != other


@pytest.fixture
def planned(nnunet_folders):
    return small_dataset.copy_into(nnunet_folders)


TRAINERS = ["nnUNetTrainerLoGVMamba", "nnUNetTrainerLoGVMamba_adam", "nnUNetTrainerNoSSM_sgd_5epochs", "nnUNetTrainer"]


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_planned_data_set_is_shown_for_any_trainer(trainer, configuration, planned, capsys):
    assert main(["summary", "-d", small_dataset.NUMBER, "-c", configuration, "-tr", trainer]) == 0
    printed = capsys.readouterr().out
    patch = json.loads(planned.read_text())["configurations"][configuration]["patch_size"]
    assert f"patch {'x'.join(map(str, patch))}" in printed.splitlines()[0]
    assert ("NoSSM" in printed) == ("NoSSM" in trainer)
    assert ("R 3, S" in printed) == (trainer != "nnUNetTrainer")
    assert (" and sgd; " if "_sgd" in trainer or trainer == "nnUNetTrainer" else " and adam; ") in printed


def test_the_grid_in_use_is_shown_where_it_is_not_the_canonical_one(planned, capsys):
    assert main(["summary", "-d", small_dataset.NUMBER, "-c", "3d_fullres"]) == 0
    assert "stride 4x4x4, q 1, G 108, grid 8x8x8 used at 1x2x2" in capsys.readouterr().out


USERS_TRAINER = """
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = torch.linspace(0, 0.5, 2)[1].item()  # what the meta device cannot say
        self.inside = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens):
        return self.inside(tokens, tokens, tokens)[0]

class OneAfterTheOther(torch.nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.embedding = torch.nn.Conv3d(channels, 8, 4, 4)
        self.parts = torch.nn.ModuleList([Attention(), torch.nn.Dropout(), torch.nn.Linear(8, 8)])
        self.head = torch.nn.ConvTranspose3d(8, classes, 4, 4)

    def forward(self, x):
        x = self.embedding(x)
        tokens = x.flatten(2).transpose(1, 2)
        for part in self.parts:
            tokens = part(tokens)
        return self.head(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))

class nnUNetTrainerOfTheUser(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(plans_manager, manager, channels, classes, enable_deep_supervision=True):
        return OneAfterTheOther(channels, classes)

class nnUNetTrainerOfOnePart(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(plans_manager, manager, channels, classes, enable_deep_supervision=True):
        inside = torch.nn.Sequential(torch.nn.Conv3d(channels, 8, 1), torch.nn.ReLU(), torch.nn.Conv3d(8, classes, 1))
        return torch.nn.Sequential(inside)
"""


@pytest.fixture
def users_trainers(tmp_path, monkeypatch):
    (tmp_path / "ext").mkdir()
    (tmp_path / "ext" / "of_the_user.py").write_text(USERS_TRAINER)
    monkeypatch.setenv(startup.VARIABLE, f"{startup.EXT_FOLDER}{os.pathsep}{tmp_path / 'ext'}")


def test_a_network_without_encoder_decoder_and_mixers_is_shown_by_its_modules(planned, users_trainers, capsys):
    words = ["summary", "-d", small_dataset.NUMBER, "-c", "3d_fullres", "-tr", "nnUNetTrainerOfTheUser"]
    assert main(words) == 0
    first, _, head, *rows = capsys.readouterr().out.splitlines()
    assert "data set 998: OneAfterTheOther, 1 input channels" in first
    assert head.split()[:2] == ["stage", "size"]
    *shown, total = map(str.split, rows[: rows.index("")])
    parameters = {"embedding": "520", "parts.0": "288", "parts.2": "72", "head": f"{8 * 3 * 64 + 3:,}"}
    assert {words[0]: words[6] for words in shown} == parameters
    assert total[:2] == ["total", f"{520 + 288 + 72 + 8 * 3 * 64 + 3:,}"]
    assert shown[1][1] == "-", "tokens are no image"


def test_a_network_that_is_one_module_is_opened(planned, users_trainers, capsys):
    assert main(["summary", "-d", small_dataset.NUMBER, "-c", "3d_fullres", "-tr", "nnUNetTrainerOfOnePart"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:5]] == ["0.0", "0.2"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "--preset paper3d --patch-size 64 64",
            "--patch-size has 2 number(s) and this network 3 axes: give one",
        ),
        ("--preset paper3d --patch-size 9 8 8", "the image of 9 x 8 x 8 voxels is too small for this network"),
        ("-d 998 -c 2d --patch-size 64 64 64", "--patch-size has 3 number(s) and this network 2 axes"),
        ("--preset paper4d", "there is no preset 'paper4d'; there are paper3d, paper2d"),
        ("-d 998 -c 4d", "there is no configuration '4d' in nnUNetPlans; there are 2d, 3d_fullres"),
        (
            "-d 998 -tr nnUNetTrainerNone",
            "finds no trainer 'nnUNetTrainerNone': our names are nnUNetTrainer<Family>",
        ),
        ("-d 998 -tr nnUNetTrainerLogVMamba_sdg", "the nearest is nnUNetTrainerLoGVMamba_sgd: names are"),
        ("-d 998 -tr json", "nnU-Net finds no trainer 'json'"),
        ("-d 1", "one data set Dataset001_* is needed"),
        ("--preset paper2d --receptive-field field.jpg", "field.jpg does not end in .png: name a PNG picture"),
        ("--preset paper2d --receptive-field nowhere/field.png", "there is no folder nowhere for field.png"),
        ("--preset paper2d --receptive-field field.png --checkpoint none.pth", "there is no checkpoint none.pth"),
        ("--preset paper2d --checkpoint none.pth", "--checkpoint is for --receptive-field"),
        ("-d 998 --cases ball_0", "--cases is for --receptive-field"),
        ("-d 998 --overwrite", "--overwrite is for --receptive-field"),
        ("--preset paper2d --receptive-field field.png --cases a", "--cases are those of a data set: name it with -d"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(words, sentence, planned, capsys):
    assert main(["summary", *words.split()]) != 0
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""


def test_a_misspelt_preset_ends_the_command_without_a_traceback():
    done = run_command(["logvmamba", "summary", "--preset", "paper4d"], check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines() == [f"logvmamba: there is no preset 'paper4d'; there are {', '.join(PRESETS)}"]


def test_the_receptive_field_is_said_and_drawn_before_and_after_training(planned, tmp_path, capsys):
    words = ["summary", "-d", small_dataset.NUMBER, "-c", "2d", "--patch-size", "32", "48", "--noise-images", "2"]
    pictures = [tmp_path / f"{name}.png" for name in ("start", "trained")]
    assert main([*words, "--receptive-field", str(pictures[0])]) == 0
    start = capsys.readouterr().out
    assert f"receptive field, at the start, over 2 image(s) of noise: {pictures[0]}" in start
    radii = [
        [int(side) for side in re.search(rf"{share}% of the field lies within (\d+)x(\d+) voxels", start).groups()]
        for share in (50, 90)
    ]
    assert all(0 < half <= most <= side // 2 for half, most, side in zip(*radii, (32, 48)))

    drawn = pictures[0].read_bytes()
    pictures[0].write_bytes(b"of another network")
    assert main([*words, "--receptive-field", str(pictures[0])]) == 2
    assert f"{pictures[0]} exists: name another file, or add --overwrite" in capsys.readouterr().err
    assert pictures[0].read_bytes() == b"of another network"
    assert main([*words, "--receptive-field", str(pictures[0]), "--overwrite"]) == 0
    assert capsys.readouterr().out == start
    assert pictures[0].read_bytes() == drawn

    args = build_parser().parse_args(words)
    network = network_of_plans(args, "cpu")[0]
    nn.init.zeros_(network.encoder.stem[0].conv3.weight)
    checkpoint = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": network.state_dict()}, checkpoint)
    assert main([*words, "--receptive-field", str(pictures[1]), "--checkpoint", str(checkpoint)]) == 0
    trained = capsys.readouterr().out
    assert "receptive field, trained" in trained
    drawn = [np.asarray(Image.open(picture).convert("RGB")) for picture in pictures]
    assert drawn[0].shape == drawn[1].shape
    assert (drawn[0] != drawn[1]).any()

    torch.save(network.state_dict(), checkpoint)
    pictures[1].unlink()
    assert main([*words, "--receptive-field", str(pictures[1]), "--checkpoint", str(checkpoint)]) == 0
    assert "receptive field, trained" in capsys.readouterr().out

    nn.init.constant_(network.encoder.stem[0].conv3.weight, math.nan)
    torch.save(network.state_dict(), checkpoint)
    assert main([*words, "--receptive-field", str(tmp_path / "none.png"), "--checkpoint", str(checkpoint)]) != 0
    assert f"{checkpoint}: These weights hold numbers that are NaN" in capsys.readouterr().err

    torch.save({"state_dict": network.state_dict(), "epoch": 3}, checkpoint)
    assert main([*words, "--receptive-field", str(tmp_path / "none.png"), "--checkpoint", str(checkpoint)]) != 0
    assert "holds neither weights alone nor nnU-Net's 'network_weights'" in capsys.readouterr().err

    torch.save({"network_weights": {"other": torch.ones(1)}}, checkpoint)
    assert main([*words, "--receptive-field", str(tmp_path / "none.png"), "--checkpoint", str(checkpoint)]) != 0
    assert "holds another network than this one" in capsys.readouterr().err
    assert not (tmp_path / "none.png").exists()


def test_the_receptive_field_over_cases_of_the_data_set(folders, tmp_path, capsys):
    small_dataset.copy_into(folders)
    words = [
        "summary",
        "-d",
        small_dataset.NUMBER,
        "-c",
        "2d",
        "--receptive-field",
        str(tmp_path / "field.png"),
        "--overwrite",
    ]
    assert main([*words, "--cases", "ball_0", "ball_1", "--patch-size", "32", "128"]) == 0  # larger than a case
    assert "receptive field, at the start, over 2 case(s)" in capsys.readouterr().out
    assert main([*words, "--cases", "ball_0", "nobody"]) == 2
    assert "has no case 'nobody': it has ball_0 and others" in capsys.readouterr().err
    shutil.rmtree(folders.preprocessed / small_dataset.NAME / "nnUNetPlans_2d")
    assert main([*words, "--cases", "ball_0"]) == 2
    assert "holds no preprocessed cases: run nnUNetv2_preprocess -d 998 -plans_name" in capsys.readouterr().err
