"""Trainers by name, and what a misspelt name was meant to be."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from difflib import SequenceMatcher, get_close_matches

from nnunet_logvmamba.errors import Refused, UserError
from nnunet_logvmamba.plugin.recipes import WORDS

PREFIX = "nnUNetTrainer"
GRAMMAR = f"{PREFIX}<Family>[_{'|_'.join(WORDS)}][_<N>epochs][_seed<K>]"
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
        raise UserError(f"nnU-Net finds no trainer '{name}': our names are {GRAMMAR}, parts in this order") from error


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
