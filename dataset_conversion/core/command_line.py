"""The command line of every converter: options, exit codes, and what is said when it fails."""

import argparse
import functools
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dataset_conversion.core import staging
from dataset_conversion.core.cases import ConversionError

CONVERT, IMAGES_ONLY, RESTORE = "a conversion", "--images-only", "--restore"
"""What a converter can be asked for."""

PAGE = "dataset_conversion/README.md"
"""The documentation of all converters, in the checkout that they run from."""


def run(command: Callable[[], object]) -> int:
    """Run a command and turn what a user can put right into one sentence on stderr.

    A polite kill (SIGTERM) or a terminal that is closed (SIGHUP, unless nohup has it ignored) unwinds like Ctrl-C, so
    that staged folders are removed. Programming errors keep their traceback.

    Returns:
        Exit code: 0, 2 for an error of the user's or the disk's, 130 when interrupted, 141 where nobody reads on what
        is printed, as behind ``| head``.
    """
    previous = {
        which: signal.signal(which, _interrupt)
        for which in (signal.SIGTERM, getattr(signal, "SIGHUP", None))  # Windows has no SIGHUP
        if which and signal.getsignal(which) != signal.SIG_IGN
    }
    hook, sys.unraisablehook = sys.unraisablehook, functools.partial(_interrupt_again, sys.unraisablehook)
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text in the terminal's encoding
        command()
        print(end="", flush=True)  # at its exit, Python would complain of a pipe that is closed
    except ConversionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left
            return 141
        where = f"{staging.final_path(Path(error.filename))}: " if isinstance(error.filename, (str, Path)) else ""
        remedy = "check that it exists and that you may read and write there"
        print(f"error: {where}{error.strerror or error}; {remedy}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; what had been written was removed again.", file=sys.stderr)
        return 130
    finally:
        sys.unraisablehook = hook
        for which, handler in previous.items():
            signal.signal(which, handler)
    return 0


# Converters import nothing of the package but what a cell is, so its unwinding of signals stands here once more, and
# what tells a reader that is gone from another pipe that breaks.


def _reader_is_gone():
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError):  # no poll on Windows, no file where Python code reads what is printed
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _interrupt(signum, frame):
    raise KeyboardInterrupt


def _interrupt_again(hook, unraisable):
    """Repeat an interrupt that fell into a destructor or a weak reference's callback, which cannot raise."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        hook(unraisable)
    elif hasattr(signal, "pthread_kill"):
        threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGTERM)).start()
    else:
        threading.Timer(0.05, signal.raise_signal, (signal.SIGTERM,)).start()


def require_folder_variable(name: str) -> Path:
    """Folder that the environment variable ``name`` points to; it need not exist yet.

    Raises:
        ConversionError: If the variable is unset or empty, or points to a file.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConversionError(f"{name} is not set; point it at a folder, for example: export {name}=$HOME/{name}")
    if Path(value).exists() and not Path(value).is_dir():
        raise ConversionError(f"{name} points to {value}, which is a file; point it at a folder.")
    return Path(value)


def dataset_id(text: str) -> int:
    """Data set id from the command line; argparse reports the ValueError of anything but 1 to 9999."""
    value = int(text)
    if not 1 <= value <= 9999:
        raise ValueError(text)
    return value


def positive(text: str) -> int:
    """Whole number above 0 from the command line."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def natural(text: str) -> int:
    """Whole number from 0 from the command line."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


class Parser(argparse.ArgumentParser):
    """Argparse's own, but its help may go to a reader that closes the pipe early."""

    def exit(self, status=0, message=None):
        """End the program once what was printed is handed over."""
        super().exit(run(lambda: None) or status, message)


class HelpFormatter(argparse.HelpFormatter):
    """Argparse's own, but paragraphs stay apart, and one with indented lines stays as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(part if "\n  " in part else fill(part, width, indent) for part in text.split("\n\n"))


class Noted(argparse.Action):
    """Stores a value as argparse does, and notes in ``given`` that it was asked for, though it may be the default."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values)
        namespace.given = {*getattr(namespace, "given", ()), self.dest}


def examples(*commands: str) -> str:
    """Give the end of a help text: commands that can be copied, and the page with the rest."""
    return "\n\nexamples:\n" + "\n".join(f"  {command}" for command in commands) + f"\n\nmore: {PAGE}"


