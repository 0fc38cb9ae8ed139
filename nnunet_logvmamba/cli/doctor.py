"""``logvmamba doctor``: what is installed, what works here, what a data set holds, and whether training would work."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import at_least, examples
from nnunet_logvmamba.cores import usable_cores, usable_threads
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.files import may_be_written
from nnunet_logvmamba.plugin import startup
from nnunet_logvmamba.plugin.environment import (
    device_option,
    not_written_out,
    torch_build,
    torchvision_error,
    torchvision_remedy,
    version_of,
)

TRAINER = "nnUNetTrainerLoGVMamba"
DISTRIBUTIONS = (
    "nnunet-logvmamba",
    "torch",
    "nnunetv2",
    "dynamic-network-architectures",
    "batchgenerators",
    "SimpleITK",
    "monai",
    "torchvision",
    "triton",
    "numba",
    "mamba-ssm",
    "causal-conv1d",
)
OPTIONAL = {"triton", "mamba-ssm", "causal-conv1d"}
TESTED_NNUNET = (2, 8)

OK, NOTE, FAILS = "ok", "note", "FAILS"
COMPILE = "nnUNet_compile"


@dataclass(frozen=True)
class Finding:
    """One row of the table; ``FAILS`` means that training would fail for it."""

    section: str
    name: str
    state: str
    text: str
    cases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of a data set: everything that was said, by case."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``doctor`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "doctor",
        help="show versions, devices and what works here, or what a data set holds and nnU-Net makes of it",
        description="Show versions, devices, which scan backends work here and whether nnU-Net finds our trainers. Of "
        "a data set, read every file once instead, and show what nnU-Net will make of it: faults, what is read in two "
        "ways, what differs from case to case. The exit code is 1 if training would fail.",
        **examples(
            "reference/commands.md#logvmamba-doctor",
            "logvmamba doctor",
            "logvmamba doctor 501",
            "logvmamba doctor nnUNet_preprocessed/Dataset501_BraTS2020",
        ),
    )
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        nargs="?",
        help="folder of a raw or preprocessed data set (…/Dataset123_Name, or the folder of a configuration in it), or "
        "number or name of one in nnUNet_raw",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the findings as JSON instead of a table, of a data set case by case"
    )
    parser.add_argument("--jobs", type=at_least(1, int), metavar="N", help="processes (default: one per core)")


def run(args: argparse.Namespace) -> int:
    """Print all findings; give 1 if training would fail, else 0."""
    findings = list(examine() if args.dataset is None else examine_dataset(args.dataset, args.jobs))
    failures = [finding for finding in findings if finding.state == FAILS]
    if args.json:
        report = {"training_would_fail": bool(failures), "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(report, indent=2))
    else:
        terminal.show(as_table(findings))
        names = ", ".join(finding.name for finding in failures)
        terminal.show(f"\ndoctor: training would fail, see {names}" if failures else "\ndoctor: ready to train")
    return 1 if failures else 0


def as_table(findings: list[Finding]) -> str:
    """Lay findings out in columns, one block per section."""
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    section = None
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += [""] * bool(lines) + [section]
        lines.append(f"  {finding.state:<5}  {finding.name:<{width}}  {finding.text}")
    return "\n".join(lines)


def examine() -> Iterator[Finding]:
    """Look at everything that training needs; what is broken becomes a finding, not an exception."""
    yield from _versions()
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("devices", "torch", FAILS, f"cannot be imported: {_first_line(error)}; install it again")
        return
    devices = _devices(torch)
    yield from (Finding("devices", str(device), OK, text) for device, text in devices)
    if device_option():
        needed = f"nnU-Net's commands need{device_option()} here, since torch finds no CUDA device"
        yield Finding("devices", "-device", NOTE, needed)
    yield from _thread_limit()
    for device, _ in devices:
        try:
            yield from _scan_backends(device)
            if device.type == "cuda" and os.name != "nt" and os.environ.get(COMPILE, "t").lower() in {"true", "1", "t"}:
                yield _compiler(device)
        except torch.OutOfMemoryError:
            yield Finding(f"selective scan on {device}", "memory", FAILS, "none is left: see who uses it (nvidia-smi)")
    yield from _nnunet()
    yield from _paths()
    yield from _caches()


def first_obstacle(device: str) -> Finding | None:
    """Give what would make a training on a kind of device fail here; of several GPUs it is the first that is used."""
    others = {f"selective scan on {name}" for name in ("cuda:0", "mps") if not name.startswith(device)}
    for finding in examine():
        beyond = re.fullmatch(r"selective scan on cuda:[1-9]\d*", finding.section)
        if finding.state == FAILS and finding.section not in others and not beyond:
            return finding
    return None


def examine_dataset(dataset: str, jobs: int | None = None) -> Iterator[Finding]:
    """Read a data set once; what is wrong in it becomes a finding.

    Args:
        dataset: Folder, or number or name of a raw one.
        jobs: Processes, one per core by default.

    Raises:
        UserError: If there is no such data set.
    """
    from nnunet_logvmamba.plugin import first_run
    from nnunet_logvmamba.plugin.observations import grouped
    from nnunet_logvmamba.plugin.plans import NotTakenError

    folder = Path(dataset)
    if not folder.is_dir():
        raw = os.environ.get(first_run.VARIABLES[0], "").strip()
        if not os.path.isdir(raw):
            raise UserError(f"{dataset} is not a folder; to name a data set by its number, set nnUNet_raw")
        folder = Path(raw) / first_run.find_dataset(dataset, Path(raw))
    from nnunet_logvmamba.plugin import preprocessed_cases, raw_dataset  # late, as they bring nnU-Net's readers

    which = preprocessed_cases if preprocessed_cases.is_preprocessed(folder) else raw_dataset
    section = str(folder)
    try:
        found = which.examine(folder, processes=jobs or usable_cores())
    except NotTakenError as error:
        yield Finding(section, "dataset.json", FAILS, str(error).replace(f"{folder}{os.sep}", ""))
        return
    yield Finding(section, "cases", OK, found.about)
    for name, text in found.facts.items():
        yield Finding(section, name, OK, text)
    for group in grouped(found.seen):
        yield Finding(
            section,
            group.kind,
            FAILS if group.fatal else NOTE,
            group.said.replace(f"{folder}{os.sep}", ""),
            group.cases,
        )


def _versions() -> Iterator[Finding]:
    section = "versions"
    yield Finding(section, "python", OK, f"{platform.python_version()} ({sys.executable})")
    for name in DISTRIBUTIONS:
        version = version_of(name)
        if version is None:
            missing = "not installed, not needed" if name in OPTIONAL else "not installed"
            yield Finding(section, name, NOTE if name in OPTIONAL else FAILS, missing)
        elif name == "nnunetv2" and _release(version) != TESTED_NNUNET:
            window = ".".join(map(str, TESTED_NNUNET))
            yield Finding(
                section, name, FAILS, f"{version}, but we work with {window}: pip install 'nnunetv2=={window}.*'"
            )
        else:
            yield Finding(section, name, OK, version)


def _release(version: str) -> tuple[int, ...]:
    """First two numbers of a version, 2.8rc1 being of 2.8."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _devices(torch) -> list[tuple]:
    cores = f"{usable_cores()} of {os.cpu_count()} cores may be used here, our trainers take {usable_threads()} threads"
    devices = [(torch.device("cpu"), cores)]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        text = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        devices.append((torch.device("cuda", index), text))
    if torch.backends.mps.is_available():
        devices.append((torch.device("mps"), "Apple GPU"))
    devices[0] = (devices[0][0], f"{devices[0][1]}; torch is a {torch_build()} build")
    return devices


