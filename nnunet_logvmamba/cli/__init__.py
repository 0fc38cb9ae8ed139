"""The command ``logvmamba``: one file per sub-command, each with ``add_parser(subparsers)`` and ``run(args) -> int``.

All files are imported to build the help text, so they import torch and nnU-Net inside ``run``.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from nnunet_logvmamba import __version__
from nnunet_logvmamba.cli.options import examples
from nnunet_logvmamba.errors import UserError

SUB_COMMANDS = (
    "doctor",
    "run",
    "plans",
    "summary",
    "check",
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
        own = choices[words[0]]
        hint = _nearest(unknown[0].partition("=")[0], own._option_string_actions)
        own.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return args


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``logvmamba``; without arguments it prints its help.

    A polite kill (SIGTERM) unwinds like Ctrl-C, so that no half of an output stays.

    Returns:
        The exit code: what the sub-command gives, 2 if the user has to put something right (one sentence on stderr),
        130 if interrupted.
    """
    parser = build_parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help()
        return 0
    args = _parsed(parser, sys.argv[1:] if argv is None else list(argv))
    previous = signal.signal(signal.SIGTERM, _unwind)
    hook, sys.unraisablehook = sys.unraisablehook, partial(_unwind_again, sys.unraisablehook)
    try:
        return args.run(args)
    except UserError as error:
        print(f"logvmamba: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"logvmamba: {error.filename or args.command}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, previous)


def _unwind(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _change_mask(how: int) -> None:
    if signal.getsignal(signal.SIGTERM) is _unwind:
        signal.pthread_sigmask(how, {signal.SIGTERM})


def _end_at_once() -> None:
    """Let a forked worker end as others do: its pool kills it politely, and a handler in Python may come too late.

    A worker that is about to wait for its next task would note the signal and wait, and its pool would wait for it.
    """
    if signal.getsignal(signal.SIGTERM) is _unwind:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # and a kill that came meanwhile takes effect


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=partial(_change_mask, signal.SIG_BLOCK),
        after_in_parent=partial(_change_mask, signal.SIG_UNBLOCK),
        after_in_child=_end_at_once,
    )


def _unwind_again(hook: Callable[[Any], object], unraisable: Any) -> None:
    """Repeat an interrupt that fell into a destructor or a weak reference's callback, which cannot raise."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        hook(unraisable)
    elif hasattr(signal, "pthread_kill"):
        threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGTERM)).start()
    else:
        threading.Timer(0.05, signal.raise_signal, (signal.SIGTERM,)).start()
