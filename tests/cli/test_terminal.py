"""What commands print fits a terminal of 80 columns, and is as before in a file or a pipe."""

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
import small_results
from commands import BIN
from tifffile import imwrite

from nnunet_logvmamba.cli import completion, main, terminal

COLUMNS = 80


@pytest.fixture
def on_terminal(monkeypatch, capsys):
    """Run a command in this process as if stdout were a terminal, and give what it prints."""

    def run(*words: object) -> str:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(COLUMNS))
            patch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
            assert main([*map(str, words)]) == 0
        return capsys.readouterr().out

    return run


def run_on_pseudo_terminal(words: list[str]) -> str:
    """Run a program in a process of its own, its stdout being a terminal of 80 columns, and give what it prints."""
    controller, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with subprocess.Popen(words, stdout=end, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment) as run:
        os.close(end)
        out = b""
        try:
            while piece := os.read(controller, 65536):
                out += piece
        except OSError:  # how Linux says that the other end is closed
            pass
        assert run.wait() == 0, run.stderr.read().decode()
    os.close(controller)
    return out.decode().replace("\r\n", "\n")


def too_wide(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) > COLUMNS]


def words_of(text: str) -> set[str]:
    return {word for word in text.split() if set(word) - {"-", "|"}}


def write_instances(folder: Path, shift: int) -> Path:
    folder.mkdir()
    for case in range(3):
        cells = np.zeros((40, 40), np.uint8)
        for index in range(4):
            cells[2 + shift : 8 + shift, 2 + 9 * index : 8 + 9 * index + case] = index + 1
        imwrite(folder / f"cell{case}_label.tiff", cells)
    return folder


def test_a_real_terminal_gets_a_summary_in_blocks_and_a_pipe_gets_it_whole(run_command):
    shown = run_on_pseudo_terminal([str(BIN / "logvmamba"), "summary", "--preset", "paper3d"])
    piped = run_command(["logvmamba", "summary", "--preset", "paper3d"]).stdout
    assert too_wide(shown) == []
    assert words_of(shown) == words_of(piped)
    assert len(too_wide(piped)) > 10
    heads = [line.split() for line in shown.splitlines() if line.startswith("stage ")]
    assert len(heads) > 1
    assert all(line.count("of") == line.count("parameters") + line.count("GMAC") for line in heads)


def test_the_scores_of_instances_fit_and_what_is_written_does_not_change(on_terminal, tmp_path, capsys):
    predictions, references = write_instances(tmp_path / "p", 1), write_instances(tmp_path / "r", 0)
    command = ["evaluate", predictions, references, "--instances", "--jobs", 1, "--output"]
    shown = on_terminal(*command, "shown")
    assert main([*map(str, command), "piped"]) == 0
    piped = capsys.readouterr().out
    assert too_wide(shown) == []
    assert too_wide(piped)
    assert words_of(shown) - {"shown"} == words_of(piped) - {"piped"}
    for name in ("scores.txt", "scores.csv"):
        assert (Path("shown") / name).read_text() == (Path("piped") / name).read_text()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_comparison_is_a_text_on_a_terminal_and_markdown_elsewhere(on_terminal, tmp_path, capsys):
    generator = np.random.default_rng(0)
    for number, trainer in enumerate(("nnUNetTrainerLoGVMamba", "nnUNetTrainerVMamba", "nnUNetTrainerNoSSM")):
        for fold in (0, 1):
            dice = {f"c{fold}{case}": list(generator.integers(600, 900, 2) / 1000 + number / 100) for case in range(8)}
            small_results.write_run(Path("results"), f"{trainer}__nnUNetPlans__3d_fullres", fold, dice)
    shown = on_terminal("compare", "results")
    assert main(["compare", "results"]) == 0
    piped = capsys.readouterr().out
    assert too_wide(shown) == []
    assert "# Comparison" in piped
    assert "| --- |" in piped
    assert "|" not in shown
    assert words_of(piped.replace("#", " ")) <= words_of(shown)
    assert on_terminal("compare", "results", "--format", "markdown") == piped


def test_a_command_is_broken_so_that_it_can_still_be_copied(monkeypatch, capsys):
    command = "nnUNetv2_train 501 3d_fullres_placement_head 0 -tr nnUNetTrainerLoGVMamba -p nnUNetResEncUNetLPlans"
    terminal.show_command(command)
    assert capsys.readouterr().out == command + "\n"
    monkeypatch.setattr(terminal, "width", lambda: COLUMNS)
    terminal.show_command(command)
    shown = capsys.readouterr().out
    assert too_wide(shown) == []
    assert shlex.split(shown.replace("\\\n", "")) == shlex.split(command)


@pytest.mark.slow
def test_the_doctor_and_a_real_training_fit_a_terminal(trained, monkeypatch):
    for name, value in trained.folders.environment.items():
        monkeypatch.setenv(name, value)
    fold = next(trained.folders.results.glob("*/*/fold_0"))
    references = trained.folders.raw / fold.parents[1].name / "labelsTr"
    for words in (
        ["doctor"],
        ["summary", "-d", "501", "-c", "3d_tiny"],
        ["evaluate", fold / "validation", references, "--predicted-only", "--metrics", "dice", "hd95", "lesions"],
    ):
        shown = run_on_pseudo_terminal([str(BIN / "logvmamba"), *map(str, words)])
        assert [line for line in too_wide(shown) if len(max(line.split(), key=len)) < 60] == [], words


@pytest.mark.parametrize(
    ("words", "unbuffered", "code"),
    [("study --help", "", 141), ("completion bash", "", 141), ("completion bash", "1", 141), ("study x.toml", "", 2)],
)
def test_a_pipe_that_its_reader_has_closed_ends_a_command_quietly_and_hides_no_error(words, unbuffered, code):
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with os.fdopen(writing, "wb") as pipe:
        command = [BIN / "logvmamba", *words.split()]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, env=environment, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, int(code == 2))


def test_another_pipe_that_breaks_is_an_error(monkeypatch, capfd):
    def write(args):
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            pipe.write(b"x")

    monkeypatch.setattr(completion, "run", write)
    with os.fdopen(os.dup(1), "w") as stdout:  # a file, as that of a command
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["completion", "bash"]) == 2
    assert capfd.readouterr().err == "logvmamba: completion: Broken pipe\n"


def test_the_columns_of_a_summary_are_explained_within_the_width(on_terminal):
    shown = on_terminal("summary", "--preset", "paper3d")
    below = shown[shown.index("\ntotal") :].splitlines()
    for column in ("size", "tokens", "mixer", "LTX", "GTX", "GMAC"):
        (line,) = [line for line in below if line.startswith(f"{column:<8}") and re.search("[a-z]{3} ", line[8:])]
        assert len(line) <= COLUMNS
