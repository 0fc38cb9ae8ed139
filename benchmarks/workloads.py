"""What is measured: shapes of the scan and networks, the same for every benchmark."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

STATE_SIZE = 16


@dataclass(frozen=True)
class ScanSize:
    """One scan: where it comes from, and (batch, length, channels)."""

    source: str
    batch: int
    channels: int
    length: int

    @property
    def name(self) -> str:
        return f"({self.batch}, {self.channels}, {self.length})"

    @property
    def states(self) -> int:
        """Number of exponentials, batch * length * channels * state."""
        return self.batch * self.length * self.channels * STATE_SIZE


# The paper's networks: encoder stages of the 3D one at 128 x 128 x 128, decoder stages of the 2D one at 512 x 512; and
# the two larger stages of a patch of 40 x 56 x 40.
SCANS = (
    ScanSize("3D, 128³, stage 0", 2, 54, 262144),
    ScanSize("3D, 128³, stage 1", 2, 108, 32876),
    ScanSize("3D, 128³, stage 2", 2, 216, 4312),
    ScanSize("3D, 128³, stage 3", 2, 256, 640),
    ScanSize("3D, 128³, stage 4", 2, 320, 104),
    ScanSize("2D, 512², stage 1", 2, 216, 16600),
    ScanSize("2D, 512², stage 2", 2, 432, 4528),
    ScanSize("2D, 512², stage 3", 2, 864, 1456),
    ScanSize("3D, 40×56×40, stage 0", 2, 54, 11200),
    ScanSize("3D, 40×56×40, stage 1", 2, 108, 1508),
)
# At which forward + backward of the reference is compared, since its backward takes quadratic time in autograd.
SCAN_AT_2048 = ScanSize("length 2048", 2, 54, 2048)
# Growth with the length, for the plot.
LENGTHS = tuple(2**power for power in range(10, 21, 2))
LENGTH_BATCH, LENGTH_CHANNELS = 1, 64


@dataclass(frozen=True)
class NetworkPlan:
    """A plan as nnU-Net makes it, and what is done with it."""

    name: str
    input_channels: int
    num_classes: int
    features: tuple[int, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    training: bool

    @property
    def plan(self) -> dict:
        """Arguments that all networks share which follow a plan."""
        stages, dims = len(self.features), len(self.patch_size)
        return {
            "input_channels": self.input_channels,
            "num_classes": self.num_classes,
            "n_stages": stages,
            "features_per_stage": list(self.features),
            "conv_op": {2: nn.Conv2d, 3: nn.Conv3d}[dims],
            "kernel_sizes": [[3] * dims] * stages,
            "strides": [[1] * dims] + [[2] * dims] * (stages - 1),
            "conv_bias": True,
            "norm_op": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims],
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": nn.LeakyReLU,
            "nonlin_kwargs": {"inplace": True},
        }


HIPPOCAMPUS = NetworkPlan("hippocampus", 1, 3, (32, 64, 128, 256), (40, 56, 40), 2, True)
BRATS = NetworkPlan("brats", 4, 4, (32, 64, 128, 256, 320, 320), (128, 128, 128), 1, False)
PICTURES = NetworkPlan("pictures", 3, 3, (32, 64, 128, 256, 512, 512, 512, 512), (512, 512), 1, True)
PICTURES_PREDICTION = replace(PICTURES, name="pictures-prediction", training=False)
CUBE = NetworkPlan("cube", 4, 3, (32, 64, 128, 256, 320), (64, 64, 64), 1, True)
TINY = NetworkPlan("tiny", 1, 3, (32, 64, 128), (16, 16, 16), 1, True)
PEERS = (HIPPOCAMPUS, CUBE, PICTURES)
"""On which every network of the catalogue is measured."""
PATCHES = tuple(
    replace(HIPPOCAMPUS, name=name, patch_size=size, batch_size=1, training=False)
    for name, size in (("hippocampus-prediction", HIPPOCAMPUS.patch_size), ("cube-prediction", (48, 48, 48)))
)
"""Predicted one by one, as nnU-Net does."""
NETWORKS = (HIPPOCAMPUS, BRATS, PICTURES, PICTURES_PREDICTION)
