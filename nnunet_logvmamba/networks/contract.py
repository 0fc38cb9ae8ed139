"""What a network says of itself, so that nobody has to know which one it is."""

import inspect
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from nnunet_logvmamba.networks import catalogue
from nnunet_logvmamba.networks.blocks.arguments import PLAIN_WORDS, in_our_words, known_arguments, refuse_unknown
from nnunet_logvmamba.networks.costs import Stage
from nnunet_logvmamba.networks.finite import refuse_weights, watched
from nnunet_logvmamba.networks.prediction import quick

if TYPE_CHECKING:
    from typing_extensions import Self


class PlannedNetwork(nn.Module):
    """A network that nnU-Net can build from plans; each says below what holds for it, where it is not the usual.

    Its constructor takes ``input_channels``, ``num_classes``, ``deep_supervision`` and what ``from_plan`` gives, all of
    it in words of JSON but for classes of torch. It returns ``(batch, num_classes, *spatial)``, or with
    ``decoder.deep_supervision`` on, which nnU-Net switches, a list of all scales, finest first.

    Numbers that are not finite never become a mask: weights that hold any are refused when they are loaded, and in
    evaluation mode so are logits, but in what ``torch.export`` and ``torch.jit.trace`` make of the network.

    One patch on a CPU is predicted by faster ways to the same values, see ``prediction.py``.

    Attributes:
        dims: Numbers of spatial axes that it can be built for.
        pads_itself: Whether it takes images that its strides do not divide.
        smallest_input: Voxels per axis that a patch must have.
        any_patch: Whether one checkpoint serves every patch size; one that does not takes ``patch_size``.
        deep_supervised: Whether it has an output per scale; else it returns a tensor always.
        pretrainable: Whether its ``encoder`` can start from published weights.
        preset: ``arguments`` of the published network and the ``patch_size`` it was published for, if it was.
        plan_arguments: Arguments that are the plan's to say; all others are knobs.
    """

    dims: ClassVar[tuple[int, ...]] = (2, 3)
    pads_itself: ClassVar[bool] = False
    smallest_input: ClassVar[int] = 1
    any_patch: ClassVar[bool] = True
    deep_supervised: ClassVar[bool] = True
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

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "forward" in vars(cls):
            cls.forward = watched(quick(cls.forward))  # type: ignore[method-assign]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # Called for every way to load weights, alone, compiled or as a part, before any of them is copied.
        refuse_weights(state_dict)
        super()._load_from_state_dict(state_dict, prefix, *others)

    @property
    def is_of_one_patch(self) -> bool:
        """Whether its weights are those of the patch that it was built for."""
        return not self.any_patch

    @classmethod
    def from_plan(cls, planned: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
        """Give the arguments that follow from a U-Net that nnU-Net planned; knobs come on top.

        What is given as ``strides`` is where nnU-Net reads the scales of deep supervision.

        Args:
            planned: Its ``arch_kwargs``; not changed.
            patch_size: Voxels per axis of the plan's patch.
        """
        return {name: deepcopy(planned[name]) for name in cls.plan_arguments if name in planned}

    @classmethod
    @known_arguments
    def from_preset(cls, preset: str, **overrides: Any) -> "Self":
        """Build a published size, with other channels or any other argument.

        Example:
            >>> network = LoGVMambaUNet.from_preset("paper3d", in_channels=1, out_channels=2)

        Args:
            preset: Word of a size of this class.
            overrides: Arguments of the class, which win; ``in_channels`` is another word for ``input_channels``,
                ``out_channels`` for ``num_classes``; ``spatial_dims`` must be those of the preset.

        Raises:
            ValueError: If there is no such preset, it is that of another class or number of axes, or an argument is
                unknown, named twice or does not fit.
        """
        if preset not in tuple(catalogue.PRESETS):  # a dict cannot be asked for a list
            raise ValueError(f"there is no preset {preset!r}; there are {', '.join(map(repr, catalogue.PRESETS))}")
        owner = catalogue.PRESETS[preset].name
        if owner not in [base.__name__ for base in cls.__mro__]:
            raise ValueError(f"the preset {preset!r} is a {owner}: use {owner}.from_preset({preset!r}, ...)")
        axes = len(cls.preset["patch_size"])
        if overrides.get("spatial_dims", axes) != axes:
            raise ValueError(f"the preset {preset!r} has {axes} spatial axes, not {overrides['spatial_dims']!r}")
        known = [*inspect.signature(cls).parameters, *PLAIN_WORDS, "spatial_dims"]
        refuse_unknown(f"{cls.__name__}.from_preset", overrides, known)
        others = {name: value for name, value in overrides.items() if name != "spatial_dims"}
        return cls(**{**deepcopy(cls.preset["arguments"]), **in_our_words(others)})

    def costs_by_stage(self) -> list[Stage]:
        """Give the stages whose costs are shown apart; none means the modules that it is made of."""
        return []
