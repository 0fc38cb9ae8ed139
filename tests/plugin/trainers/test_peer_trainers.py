"""Systems of others under stock commands: each is trained and predicts, and says at once what it cannot take."""

import numpy as np
import pytest
from small_project import SETTINGS, TRAIN, Project, voxels

from nnunet_logvmamba.networks import catalogue

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
