"""What `make install` and `make install-dev` promise: pins for every dependency, one sentence where it cannot go on."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from nnunet_logvmamba.plugin import environment

ROOT = Path(__file__).resolve().parents[2]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def declared(*keys: str) -> set[str]:
    text = (ROOT / "pyproject.toml").read_text()
    lists = [re.search(rf"^{key} = \[(.*?)\]$", text, flags=re.MULTILINE | re.DOTALL)[1] for key in keys]
    return {name_of(requirement) for part in lists for requirement in re.findall(r'"([^"]+)"', part)}


def test_every_dependency_is_pinned_to_one_version_per_python():
    assert declared("dependencies", "dev") <= {name_of(pin) for pin in PINS}
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+( ; python_version (<|>=) "3\.11")?', pin) for pin in PINS)
    names = [name_of(pin) for pin in PINS if ";" not in pin]
    assert len(names) == len(set(names))
    halves = {sign: {name_of(pin) for pin in PINS if f"python_version {sign} " in pin} for sign in ("<", ">=")}
    assert halves["<"] == halves[">="]


def test_constraints_leave_to_torch_what_belongs_to_cuda():
    taken = [pin for pin in PINS if re.match(r"(triton|torchvision|nvidia-|cuda-)", pin)]
    assert taken == []
    assert [pin for pin in PINS if "+" in pin] == []  # "+cpu" would shut out the CUDA build


def test_no_file_of_the_installation_names_a_package_index():
    for name in ("Makefile", "constraints.txt", "pyproject.toml", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"index-url|find-links|https?://[^\s\"]*(pypi|whl|simple)", text), name


def test_continuous_integration_runs_make_test():
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    ("interpreter", "complaint"),
    [("#!/bin/sh\nexit 1\n", "is older than Python 3.10"), (None, "there is no interpreter")],
)
def test_an_unfit_interpreter_gets_one_sentence_and_leaves_nothing(interpreter, complaint, tmp_path):
    python, venv = tmp_path / "python3", tmp_path / "venv"
    if interpreter is not None:
        python.write_text(interpreter)
        python.chmod(0o755)
    command = ["make", "install", f"VENV={venv}", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    first, *rest = done.stderr.splitlines()
    assert done.returncode != 0
    assert complaint in first
    assert str(python) in first
    assert len(rest) == 1  # make's own line
    assert not venv.exists()


def test_torchvision_can_be_imported_after_the_installation():
    assert environment.torchvision_error() is None


def test_a_torchvision_made_for_another_torch_is_recognised(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert environment.torchvision_error() == "RuntimeError: operator torchvision::nms does not exist"


@pytest.mark.parametrize(
    ("python", "remedy"), [((3, 10), "torchvision==0.16.2"), ((3, 11), "torchvision==0.16.2"), ((3, 12), "pytorch.org")]
)
def test_the_remedy_for_torchvision_fits_the_python(python, remedy):
    assert remedy in environment.torchvision_remedy(python)


@pytest.mark.parametrize(
    ("cuda", "mps", "option"),
    [(True, False, ""), (True, True, ""), (False, True, " -device mps"), (False, False, " -device cpu")],
)
def test_printed_commands_name_a_device_that_is_there(cuda, mps, option, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert environment.device_option() == option


def test_running_the_set_up_again_changes_nothing(run_command):
    freeze = ["python", "-m", "pip", "freeze", "--all"]
    before = run_command(freeze).stdout
    said = run_command(["python", "-m", "nnunet_logvmamba.plugin.environment", "--tests"]).stdout
    assert said.startswith("torch ")
    assert run_command(freeze).stdout == before
