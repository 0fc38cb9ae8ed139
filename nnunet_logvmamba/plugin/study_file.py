"""What a study is, as its TOML file or the options of a command say it; read without torch and nnU-Net."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nnunet_logvmamba.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"


@dataclass(frozen=True)
class Cluster:
    """What one training asks SLURM for; None leaves it to the cluster.

    Attributes:
        time: Minutes; a training that needs more is put back into the queue and goes on.
        memory: As for sbatch ``--mem``, such as ``32G``.
        gpu: Type, as the cluster calls it.
        gpus: For one training.
        array_limit: So many jobs run at once at most.
        signal_s: So many seconds before the time is up, a training is ended and put back into the queue.
        setup: Lines of a shell that come before the command.
        sbatch: Further options of sbatch, by their long names.
    """

    time: int = 24 * 60
    partition: str | None = None
    account: str | None = None
    memory: str | None = None
    cpus: int | None = None
    gpu: str | None = None
    gpus: int = 1
    array_limit: int | None = None
    signal_s: int = 120
    setup: tuple[str, ...] = ()
    sbatch: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Every trainer, with every seed, on every configuration of all plans, in all folds.

    Attributes:
        dataset: Number or name.
        trainers: Names for ``-tr``, seeds among them.
        folds: Numbers, or ``all``.
        derive: How ``logvmamba plans`` derives some of the configurations: by their names, the options of each.
        predict: Folders ``images`` to predict with all folds, and ``references``; nothing if there are no such scans.
        compare: Options of ``logvmamba compare``.
    """

    name: str
    dataset: str
    trainers: tuple[str, ...]
    configurations: tuple[str, ...] = ("3d_fullres",)
    plans: tuple[str, ...] = ("nnUNetPlans",)
    folds: tuple[str, ...] = ("0", "1", "2", "3", "4")
    device: str = "auto"
    derive: dict[str, dict[str, Any]] = field(default_factory=dict)
    predict: dict[str, str] = field(default_factory=dict)
    compare: dict[str, Any] = field(default_factory=dict)
    cluster: Cluster = field(default_factory=Cluster)

    @property
    def definition(self) -> dict[str, Any]:
        """What makes it this study and no other; where and how fast it runs does not."""
        content = json.loads(json.dumps(asdict(self)))
        return {key: value for key, value in content.items() if key not in ("cluster", "compare", "device")}


# How the value of a key is read: what it must be, in words, and a function that gives it, or raises.

_Reader = tuple[str, Callable[[Any], Any]]


def _word(pattern: str = ".+") -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError
        return value

    return read


def _whole(least: int = 0) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError
        if value < least:
            raise ValueError
        return value

    return read


