"""What a network says of itself, so that nobody has to know which one it is."""

from copy import deepcopy
from typing import Any, ClassVar

from torch import nn

from nnunet_logvmamba.networks.costs import Stage


class PlannedNetwork(nn.Module):
    """A network that nnU-Net can build from plans; each says below what holds for it, where it is not the usual.

    Its constructor takes ``input_channels``, ``num_classes``, ``deep_supervision`` and what ``from_plan`` gives, all of
    it in words of JSON but for classes of torch. It returns ``(batch, num_classes, *spatial)``, or with
    ``decoder.deep_supervision`` on, which nnU-Net switches, a list of all scales, finest first.

    Attributes:
        dims: Numbers of spatial axes that it can be built for.
        pads_itself: Whether it takes images that its strides do not divide.
        smallest_input: Voxels per axis that a patch must have.
        any_patch: Whether one checkpoint serves every patch size.
        pretrainable: Whether its ``encoder`` can start from published weights.
        preset: ``arguments`` of the published network and the ``patch_size`` it was published for, if it was.
        plan_arguments: Arguments that are the plan's to say; all others are knobs.
    """

    dims: ClassVar[tuple[int, ...]] = (2, 3)
    pads_itself: ClassVar[bool] = False
    smallest_input: ClassVar[int] = 1
    any_patch: ClassVar[bool] = True
    pretrainable: ClassVar[bool] = False
    preset: ClassVar[dict[str, Any]] = {}
    plan_arguments: ClassVar[tuple[str, ...]] = (
        "n_stages",
        "features_per_stage",
        "conv_op",
        "kernel_sizes",
        "strides",
        "conv_bias",
        "norm_op",
        "norm_op_kwargs",
        "dropout_op",
        "dropout_op_kwargs",
        "nonlin",
        "nonlin_kwargs",
    )

    @classmethod
    def from_plan(cls, planned: dict[str, Any]) -> dict[str, Any]:
        """Give the arguments that follow from a U-Net that nnU-Net planned; knobs come on top.

        Args:
            planned: Its ``arch_kwargs``; not changed.
        """
        return {name: deepcopy(planned[name]) for name in cls.plan_arguments if name in planned}

    def costs_by_stage(self) -> list[Stage]:
        """Give the stages whose costs are shown apart; none means the modules that it is made of."""
        return []
