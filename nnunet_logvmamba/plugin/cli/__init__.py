"""The command ``logvmamba``: one file per sub-command, each with ``add_parser(subparsers)`` and ``run(args) -> int``.

All files are imported to build the help text, so they import torch and nnU-Net inside ``run``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from nnunet_logvmamba import __version__
from nnunet_logvmamba.plugin.errors import UserError

SUB_COMMANDS = ("doctor", "plans", "summary", "check", "evaluate", "instances", "compare", "report", "export")


def build_parser() -> argparse.ArgumentParser:
    """Give the parser of ``logvmamba`` with all sub-commands; ``args.run`` is the function to call."""
    parser = argparse.ArgumentParser(prog="logvmamba", description="LoG-VMamba for stock nnU-Net v2.")
    parser.add_argument("--version", action="version", version=f"logvmamba {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in SUB_COMMANDS:
        command = importlib.import_module(f"{__name__}.{name}")
        command.add_parser(subparsers)
        subparsers.choices[name].set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``logvmamba``; a polite kill (SIGTERM) unwinds like Ctrl-C, so that no half of an output stays.

    Returns:
        The exit code: what the sub-command gives, 2 if the user has to put something right (one sentence on stderr),
        130 if interrupted.
    """
    args = build_parser().parse_args(argv)
    previous = signal.signal(signal.SIGTERM, partial(_unwind, os.getpid()))
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


def _unwind(process: int, signum: int, frame: object) -> None:
    if os.getpid() != process:  # a forked worker has inherited this, and its pool ends it in this way
        os._exit(128 + signum)
    raise KeyboardInterrupt


def _unwind_again(hook: Callable[[Any], object], unraisable: Any) -> None:
    """Repeat an interrupt that fell into a destructor or a weak reference's callback, which cannot raise."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        hook(unraisable)
    elif hasattr(signal, "pthread_kill"):
        threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGTERM)).start()
    else:
        threading.Timer(0.05, signal.raise_signal, (signal.SIGTERM,)).start()
