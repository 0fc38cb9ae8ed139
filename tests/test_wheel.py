"""What ships: the wheel, installed in an environment of its own without network, and removed again."""

import os
import re
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import trove_classifiers

ROOT = Path(__file__).resolve().parents[1]

FIND = """
import json, os, sys
import nnunet_logvmamba
from nnunetv2.run.run_training import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
print(json.dumps([nnunet_logvmamba.__file__, find(sys.argv[1]).__name__, os.environ["nnUNet_extTrainer"]]))
"""


def pip(*args, python: Path | None = None) -> None:
    target = ["--python", str(python)] if python else []
    command = [sys.executable, "-m", "pip", *target, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


class SeparateEnvironment:
    """A virtual environment that sees the packages of the tests, except ours, and inherits no variable."""

    def __init__(self, root: Path):
        self.root = root
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "venv")], check=True)
        self.python = root / "venv" / "bin" / "python"
        packages = root / "packages"
        packages.mkdir()
        ours = re.compile(r"_*(editable_+impl_+)?nnunet[-_]logvmamba", flags=re.IGNORECASE)
        for path in Path(self.site_packages(Path(sys.executable))).iterdir():
            if not ours.match(path.name) and path.suffix != ".pth":
                (packages / path.name).symlink_to(path)
        (Path(self.site_packages(self.python)) / "packages_of_the_tests.pth").write_text(f"{packages}\n")

    @staticmethod
    def site_packages(python: Path) -> str:
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    def run(self, *args, **env: str) -> subprocess.CompletedProcess:
        elsewhere = self.root / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        clean = {"PATH": os.defpath, "HOME": str(elsewhere), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            list(map(str, args)), cwd=elsewhere, env=clean | env, capture_output=True, text=True, check=False
        )

    def files(self) -> set[str]:
        return {str(path) for path in (self.root / "venv").rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def separate(tmp_path_factory) -> SeparateEnvironment:
    return SeparateEnvironment(tmp_path_factory.mktemp("separate"))


@pytest.fixture(scope="module")
def installed(separate, wheel):
    before = separate.files()
    pip("install", "--no-deps", "--no-index", wheel, python=separate.python)
    return separate, before


def test_wheel_holds_the_package_the_hook_and_the_licence_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    info = next(name for name in top if name.endswith(".dist-info"))
    assert top == {"nnunet_logvmamba", "nnunet_logvmamba.pth", info}
    assert "nnunet_logvmamba/plugin/ext/nnunet_logvmamba_trainers.py" in names
    assert "nnunet_logvmamba/plugin/ext/__init__.py" not in names
    assert "nnunet_logvmamba/py.typed" in names
    assert {f"nnunet_logvmamba/results/page/page.{kind}" for kind in ("html", "css")} <= set(names)
    assert f"{info}/licenses/LICENSE" in names
    assert [name for name in names if name.endswith(".pth")] == ["nnunet_logvmamba.pth"]
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "nnunet_logvmamba").rglob("*.py")}
    assert sources == {name for name in names if name.endswith(".py")}


@pytest.fixture(scope="module")
def metadata(wheel) -> str:
    archive = zipfile.ZipFile(wheel)
    return archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()


def test_wheel_is_pure_python_and_declares_what_the_package_imports(wheel, metadata):
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "Requires-Dist: nnunetv2<2.9,>=2.8" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "Provides-Extra: cuda" in metadata


def test_wheel_says_who_made_it_for_whom_and_where_more_stands(metadata):
    fields = HeaderParser().parsestr(metadata)
    assert "maintainers" in fields["Author"]
    classifiers = fields.get_all("Classifier")
    assert set(classifiers) <= trove_classifiers.classifiers
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)} <= set(classifiers)
    for url in fields.get_all("Project-URL"):
        assert re.fullmatch(r"[\w -]+, https://\S+", url)


def test_the_description_has_no_link_that_leads_nowhere_outside_the_clone(metadata):
    fields = HeaderParser().parsestr(metadata)
    assert fields["Description-Content-Type"] == "text/markdown"
    text = fields.get_payload()
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets
    assert [target for target in targets if not re.match(r"https?://|#", target)] == []
    for page in re.findall(r"\(`([\w./-]+)[#`]", text):
        assert (ROOT / page).exists(), page


def test_nnunet_finds_the_installed_trainer_without_any_variable_of_ours(installed):
    environment, _ = installed
    found = environment.run(environment.python, "-c", FIND, "nnUNetTrainerLoGVMamba_5epochs_seed3")
    assert found.returncode == 0, found.stderr
    assert str(environment.root / "venv") in found.stdout.splitlines()[-1]  # not the checkout
    assert '"nnUNetTrainerLoGVMamba_5epochs_seed3"' in found.stdout.splitlines()[-1]


def test_the_users_own_search_path_is_kept_by_an_installed_package(installed, tmp_path):
    environment, _ = installed
    code = "import os; print(os.environ['nnUNet_extTrainer'])"
    shown = environment.run(environment.python, "-c", code, nnUNet_extTrainer=str(tmp_path))
    theirs, ours = shown.stdout.strip().split(os.pathsep)
    assert theirs == str(tmp_path)
    assert os.path.samefile(Path(ours).parents[2], environment.site_packages(environment.python))


def test_python_starts_without_torch_where_the_wheel_is_installed(installed):
    environment, _ = installed
    code = "import sys; print({'torch', 'numpy', 'nnunetv2'} & sys.modules.keys())"
    assert environment.run(environment.python, "-c", code).stdout.strip() == "set()"


def test_uninstalling_leaves_nothing_behind(installed):
    environment, before = installed
    assert environment.run(environment.root / "venv" / "bin" / "logvmamba", "--version").returncode == 0
    pip("uninstall", "--yes", "nnunet-logvmamba", python=environment.python)
    assert environment.files() == before
    code = "import os; print(os.environ.get('nnUNet_extTrainer'))"
    shown = environment.run(environment.python, "-c", code)
    assert (shown.stdout.strip(), shown.stderr) == ("None", "")
