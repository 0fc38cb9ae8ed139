"""Which files of a trained model tell names of its cases or absolute paths, to be known before it is shared."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from nnunet_logvmamba.evaluation.cases import ENDINGS, ending_of
from nnunet_logvmamba.results.runs import case_of

TEXT = (".json", ".txt", ".csv", ".html")
MOST_BYTES = 2**25
"""Of a text; what follows is not read."""

_SHORT = 4
"""Names of fewer characters, such as 1, are looked for as names of files alone."""
_OF_CASES = re.compile(r"(^|/)(validation|predicted_next_stage|postprocessed|ensembles|crossval_results_[^/]*)/")
"""Folders whose files nnU-Net names after cases."""
_NOT_OF_CASES = ("postprocessing.pkl", "gallery.png")
_PATH = re.compile(
    r"""(?<![\w./\\+])/[^\s/"'<>|,;()\[\]{}]+/[^\s/"'<>|,;()\[\]{}]"""
    r"""|(?<!\w)[A-Za-z]:[\\/]+\w|(?<![\w\\])\\\\+[\w.-]+\\+\w"""
)
_PICTURE = re.compile(r"base64,[A-Za-z0-9+/=]+")


@dataclass(frozen=True)
class Disclosure:
    """Files of one kind: a pattern of their names, how many there are, and what they tell."""

    files: str
    number: int
    cases: bool
    paths: bool

    @property
    def said(self) -> str:
        """The same in words."""
        words = " and ".join(["names of cases"] * self.cases + ["absolute paths"] * self.paths)
        copied = "; every checkpoint holds a copy" * self.files.endswith(("dataset.json", "plans.json"))
        return f"{self.files}{f' ({self.number})' if self.number > 1 else ''}: {words}{copied}"


def disclosures(model: Path) -> list[Disclosure]:
    """Look into the texts of a model for names of its cases and absolute paths, and at the names of all its files.

    Names are those that the texts themselves give: scores, the split in ``debug.json``, and ``dataset.json`` where it
    lists images. Checkpoints and pictures are not read.

    Args:
        model: Folder of a trained model, zip file that ``nnUNetv2_export_model_to_zip`` wrote, or a checkpoint, which
            has no such files.
    """
    with ExitStack() as stack:
        members = _members(model, stack)
        texts = {name: _read(name, read()) for name, read in members.items() if name.endswith(TEXT)}
    cases = set[str]().union(*(listed for _, listed in texts.values()))
    found: dict[str, list[tuple[bool, bool]]] = {}
    for name in members:
        if name in texts:
            text, listed = texts[name]
            told = bool(listed) or _names_one(text, cases), _PATH.search(text) is not None
        else:
            told = _is_named_after_a_case(name, cases), False
        if any(told):
            found.setdefault(_pattern(name, name in texts), []).append(told)
    return [
        Disclosure(files, len(told), any(names for names, _ in told), any(paths for _, paths in told))
        for files, told in found.items()
    ]


def _members(model: Path, stack: ExitStack) -> Mapping[str, Callable[[], bytes]]:
    """Names of all files, with what reads the beginning of one."""
    if model.is_dir():
        files = {path.relative_to(model).as_posix(): path for path in sorted(model.rglob("*")) if path.is_file()}
        return {name: partial(_begin, partial(path.open, "rb")) for name, path in files.items()}
    archive = stack.enter_context(zipfile.ZipFile(model))
    inside = sorted(one.filename for one in archive.infolist() if not one.is_dir())
    if any(name.endswith("/data.pkl") for name in inside):  # a checkpoint, torch's own kind of zip file
        return {}
    return {name: partial(_begin, partial(archive.open, name)) for name in inside}


def _begin(open_it: Callable) -> bytes:
    with open_it() as file:
        return file.read(MOST_BYTES)


def _read(name: str, begin: bytes) -> tuple[str, set[str]]:
    """All words of a file, and the names of cases that it lists; a JSON file that is damaged is a text like others."""
    text = begin.decode("utf-8", errors="replace")
    with suppress(ValueError, RecursionError):
        if name.endswith(".json"):
            content = json.loads(text)
            return "\n".join(_strings(content)), set(_cases(content)) - {""}
    return _PICTURE.sub("", text), set()


def _strings(content: object) -> Iterator[str]:
    """All text in the content of a JSON file, keys too."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield key
            yield from _strings(value)
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value)


def _cases(content: object, key: str = "") -> Iterator[str]:
    """Names of cases in the content of a JSON file: those of their files, and what the key says to be such a name."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _cases(value, name)
    elif isinstance(content, list):
        for value in content:
            yield from _cases(value, key)
    elif isinstance(content, str) and key == "_split":
        yield from re.findall(r"'([^']+)'", content)
    elif isinstance(content, str) and "\n" not in content and (ending := ending_of(Path(content))):
        case = case_of(content, ending)
        yield re.sub(r"_\d{4}$", "", case) if key == "images" else case  # those have the number of a channel
    elif isinstance(content, str) and key in ("case", "cases"):
        yield content


def _names_one(text: str, cases: Iterable[str]) -> bool:
    for case in cases:
        if case in text:
            after = r"(?=(_\d{4})?(?!\w))" if len(case) >= _SHORT else r"(_\d{4})?\.[A-Za-z]"
            if re.search(rf"(?<!\w){re.escape(case)}{after}", text):
                return True
    return False


def _is_named_after_a_case(name: str, cases: Iterable[str]) -> bool:
    base = PurePosixPath(name).name
    if base in _NOT_OF_CASES:
        return False
    return _OF_CASES.search(name) is not None or base.removesuffix(_ending(base)) in cases


def _ending(base: str) -> str:
    return next((ending for ending in ENDINGS if base.endswith(ending)), PurePosixPath(base).suffix)


def _pattern(name: str, is_text: bool) -> str:
    """Name of a file, with a star for what differs between folds, logs and cases."""
    path = PurePosixPath(re.sub(r"(^|/)fold_(\d+|all)/", r"\1fold_*/", name))
    base = re.sub(r"^training_log_.*\.txt$", "training_log_*.txt", path.name) if is_text else f"*{_ending(path.name)}"
    return (path.parent / base).as_posix()
