"""How weights are updated: kinds of optimizers, and recipes by the words of trainers' names.

torch is imported where something is made, for commands ask for names alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn, optim
    from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True)
class Optimizer:
    """A kind of optimizer.

    Attributes:
        name: Of the class in ``torch.optim``.
        copies: Of every weight while training: itself, its gradient, and one or two running means.
        arguments: Of the class, beside groups of parameters, which carry their own ``weight_decay``, and ``lr``.
    """

    name: str
    copies: int
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def make(self, groups: list[dict], **arguments: Any) -> optim.Optimizer:
        """Make one."""
        from torch import optim

        return getattr(optim, self.name)(groups, **self.arguments, **arguments)


OPTIMIZERS = {
    "adam": Optimizer("Adam", 4),
    "adamw": Optimizer("AdamW", 4),
    "sgd": Optimizer("SGD", 3, {"momentum": 0.99, "nesterov": True}),
}
"""By the word of a configuration's ``optimizer``; each has a recipe of the same name."""


OF_RECIPES = frozenset({"weight_decay", "betas", "eps", "momentum", "nesterov"})
"""What a recipe says of the optimizer, by torch's words, beside the learning rate, which a schedule sets."""

LOSSES = {"dice_ce": (1, 1), "ce": (0, 1), "dice": (1, 0)}
"""Weights of nnU-Net's two losses, soft Dice and cross-entropy (of regions binary), by the word of a recipe."""


@dataclass(frozen=True)
class Recipe:
    """The optimizer, its first learning rate and its weight decay: coupled (L2), but for ``adamw`` decoupled.

    Attributes:
        eps: Of Adam's denominator; None means PyTorch's.
        decays_all: Whether biases, norms and marked parameters are decayed too.
        schedule: ``poly``, nnU-Net's own with the exponent 0.9, or ``cosine``.
        final_lr: Where the cosine ends.
        warm_up: Share of the epochs, at most 50 of them, in which the rate rises to its first value.
        loss: Word of ``LOSSES``.

    Raises:
        ValueError: If there is no such optimizer; the message names those that there are.
    """

    optimizer: str
    initial_lr: float
    weight_decay: float
    eps: float | None = None
    decays_all: bool = False
    schedule: str = "poly"
    final_lr: float = 0.0
    warm_up: float = 0.0
    loss: str = "dice_ce"

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {self.optimizer!r} of a recipe; valid are {', '.join(OPTIMIZERS)}")

    def facts(self) -> dict[str, Any]:
        """What stands out: optimizer, rate and decay, and all else that is not as usual."""
        usual = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != usual[name]}

    def make_optimizer(self, network: nn.Module) -> optim.Optimizer:
        """Give the optimizer of a network; what is not decayed is a group of its own."""
        decayed: list[nn.Parameter] = []
        kept: list[nn.Parameter] = []
        # By name, for copies and loaded weights are other parameters; modules of others bear the mark of mamba-ssm.
        named = {
            parameter
            for module in network.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if name in getattr(module, "undecayed", ())
        }
        for parameter in network.parameters():
            free = parameter.ndim <= 1 or parameter in named or getattr(parameter, "_no_weight_decay", False)
            (kept if free and not self.decays_all else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": kept, "weight_decay": 0.0}]
        options = {} if self.eps is None else {"eps": self.eps}
        return OPTIMIZERS[self.optimizer].make(groups, lr=self.initial_lr, **options)

    def make_schedule(self, optimizer: optim.Optimizer, epochs: int) -> LRScheduler:
        """Give the schedule of a training of so many epochs."""
        from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

        from nnunet_logvmamba.plugin.schedules import CosineSchedule

        if self.schedule == "poly":
            return PolyLRScheduler(optimizer, self.initial_lr, epochs)
        return CosineSchedule(optimizer, epochs, min(50, int(self.warm_up * epochs)), self.final_lr)


RECIPES = {
    "adam": Recipe("adam", 1e-3, 1e-4),
    "adamw": Recipe("adamw", 1e-3, 1e-2),
    "paper": Recipe("adam", 1e-4, 1e-4),
    "sgd": Recipe("sgd", 1e-2, 3e-5),
}
"""By the word in a trainer's name: ``adam`` has ten times the paper's learning rate, ``adamw`` PyTorch's own values,
``paper`` is the recipe of LoG-VMamba's paper, ``sgd`` (Nesterov, 0.99) nnU-Net's. A configuration that names the
optimizer of a trainer's default recipe gets that one, another optimizer the recipe of its name."""

PUBLISHED = "published"
"""In a trainer's name: the recipe that its network was published with, whichever of ``RECIPES`` that is."""

PUBLISHED_RECIPES = {
    **RECIPES,
    "eoformer": Recipe("adamw", 2e-4, 1e-5, decays_all=True, schedule="cosine", warm_up=1 / 6),
    "nested_former": Recipe("adamw", 1e-4, 1e-5, decays_all=True, schedule="cosine", warm_up=1 / 6, loss="dice"),
    "segmamba": Recipe("sgd", 1e-2, 3e-5, decays_all=True, loss="ce"),
    "swin_umamba": Recipe("adamw", 1e-4, 0.05, eps=1e-5, decays_all=True, schedule="cosine", final_lr=1e-6),
    "umamba": Recipe("sgd", 1e-2, 3e-5, decays_all=True),
}
"""By the word of a row in the catalogue of networks. Epochs, iterations, augmentation and clipping stay nnU-Net's."""

WORDS = tuple(sorted([*RECIPES, PUBLISHED]))

DEFAULT_RECIPE = RECIPES["adam"]
"""Used where neither the trainer's name nor the configuration names an optimizer; the best one in docs/results.md."""
