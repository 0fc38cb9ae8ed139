"""How weights are updated: kinds of optimizers, and recipes by the words of trainers' names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import optim


@dataclass(frozen=True)
class Optimizer:
    """A kind of optimizer.

    Attributes:
        make: Makes one from groups of parameters and ``lr``; groups carry their own ``weight_decay``.
        copies: Of every weight while training: itself, its gradient, and one or two running means.
    """

    make: Callable[..., optim.Optimizer]
    copies: int


OPTIMIZERS = {
    "adam": Optimizer(optim.Adam, 4),
    "adamw": Optimizer(optim.AdamW, 4),
    "sgd": Optimizer(partial(optim.SGD, momentum=0.99, nesterov=True), 3),
}
"""By the word of a configuration's ``optimizer``; each has a recipe of the same name."""


@dataclass(frozen=True)
class Recipe:
    """The optimizer, its first learning rate and its weight decay: coupled (L2), but for ``adamw`` decoupled.

    Raises:
        ValueError: If there is no such optimizer; the message names those that there are.
    """

    optimizer: str
    initial_lr: float
    weight_decay: float

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {self.optimizer!r} of a recipe; valid are {', '.join(OPTIMIZERS)}")


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

WORDS = tuple(sorted([*RECIPES, PUBLISHED]))

DEFAULT_RECIPE = RECIPES["adam"]
"""Used where neither the trainer's name nor the configuration names an optimizer; the best one in docs/results.md."""
