"""The golden files become one test each, from ``--golden DIR`` or from the shared folder beside the checkout."""

from pathlib import Path

import pytest

SHARED_GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"


def _files(config, *patterns: str) -> list[Path]:
    folder = Path(config.getoption("--golden", default=None) or SHARED_GOLDEN)
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def pytest_generate_tests(metafunc):
    for fixture, patterns in (
        ("golden_block", ("block*.safetensors", "variant_*.safetensors")),
        ("golden_order", ("sequence_order*.safetensors",)),
        ("golden_net3d", ("net3d_*.safetensors",)),
    ):
        if fixture in metafunc.fixturenames:
            files = _files(metafunc.config, *patterns)
            absent = pytest.param(None, marks=pytest.mark.skip(reason="no golden files beside the checkout"))
            metafunc.parametrize(fixture, files or [absent], ids=[path.stem for path in files] or ["absent"])
