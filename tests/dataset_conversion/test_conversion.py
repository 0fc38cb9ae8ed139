"""What all converters share: copies, order, progress, workers, and where source and target must not be."""

import fcntl
import gzip
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name

from dataset_conversion import Dataset501_BraTS2020 as brats
from dataset_conversion import Dataset502_ACDC as acdc
from dataset_conversion import Dataset503_EndoVis2017 as endovis
from dataset_conversion import Dataset504_NeurIPSCellSeg as cells
from dataset_conversion import phantoms
from dataset_conversion.core import reporting, staging, workers
from dataset_conversion.core.cases import Case, ConversionError
from dataset_conversion.formats import nifti, volumes


def test_workers_end_with_a_command_that_is_killed_outright(tmp_path):
    script = (
        "import time; from dataset_conversion.core import workers\n"
        "with workers.workers(2) as each_case:\n"
        "    print(list(each_case(abs, [-1, -2], 'check')), flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).resolve().parents[2], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "[1, 2]\n"
    process.kill()
    process.communicate(timeout=30)  # the pipe closes when the last worker has ended


WORKERS_SCRIPT = """
import sys, time
from pathlib import Path
from dataset_conversion.core import staging, workers

class Bomb:
    def __reduce__(self):
        return int, ("no number",)

def work(case):
    if case == "raise":
        time.sleep(0.2)
        raise ZeroDivisionError
    if case:
        time.sleep(0.6)
        Path(case).mkdir(parents=True, exist_ok=True)

if __name__ == "__main__":
    with workers.workers(2) as each_case, staging.staged_folder(Path(sys.argv[1])) as folder:
        cases = {"raise": ["raise", str(folder / "late")], "unpickle": [None, Bomb()]}[sys.argv[2]]
        list(each_case(work, cases, "write"))
"""


@pytest.mark.parametrize(("fault", "said"), [("raise", "ZeroDivisionError"), ("unpickle", "no number")])
def test_a_failing_worker_leaves_no_folder_and_keeps_its_traceback(tmp_path, fault, said):
    (tmp_path / "script.py").write_text(WORKERS_SCRIPT)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path / "raw" / "target", fault],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    time.sleep(0.8)
    assert done.returncode == 1
    assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_packing_an_image_keeps_its_bytes_and_adds_no_time_stamp(tmp_path):
    source = tmp_path / "a.nii"
    source.write_bytes(bytes(range(256)) * 50)
    nifti.write_image(source, tmp_path / "first.nii.gz")
    time.sleep(1.1)
    nifti.write_image(source, tmp_path / "second.nii.gz")
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
        cases = [Case(str(number), ()) for number in range(3)]
        with workers.workers(2) as each_case, staging.staged_folder(tmp_path / "target"):
            list(each_case(die, cases, "check"))

    with pytest.raises(ConversionError, match=r"worker process died during the check.*__main__.*--jobs 1\."):
        lose_a_worker()
    assert list(tmp_path.iterdir()) == []


def die(case):
    os._exit(1)


def die_while_the_result_is_sent(case):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return bytes(1 << 28)


def test_a_worker_that_is_killed_while_it_sends_its_result_is_told(tmp_path):
    """CPython's own pool waits for the rest of the result for ever."""
    with pytest.raises(ConversionError, match="worker process died"), workers.workers(2) as each_case:
        list(each_case(die_while_the_result_is_sent, [Case(str(number), ()) for number in range(3)], "check"))


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
    (report,) = (root / "raw").glob(f"*/{reporting.REPORT}")
    assert r"images/caf\\xe9.txt" in report.read_text(encoding="utf-8")


def test_old_splits_that_are_no_text_are_replaced_only_when_told(hearts, tmp_path):
    splits = tmp_path / "pre" / "Dataset502_ACDC" / "splits_final.json"
    splits.parent.mkdir(parents=True)
    splits.write_bytes(b"\xff\xfe")
    with pytest.raises(ConversionError, match="holds other splits; use --overwrite"):
        acdc.convert(hearts, tmp_path / "raw", tmp_path / "pre")
    acdc.convert(hearts, tmp_path / "raw", tmp_path / "pre", overwrite=True)
    assert splits.read_bytes().startswith(b"[")


# Dry runs over targets that are there, and ids


@pytest.fixture(scope="module")
def pictures_of_cells(tmp_path_factory):
    return phantoms.write_cells(tmp_path_factory.mktemp("cells") / "source", 3, edge=48).parent


