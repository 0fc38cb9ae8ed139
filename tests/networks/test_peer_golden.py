"""Every stored tensor of the networks that we compare with: intermediates, logits and gradients, step by step.

``pytest tests/networks/test_peer_golden.py --golden DIR`` runs the same comparison over any folder of such files.
"""

import importlib
from pathlib import Path

import peer_golden
import pytest

SHARED_GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "peers"
# Beginning of a file's name to the module whose ``compare(hyper, tensors)`` takes it; a longer beginning goes first.
PEERS = {
    "eoformer": "golden_eoformer",
    "nestedformer": "golden_nested_former",
    "segmamba": "golden_segmamba",
    "swin_umamba": "golden_swin_umamba",
    "umamba": "golden_umamba",
}


def comparing(path: Path) -> str | None:
    """Name of the module that compares a file, by the file's name or else by what the file says it is; None without."""
    words = (path.stem.lower(), peer_golden.kind(path).lower())
    return next((PEERS[peer] for word in words for peer in PEERS if word.startswith(peer)), None)


def pytest_generate_tests(metafunc):
    if "golden_peer" not in metafunc.fixturenames:
        return
    named = metafunc.config.getoption("--golden")
    found = sorted(Path(named or SHARED_GOLDEN).glob("*.safetensors"))
    if named is not None and not found:
        raise pytest.UsageError(f"--golden: there are no .safetensors files in {named}")
    where = named or "the folder shared/golden/peers beside the checkout"
    absent = pytest.param(None, marks=pytest.mark.skip(reason=f"no such golden files in {where}"))
    metafunc.parametrize("golden_peer", found or [absent], ids=[path.stem for path in found] or ["absent"])


def test_each_step_equals_that_of_the_original(golden_peer: Path):
    module = comparing(golden_peer)
    assert module is not None, f"no test compares {golden_peer.name}: its name begins with none of {', '.join(PEERS)}"
    importlib.import_module(module).compare(*peer_golden.load(golden_peer))
