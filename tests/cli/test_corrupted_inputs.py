"""Every command on inputs that were damaged at random: one sentence or the usual result, and nothing half done."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import small_dataset
from commands import NnunetFolders
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_model import write_model
from small_results import write_run
from tifffile import imwrite

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.evaluation.instances import to_classes

NOT_TEXT = b"\x00\xff\xfe\x80"
VALUES = [None, True, -1, 0, 1e300, math.inf, math.nan, "", "x", [], ["x"], {}, {"x": 1}, [[1]], 10**30]
"""What stands in a damaged JSON file in place of a value."""


# What the commands read


def volumes(folder: Path) -> Path:
    """Labels of two cases, and predictions that miss a slice, with nnU-Net's ``dataset.json``."""
    for name in ("truth", "predictions"):
        (folder / name).mkdir()
        for case in ("a", "b"):
            values = np.zeros((6, 8, 10), np.uint8)
            values[2:5, 2:6, 3:7] = 1
            values[3, 3:5, 4:6] = 2
            values[3] *= name == "truth"
            sitk.WriteImage(sitk.GetImageFromArray(values), folder / name / f"{case}.nii.gz")
    described = {"labels": {"background": 0, "shell": 1, "core": 2}, "channel_names": {"0": "MRI"}}
    (folder / "predictions" / "dataset.json").write_text(json.dumps({**described, "file_ending": ".nii.gz"}))
    return folder


def cells(folder: Path) -> Path:
    rows, columns = np.mgrid[:40, :40]
    for name in ("truth", "predictions"):
        (folder / name).mkdir()
    for case, radius in (("a", 6), ("b", 9)):
        truth = ((rows - 20) ** 2 + (columns - 20) ** 2 < radius**2).astype(np.uint16)
        imwrite(folder / "truth" / f"{case}_label.tiff", truth)
        imwrite(folder / "predictions" / f"{case}.tif", to_classes(truth))
    (folder / "predictions" / "dataset.json").write_text("{}")
    return folder


def model(folder: Path) -> Path:
    write_model(folder, 2, [16, 16])
    (folder / "images").mkdir()
    values = np.random.default_rng(0).normal(size=(4, 20, 24)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(values), folder / "images" / "a_0000.nii.gz")
    return folder


def results(folder: Path) -> Path:
    for name, better in (("nnUNetTrainerLoGVMamba", 0.05), ("nnUNetTrainerNoSSM", 0.0)):
        dice = {case: [0.8 + better, 0.7 + better] for case in ("a", "b", "c")}
        surface = {case: [{"hd95": 2.0, "nsd": 0.9}, {"hd95": None, "nsd": 0.8}] for case in dice}
        record = {"trainer": name, "epochs": 3, "epochs_done": 3, "sessions": [{"command": "nnUNetv2_train"}]}
        write_run(folder, f"{name}__nnUNetPlans__3d_fullres", 0, dice, surface=surface, record=record)
    return folder


def planned(folder: Path) -> Path:
    folders = NnunetFolders.below(folder)
    small_dataset.copy_into(folders)
    shutil.copytree(small_dataset.prepared().raw, folders.raw, dirs_exist_ok=True)
    return folder


MODEL = "nnUNetTrainerLoGVMamba__nnUNetPlans__small"
RUN = "Dataset004_Hippocampus/nnUNetTrainerLoGVMamba__nnUNetPlans__3d_fullres/fold_0"
COMMANDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path, Path], Sequence[object]]]] = {
    "evaluate": (
        volumes,
        lambda root, out: ["evaluate", root / "predictions", root / "truth", "--output", out, "--jobs", 1],
    ),
    "evaluate --instances": (
        cells,
        lambda root, out: ["evaluate", root / "truth", root / "truth", "--instances", "--output", out, "--jobs", 1],
    ),
    "instances": (
        cells,
        lambda root, out: ["instances", root / "predictions", out, "--references", root / "truth", "--jobs", 1],
    ),
    "check": (model, lambda root, out: ["check", root / "images", root / MODEL, "--jobs", 1]),
    "export": (model, lambda root, out: ["export", root / MODEL, out]),
    "compare": (results, lambda root, out: ["compare", root, "--output", out]),
    "report": (results, lambda root, out: ["report", root / RUN, "--output", out]),
    "plans": (planned, lambda root, out: ["plans", "-d", 998, "-c", "3d_fullres", "--name", "other"]),
    "summary": (planned, lambda root, out: ["summary", "-d", 998, "-c", "3d_fullres"]),
    "run": (planned, lambda root, out: ["run", 998, "3d_fullres", "--device", "cpu", "--dry-run"]),
}


# How they are damaged