def make_parser(
    module: str,
    description: str,
    *,
    default_id: int,
    protocols: Sequence[str] = (),
    restore_looks_up_names: bool = False,
) -> argparse.ArgumentParser:
    """Parser with the options that every converter has; the first line of ``description`` says what it converts.

    Args:
        protocols: Choices of ``--protocol``, the default first.
        restore_looks_up_names: Whether ``--restore`` reads the report of the converted data set, which ``-d`` names.
    """
    which_id = ", the latter with the -d of the conversion, whose report knows the names" * restore_looks_up_names
    parser = Parser(
        prog=f"python -m {module}",
        description=description,
        epilog="--images-only and --restore stand in for a conversion and take two folders"
        + (which_id or "; they need no -d")
        + "."
        + examples(f"python -m {module} SOURCE --dry-run", f"python -m {module} --images-only SCANS IMAGES"),
        formatter_class=HelpFormatter,
    )
    parser.register("action", None, Noted)
    parser.add_argument("source", type=Path, nargs="?", help="folder below which the archive was unpacked")
    parser.add_argument(
        "-d", "--dataset-id", type=dataset_id, default=default_id, help=f"1 to 9999, default {default_id}"
    )
    if protocols:
        parser.add_argument(
            "--protocol",
            choices=protocols,
            default=protocols[0],
            help=f"which cases train and which are held out, default {protocols[0]}",
        )
    parser.add_argument("--overwrite", action="store_true", help="replace a target that is not empty")
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing, say what would happen")
    parser.add_argument(
        "--jobs",
        "-j",
        "-np",
        "--num-processes",
        dest="jobs",
        metavar="N",
        type=positive,
        default=min(8, os.cpu_count() or 1),
        help="worker processes, default: all cores, at most 8",
    )
    parser.add_argument(
        "--images-only",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="SOURCE OUT: write scans to predict into OUT, as nnUNetv2_predict -i wants them",
    )
    parser.add_argument(
        "--restore",
        type=Path,
        nargs=2,
        metavar=("PREDICTIONS", "OUT"),
        help="write predictions into OUT with the data owner's label values and file names",
    )
    return parser


def run_converter(
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    *,
    convert: Callable,
    convert_images: Callable,
    restore: Callable,
    only_for: Mapping[str, Sequence[str]] | None = None,
) -> int:
    """Do what the command line asks for: convert, write images only, or restore predictions.

    An option that does not belong to it ends the program, as any wrong call does.

    Args:
        convert: Called with source, nnUNet_raw, nnUNet_preprocessed, the id and the common options.
        convert_images: Called with source, out and the common options.
        restore: Called with predictions, out and the common options.
        only_for: Options of ``arguments`` that are not for all of :data:`CONVERT`, :data:`IMAGES_ONLY` and
            :data:`RESTORE`, and what they are for; ``dataset_id`` and ``protocol`` are for conversions unless it says
            otherwise.

    Returns:
        Exit code, see :func:`run`.
    """
    mode = RESTORE if arguments.restore else IMAGES_ONLY if arguments.images_only else CONVERT
    belongs = {"dataset_id": (CONVERT,), "protocol": (CONVERT,), **(only_for or {})}
    for name, modes in belongs.items():
        if mode not in modes and name in getattr(arguments, "given", ()):
            parser.error(f"--{name.replace('_', '-')} is not for {mode}")
    options = {"overwrite": arguments.overwrite, "jobs": arguments.jobs, "dry_run": arguments.dry_run}
    if arguments.restore:
        if arguments.source or arguments.images_only:
            parser.error("--restore takes PREDICTIONS and OUT and nothing else")
        return run(lambda: restore(*arguments.restore, **options))
    if arguments.images_only:
        folders = [*([arguments.source] if arguments.source else []), *arguments.images_only]
        if len(folders) != 2:
            parser.error("--images-only takes two folders, SOURCE and OUT")
        return run(lambda: convert_images(*folders, **options))
    if not arguments.source:
        parser.error("name the folder below which the archive was unpacked (SOURCE)")

    def command() -> None:
        roots = map(require_folder_variable, ("nnUNet_raw", "nnUNet_preprocessed"))
        convert(arguments.source, *roots, arguments.dataset_id, **options)

    return run(command)
