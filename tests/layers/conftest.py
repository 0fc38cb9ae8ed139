"""The golden files become one test each, from ``--golden DIR`` or from the shared folder beside the checkout."""

from pathlib import Path

import pytest
from safetensors import safe_open

SHARED_GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
FIXTURE_OF_KIND = {
    "block": "golden_block",
    "sequence order": "golden_order",
    "selective_scan": "golden_scan",
    "network3d": "golden_net3d",
    "network2d": "golden_net2d",
}


def golden_files(folder: str | None) -> dict[str, list[Path]]:
    """Golden files by the fixture that takes them.

    Raises:
        pytest.UsageError: If a folder was named and has no such files, or a file is of a kind that nothing compares.
    """
    files: dict[str, list[Path]] = {fixture: [] for fixture in FIXTURE_OF_KIND.values()}
    found = sorted(Path(folder or SHARED_GOLDEN).glob("*.safetensors"))
    if folder is not None and not found:
        raise pytest.UsageError(f"--golden: there are no .safetensors files in {folder}")
    for path in found:
        with safe_open(path, "pt") as file:
            kind = (file.metadata() or {}).get("kind")
        if kind not in FIXTURE_OF_KIND:
            raise pytest.UsageError(f"{path} is of kind {kind!r}, which no test compares")
        files[FIXTURE_OF_KIND[kind]].append(path)
    return files


def pytest_generate_tests(metafunc):
    for fixture in sorted(set(FIXTURE_OF_KIND.values()) & set(metafunc.fixturenames)):
        files = golden_files(metafunc.config.getoption("--golden"))[fixture]
        where = metafunc.config.getoption("--golden") or "the shared folder beside the checkout"
        absent = pytest.param(None, marks=pytest.mark.skip(reason=f"no such golden files in {where}"))
        metafunc.parametrize(fixture, files or [absent], ids=[path.stem for path in files] or ["absent"])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Triton's interpreter takes minutes for a thousand steps: those files are slow with it, and one of 64 steps."""
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        name = getattr(given.get("golden_scan"), "stem", "")
        if given.get("backend") == "triton" and ("l1000" in name or name.endswith("g2_n01_l0064")):
            item.add_marker(pytest.mark.slow)