def _thread_limit() -> Iterator[Finding]:
    """Find the one setting under which nnU-Net's own trainers hang for ever on a CPU, instead of failing.

    nnU-Net has torch ask for one thread per core. Under a lower ``OMP_THREAD_LIMIT`` OpenMP grants fewer, and oneDNN's
    backward of a convolution waits for the missing ones. Ours ask for fewer.
    """
    limit = os.environ.get("OMP_THREAD_LIMIT", "")
    if limit.isdecimal() and int(limit) < (os.cpu_count() or 1):
        remedy = f"nnU-Net's own trainers would hang on the CPU, with {os.cpu_count()} threads: unset OMP_THREAD_LIMIT"
        yield Finding("devices", "OMP_THREAD_LIMIT", FAILS, f"{limit}; {remedy}")


def _scan_backends(device) -> Iterator[Finding]:
    from nnunet_logvmamba.ops import backends

    section = f"selective scan on {device}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it would warn of is in the table
        default = backends.automatic(device.type, device.index)
    for name, backend in backends.BACKENDS.items():
        reason = backends.obstacle(name, device)
        if reason is not None:
            yield Finding(section, name, NOTE, f"cannot run here: {reason}")
        else:
            error, broken = backends.try_once(name, device)
            works = f"works{', the default' if name == default else ''}; largest relative error {error:.0e}"
            state = OK if broken is None else FAILS if name == default else NOTE
            yield Finding(section, name, state, broken or works)
        if name == default and backend.made_for is None and device.type in {"cpu", "cuda"}:
            yield Finding(section, "auto", NOTE, f"the default is the slow portable {name!r}: see above")


