"""``logvmamba instances`` as a user runs it, on real cells where they are at hand and on discs elsewhere."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.io import imread, imsave
from tifffile import imread as read_tiff
from tifffile import imwrite

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.evaluation.cases import FOLD_ALL
from nnunet_logvmamba.evaluation.gallery import RED
from nnunet_logvmamba.evaluation.instances import to_classes


def run(*words: object) -> int:
    return main(["instances", *map(str, words), "--jobs", "1"])


@pytest.fixture
def cells(tmp_path) -> Path:
    """Two images of three discs: ``images``, ``truth`` and ``predictions``, of which the second misses one disc."""
    rows, columns = np.mgrid[:80, :100]
    for name in ("images", "truth", "predictions"):
        (tmp_path / name).mkdir()
    for case in ("a", "b"):
        truth = np.zeros((80, 100), np.uint16)
        for number, (row, column, radius) in enumerate(((20, 20, 10), (50, 60, 14), (20, 80, 8)), start=1):
            truth[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = number * 100
        imwrite(tmp_path / "truth" / f"{case}_label.tiff", truth)
        seen = np.where(truth == 300, 0, truth) if case == "b" else truth
        imsave(tmp_path / "predictions" / f"{case}.png", to_classes(seen), check_contrast=False)
        image = np.stack([truth > 0] * 3, -1).astype(np.uint8) * 200
        imsave(tmp_path / "images" / f"{case}_0000.png", image, check_contrast=False)
    (tmp_path / "predictions" / "dataset.json").write_text("{}")
    return tmp_path


def test_predictions_become_instance_maps_scores_and_a_gallery(cells, capsys):
    out = cells / "out"
    assert run(cells / "predictions", out, "--references", cells / "truth", "--images", cells / "images") == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "a_label.tiff",
        "b_label.tiff",
        "gallery.png",
        "scores.csv",
        "scores.json",
    ]
    instances = read_tiff(out / "b_label.tiff")
    assert instances.dtype == np.uint16
    assert set(np.unique(instances)) == {0, 1, 2}
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["a", "b"]
    assert [float(row["f1"]) for row in rows] == pytest.approx([1, 2 * 2 / (2 * 2 + 1)])
    assert [float(row["object_iou"]) for row in rows] == pytest.approx([1, 2 / 3])
    summary = json.loads((out / "scores.json").read_text())
    assert summary["mean"]["f1"]["mean"] == pytest.approx(0.9)
    assert summary["mean"]["f1"]["cases"] == 2
    assert summary["settings"]["grow_px"] == 2
    assert "within 2 px of the border" in summary["definitions"]["f1"]
    assert set(summary["definitions"]) == set(summary["mean"])
    assert summary["sum"] == {"tp": 5, "fp": 0, "fn": 1}
    printed = capsys.readouterr().out
    assert "0.9000" in printed
    assert "\ntotal: TP 5, FP 0, FN 1\n" in printed
    assert "5 instances" in printed
    picture = imread(out / "gallery.png")
    assert picture.shape[0] > 500
    reds = pixels(picture[: int(0.95 * len(picture))], RED)  # the legend is below
    assert 20 < reds.sum() < 5000  # the outline of the one disc that is missed


def test_a_polite_kill_leaves_no_half_of_an_output(cells):
    for number in range(600):
        shutil.copy(cells / "predictions" / "a.png", cells / "predictions" / f"c{number}.png")
    out = cells / "out"
    program = Path(sys.executable).with_name("logvmamba")
    command = [program, "instances", cells / "predictions", out, "--jobs", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(out.rglob("*_label.tiff")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        begun = [path.parent for path in out.rglob("*_label.tiff")]
        process.send_signal(signal.SIGTERM)
    assert begun, "it was killed at work"
    assert begun[0] != out
    left = list(out.iterdir()) if out.exists() else []
    if process.returncode == 0:  # one kill in a hundred falls into imagecodecs, which passes no exception on
        assert len([path for path in left if path.name.endswith("_label.tiff")]) == 602
    else:
        assert process.returncode == 130
        assert left == []


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs a system with terminals that close")
@pytest.mark.parametrize(("before", "code", "left"), [("SIG_DFL", 130, []), ("SIG_IGN", 0, ["scores.csv"])])
def test_a_closed_terminal_leaves_no_half_of_an_output_unless_nohup_has_it_ignored(before, code, left, tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from nnunet_logvmamba.cli import doctor, main\n"
        "from nnunet_logvmamba.files import staged_files\n"
        "def run(args):\n"
        "    with staged_files(Path(sys.argv[1]), overwrite=False) as staged:\n"
        "        (staged / 'scores.csv').write_text('a'); signal.raise_signal(signal.SIGHUP)\n"
        "    return 0\n"
        f"signal.signal(signal.SIGHUP, signal.{before})\n"
        "doctor.run = run\n"
        "sys.exit(main(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, script, out], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert [path.name for path in out.glob("*")] == left


def test_a_kill_that_falls_into_a_destructor_is_not_lost(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys, time\n"
        "from nnunet_logvmamba.cli import doctor, main\n"
        "class Closed:\n"
        "    def __del__(self):\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "def run(args):\n"
        "    Closed(); time.sleep(60)\n"
        "doctor.run = run\n"
        "sys.exit(main(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_pool_of_nnunets_ends_its_workers_although_a_command_waits_for_a_polite_kill(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from nnunet_logvmamba.cli import doctor, main\n"
        "def run(args):\n"
        "    for _ in range(40):\n"
        "        with multiprocessing.get_context('fork').Pool(12) as pool:\n"
        "            pool.map(abs, range(12))\n"  # ended while some of them have not begun to wait
        "    return 0\n"
        "doctor.run = run\n"
        "sys.exit(main(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_shrunken_pieces_score_less_and_the_files_say_so(cells):
    def summary(*options):
        out = cells / f"out{len(list(cells.iterdir()))}"
        assert run(cells / "predictions", out, "--references", cells / "truth", *options) == 0
        return json.loads((out / "scores.json").read_text())

    grown, shrunken = summary(), summary("--grow", 0)
    assert shrunken["settings"]["grow_px"] == 0
    assert shrunken["mean"]["dice_foreground"]["mean"] < grown["mean"]["dice_foreground"]["mean"] - 0.1
    assert shrunken["mean"]["dice_interior"] == grown["mean"]["dice_interior"]


def test_maps_alone_need_no_references(cells):
    assert run(cells / "predictions", cells / "out") == 0
    assert sorted(path.name for path in (cells / "out").iterdir()) == ["a_label.tiff", "b_label.tiff"]


def test_several_processes_give_the_same(cells):
    assert run(cells / "predictions", cells / "one", "--references", cells / "truth") == 0
    words = ["instances", cells / "predictions", cells / "two", "--references", cells / "truth", "--jobs", "2"]
    assert main(list(map(str, words))) == 0
    for path in (cells / "one").iterdir():
        assert path.read_bytes() == (cells / "two" / path.name).read_bytes()


def truncated(cells):
    path = cells / "predictions/b.png"
    path.write_bytes(path.read_bytes()[:60])


def other_shape(cells):
    imwrite(cells / "truth/b_label.tiff", np.zeros((100, 80), np.uint16))


def many_classes(cells):
    imsave(cells / "predictions/b.png", np.full((80, 100), 255, np.uint8), check_contrast=False)


def colours(cells):
    imsave(cells / "predictions/b.png", np.zeros((80, 100, 3), np.uint8), check_contrast=False)


def no_reference(cells):
    (cells / "truth/b_label.tiff").unlink()


def no_prediction(cells):
    (cells / "predictions/b.png").unlink()


def no_image(cells):
    (cells / "images/b_0000.png").unlink()


def other_image(cells):
    imsave(cells / "images/b_0000.png", np.zeros((8, 10), np.uint8), check_contrast=False)


def two_files(cells):
    imsave(cells / "predictions/b.tif", np.zeros((80, 100), np.uint8), check_contrast=False)


def nothing_there(cells):
    for path in (cells / "predictions").glob("*.png"):
        path.unlink()


def target_not_empty(cells):
    (cells / "out").mkdir()
    (cells / "out/precious.txt").write_text("mine")


def broken_truth(cells):
    imwrite(cells / "truth/b_label.tiff", np.full((80, 100), 0.5, np.float32))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (truncated, "predictions/b.png cannot be read"),
        (other_shape, r"b.png has shape \(80, 100\) but its reference .*b_label.tiff has \(100, 80\)"),
        (many_classes, "b.png: holds the value 255; three-class predictions hold 0, 1 and 2 only"),
        (colours, "b.png is a colour picture"),
        (no_reference, r"truth holds no reference for 1 prediction\(s\), the first is 'b'"),
        (no_prediction, r"predictions holds no prediction for 1 reference\(s\), the first is 'b'.*--predicted-only"),
        (no_image, "images holds no image of the case 'b'"),
        (other_image, r"b_0000.png has the shape \(8, 10\)"),
        (two_files, "two files of the case 'b'"),
        (nothing_there, "predictions holds no file"),
        (target_not_empty, "out is not empty"),
        (broken_truth, "b_label.tiff holds numbers that are not whole"),
    ],
)
def test_bad_input_gets_one_sentence_and_nothing_is_written(cells, capsys, spoil, says):
    spoil(cells)
    before = sorted(cells.rglob("*"))
    assert run(cells / "predictions", cells / "out", "--references", cells / "truth", "--images", cells / "images") == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("logvmamba: ")]
    assert len(lines) == 1
    assert "Traceback" not in error
    assert re.search(says, lines[0]), lines[0]
    assert sorted(cells.rglob("*")) == before


def test_part_of_the_references_is_enough_when_asked_for(cells):
    no_prediction(cells)
    out = cells / "out"
    assert run(cells / "predictions", out, "--references", cells / "truth", "--predicted-only") == 0
    assert json.loads((out / "scores.json").read_text())["cases_not_scored"] == ["b"]


def test_cells_that_fold_all_was_trained_on_are_said_to_be(cells, capsys):
    validation = cells / "fold_all" / "validation"
    validation.parent.mkdir()
    (cells / "predictions").rename(validation)
    assert run(validation, cells / "out", "--references", cells / "truth") == 0
    assert f"note: {FOLD_ALL}" in capsys.readouterr().out.splitlines()
    assert json.loads((cells / "out/scores.json").read_text())["notes"] == [FOLD_ALL]


def test_overwriting_replaces_our_files_and_keeps_others(cells):
    out = cells / "out"
    target_not_empty(cells)
    for grow in (2, 0):
        assert run(cells / "predictions", out, "--overwrite", "--grow", grow) == 0
    assert (out / "precious.txt").read_text() == "mine"
    assert (read_tiff(out / "a_label.tiff") > 0).sum() == (imread(cells / "predictions/a.png") == 1).sum()
    assert run(cells / "predictions", out, "--overwrite", "--images", cells / "images") == 0
    assert run(cells / "predictions", out, "--overwrite") == 0
    assert not (out / "gallery.png").exists(), "a picture of other maps"


def test_maps_that_were_written_among_the_predictions_are_none(cells):
    for more in [(), ("--images", cells / "images"), ("--images", cells / "images"), ()]:
        assert run(cells / "predictions", cells / "predictions", "--overwrite", *more) == 0
    assert sorted(path.name for path in (cells / "predictions").glob("*.tiff")) == ["a_label.tiff", "b_label.tiff"]


@pytest.mark.parametrize(
    "words",
    [("--grow", "-1"), ("--iou", "0"), ("--min-size", "x"), ("--border", "1.5"), ("--gallery", "g.png")],
)
def test_options_out_of_range_are_refused(cells, words, capsys):
    try:
        code = run(cells / "predictions", cells / "out", *words)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert words[0] in capsys.readouterr().err
    assert not (cells / "out").exists()


def pixels(picture: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    """Where a picture has very nearly this colour, which is given from 0 to 1."""
    return (np.abs(picture[..., :3] - 255 * np.array(colour)) < 12).all(-1)


@pytest.mark.parametrize("option", [("--border", 13), ("--tile", 76)])
def test_the_gallery_leaves_out_what_the_score_leaves_out(cells, option):
    """The disc that is missed in the second image lies 12 pixels from the border, and across a tile of 76."""
    words = ("--references", cells / "truth", "--images", cells / "images", *option)
    assert run(cells / "predictions", cells / "out", *words) == 0
    assert json.loads((cells / "out" / "scores.json").read_text())["mean"]["f1"]["mean"] == 1
    picture = imread(cells / "out" / "gallery.png")
    assert not pixels(picture[: int(0.95 * len(picture))], RED).any()


def test_a_gallery_goes_where_it_is_told(cells):
    picture = cells / "pictures" / "cells.png"
    words = ("--images", cells / "images", "--gallery", picture, "--gallery-cases", 1)
    assert run(cells / "predictions", cells / "out", *words) == 0
    assert imread(picture).ndim == 3
    assert not (cells / "out/gallery.png").exists()
    assert run(cells / "predictions", cells / "other", *words) == 2  # it exists
    before = picture.read_bytes()
    (cells / "other" / "b_label.tiff").mkdir(parents=True)
    assert run(cells / "predictions", cells / "other", *words, "--overwrite", "--grow", 0) == 2
    assert picture.read_bytes() == before
    (cells / "file").touch()
    words = ("--images", cells / "images", "--gallery", cells / "file" / "cells.png")
    assert run(cells / "predictions", cells / "third", *words) == 2
    assert not (cells / "third").exists()


def test_an_image_of_bits_is_drawn(cells):
    for case in ("a", "b"):
        Image.fromarray(np.indices((80, 100))[0] > 30).save(cells / "images" / f"{case}_0000.png")
    assert run(cells / "predictions", cells / "out", "--images", cells / "images") == 0
    assert imread(cells / "out" / "gallery.png").ndim == 3


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda values: values[..., None], {}),
        (lambda values: values[None], {"photometric": "miniswhite"}),
        (lambda values: np.stack([values] * 3), {"ome": True, "metadata": {"axes": "CYX"}}),
    ],
)
def test_tiffs_of_any_axes_are_read_and_drawn_as_plain_ones(change, options, cells):
    for path in (cells / "images").iterdir():
        imsave(path, imread(path)[..., 0], check_contrast=False)
    words = ("--references", cells / "truth", "--images", cells / "images")
    assert run(cells / "predictions", cells / "plain", *words) == 0
    for path in [*(cells / "images").iterdir(), *(cells / "predictions").glob("*.png")]:
        values = imread(path)
        path.unlink()
        if path.parent.name == "predictions":
            imwrite(path.with_suffix(".tif"), values[None])
        else:
            seen = 255 - values if "photometric" in options else values
            imwrite(path.with_suffix(".tif"), change(seen), **options)
    for path in (cells / "truth").iterdir():
        imwrite(path, read_tiff(path)[None])
    assert run(cells / "predictions", cells / "again", *words) == 0
    assert (cells / "again/scores.csv").read_text() == (cells / "plain/scores.csv").read_text()
    assert (imread(cells / "again/gallery.png") == imread(cells / "plain/gallery.png")).all()


def test_what_was_written_can_be_scored_again(cells):
    """Though a gallery lies beside the maps."""
    out, again = cells / "out", cells / "again"
    assert run(cells / "predictions", out, "--references", cells / "truth", "--images", cells / "images") == 0
    words = ["evaluate", out, cells / "truth", "--instances", "--output", again, "--jobs", "1"]
    assert main(list(map(str, words))) == 0
    first, second = (json.loads((folder / "scores.json").read_text())["mean"] for folder in (out, again))
    assert second["instances"]["f1"]["mean"] == first["f1"]["mean"]
    assert second["instances"]["nsd"]["mean"] == first["nsd_foreground"]["mean"]


def test_real_cells(shared, tmp_path, run_command):
    (tmp_path / "predictions").mkdir()
    data = shared / "data/cells"
    for number in (5, 46, 79):
        truth = read_tiff(data / "labels" / f"cell_{number:05}_label.tiff")
        imsave(tmp_path / f"predictions/cell_{number:05}.png", to_classes(truth), check_contrast=False)
    out = tmp_path / "out"
    words = ("--references", data / "labels", "--predicted-only", "--images", data / "images", "--jobs", 1)
    done = run_command(["logvmamba", "instances", tmp_path / "predictions", out, *words])
    assert "Warning" not in done.stderr
    summary = json.loads((out / "scores.json").read_text())
    assert len(summary["cases_not_scored"]) == 87
    assert summary["mean"]["f1"]["mean"] > 0.9
    assert summary["mean"]["nsd_foreground"]["mean"] > 0.9


def test_classes_in_place_of_true_instance_maps_are_named_where_the_maps_lie_beside_them(cells, capsys):
    for name in ("labelsTr", "instancesTr"):
        (cells / name).mkdir()
    assert run(cells / "predictions", cells / "out", "--references", cells / "labelsTr") == 2
    said = capsys.readouterr().err
    assert f"the true instance maps are in {cells / 'instancesTr'}" in said
    assert not (cells / "out").exists()
