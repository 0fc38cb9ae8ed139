"""Options that several sub-commands share, and what they ask of numbers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.metrics import metric_name

DOCS = "docs"
"""Where the pages of the documentation are that help texts name; a test looks whether each is there."""


class HelpFormatter(argparse.HelpFormatter):
    """Argparse's own, but a text of several lines stays as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def examples(page: str, *commands: str) -> dict:
    """Give the arguments of a parser whose help ends with commands that can be copied and a page of the docs."""
    word = "example" if len(commands) == 1 else "examples"
    lines = [f"{word}:", *(f"  {command}" for command in commands), "", f"more: {DOCS}/{page}"]
    return {"epilog": "\n".join(lines), "formatter_class": HelpFormatter}


def at_least(least: float, kind: type = float) -> Callable[[str], float]:
    """Give a parser of finite numbers that are not below ``least``; ``kind`` is float or int."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(
                f"must be a {'whole ' if kind is int else ''}number of at least {least}, not '{text}'"
            )
        return value

    return parse


def metric(names: Sequence[str]) -> Callable[[str], str]:
    """Give a parser of the names of these metrics, in any capitalisation."""

    def parse(text: str) -> str:
        try:
            return metric_name(text, names)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    parse.choices = tuple(names)  # type: ignore[attr-defined] # an attribute that our completion looks for
    return parse


def above_zero(text: str) -> float:
    """Parse a finite number above 0."""
    value = at_least(0)(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def share(text: str) -> float:
    """Parse a number above 0 and at most 1."""
    value = above_zero(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {text}")
    return value


class Noted(argparse.Action):
    """Stores a value as argparse does, and notes in ``given`` that it was asked for, though it may be the default."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values)
        namespace.given = {*getattr(namespace, "given", ()), self.dest}


def add_assignments(parser: argparse._ActionsContainer, option: str, dest: str, what: str, text: str) -> None:
    """Add an option that takes ``NAME=VALUE`` words, also several times; :func:`assignments` reads them."""
    parser.add_argument(option, dest=dest, nargs="+", action="extend", default=[], metavar=f"{what}=VALUE", help=text)


def assignments(option: str, words: Sequence[str]) -> dict:
    """Read ``NAME=VALUE`` from the words of an option; values are JSON or else plain words.

    Raises:
        UserError: If a word is not so, or names what another one has named.
    """
    values = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign or not name:
            raise UserError(f"{option} takes NAME=VALUE, not '{word}'")
        if name in values:
            raise UserError(f"{option} names '{name}' twice")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text  # a word such as head
    return values


def add_scoring(parser: argparse._ActionsContainer) -> None:
    """Add which cases are scored, and how their instances match: ``--predicted-only --iou --border --tile``."""
    parser.add_argument(
        "--predicted-only", action="store_true", help="score the predicted cases though there are more references"
    )
    parser.add_argument(
        "--iou", action=Noted, type=share, default=0.5, help="least IoU of matching instances (default: %(default)s)"
    )
    parser.add_argument(
        "--border",
        action=Noted,
        type=at_least(0, int),
        default=2,
        metavar="PX",
        help="leave out instances within so many pixels of the border, in both maps, in volumes also of the first and "
        "last slice; 2 is the challenge's rule, 0 keeps all (default: %(default)s)",
    )
    parser.add_argument(
        "--tile",
        action=Noted,
        type=at_least(1, int),
        metavar="PX",
        help="match instances within squares of this size, which cuts cells; only to compare with published scores of "
        "very large images",
    )


def add_working(parser: argparse._ActionsContainer, target: str) -> None:
    """Add ``--overwrite`` and ``--jobs``; ``target`` is what the help calls the folder that is written to."""
    parser.add_argument("--overwrite", action="store_true", help=f"replace files of the same name in {target}")
    parser.add_argument("--jobs", type=at_least(1, int), metavar="N", help="processes (default: one per core)")