def _several(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read_all(value: Any) -> tuple:
        found = tuple(map(read, value if isinstance(value, list) else [value]))
        if not found:
            raise ValueError
        return tuple(dict.fromkeys(found))

    return read_all


def _dataset(value: Any) -> str:
    return str(_whole()(value)) if isinstance(value, int) else _word()(value)


def _fold(value: Any) -> str:
    if value != "all":
        _whole()(value)
    return str(value)


def _minutes(value: Any) -> int:
    """Minutes, also from SLURM's ``[D-]HH:MM:SS``."""
    if isinstance(value, int):
        return _whole(1)(value)
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", value)
    if match is None:
        raise ValueError
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return _whole(1)((days * 24 + hours) * 60 + minutes + (seconds > 0))


def _table(value: Any) -> dict:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _folder(value: Any) -> str:
    return str(Path(_word()(value)).expanduser().resolve())


_WORD: _Reader = ("a word", _word())
_WORDS: _Reader = ("a word or a list of words", _several(_word()))
_POSITIVE: _Reader = ("a whole number from 1 on", _whole(1))
_TABLE: _Reader = ("a table", _table)
_DIRECTORY: _Reader = ("a folder", _folder)

_KEYS: dict[str, _Reader] = {
    "name": ("made of letters, digits, '_', '.' and '-'", _word(_NAME)),
    "dataset": ("the number or the name of a data set", _dataset),
    "trainers": _WORDS,
    "configurations": _WORDS,
    "plans": _WORDS,
    "folds": ('a list of the numbers of folds, or "all"', _several(_fold)),
    "seeds": ("a list of whole numbers", _several(_whole())),
    "device": (f"one of {', '.join(DEVICES)}", _word("|".join(DEVICES))),
    "derive": _TABLE,
    "predict": _TABLE,
    "compare": _TABLE,
    "cluster": _TABLE,
}
_DERIVE: dict[str, _Reader] = {
    "from": _WORD,
    "set": _TABLE,
    "train": _TABLE,
    "batch_size": _POSITIVE,
    "patch_size": ("a list of whole numbers from 1 on", lambda value: list(map(_whole(1), value))),
    "network": _WORD,
    "keep_network": ("true or false", {True: True, False: False}.__getitem__),
}
_PREDICT: dict[str, _Reader] = {"images": _DIRECTORY, "references": _DIRECTORY}
_COMPARE: dict[str, _Reader] = {"metrics": _WORDS, "against": _WORD, "names": _TABLE}
_CLUSTER: dict[str, _Reader] = {
    "time": ("minutes, or [D-]HH:MM:SS as SLURM writes it", _minutes),
    "partition": _WORD,
    "account": _WORD,
    "memory": ("as for sbatch --mem, such as 32G", _word(r"\d+[KMGT]?")),
    "cpus": _POSITIVE,
    "gpu": _WORD,
    "gpus": ("a whole number", _whole()),
    "array_limit": _POSITIVE,
    "signal_s": _POSITIVE,
    "setup": ("a line or a list of lines", _several(_word())),
    "sbatch": _TABLE,
}


def _read(table: Mapping[str, Any], keys: Mapping[str, _Reader], where: str) -> dict[str, Any]:
    """Give the values of a table by its keys.

    Raises:
        UserError: If there is a key that nobody knows, or a value is none of that key.
    """
    found = {}
    for key, value in table.items():
        if key not in keys:
            near = get_close_matches(key, keys, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(keys)}"
            raise UserError(f"{where} has no key '{key}': {hint}")
        words, read = keys[key]
        try:
            found[key] = read(value)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise UserError(f"{where}: {key} must be {words}, not {_shown(value)}") from error
    return found


def _shown(value: Any) -> str:
    return value.__repr__()[:60] if not isinstance(value, str) else f"'{value}'"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: If it is not there or not TOML, or this Python (3.10) lacks what reads it.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise UserError(
                "Python 3.10 reads no TOML files: pip install tomli, or give the study as options"
            ) from error
    if not path.is_file():
        raise UserError(f"there is no file {path}: name the TOML file of a study, or give the study as options")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not TOML
        raise UserError(f"{path} is not TOML ({error}): correct it there") from error


def make_study(content: Mapping[str, Any], *, where: str, name: str) -> Study:
    """Give the study that a table describes.

    Args:
        where: What messages call the table, such as the path of its file.
        name: Of the study, if the table names none.

    Raises:
        UserError: Naming the key that is missing, unknown, or whose value it cannot have.
    """
    found = _read(content, _KEYS, where)
    for key in ("dataset", "trainers"):
        if key not in found:
            raise UserError(f"{where} lacks '{key}', {_KEYS[key][0]}")
    seeds = found.pop("seeds", None)
    if seeds is not None:
        found["trainers"] = tuple(f"{trainer}_seed{seed}" for trainer in found["trainers"] for seed in seeds)
    found.setdefault("name", name)
    if not re.fullmatch(_NAME, found["name"]):
        raise UserError(f"'{found['name']}' cannot name a study: add name = \"…\", {_KEYS['name'][0]}")
    found["derive"] = {
        key: _read(_table_of(value, f"{where}: [derive.{key}]"), _DERIVE, f"{where}: [derive.{key}]")
        for key, value in found.get("derive", {}).items()
    }
    for key, options in found["derive"].items():
        if "from" not in options:
            raise UserError(f"{where}: [derive.{key}] lacks 'from', the configuration that it is derived from")
        weights = options.get("train", {}).get("pretrained", "none")
        if isinstance(weights, str) and weights != "none":  # as logvmamba plans writes it
            options["train"] = {**options["train"], "pretrained": str(Path(weights).expanduser().absolute())}
    found["predict"] = _read(found.get("predict", {}), _PREDICT, f"{where}: [predict]")
    if found["predict"] and "images" not in found["predict"]:
        raise UserError(f"{where}: [predict] lacks 'images', the folder of the scans")
    found["compare"] = _read(found.get("compare", {}), _COMPARE, f"{where}: [compare]")
    found["cluster"] = Cluster(**_read(found.get("cluster", {}), _CLUSTER, f"{where}: [cluster]"))
    return Study(**found)


def read_cluster(path: Path | None) -> Cluster:
    """Read the table ``[cluster]`` of a file, which may be that of a study; the defaults if there is no file.

    Raises:
        UserError: As :func:`make_study` does.
    """
    table = {} if path is None else read_toml(path).get("cluster", {})
    where = f"{path}: [cluster]"
    return Cluster(**_read(_table_of(table, where), _CLUSTER, where))


def _table_of(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a table, not {_shown(value)}")
    return value
