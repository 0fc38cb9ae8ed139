"""Systems of others under stock commands: each is trained and predicts, and says at once what it cannot take."""

import json
import sys
from copy import deepcopy

import numpy as np
import pytest
import small_dataset
import torch
from small_project import SETTINGS, TRAIN, Project, voxels

from nnunet_logvmamba.errors import Refused
from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.plugin import trainers

SHORT = {**SETTINGS, "num_epochs": 1, "num_iterations_per_epoch": 2}
# Network, base of the configuration and what makes it small; none: the stock plan as it stands, of which ours is made.
SMALL = {
    "MonaiUNet-3D": ("MonaiUNet", "3d_fullres", None),
    "MonaiUNet-2D": ("MonaiUNet", "2d", None),
    "NestedFormer": ("NestedFormer", "3d_fullres", None),
    "EoFormer": ("EoFormer", "3d_fullres", None),
    "UNETR-3D": ("UNETR", "3d_fullres", ["hidden_size=24", "mlp_dim=24", "num_heads=2", "feature_size=4"]),
    "UNETR-2D": ("UNETR", "2d", ["hidden_size=24", "mlp_dim=24", "num_heads=2", "feature_size=4"]),
    "SwinUNETR": ("SwinUNETR", "2d", ["feature_size=12", "checkpointing=true"]),
}


@pytest.fixture(scope="module")
def project(planned, tmp_path_factory) -> Project:
    return planned.copied_to(tmp_path_factory.mktemp("peers") / "nnunet")


@pytest.mark.slow
@pytest.mark.parametrize(("network", "base", "knobs"), SMALL.values(), ids=SMALL)
def test_stock_commands_train_it_and_predict_with_it(network, base, knobs, project, new_images, tmp_path):
    row, name = catalogue.row(network), f"{base}_{network}"
    own = ["--keep-network"] if knobs is None else ["--network", network, "--set", *knobs]
    patch = ["--patch-size", 40, 24] if network == "SwinUNETR" else []
    project.configure(base, name, *own, *patch, **SHORT)
    trainer = f"nnUNetTrainer{row.trainer}"
    fold = project.train(name, trainer=trainer)
    assert fold.epochs == 1
    assert np.isfinite(fold.checkpoint["logging"]["train_losses"]).all()
    assert len(fold.dice) == 3
    written = project.predict(new_images, tmp_path / "predicted", name, trainer=trainer)
    assert len(written) == 2
    for path in written:
        assert voxels(path).shape == voxels(new_images.with_name("labelsTr") / path.name).shape


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "configuration", "words"),
    [
        ("nnUNetTrainerNestedFormer", "2d", "NestedFormer is a 3D network and this configuration is 2D"),
        ("nnUNetTrainerEoFormer", "2d", "EoFormer is a 3D network and this configuration is 2D"),
        ("nnUNetTrainerSwinUNETR", "2d", "is too small"),
    ],
)
def test_a_plan_that_does_not_fit_ends_in_one_sentence_before_anything_is_written(
    trainer, configuration, words, project
):
    done = project.run(TRAIN, project.number, configuration, 0, "-tr", trainer, "-device", "cpu", check=False)
    assert done.returncode == 1
    assert words in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not project.model(configuration, trainer).exists()


def test_pretrained_weights_of_another_order_of_the_same_sizes_are_refused(nnunet_folders, tmp_path, monkeypatch):
    plans_file, path = small_dataset.copy_into(nnunet_folders), tmp_path / "theirs.pth"
    content = json.loads(plans_file.read_text())
    dataset = json.loads((plans_file.parent / "dataset.json").read_text())
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "998", "3d_fullres", "0", "-pretrained_weights", str(path)])

    def plans_with(patch: list[int]) -> dict:
        plans = {**deepcopy(content), "continue_training": False}
        plans["configurations"]["3d_fullres"]["patch_size"] = patch
        return plans

    def make(trainer: str, patch: list[int]):
        return getattr(trainers, trainer)(plans_with(patch), "3d_fullres", 0, dataset, torch.device("cpu"))

    trained = {"plans": plans_with([32, 16, 16]), "configuration": "3d_fullres"}
    torch.save({"network_weights": {}, "init_args": trained}, path)
    words = f"{path} was trained with the patch 32 x 16 x 16, and this configuration has 16 x 32 x 16"
    with pytest.raises(Refused, match=words):
        make("nnUNetTrainerNestedFormer", [16, 32, 16])
    assert not list(nnunet_folders.results.rglob("*"))
    make("nnUNetTrainerNestedFormer", [32, 16, 16])
    make("nnUNetTrainerLoGVMamba", [16, 32, 16])
    torch.save({"network_weights": {}}, path)
    make("nnUNetTrainerNestedFormer", [16, 32, 16])
