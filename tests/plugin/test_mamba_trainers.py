"""U-Mamba and SegMamba by their trainers: stock nnU-Net trains them on its own plan, and predicts."""

import numpy as np
import pytest
from small_project import segmentations, voxels

from nnunet_logvmamba.networks import catalogue

# What makes those small whose size is not the plan's.
SMALL = {
    "SegMamba": ("features_per_stage=[4,4,8,8]", "n_blocks_per_stage=[1,1,1,1]", "hidden_size=8"),
}
PEERS = [
    pytest.param(network, dims, id=f"{network.name}-{dims}D")
    for network in catalogue.NETWORKS
    if network.home in ("peers.umamba", "peers.segmamba")
    for dims in network.dims
]


@pytest.mark.slow
@pytest.mark.parametrize(("network", "dims"), PEERS)
def test_a_peer_is_trained_on_the_plan_by_its_trainer_and_predicts(network, dims, own_planned, new_images, tmp_path):
    trainer, base = f"nnUNetTrainer{network.trainer}", {2: "2d_narrow", 3: "3d_fullres_narrow"}[dims]
    small = SMALL.get(network.name)
    options = ("--keep-network",) if small is None else ("--network", network.name, "--set", *small)
    own_planned.configure(base, "tiny", *options, num_epochs=1, num_iterations_per_epoch=2)
    fold = own_planned.train("tiny", trainer=trainer)
    assert (fold.checkpoint["trainer_name"], fold.epochs) == (trainer, 1)
    assert np.isfinite(fold.checkpoint["logging"]["train_losses"]).all()
    parameters = fold.checkpoint["network_weights"].values()
    assert max(value.ndim for value in parameters) == dims + 2
    written = own_planned.predict(new_images, tmp_path / "predicted", "tiny", trainer=trainer)
    assert len(written) == len(list(new_images.glob("*_0000.nii.gz"))) == 2
    for path in segmentations(tmp_path / "predicted"):
        assert voxels(path).shape == voxels(new_images.with_name("labelsTr") / path.name).shape


@pytest.mark.slow
def test_a_network_for_3d_alone_refuses_a_2d_plan_and_writes_nothing(own_planned):
    command = ("nnUNetv2_train", own_planned.number, "2d_narrow", 0, "-tr", "nnUNetTrainerSegMamba", "-device", "cpu")
    done = own_planned.run(*command, check=False)
    assert done.returncode != 0
    assert "SegMamba is a 3D network and this configuration is 2D" in done.stderr.strip().splitlines()[-1]
    assert not any(own_planned.folders.results.rglob("*"))
