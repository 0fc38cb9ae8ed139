"""Each part of the package reaches only for the parts below it, so that the lower ones can be used alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunet_logvmamba.networks.catalogue import NAMES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nnunet_logvmamba"

MAY_IMPORT = {
    "ops": {"numba", "triton", "mamba_ssm", "causal_conv1d"},
    "layers": {"ops"},
    "networks": {"layers", "dynamic_network_architectures", "monai"},
    "evaluation": {"monai"},
    "results": {"evaluation"},
    "plugin": {"ops", "networks", "evaluation", "results", "nnunetv2"},
    "cli": {"ops", "networks", "evaluation", "results", "plugin", "nnunetv2"},
}
GUARDED = set(MAY_IMPORT).union(*MAY_IMPORT.values()) | {"dataset_conversion", "tests", "benchmarks"}


def imported_parts(path: Path) -> Iterator[str]:
    """Parts of the package and top-level names of others that a file imports, wherever in the file it does."""
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(folder[: len(folder) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            modules = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for module in modules:
            top, *rest = module.split(".")
            yield rest[0] if top == PACKAGE.name and rest else top


def files(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, f"{folder} holds no Python file"
    return found


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_each_part_imports_only_the_parts_below_it(part):
    for path in files(PACKAGE / part):
        strangers = set(imported_parts(path)) & GUARDED - MAY_IMPORT[part] - {part}
        assert not strangers, f"{path} reaches for {sorted(strangers)}"


def test_triton_is_imported_by_the_triton_files_alone():
    for path in files(PACKAGE):
        if not path.name.startswith("triton_"):
            assert "triton" not in set(imported_parts(path)), f"{path} imports triton"


def test_converters_know_nothing_of_the_package_but_what_a_cell_is():
    """That has one definition, and it is light: the exception is this module for the converter of cells."""
    exception = "Dataset504_NeurIPSCellSeg.py", f"{PACKAGE.name}.evaluation.instances"
    for path in files(ROOT / "dataset_conversion"):
        text = path.read_text(encoding="utf-8")
        if path.name == exception[0]:
            text = text.replace(exception[1], "")
        assert PACKAGE.name not in text, f"{path} mentions the package"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("nnunet_logvmamba", {"torch", "numpy", "nnunetv2"}),
        ("nnunet_logvmamba.plugin.startup", {"torch", "numpy", "nnunetv2"}),
        ("nnunet_logvmamba.cli", {"torch", "numpy", "nnunetv2"}),
        ("nnunet_logvmamba.networks", {"torch", "numpy"}),
        ("nnunet_logvmamba.networks.log_vmamba.unet", {"nnunetv2", "numba", "triton", "mamba_ssm"}),
        ("nnunet_logvmamba.evaluation", {"torch", "numpy", "scipy", "monai", "nnunetv2"}),
        ("nnunet_logvmamba.evaluation.overlap", {"nnunetv2", "torchvision"}),
        ("nnunet_logvmamba.evaluation.instances", {"torch", "monai", "nnunetv2", "scipy.optimize", "SimpleITK"}),
        ("nnunet_logvmamba.evaluation.cells", {"torch", "monai", "nnunetv2"}),
        ("nnunet_logvmamba.evaluation.folders", {"torch", "monai", "nnunetv2"}),
        ("nnunet_logvmamba.evaluation.report", {"torch", "monai", "nnunetv2"}),
        *(
            (f"nnunet_logvmamba.results.{module}", {"torch", "monai", "nnunetv2"})
            for module in ("record", "runs", "logs", "comparison", "tables", "page.page")
        ),
    ],
)
def test_importing_a_part_does_not_load_what_it_can_do_without(module, unwanted, run_command):
    code = f"import sys, {module}; print(sorted({unwanted!r} & sys.modules.keys()))"
    assert run_command(["python", "-c", code]).stdout.strip() == "[]"


def names_and_strings(tree: ast.AST) -> Iterator[str]:
    """All names that code uses and all strings but docstrings and what ``catalogue.row`` is asked for."""
    nodes = list(ast.walk(tree))
    asked = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "row"]
    allowed = {id(word) for call in asked for word in call.args}
    allowed |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in allowed:
            yield node.value
        elif isinstance(node, ast.Name | ast.Attribute):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.alias):
            yield node.name


def test_nobody_above_the_networks_knows_which_network_it_has():
    """Rows of the catalogue and attributes of classes say what is to be known; ``catalogue.row`` gives one by name."""
    for path in (*files(PACKAGE), *files(ROOT / "benchmarks")):
        if path.is_relative_to(PACKAGE / "networks"):
            continue
        if path.is_relative_to(PACKAGE / "evaluation"):  # knows no network, and names systems whose scripts score
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        said = {name for name in NAMES for word in names_and_strings(tree) if name in word}
        assert not said, f"{path} names {said}: read the rows of networks/catalogue.py"
        compared = [part for node in ast.walk(tree) if isinstance(node, ast.Compare) for part in ast.walk(node)]
        paths = {getattr(part, "id", getattr(part, "attr", "")) for part in compared} & {"SWIN_CLASS_NAME"}
        assert not paths, f"{path} compares the path of a network: ask the network"
