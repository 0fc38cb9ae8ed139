"""Every network in one row: what can be said of it without loading it.

Loading one may be slow (that of another library brings the library along), so all but those who build it read rows.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from nnunet_logvmamba.errors import UserError

if TYPE_CHECKING:
    from nnunet_logvmamba.networks.contract import PlannedNetwork


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        path: Dotted path of its class that plans on users' disks hold; it never moves.
        home: Module where the class is written, below this folder.
        dims: Numbers of spatial axes that it can be built for.
        trainer: Family in the name of its trainer, ``nnUNetTrainer<Family>``.
        recipe: Word of the recipe that it was published with.
        paper: Where it was published.
        licence: Of the authors' code.
        line: What it is, in one line.
        preset: Word for its published size, which stands in the class as ``preset``; None without one.
        parameters: Number of parameters of that size.
        weights: Published weights that a training can start from; None without any.
        package: Module to install for it beyond what this package needs; None without one.
    """

    path: str
    home: str
    dims: tuple[int, ...]
    trainer: str
    recipe: str
    paper: str
    licence: str
    line: str
    preset: str | None = None
    parameters: int | None = None
    weights: str | None = None
    package: str | None = None

    @property
    def name(self) -> str:
        """Name of the class."""
        return self.path.rpartition(".")[2]

    @property
    def obstacle(self) -> str | None:
        """Why the class cannot be had, with the remedy; None if nothing is missing."""
        if self.package is None or find_spec(self.package) is not None:
            return None
        return f"{self.name} needs {self.package}, which is not installed: pip install {self.package}"

    def load(self) -> type[PlannedNetwork]:
        """Import and give the class.

        Raises:
            UserError: If the package that it needs is not installed.
        """
        if self.obstacle is not None:
            raise UserError(self.obstacle)
        return getattr(importlib.import_module(f"{__package__}.{self.home}"), self.name)


NETWORKS = (
    Network(
        path="nnunet_logvmamba.networks.LoGVMambaUNet",
        home="log_vmamba.unet",
        dims=(2, 3),
        trainer="LoGVMamba",
        recipe="paper",
        paper="arXiv:2408.14415",
        licence="none stated",
        line="the U-Net of nnU-Net's plan with token-mixing blocks in its encoder",
        preset="paper3d",
        parameters=20_551_641,
    ),
    Network(
        path="nnunet_logvmamba.networks.LoGVMambaSwinUNet",
        home="log_vmamba.swin_unet",
        dims=(2,),
        trainer="LoGVMambaSwin",
        recipe="paper",
        paper="arXiv:2408.14415",
        licence="none stated",
        line="the paper's 2D network",
        preset="paper2d",
        parameters=30_389_092,
        weights="VMamba-Tiny encoder, ImageNet",
    ),
    Network(
        path="nnunet_logvmamba.networks.UMambaBot",
        home="peers.umamba",
        dims=(2, 3),
        trainer="UMambaBot",
        recipe="umamba",
        paper="arXiv:2401.04722",
        licence="Apache-2.0",
        line="the residual U-Net of nnU-Net's plan with one Mamba layer at the bottom",
        preset="umamba_bot3d",
        parameters=42_123_887,
    ),
    Network(
        path="nnunet_logvmamba.networks.UMambaEnc",
        home="peers.umamba",
        dims=(2, 3),
        trainer="UMambaEnc",
        recipe="umamba",
        paper="arXiv:2401.04722",
        licence="Apache-2.0",
        line="the residual U-Net of nnU-Net's plan with Mamba layers behind the stages of its encoder",
        preset="umamba_enc3d",
        parameters=42_754_415,
    ),
    Network(
        path="nnunet_logvmamba.networks.SegMamba",
        home="peers.segmamba",
        dims=(3,),
        trainer="SegMamba",
        recipe="segmamba",
        paper="arXiv:2401.13560",
        licence="none stated",
        line="Mamba layers in three directions and a convolutional decoder, of its own size whatever the plan",
        preset="segmamba3d",
        parameters=67_416_196,
    ),
    Network(
        path="nnunet_logvmamba.networks.MonaiUNet",
        home="peers.monai_networks",
        dims=(2, 3),
        trainer="UNet",
        recipe="paper",
        paper="STACOM 2018",
        licence="Apache-2.0 (MONAI)",
        line="MONAI's U-Net of residual units (Kerfoot et al.), with the plan's strides",
        preset="unet3d",
        parameters=4_810_074,
    ),
    Network(
        path="nnunet_logvmamba.networks.UNETR",
        home="peers.monai_networks",
        dims=(2, 3),
        trainer="UNETR",
        recipe="paper",
        paper="arXiv:2103.10504",
        licence="Apache-2.0 (MONAI)",
        line="MONAI's UNETR: a vision transformer with a convolutional decoder",
        preset="unetr3d",
        parameters=102_468_147,
        package="einops",
    ),
    Network(
        path="nnunet_logvmamba.networks.SwinUNETR",
        home="peers.monai_networks",
        dims=(2, 3),
        trainer="SwinUNETR",
        recipe="paper",
        paper="arXiv:2201.01266",
        licence="Apache-2.0 (MONAI)",
        line="MONAI's Swin UNETR: attention in shifted windows with a convolutional decoder",
        preset="swin_unetr3d",
        parameters=62_191_941,
        package="einops",
    ),
    Network(
        path="nnunet_logvmamba.networks.NestedFormer",
        home="peers.nested_former",
        dims=(3,),
        trainer="NestedFormer",
        recipe="nested_former",
        paper="arXiv:2208.14876",
        licence="Apache-2.0",
        line="NestedFormer: an encoder per image channel, whose deepest maps are fused by nested attention",
        preset="nested_former3d",
        parameters=10_575_097,
    ),
    Network(
        path="nnunet_logvmamba.networks.EoFormer",
        home="peers.eoformer",
        dims=(3,),
        trainer="EoFormer",
        recipe="eoformer",
        paper="MICCAI 2023",
        licence="none stated",
        line="EoFormer: a transformer whose decoder looks for edges",
        preset="eoformer3d",
        parameters=6_377_591,
    ),
    Network(
        path="nnunet_logvmamba.networks.SwinUMamba",
        home="peers.swin_umamba",
        dims=(2,),
        trainer="SwinUMamba",
        recipe="swin_umamba",
        paper="arXiv:2402.03302",
        licence="Apache-2.0",
        line="Swin-UMamba: a VMamba encoder behind a stem and a convolutional decoder, its own size whatever the plan",
        preset="swin_umamba2d",
        parameters=59_886_344,
        weights="VMamba-Tiny encoder, ImageNet, without its patch embedding",
    ),
)
DEFAULT = NETWORKS[0]
"""What is built where nothing names a network."""

NAMES = {network.name: network for network in NETWORKS}
PATHS = {network.path: network for network in NETWORKS}
PRESETS = {network.preset: network for network in NETWORKS if network.preset is not None}
PRETRAINABLE = " or ".join(network.name for network in NETWORKS if network.weights is not None)


def row(word: str) -> Network:
    """Give a network by its name or by its dotted path.

    Raises:
        UserError: If there is none.
    """
    found = NAMES.get(word) or PATHS.get(word)
    if found is None:
        raise UserError(f"there is no network '{word}'; there are {', '.join(NAMES)}")
    return found
