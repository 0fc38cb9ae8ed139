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
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def taken() -> list[str]:
    """Files of the clone, as git lists them, that ``.dockerignore`` lets into the image."""
    first, *others = ignored()
    assert first == "*", "what is not named would come in"
    named = {line[1:] for line in others if line.startswith("!")}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [name for name in listed if name.split("/")[0] in named]


def test_every_instruction_is_one_that_the_test_below_carries_out():
    known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "CMD"}
    assert {instruction for instruction, _ in layers()} <= known
    assert layers()[0][0] == "FROM"
    assert [rest for instruction, rest in layers() if instruction == "COPY"] == [". ."]


def test_scans_that_lie_in_the_clone_do_not_come_into_the_image():
    first, *others = ignored()
    assert first == "*"
    named = {line[1:] for line in others if line.startswith("!")}
    assert all((ROOT / name).exists() for name in named)
    assert not named & {"data", "docs", "findings", "tests"}
    ours = {"benchmarks", "dataset_conversion", "nnunet_logvmamba"}
    assert {name for name in named if (ROOT / name).is_dir()} == ours
    assert {name.split("/")[0] for name in taken()} == named


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
            for name in taken():
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
