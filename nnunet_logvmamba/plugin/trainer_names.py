"""Trainers by name, and what a misspelt name was meant to be."""

from __future__ import annotations

import inspect
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from difflib import SequenceMatcher, get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_logvmamba.errors import Refused, UserError
from nnunet_logvmamba.plugin.recipes import WORDS
from nnunet_logvmamba.plugin.startup import EXT_FOLDER, VARIABLE
from nnunet_logvmamba.plugin.trainer_families import FAMILIES

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
    from torch import nn

PREFIX = "nnUNetTrainer"
GRAMMAR = f"{PREFIX}<Family>[_{'|_'.join(WORDS)}][_<N>epochs][_seed<K>]"
_NOWHERE = f"nnU-Net finds no trainer '{{name}}': our names are {GRAMMAR}, parts in this order"
CLOSE = 0.75
"""How alike (0 to 1, ``difflib``) a word and the name of a family must be, for the name to be one of ours."""

_UNITS = ("epochs", "epoch", "ep", "seed")
_NAME = re.compile(
    rf"{PREFIX}(?P<family>[A-Za-z0-9]+)"
    rf"(_(?P<recipe>{'|'.join(WORDS)}))?(_(?P<epochs>[1-9][0-9]*)epochs)?(_seed(?P<seed>0|[1-9][0-9]*))?"
)


def parts_of(name: str) -> tuple[str, dict] | None:
    """Give the family in a name and what its other parts set on a trainer; None if it is not as ``GRAMMAR`` says."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    epochs, seed = (None if match[unit] is None else int(match[unit]) for unit in ("epochs", "seed"))
    return match["family"], {"named_recipe": match["recipe"], "named_epochs": epochs, "named_seed": seed}


def not_ours(name: str) -> str | None:
    """Say that there is no trainer of a name and which of ours is the nearest; None if none is close."""
    nearest = nearest_name(name, tuple(FAMILIES))
    if nearest is None:
        return None
    return (
        f"There is no trainer '{name}', the nearest is {nearest}: names are {GRAMMAR}, parts in this order, with "
        f"<Family> one of {', '.join(FAMILIES)} (a trainer of your own needs its folder in {VARIABLE})."
    )


def check_trainer(name: str) -> None:
    """Refuse a name at once that nnU-Net can find nowhere: it is none of ours, and no file of nnU-Net's says it.

    With a user's own folder of trainers it is left to nnU-Net, which runs the files there.

    Raises:
        UserError: As :func:`find_trainer` does after seconds.
    """
    parts, spec = parts_of(name), find_spec("nnunetv2")
    others = {folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder.strip()} - {EXT_FOLDER}
    if (parts is not None and parts[0] in FAMILIES) or others or spec is None:
        return
    theirs = Path(next(iter(spec.submodule_search_locations or ())), "training", "nnUNetTrainer").rglob("*.py")
    if not any(name in file.read_text(encoding="utf-8") for file in theirs):
        raise UserError(not_ours(name) or _NOWHERE.format(name=name))


def find_trainer(name: str) -> type:
    """Give the trainer that nnU-Net finds by a name.

    Raises:
        UserError: If it finds none; the sentence has the nearest name of ours, or how they are made.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with redirect_stdout(io.StringIO()):  # where it looks is of interest to nobody here
            return recursive_find_trainer_class_by_name(name)
    except Refused as error:  # a name close to one of ours
        raise UserError(str(error)) from error
    except RuntimeError as error:
        raise UserError(_NOWHERE.format(name=name)) from error


def built_by(
    trainer: type, plans_manager: PlansManager, manager: ConfigurationManager, *options: int | bool
) -> nn.Module:
    """Build a trainer's network as nnU-Net does, which takes the arguments of releases before 2.8, too.

    Args:
        options: Numbers of channels and of outputs, and whether deep supervision is on, as for nnU-Net.
    """
    build: Callable = trainer.build_network_architecture  # type: ignore[attr-defined]  # of every trainer of nnU-Net
    if "plans_manager" in inspect.signature(build).parameters:
        return build(plans_manager, manager, *options)
    names = "network_arch_class_name", "network_arch_init_kwargs", "network_arch_init_kwargs_req_import"
    return build(*(getattr(manager, name) for name in names), *options)


def nearest_name(typed: str, families: Sequence[str]) -> str | None:
    """Give the valid name that is nearest to what was typed, None if that is not close to any family.

    Case, order, separators and slips of the pen do not matter; what means nothing is left out.

    Args:
        families: Words for ``<Family>``.
    """
    # Ahead of the family's name, numbers and known words are split off, whatever they are glued to.
    known = re.compile("|".join([*sorted(WORDS, key=len, reverse=True), "epochs?", "seed", "swin"]))
    words = re.findall("[a-z]+|[0-9]+", known.sub(r" \g<0> ", _without_prefix(typed).lower()))
    meanings = [word if word.isdigit() else _part(word) for word in words]
    unknown = [word for word, meaning in zip(words, meanings) if meaning is None and word != "swin"]
    spellings = {family: family.lower() for family in families}
    if "swin" in words:  # wherever it stands
        spellings = {family: text.replace("swin", "") for family, text in spellings.items() if "swin" in text}
    family = _nearest_family(unknown, spellings)
    if family is None:
        return None
    recipe = next((meaning for meaning in meanings if meaning in WORDS), None)
    numbers: dict[str, int] = {}
    for before, here, after in zip([None, *meanings], meanings, [*meanings[1:], None]):
        if here is not None and here.isdigit():
            # 5epochs and seed1 as they should be, then epochs5 and 1seed.
            right = [unit for unit, place in (("seed", before), ("epochs", after)) if place == unit]
            wrong = [unit for unit, place in (("epochs", before), ("seed", after)) if place == unit]
            unit = next((unit for unit in (*right, *wrong) if unit not in numbers), None)
            if unit is not None:
                numbers[unit] = int(here)
    parts = [] if recipe is None else [recipe]
    parts += [f"{numbers['epochs']}epochs"] if numbers.get("epochs") else []
    parts += [f"seed{numbers['seed']}"] if "seed" in numbers else []
    return "_".join([PREFIX + family, *parts])


def _without_prefix(typed: str) -> str:
    def likeness(end: int) -> float:
        return SequenceMatcher(None, typed[:end].lower(), PREFIX.lower()).ratio()

    end = max(range(min(len(typed), 2 * len(PREFIX)) + 1), key=likeness)
    return typed[end:] if likeness(end) > 0.6 else typed


def _part(word: str) -> str | None:
    """Which part of a name a word is: a recipe, ``epochs`` or ``seed``; None if it is none."""
    found = next(iter(get_close_matches(word, [*WORDS, *_UNITS], 1, 0.6)), None)
    return "epochs" if found in ("epoch", "ep") else found


def _nearest_family(words: Sequence[str], spellings: Mapping[str, str]) -> str | None:
    """The family whose spelling is closest to the first words, joined."""
    likeness = [
        (SequenceMatcher(None, "".join(words[:number]), text).ratio(), family)
        for number in range(1, len(words) + 1)
        for family, text in spellings.items()
    ]
    close, family = max(likeness, default=(0, None))
    return family if close >= CLOSE else None