def _compiler(device) -> Finding:
    """Compile something small as nnU-Net compiles networks on a GPU, for which it needs the same as our kernels do."""
    import torch

    section, name = f"selective scan on {device}", "torch.compile"
    try:
        torch.compile(lambda x: x.exp() + 1)(torch.ones(2, device=device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of compilers, drivers and folders
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and "raised:" not in line]
        said = lines[0] if lines else type(error).__name__
        remedy = f"a C compiler and Python's header files are often missing; export {COMPILE}=f does without it"
        return Finding(section, name, FAILS, f"fails, and nnU-Net trains with it: {said}; {remedy}")
    return Finding(section, name, OK, "works")


def _nnunet() -> Iterator[Finding]:
    section = "nnU-Net"
    error = torchvision_error()
    if error is None:
        yield Finding(section, "torchvision", OK, "can be imported")
    else:
        yield Finding(section, "torchvision", FAILS, f"cannot be imported ({error}); {torchvision_remedy()}")

    value = os.environ.get(startup.VARIABLE, "")
    if startup.EXT_FOLDER in value.split(os.pathsep):
        yield Finding(section, startup.VARIABLE, OK, value)
    else:
        remedy = f"export {startup.VARIABLE}={value + os.pathsep if value else ''}{startup.EXT_FOLDER}"
        yield Finding(section, startup.VARIABLE, FAILS, f"lacks our folder; install the package again, or: {remedy}")
    yield _look_up(section)


def _look_up(section: str) -> Finding:
    """Let nnU-Net look for our trainer as its commands do: in a fresh process and from another folder."""
    code = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        f"trainer = find({TRAINER!r})\n"
        "print(f'{trainer.__module__}.{trainer.__qualname__}')"
    )
    with tempfile.TemporaryDirectory() as elsewhere:
        search = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=elsewhere, check=False
        )
    if search.returncode == 0:
        return Finding(section, f"-tr {TRAINER}", OK, f"found: {search.stdout.splitlines()[-1]}")
    reason = (search.stderr.strip() or f"exit code {search.returncode}").splitlines()[-1]
    return Finding(section, f"-tr {TRAINER}", FAILS, f"not found: {reason}")


def _paths() -> Iterator[Finding]:
    section = "folders"
    uses = {
        "nnUNet_raw": (NOTE, NOTE, "planning and preprocessing need it"),
        "nnUNet_preprocessed": (FAILS, FAILS, "training needs it"),
        "nnUNet_results": (FAILS, NOTE, "training makes it and writes to it"),
    }
    for name, (when_unset, when_absent, use) in uses.items():
        folder = os.environ.get(name, "").strip()
        if not folder:
            yield Finding(section, name, when_unset, f"not set; {use}: export {name}=/path/to/{name}")
        elif (fault := not_written_out(name)) is not None:
            yield Finding(section, name, FAILS, fault)
        elif os.path.exists(folder) and not os.path.isdir(folder):
            yield Finding(section, name, FAILS, f"{folder} is a file; {use}: name a folder")
        elif not os.path.isdir(folder) and not may_be_written(folder):
            state = FAILS if name == "nnUNet_results" else when_absent
            yield Finding(section, name, state, f"{folder} does not exist and you cannot make it; {use}: name another")
        elif not os.path.isdir(folder):
            yield Finding(section, name, when_absent, f"{folder} does not exist; {use}: mkdir -p {shlex.quote(folder)}")
        elif name == "nnUNet_results" and not may_be_written(folder):
            yield Finding(section, name, FAILS, f"{folder} is not yours to write to; {use}: name another")
        else:
            yield Finding(section, name, OK, folder)


def _caches() -> Iterator[Finding]:
    section = "compiled code is kept in"
    inductor = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if inductor is None:
        try:
            inductor = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
        except (KeyError, OSError):  # a container may run as a user without a name
            inductor = "unknown, since this user has no name: set TORCHINDUCTOR_CACHE_DIR"
    yield Finding(section, "torch.compile", OK, inductor)
    from nnunet_logvmamba.ops.backends import compiled_code_folder, triton_cache_folder

    try:
        yield Finding(section, "numba", OK, str(compiled_code_folder()))
    except RuntimeError as error:  # a user without a home
        yield Finding(section, "numba", NOTE, f"nowhere ({_first_line(error)}): set NUMBA_CACHE_DIR")
    folder = triton_cache_folder()
    lacks = "" if may_be_written(folder) else ", where you may not write: kernels that it lacks cannot be compiled"
    yield Finding(section, "triton", OK if version_of("triton") and not lacks else NOTE, f"{folder}{lacks}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
