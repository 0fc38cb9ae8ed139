"""Trainers that stock nnU-Net finds by name: one recipe, one row per network family.

``trainer_names.GRAMMAR`` is how a trainer is named; the parts in brackets are made on demand.
"""

from __future__ import annotations

import os

from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnunet_logvmamba.errors import Refused
from nnunet_logvmamba.plugin.recipes import DEFAULT_RECIPE, OPTIMIZERS, RECIPES, Optimizer, Recipe
from nnunet_logvmamba.plugin.startup import EXT_FOLDER, VARIABLE
from nnunet_logvmamba.plugin.trainer_names import not_ours, parts_of

from .families import TRAINER_OF_FAMILY, made
from .recipe_trainer import RecipeTrainer
from .weights import _refuse_other_weights  # networks that were pickled whole name it here

__all__ = ["DEFAULT_RECIPE", "OPTIMIZERS", "RECIPES", "TRAINER_OF_FAMILY", "Optimizer", "Recipe", "RecipeTrainer"]
__all__ += ["_refuse_other_weights", "for_nnunet"]

globals().update({trainer.__name__: trainer for trainer in TRAINER_OF_FAMILY.values()})


def __getattr__(name: str):
    """Make a trainer whose name is as ``GRAMMAR`` says the first time it is asked for."""
    parts = parts_of(name)
    if parts is None or parts[0] not in TRAINER_OF_FAMILY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    family = TRAINER_OF_FAMILY[parts[0]]
    return globals().setdefault(name, made(name, family, family.__doc__, **parts[1]))


def for_nnunet(name: str):
    """Give what nnU-Net looks for in our folder; a name that is close to one of ours and is nobody's ends the search.

    Raises:
        AttributeError: If the name is not close to one of ours, or a trainer of the user in another folder has it.
        Refused: Otherwise; it names the nearest trainer.
    """
    try:
        return globals()[name] if name in globals() else __getattr__(name)
    except AttributeError:
        sentence = not_ours(name)
        if sentence is None or _is_in_another_folder(name):
            raise
    raise Refused(sentence)


def _is_in_another_folder(name: str) -> bool:
    """Whether nnU-Net would find a trainer in a folder of the user's that it has not come to yet."""
    for folder in os.environ.get(VARIABLE, "").split(os.pathsep):
        if os.path.isdir(folder) and not os.path.samefile(folder, EXT_FOLDER):
            found = recursive_find_python_class(folder, name, None, cleanup_imports_from_base_folder=True)
            if found is not None:
                return True
    return False
