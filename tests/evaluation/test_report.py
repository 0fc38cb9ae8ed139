"""What is written about scores, and that it is written whole or not at all."""

import csv
import json
import math
import os

import pytest

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.report import as_text_table, describe, write_csv, write_json
from nnunet_logvmamba.files import staged_files


def test_means_leave_out_what_is_undefined_and_count_it():
    scores = describe([0.5, math.nan, 1.0, math.inf, 0.0])
    assert scores == {"mean": 0.5, "std": 0.5, "median": 0.5, "cases": 3, "cases_left_out": 2}
    assert describe([math.nan]) == {"mean": None, "std": None, "median": None, "cases": 0, "cases_left_out": 1}
    assert describe([0.25])["std"] is None


def test_numbers_survive_the_files(tmp_path):
    rows = [{"case": "a, b", "dice": 1 / 3}, {"case": "c", "dice": math.nan}]
    write_csv(tmp_path / "s.csv", rows, ["case", "dice"])
    with (tmp_path / "s.csv").open() as file:
        read = list(csv.DictReader(file))
    assert read[0]["case"] == "a, b"
    assert float(read[0]["dice"]) == 1 / 3
    assert math.isnan(float(read[1]["dice"]))
    write_json(tmp_path / "s.json", {"x": [math.nan, math.inf, 1 / 3], "y": (1, None)})
    assert json.loads((tmp_path / "s.json").read_text()) == {"x": [None, None, 1 / 3], "y": [1, None]}


def test_a_table_is_aligned():
    assert as_text_table(["a", "b"], [["x", 0.5], ["long", None]]).splitlines() == [
        "a          b",
        "----  ------",
        "x     0.5000",
        "long       -",
    ]


def _write_half(target, *, overwrite):
    with staged_files(target, overwrite=overwrite) as staged:
        (staged / "mine.txt").write_text("theirs")
        raise RuntimeError


def test_an_error_leaves_the_target_as_it_was(tmp_path):
    target = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError):
        _write_half(target, overwrite=False)
    assert list(tmp_path.iterdir()) == []
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("mine")
    with pytest.raises(RuntimeError):
        _write_half(target, overwrite=True)
    assert [path.read_text() for path in target.iterdir()] == ["mine"]


def test_a_target_in_use_is_refused_and_replaced_only_by_name(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "scores.csv").write_text("old")
    with pytest.raises(UserError, match="is not empty.*--overwrite"), staged_files(tmp_path, overwrite=False):
        pass
    with staged_files(tmp_path, overwrite=True) as staged:
        (staged / "scores.csv").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"mine.txt": "mine", "scores.csv": "new"}
    with pytest.raises(UserError, match="is a file"), staged_files(tmp_path / "mine.txt", overwrite=True):
        pass


def _write_scores(target, text):
    with staged_files(target, overwrite=True, last=("scores.json",)) as staged:
        for name in ("scores.csv", "scores.json", "scores.txt"):
            (staged / name).write_text(text)


def test_a_target_that_is_no_file_is_named_and_nothing_is_replaced(tmp_path):
    (tmp_path / "scores.csv").write_text("old")
    (tmp_path / "scores.json").write_text("old")
    (tmp_path / "scores.txt").mkdir()
    with pytest.raises(UserError, match=r"scores\.txt is in the way: it is no file"):
        _write_scores(tmp_path, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.csv", "scores.json", "scores.txt"]
    assert [(tmp_path / name).read_text() for name in ("scores.csv", "scores.json")] == ["old", "old"]


@pytest.mark.parametrize("moves", range(6))
def test_a_move_that_fails_on_its_way_leaves_all_old_files(moves, tmp_path, monkeypatch):
    _write_scores(tmp_path, "old")
    replace, calls = os.replace, []

    def fail(source, target):
        calls.append(target)
        if len(calls) == moves + 1:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        _write_scores(tmp_path, "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("scores.csv", "scores.json", "scores.txt"), "old"
    )


def test_an_old_summary_does_not_stay_beside_new_scores(tmp_path):
    _write_scores(tmp_path, "old")
    with staged_files(tmp_path, overwrite=True, last=("scores.json",)) as staged:
        (staged / "scores.csv").write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {"scores.csv", "scores.txt"}
