"""The command ``logvmamba``: one file per sub-command, each with ``add_parser(subparsers)`` and ``run(args) -> int``.

All files are imported to build the help text, so they import torch and nnU-Net inside ``run``.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import sys
from collections.abc import Iterable, Sequence

from nnunet_logvmamba import __version__
from nnunet_logvmamba.cli import study
from nnunet_logvmamba.cli.options import examples
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.interrupts import ending_with_its_reader, unwinding

SUB_COMMANDS = (
    "doctor",
    "run",
    "study",
    "plan",
    "plans",
    "summary",
    "peers",
    "check",
    "adopt",
    "evaluate",
    "instances",
    "compare",
    "report",
    "export",
    "completion",
)


def build_parser() -> argparse.ArgumentParser:
    """Give the parser of ``logvmamba`` with all sub-commands; ``args.run`` is the function to call."""
    parser = argparse.ArgumentParser(
        prog="logvmamba",
        description="LoG-VMamba for stock nnU-Net v2. Training and prediction are nnU-Net's own commands.",
        **examples("reference/commands.md", "logvmamba doctor", "logvmamba plans --help"),
    )
    parser.add_argument("--version", action="version", version=f"logvmamba {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name in SUB_COMMANDS:
        command = importlib.import_module(f"{__name__}.{name}")
        command.add_parser(subparsers)
        subparsers.choices[name].set_defaults(run=command.run)
    return parser


def _parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse; what is unknown is answered with the usage of the sub-command and the nearest word that it knows."""
    choices = next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    if not words[0].startswith("-") and words[0] not in choices:
        parser.error(f"there is no command '{words[0]}'{_nearest(words[0], choices)}; there are {', '.join(choices)}")
    args, unknown = parser.parse_known_args(words)
    if unknown:
        own = _innermost(choices.get(words[0], parser), words[1:])
        hint = _nearest(unknown[0].partition("=")[0], own._option_string_actions)
        own.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return args


def _innermost(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the action that follows, where a sub-command has some."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and words and words[0] in action.choices:
            return action.choices[words[0]]
    return parser


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``logvmamba``; without arguments it prints its help.

    A polite kill (SIGTERM) or a closed terminal (SIGHUP) unwinds like Ctrl-C, so that no half of an output stays.

    Returns:
        The exit code: what the sub-command gives, 2 if the user has to put something right (one sentence on stderr),
        130 if interrupted. Where nobody reads on, as behind ``| head``, the program ends with 141.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # nor is every arrow in the encoding of every terminal
    try:
        with ending_with_its_reader():
            return _answer(words)
    except OSError as error:
        print(f"logvmamba: {error.filename or next(iter(words), 'help')}: {error.strerror or error}", file=sys.stderr)
        return 2


def _answer(words: Sequence[str]) -> int:
    parser = build_parser()
    if not words:
        parser.print_help()
        return 0
    args = _parsed(parser, study.with_action(words))
    try:
        with unwinding():
            return args.run(args)
    except UserError as error:
        print(f"logvmamba: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
