"""Exit codes, and what is said when a command fails."""

import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataset_conversion import Dataset504_NeurIPSCellSeg, phantoms
from dataset_conversion.core import command_line
from dataset_conversion.core.cases import ConversionError


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGHUP])
def test_a_killed_command_leaves_nothing_behind(tmp_path, kill):
    script = (
        "import signal, sys, time; from pathlib import Path\n"
        "from dataset_conversion.core import command_line, staging\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # these tests may run under nohup
        "def command():\n"
        "    with staging.staged_folder(Path(sys.argv[1])) as staged:\n"
        "        (staged / 'file').write_text('x'); print('ready', flush=True); time.sleep(60)\n"
        "sys.exit(command_line.run(command))\n"
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


def test_a_kill_that_falls_into_a_destructor_is_not_lost(tmp_path):
    script = (
        "import signal, sys, time; from pathlib import Path\n"
        "from dataset_conversion.core import command_line, staging\n"
        "class Closed:\n"
        "    def __del__(self):\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "def command():\n"
        "    with staging.staged_folder(Path(sys.argv[1])):\n"
        "        Closed(); time.sleep(60)\n"
        "sys.exit(command_line.run(command))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "raw" / "target")],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert process.returncode == 130
    assert process.stderr == "error: interrupted; what had been written was removed again.\n"
    assert list(tmp_path.iterdir()) == []


def test_other_faults_in_a_destructor_are_still_reported(monkeypatch):
    class Faulty:
        def __del__(self):
            raise ValueError("in the destructor")

    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(str(unraisable.exc_value)))
    before = sys.unraisablehook
    assert command_line.run(Faulty) == 0
    assert seen == ["in the destructor"]
    assert sys.unraisablehook is before


def test_run_says_one_sentence_about_a_full_disk_or_a_forbidden_folder(capsys):
    def command():
        raise PermissionError(13, "Permission denied", "/some/folder")

    assert command_line.run(command) == 2
    assert capsys.readouterr().err == (
        "error: /some/folder: Permission denied; check that it exists and that you may read and write there.\n"
    )


CONVERTERS = sorted(path.stem for path in Path(command_line.__file__).parents[1].glob("Dataset*.py"))


@pytest.mark.parametrize("name", [*CONVERTERS, "phantoms"])
def test_every_help_ends_with_examples_that_parse_and_a_page_that_exists(name, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    main = importlib.import_module(f"dataset_conversion.{name}").main
    with pytest.raises(SystemExit, match="^0$"):
        main(["--help"])
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-1] == f"more: {command_line.PAGE}"
    assert (Path(__file__).resolve().parents[2] / command_line.PAGE).is_file()
    shown = [shlex.split(line) for line in lines[lines.index("examples:") + 1 :] if line.startswith("  ")]
    assert shown
    monkeypatch.chdir(tmp_path)
    for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(folder, str(tmp_path / folder))
    for python, option, module, *words in shown:
        assert (python, option, module) == ("python", "-m", f"dataset_conversion.{name}")
        if name == "phantoms":
            assert main([*words, "--shape", "16", "16", "16"]) == 0
        else:  # argparse would end the test
            assert main(words) == 2
            assert re.search("SOURCE|SCANS", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("Dataset501_BraTS2020", "--images-only SOURCE OUT --release 2020", "--release is not for --images-only"),
        ("Dataset501_BraTS2020", "--restore SOURCE OUT --protocol paper", "--protocol is not for --restore"),
        ("Dataset502_ACDC", "--images-only SOURCE OUT -d 9", "--dataset-id is not for --images-only"),
        ("Dataset503_EndoVis2017", "--restore SOURCE OUT --geometry full-third", "--geometry is not for --restore"),
        ("Dataset503_EndoVis2017", "SOURCE --images-only OUT --folds published", "--folds is not for --images-only"),
        ("Dataset504_NeurIPSCellSeg", "SOURCE --grow 0", "--grow is not for a conversion"),
        ("Dataset504_NeurIPSCellSeg", "SOURCE --grow 2", "--grow is not for a conversion"),
        ("Dataset504_NeurIPSCellSeg", "--gro=2 SOURCE", "--grow is not for a conversion"),
        ("Dataset501_BraTS2020", "--images-only SOURCE OUT --protocol crossval", "--protocol is not for --images-only"),
        ("Dataset004_Hippocampus", "--restore SOURCE OUT -d 4", "--dataset-id is not for --restore"),
        ("Dataset504_NeurIPSCellSeg", "--images-only SOURCE OUT --test-share 0.2", "--test-share is not for"),
        ("Dataset004_Hippocampus", "--restore SOURCE OUT -d 9", "--dataset-id is not for --restore"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(name, words, says, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"dataset_conversion.{name}").main(words.split())
    assert end.value.code == 2
    assert f"error: {says}" in capsys.readouterr().err


MADE = "hippocampus target --cases 1 --shape 16 16 16"


@pytest.mark.parametrize(("words", "unbuffered"), [("--help", ""), (MADE, ""), (MADE, "1")])
def test_a_pipe_that_its_reader_has_closed_ends_a_command_quietly(words, unbuffered, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-m", "dataset_conversion.phantoms", *words.split()]
    options = {"stderr": subprocess.PIPE, "env": environment, "cwd": tmp_path, "text": True, "check": False}
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, **options)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_pipe_that_breaks_is_an_error(monkeypatch, capfd):
    def command():
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            pipe.write(b"x")

    with os.fdopen(os.dup(1), "w") as stdout:  # a file, as that of a command
        monkeypatch.setattr(sys, "stdout", stdout)
        assert command_line.run(command) == 2
    assert capfd.readouterr().err.startswith("error: Broken pipe; ")


def test_run_does_not_hide_programming_errors():
    with pytest.raises(ZeroDivisionError):
        command_line.run(lambda: 1 / 0)


def test_unset_variable_is_named(monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(ConversionError, match="nnUNet_raw is not set"):
        command_line.require_folder_variable("nnUNet_raw")


def test_a_report_fits_a_terminal_and_is_as_wide_as_its_lines_in_a_file(tmp_path, monkeypatch, capsys):
    source = phantoms.write_cells(tmp_path / "source", 6)

    def convert(folder: str) -> str:
        capsys.readouterr()
        Dataset504_NeurIPSCellSeg.convert(source, tmp_path / folder, tmp_path / "preprocessed", 504, overwrite=True)
        return capsys.readouterr().out.replace(str(tmp_path), "~")

    whole = convert("raw")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    lines = convert("raw").splitlines()
    assert max(map(len, whole.splitlines())) > 100
    assert all(len(line) <= 60 or len(line.split()) == 1 for line in lines)
    assert " ".join(lines).split() == whole.split()
    assert [line for line in lines if line.startswith("    ")]  # what continues stands below its line