def every_place(content: object, path: tuple = ()) -> list[tuple]:
    """Paths to all values of a JSON document, the whole document among them."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in inner for place in every_place(value, (*path, key)))]


def replaced(content: object, place: tuple, value: object) -> object:
    if not place:
        return value
    inner = replaced(content[place[0]], place[1:], value)
    if isinstance(content, list):
        return [inner if index == place[0] else old for index, old in enumerate(content)]
    return {key: inner if key == place[0] else old for key, old in content.items()}


def damage(path: Path, draw: Callable) -> str:
    """Damage one file, and say how."""
    before = path.read_bytes()
    kinds = ["empty", "truncated", "flipped", "no text", "missing", "a folder"]
    if path.suffix == ".json":
        kinds = ["a value"] * 6 + ["a key less"] * 2 + kinds
    kind = draw(st.sampled_from(kinds))
    if kind in ("missing", "a folder"):
        path.unlink()
        if kind == "a folder":
            path.mkdir()
    elif kind == "a value":
        content = json.loads(before)
        place, value = draw(st.sampled_from(every_place(content))), draw(st.sampled_from(VALUES))
        path.write_text(json.dumps(replaced(content, place, value)))
        return f"{path.name}: {value!r} at {place}"
    elif kind == "a key less":
        content = json.loads(before)
        key = draw(st.sampled_from([*content, None]))
        path.write_text(json.dumps({name: value for name, value in content.items() if name != key}))
        return f"{path.name}: without {key}"
    elif kind == "flipped":
        spoilt = np.frombuffer(before, np.uint8).copy()
        places = draw(st.lists(st.integers(0, max(0, len(spoilt) - 1)), min_size=1, max_size=20))
        if len(spoilt):
            spoilt[places] ^= 0x55
        path.write_bytes(spoilt.tobytes())
    else:
        path.write_bytes({"empty": b"", "truncated": before[: len(before) // 2], "no text": NOT_TEXT * 50}[kind])
    return f"{path.name}: {kind}"


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def restore(root: Path, before: dict[Path, bytes]) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_file() and path not in before:
            path.unlink()
        elif path in before and path.is_dir():
            shutil.rmtree(path)
    for path, data in before.items():
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


@pytest.fixture(scope="module", params=COMMANDS)
def command(request, tmp_path_factory):
    """A command, the folder that it reads, and what is in there."""
    write, words = COMMANDS[request.param]
    root = write(tmp_path_factory.mktemp("whole"))
    return root, words, contents(root)


def answer(words: Sequence[object], capsys) -> tuple[int, str]:
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "export" else []) for name in COMMANDS],
    indirect=True,  # what is whole enough is exported, which takes seconds
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_input_ends_in_one_sentence_or_does_no_harm(command, data, tmp_path, monkeypatch, capsys):
    root, words, whole = command
    for name, value in NnunetFolders.below(root).environment.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    restore(root, whole)
    how = damage(data.draw(st.sampled_from(sorted(whole))), data.draw)
    before = contents(root)
    code, said = answer(words(root, out), capsys)
    try:
        assert "Traceback" not in said, how
        if code != 0:
            sentences = [line for line in said.splitlines() if line.startswith("logvmamba")]
            assert len(sentences) == 1, (how, said)
            assert contents(root) == before, how
            assert not out.exists(), how
    finally:
        restore(root, whole)
        if out.is_dir():
            shutil.rmtree(out)
        out.unlink(missing_ok=True)


FOUND = [
    ("compare", "plans.json", ("dataset_name",), None, "'dataset_name' is None"),
    ("report", "plans.json", ("dataset_name",), [], "'dataset_name' is []"),
    (
        "compare",
        "summary.json",
        ("metric_per_case", 0, "metrics", "1", "FN"),
        math.inf,
        "is not what nnU-Net 2.8 writes",
    ),
    ("compare", "surface.json", ("metric_per_case", 1, "case"), None, "have other cases (None)"),
    (
        "export",
        "plans.json",
        ("configurations", "small", "architecture", "arch_kwargs", "kernel_sizes"),
        [1e300],
        "is not as nnU-Net writes it",
    ),
]


@pytest.mark.parametrize(("name", "file", "place", "value", "said"), FOUND)
def test_what_was_found_once_stays_one_sentence(name, file, place, value, said, tmp_path, capsys):
    write, words = COMMANDS[name]
    (tmp_path / "whole").mkdir()
    root = write(tmp_path / "whole")
    path = min(root.rglob(file))
    path.write_text(json.dumps(replaced(json.loads(path.read_text()), place, value)))
    code, sentence = answer(words(root, tmp_path / "out"), capsys)
    assert (code, said in sentence) == (2, True), sentence
