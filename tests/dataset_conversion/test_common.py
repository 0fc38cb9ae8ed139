"""The pieces that all converters share: staging, folds, label maps, errors."""

import fcntl
import gzip
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dataset_conversion import Dataset501_BraTS2020 as brats
from dataset_conversion import Dataset502_ACDC as acdc
from dataset_conversion import Dataset503_EndoVis2017 as endovis
from dataset_conversion import Dataset504_NeurIPSCellSeg as cells
from dataset_conversion import common, phantoms, volumes
from dataset_conversion.common import ConversionError


def test_staged_folder_appears_only_when_complete(tmp_path):
    target = tmp_path / "new" / "target"
    with common.staged_folder(target) as staged:
        (staged / "file").write_text("x")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["file"]
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_staged_folder_leaves_nothing_behind_after_an_error(tmp_path, error):
    def interrupted():
        with common.staged_folder(tmp_path / "a" / "b" / "target") as staged:
            (staged / "file").write_text("x")
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_staged_folder_keeps_the_old_contents_after_an_error(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("precious")

    def interrupted():
        with common.staged_folder(target, overwrite=True) as staged:
            (staged / "new").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "old").read_text() == "precious"


def test_staged_folder_replaces_a_full_target_only_when_told(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("x")
    with pytest.raises(ConversionError, match="--overwrite"), common.staged_folder(target):
        pytest.fail("the block must not run")
    with common.staged_folder(target, overwrite=True) as staged:
        (staged / "new").write_text("x")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_staged_folder_restores_the_old_contents_if_what_follows_fails(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("precious")

    def fail():
        assert [path.name for path in target.iterdir()] == ["new"]
        raise OSError(28, "No space left on device", "splits_final.json")

    def write():
        with common.staged_folder(target, overwrite=True, then=fail) as staged:
            (staged / "new").write_text("x")

    with pytest.raises(OSError, match="No space left"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "old").read_text() == "precious"


def test_a_target_that_is_a_link_is_replaced_where_it_leads(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "old").write_text("x")
    (tmp_path / "link").symlink_to(real)
    with common.staged_folder(tmp_path / "link", overwrite=True) as staged:
        (staged / "new").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in real.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_old_contents_that_cannot_be_removed_are_a_warning_once_the_new_ones_are_there(tmp_path, monkeypatch, capsys):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_text("x")

    def refuse(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch, common.staged_folder(target, overwrite=True) as staged:
        (staged / "new").write_text("x")
        patch.setattr("shutil.rmtree", refuse)
    (kept,) = tmp_path.glob(".target.replaced-*")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert capsys.readouterr().err == (
        f"warning: {kept} could not be removed (Permission denied); it holds the old contents of {target}, "
        "remove it by hand.\n"
    )


def test_staged_file_keeps_the_old_contents_after_an_error(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def interrupted():
        with common.staged_file(target) as staged:
            staged.write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGHUP])
def test_a_killed_command_leaves_nothing_behind(tmp_path, kill):
    script = (
        "import sys, time; from pathlib import Path; from dataset_conversion import common\n"
        "def command():\n"
        "    with common.staged_folder(Path(sys.argv[1])) as staged:\n"
        "        (staged / 'file').write_text('x'); print('ready', flush=True); time.sleep(60)\n"
        "sys.exit(common.run(command))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "raw" / "target")],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(kill)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.count("\n") == 1
    assert errors.startswith("error: interrupted")
    assert list(tmp_path.iterdir()) == []


def test_workers_end_with_a_command_that_is_killed_outright(tmp_path):
    script = (
        "import time; from dataset_conversion import common\n"
        "with common.workers(2) as each_case:\n"
        "    print(list(each_case(abs, [-1, -2], 'check')), flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).resolve().parents[2], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "[1, 2]\n"
    process.kill()
    process.communicate(timeout=30)  # the pipe closes when the last worker has ended


def test_run_says_one_sentence_about_a_full_disk_or_a_forbidden_folder(capsys):
    def command():
        raise PermissionError(13, "Permission denied", "/some/folder")

    assert common.run(command) == 2
    assert capsys.readouterr().err == (
        "error: /some/folder: Permission denied; check that it exists and that you may read and write there.\n"
    )


def test_run_does_not_hide_programming_errors():
    with pytest.raises(ZeroDivisionError):
        common.run(lambda: 1 / 0)


def test_unset_variable_is_named(monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(ConversionError, match="nnUNet_raw is not set"):
        common.require_folder_variable("nnUNet_raw")


@pytest.mark.parametrize(("num_cases", "num_folds"), [(2, 2), (4, 4), (5, 5), (17, 5)])
def test_folds_partition_the_cases(num_cases, num_folds):
    cases = [f"case_{number}" for number in range(num_cases)]
    splits = common.make_splits(cases)
    assert len(splits) == num_folds
    assert sorted(case for fold in splits for case in fold["val"]) == sorted(cases)
    for fold in splits:
        assert sorted(fold["train"] + fold["val"]) == sorted(cases)
    sizes = [len(fold["val"]) for fold in splits]
    assert max(sizes) - min(sizes) <= 1


def test_folds_do_not_depend_on_the_order_of_the_cases_and_are_shuffled():
    cases = [f"case_{number:02d}" for number in range(20)]
    assert common.make_splits(cases) == common.make_splits(cases[::-1])
    assert common.make_splits(cases)[0]["val"] != cases[:4]


def test_no_group_lies_on_both_sides_of_a_fold():
    cases = [f"case_{number:03d}" for number in range(1, 60)]
    for fold in common.make_splits(cases, lambda case: (common.trailing_number(case) + 2) // 3):
        sides = [{(common.trailing_number(case) + 2) // 3 for case in fold[side]} for side in ("train", "val")]
        assert not sides[0] & sides[1]


def test_every_fold_gets_its_share_of_each_stratum():
    cases = {f"patient{number:03d}_{phase}": "abcde"[number % 5] for number in range(100) for phase in ("ed", "es")}
    splits = common.make_splits(cases, lambda case: case[:10], cases.__getitem__)
    for fold in splits:
        assert Counter(cases[case] for case in fold["val"]) == dict.fromkeys("abcde", 8)
        assert not {case[:10] for case in fold["train"]} & {case[:10] for case in fold["val"]}


def test_a_held_out_share_takes_whole_groups_of_every_stratum():
    cases = [
        common.Case(f"c{number:03d}", (), group=f"g{number // 2:03d}", stratum="ab"[number // 2 % 2])
        for number in range(80)
    ]
    training, testing = common.hold_out(cases, 0.2)
    assert Counter(case.stratum for case in testing) == {"a": 8, "b": 8}
    assert not {case.group for case in training} & {case.group for case in testing}
    assert common.hold_out(cases[::-1], 0.2)[1][::-1] == testing
    with pytest.raises(ConversionError, match="leaves one side empty"):
        common.hold_out(cases[:4], 0.1)


def test_a_group_on_both_sides_of_a_split_is_refused():
    cases = [common.Case("a1", (), group="a"), common.Case("a2", (), group="a"), common.Case("b", ())]
    with pytest.raises(ConversionError, match="Group a lies on both sides"):
        common.require_groups_apart([{"train": ["a1", "b"], "val": ["a2"]}], cases, [])
    with pytest.raises(ConversionError, match="Group a lies on both sides"):
        common.require_groups_apart([], cases[:1], cases[1:2])


def test_one_subject_cannot_be_split():
    with pytest.raises(ConversionError, match="at least 2"):
        common.make_splits(["a_1", "a_2"], lambda case: "a")


def test_remap_labels_swaps_without_overwriting():
    assert common.remap_labels(np.array([0.0, 1, 2, 4, 2]), {0: 0, 1: 2, 2: 1, 4: 3}).tolist() == [0, 2, 1, 3, 1]
    with pytest.raises(ValueError, match=r"\[3, 9\]"):
        common.remap_labels(np.array([[0, 3], [9, 3]]), {0: 0})
    with pytest.raises(ValueError, match=r"\[-1\]"):
        common.remap_labels(np.array([-1, 0]), {0: 0})


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint64, np.float32, np.float64])
def test_masks_of_every_type_are_counted_and_mapped_alike(dtype):
    mask = np.array([[0, 4, 2], [4, 4, 1]], dtype)
    assert [values.tolist() for values in common.value_counts(mask)] == [[0, 1, 2, 4], [1, 1, 1, 3]]
    mapped = common.remap_labels(mask, {0: 0, 1: 2, 2: 1, 4: 3})
    assert mapped.dtype == np.uint8
    assert mapped.tolist() == [[0, 3, 1], [3, 3, 2]]
    large = (mask * 50000).astype(dtype) if dtype not in (np.uint8, np.int16) else mask
    assert common.value_counts(large)[1].tolist() == [1, 1, 1, 3]


def test_packing_an_image_keeps_its_bytes_and_adds_no_time_stamp(tmp_path):
    source = tmp_path / "a.nii"
    source.write_bytes(bytes(range(256)) * 50)
    volumes.write_image(source, tmp_path / "first.nii.gz")
    time.sleep(1.1)
    volumes.write_image(source, tmp_path / "second.nii.gz")
    assert gzip.decompress((tmp_path / "first.nii.gz").read_bytes()) == source.read_bytes()
    assert (tmp_path / "first.nii.gz").read_bytes() == (tmp_path / "second.nii.gz").read_bytes()


def convert_all(root):
    """Convert a miniature of every layout, whose sources are made first, into folders below ``root``."""
    sources = root.parent / "sources"
    if not sources.exists():
        phantoms.write_brats2020(sources / "501", 6, shape=(16, 16, 16), release="2023-GLI")
        phantoms.write_acdc(sources / "502", 5, num_test_patients=1, shape=(16, 16, 2))
        phantoms.write_endovis2017(sources / "503", 1, sequences=(2, 3), test_sequences=(1,))
        phantoms.write_cells(sources / "504", 6, num_tuning=1, groups=True, edge=48)
    for number, converter in ((501, brats), (502, acdc), (503, endovis), (504, cells)):
        converter.convert(sources / str(number), root / "raw", root / "preprocessed", number)


def test_the_order_in_which_a_disk_lists_its_files_changes_nothing(tmp_path, monkeypatch, fingerprint):
    convert_all(tmp_path / "once")
    listdir, scandir = os.listdir, os.scandir

    class Backwards:
        """A listing that can be walked through and closed, as the real one."""

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.entries.clear()

        def __init__(self, path="."):
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name)

        def __iter__(self):
            return self

        def __next__(self):
            if not self.entries:
                raise StopIteration
            return self.entries.pop()

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", lambda path=".": sorted(listdir(path), reverse=True))
        patch.setattr(os, "scandir", Backwards)
        assert os.listdir(tmp_path) == ["sources", "once"]
        convert_all(tmp_path / "again")
    assert len(fingerprint(tmp_path / "once")) == 90
    assert fingerprint(tmp_path / "once") == fingerprint(tmp_path / "again")


def test_a_progress_bar_shows_on_a_terminal(tmp_path):
    phantoms.write_brats2020(tmp_path / "source", 2, shape=(16, 16, 16))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a terminal without width shows none
    command = [sys.executable, "-m", "dataset_conversion.Dataset501_BraTS2020", tmp_path / "source", "--jobs", "1"]
    variables = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    done = subprocess.run(
        command,
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=120,
    )
    os.close(theirs)
    shown = os.read(ours, 10000).decode()
    os.close(ours)
    assert done.returncode == 0, shown
    assert "check: 100%" in shown
    assert "write: 100%" in shown


def test_a_worker_that_dies_is_told_and_nothing_is_written(tmp_path):
    def lose_a_worker():
        cases = [common.Case(str(number), ()) for number in range(3)]
        with common.workers(2) as each_case, common.staged_folder(tmp_path / "target"):
            list(each_case(die, cases, "check"))

    with pytest.raises(ConversionError, match=r"worker process died during the check.*__main__.*--jobs 1\."):
        lose_a_worker()
    assert list(tmp_path.iterdir()) == []


def die(case):
    os._exit(1)


# Where source and target must not be


@pytest.fixture
def hearts(tmp_path):
    phantoms.write_acdc(tmp_path / "hearts", 2, num_test_patients=1, shape=(16, 16, 2))
    return tmp_path / "hearts"


def test_a_target_inside_the_source_is_refused_since_the_next_run_would_read_it(hearts, tmp_path, fingerprint):
    before = fingerprint(tmp_path)
    with pytest.raises(ConversionError, match=rf"Target {hearts}/out lies inside the source {hearts}"):
        acdc.convert_images(hearts, hearts / "out")
    for raw, preprocessed in ((hearts / "raw", tmp_path / "pre"), (tmp_path / "raw", hearts / "pre")):
        with pytest.raises(ConversionError, match=rf"Target {hearts}/(raw|pre)/.* lies inside the source {hearts}"):
            acdc.convert(hearts, raw, preprocessed)
    assert fingerprint(tmp_path) == before


def test_one_folder_cannot_be_both_roots(hearts, tmp_path):
    with pytest.raises(ConversionError, match="nnUNet_raw and nnUNet_preprocessed are the same folder"):
        acdc.convert(hearts, tmp_path / "both", tmp_path / "both" / ".." / "both")
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("root", ["nnUNet_raw", "nnUNet_preprocessed", "out"])
def test_a_root_that_cannot_be_written_is_named_before_any_case_is_read(hearts, tmp_path, monkeypatch, capfd, root):
    """Below a pseudo file system nobody can make a folder, whoever runs the test."""
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc here")
    folders = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "out")} | {root: "/proc/no"}
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, folders[name])
    monkeypatch.setattr(volumes.Volumes, "check", lambda *arguments: pytest.fail("a case was read"))
    arguments = ["--images-only", str(hearts), folders["out"]] if root == "out" else [str(hearts)]
    assert acdc.main([*arguments, "--jobs", "1"]) == 2
    errors = capfd.readouterr().err
    assert errors.startswith("error: /proc cannot be written (")
    assert "partial" not in errors
    assert errors.endswith("or choose another target.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["hearts"]


def test_names_that_are_not_utf_8_are_reported_with_their_bytes(tmp_path, capfd, monkeypatch):
    folder = phantoms.write_cells(tmp_path / "source", 3, edge=48)
    try:
        Path(os.fsdecode(os.fsencode(folder / "images") + b"/caf\xe9.txt")).touch()
        os.rename(os.fsencode(folder.parent), os.fsencode(tmp_path) + b"/sourc\xe9")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{name}", str(root / name))
    assert cells.main([os.fsdecode(os.fsencode(tmp_path) + b"/sourc\xe9"), "--jobs", "1"]) == 0
    said, errors = capfd.readouterr()
    assert errors == ""
    assert r"neither a picture nor a label: Training-labeled/images/caf\xe9.txt" in said
    (report,) = (root / "raw").glob(f"*/{common.REPORT}")
    assert r"images/caf\\xe9.txt" in report.read_text(encoding="utf-8")


def test_old_splits_that_are_no_text_are_replaced_only_when_told(hearts, tmp_path):
    splits = tmp_path / "pre" / "Dataset502_ACDC" / "splits_final.json"
    splits.parent.mkdir(parents=True)
    splits.write_bytes(b"\xff\xfe")
    with pytest.raises(ConversionError, match="holds other splits; use --overwrite"):
        acdc.convert(hearts, tmp_path / "raw", tmp_path / "pre")
    acdc.convert(hearts, tmp_path / "raw", tmp_path / "pre", overwrite=True)
    assert splits.read_bytes().startswith(b"[")
