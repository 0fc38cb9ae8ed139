"""The layers of the Dockerfile: built where Docker runs; elsewhere their commands run in a folder, one by one."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "docs" / "docker" / "Dockerfile"


def docker_runs() -> bool:
    """Whether there is Docker, and a daemon that answers it."""
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0


def layers() -> list[tuple[str, str]]:
    """Instructions and what follows them, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def ignored() -> list[str]:
    return (ROOT / ".dockerignore").read_text().split()


def test_every_instruction_is_one_that_the_test_below_carries_out():
    known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "CMD"}
    assert {instruction for instruction, _ in layers()} <= known
    assert layers()[0][0] == "FROM"
    assert [rest for instruction, rest in layers() if instruction == "COPY"] == [". ."]


def test_the_context_leaves_out_what_git_does_and_the_history():
    assert ".git" in ignored()
    unlike = {"*.pyc", "benchmarks/results/*_quick.json"}
    ours = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()} - unlike
    assert {name.removeprefix("**/") for name in ignored()} >= ours


@pytest.mark.slow
def test_docker_builds_the_image():
    if not docker_runs():
        pytest.skip("needs a running Docker")
    subprocess.run(["docker", "build", "-f", DOCKERFILE, "-t", "logvmamba-test", ROOT], check=True)


@pytest.mark.slow
def test_the_commands_of_the_layers_run_one_after_the_other(tmp_path):
    if docker_runs():
        pytest.skip("Docker builds the image itself")
    inside = {f"/{top}": str(tmp_path / top) for top in ("opt", "data", "tmp")}

    def placed(text: str) -> str:
        return re.sub(r"(?<![\w.])/(?:opt|data|tmp)\b", lambda match: inside[match[0]], text)

    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "nnUNet_n"))}
    folder = tmp_path
    for instruction, rest in layers():
        if instruction == "WORKDIR":
            folder = Path(placed(rest))
            folder.mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            for name in listed.splitlines():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        elif instruction in ("ENV", "ARG"):
            name, _, value = rest.partition("=")
            value = os.path.expandvars(placed(value).replace("$PATH", environment["PATH"])).strip('"')
            if instruction == "ENV" or value:
                environment[name] = value
        elif instruction == "RUN" and rest.startswith("apt-get"):
            packages = re.findall(r"--no-install-recommends ([\w -]+?) &&", rest)[0].split()
            assert all(map(shutil.which, packages)), packages  # installed here, so nothing is to be done
        elif instruction == "RUN":
            done = subprocess.run(
                ["bash", "-c", placed(rest)], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{rest}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "ready to train" in done.stdout