@pytest.fixture
def targets(tmp_path, monkeypatch):
    """Folders of nnU-Net below the test's own, as the commands find them."""
    folders = {name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for name, folder in folders.items():
        monkeypatch.setenv(name, str(folder))
    return folders


def same_code(main, words, capsys):
    """Exit code and output of a dry run, after making sure that it changes nothing and that the real run ends alike."""
    dry = main([*words, "--dry-run", "--jobs", "1"])
    said = capsys.readouterr()
    assert main([*words, "--jobs", "1"]) == dry
    capsys.readouterr()
    return dry, said.out, said.err


def test_a_dry_run_over_a_data_set_says_what_the_real_run_would_do(pictures_of_cells, targets, capsys, fingerprint):
    source, target = str(pictures_of_cells), targets["nnUNet_raw"] / "Dataset504_NeurIPSCellSeg"
    splits = targets["nnUNet_preprocessed"] / target.name / "splits_final.json"
    code, out, _ = same_code(cells.main, [source], capsys)
    assert code == 0
    assert f"would write {target}" in out
    assert f"would write {splits}" in out
    before = fingerprint(targets["nnUNet_raw"].parent)
    code, out, err = same_code(cells.main, [source], capsys)
    assert code == 2
    assert "3 labelled case(s)" in out
    assert "the cases are in order" in out
    assert err == f"error: Target folder {target} is not empty; use --overwrite to replace it.\n"
    assert cells.main([source, "--overwrite", "--dry-run", "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert f"would replace {target} and the {sum(path.is_file() for path in target.rglob('*'))} file(s) in it" in out
    assert f"would replace {splits}" in out
    assert fingerprint(targets["nnUNet_raw"].parent) == before


def test_a_dry_run_says_that_other_splits_are_there(pictures_of_cells, targets, capsys):
    splits = targets["nnUNet_preprocessed"] / "Dataset504_NeurIPSCellSeg" / "splits_final.json"
    splits.parent.mkdir(parents=True)
    splits.write_text("[]")
    code, _, err = same_code(cells.main, [str(pictures_of_cells)], capsys)
    assert (code, err) == (2, f"error: {splits} holds other splits; use --overwrite to replace it.\n")
    assert splits.read_text() == "[]"


def test_a_dry_run_tells_of_bad_cases_although_the_target_is_there(pictures_of_cells, targets, tmp_path, capsys):
    source = shutil.copytree(pictures_of_cells, tmp_path / "spoilt")
    (targets["nnUNet_raw"] / "Dataset504_NeurIPSCellSeg" / "old").mkdir(parents=True)
    label = next(source.rglob("*_label.tiff"))
    label.write_bytes(b"")
    code, _, err = same_code(cells.main, [str(source)], capsys)
    assert code == 2
    assert label.name in err


@pytest.mark.parametrize("option", ["--images-only", "--restore"])
def test_a_dry_run_over_a_folder_says_what_the_real_run_would_do(option, pictures_of_cells, tmp_path, capsys):
    given, out = pictures_of_cells / "Training-labeled", tmp_path / "out"
    if option == "--restore":
        cells.convert(pictures_of_cells, tmp_path / "raw", None)
        given = tmp_path / "raw" / "Dataset504_NeurIPSCellSeg" / "labelsTr"
        capsys.readouterr()
    code, said, _ = same_code(cells.main, [option, str(given), str(out)], capsys)
    assert (code, f"would write {out}" in said) == (0, True)
    code, said, err = same_code(cells.main, [option, str(given), str(out)], capsys)
    assert (code, err) == (2, f"error: Target folder {out} is not empty; use --overwrite to replace it.\n")
    assert cells.main([option, str(given), str(out), "--overwrite", "--dry-run", "--jobs", "1"]) == 0
    assert f"would replace {out} and the 3 file(s) in it" in capsys.readouterr().out


def test_a_dry_run_below_a_file_is_refused_as_the_real_run_is(pictures_of_cells, targets, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["--images-only", str(pictures_of_cells / "Training-labeled"), str(tmp_path / "file" / "out")]
    code, _, err = same_code(cells.main, words, capsys)
    assert code == 2
    assert f"{tmp_path / 'file'} cannot be written" in err


def test_ids_have_four_digits_if_wanted_and_nnunet_knows_them(pictures_of_cells, targets, capsys):
    assert cells.main([str(pictures_of_cells), "-d", "1001", "--jobs", "1"]) == 0
    assert convert_id_to_dataset_name(1001) == "Dataset1001_NeurIPSCellSeg"
    assert (targets["nnUNet_preprocessed"] / "Dataset1001_NeurIPSCellSeg" / "splits_final.json").is_file()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cells.main([str(pictures_of_cells), "-d", "10000"])


@pytest.mark.parametrize(
    ("there", "number", "says"),
    [
        ("Dataset504_Trained", "504", "Id 504 is taken by {}; choose another one with -d."),
        ("Dataset1001_Knee", "100", "Id 100 begins like that of {}, which nnU-Net takes for the same"),
        ("Dataset100_Knee", "1001", "Id 1001 begins like that of {}, which nnU-Net takes for the same"),
    ],
)
@pytest.mark.parametrize("folder", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_an_id_that_nnunet_would_mix_up_is_refused_wherever_it_is(
    folder, there, number, says, pictures_of_cells, targets, capsys
):
    (targets[folder] / there).mkdir(parents=True)
    assert cells.main([str(pictures_of_cells), "-d", number, "--jobs", "1"]) == 2
    assert says.format(targets[folder] / there) in capsys.readouterr().err
    # This is what would have come of it.
    (targets["nnUNet_raw"] / f"Dataset{number}_NeurIPSCellSeg").mkdir(parents=True)
    with pytest.raises(RuntimeError, match="More than one dataset name found"):
        convert_id_to_dataset_name(min(int(number), int(there[7:].split("_")[0])))
