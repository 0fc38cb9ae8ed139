"""``logvmamba completion``: a script with which a shell completes our commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from nnunet_logvmamba.cli.options import examples

SHELLS = ("bash", "zsh", "fish", "tcsh")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``completion`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "completion",
        help="print a script for the tab key of your shell",
        description="Print a script with which a shell completes commands, options, their choices and files. Its "
        "first lines say where to put it and what to add to the shell's settings; print it anew after an update.",
        **examples(
            "reference/commands.md#logvmamba-completion",
            "mkdir -p ~/.local/share/bash_completion",
            "logvmamba completion bash > ~/.local/share/bash_completion/logvmamba",
        ),
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from nnunet_logvmamba.cli import build_parser

    parser = build_parser()
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined] # an attribute that shtab looks for
        else:
            action.choices = getattr(action.type, "choices", action.choices)
    print(shtab.complete(parser, args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
