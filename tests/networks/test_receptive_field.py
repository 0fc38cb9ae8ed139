"""The effective receptive field: what it is for networks of which it is known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_logvmamba.networks.receptive_field import radii, receptive_field


class TwoScales(nn.Module):
    """Outputs at two scales; the finest is a sum over windows of known sizes."""

    def __init__(self, *kernel: int):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[len(kernel)]
        self.sum = conv(2, 3, kernel, padding=[size // 2 for size in kernel])
        nn.init.constant_(self.sum.weight, -1.0)

    def forward(self, x):
        y = self.sum(x)
        return [y, y[..., ::2]]


@pytest.mark.parametrize(("kernel", "size"), [((3, 7), (12, 15)), ((3, 5, 1), (6, 9, 4))])
def test_the_field_of_a_window_is_the_window(kernel, size):
    network = TwoScales(*kernel).train()
    network.sum.eval()
    field = receptive_field(network, torch.randn(2, 2, *size))
    assert field.shape == size
    assert field.sum() == pytest.approx(1)
    inside = tuple(slice(n // 2 - k // 2, n // 2 + k // 2 + 1) for n, k in zip(size, kernel))
    assert field[inside] == pytest.approx(1 / np.prod(kernel))
    assert radii(field, (1.0,)) == [[k // 2 for k in kernel]]
    half, most = radii(field)
    assert all(a <= b <= k // 2 for a, b, k in zip(half, most, kernel))
    assert [module.training for module in network.modules()] == [True, False]
    assert network.sum.weight.grad is None


def test_what_the_whole_image_is_divided_by_is_seen_by_every_voxel():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    field = receptive_field(network, torch.randn(4, 1, 33, 33))
    assert (field > 0).all()
    assert radii(field)[0] < [3, 3], "most of it lies in the window all the same"


def test_a_network_without_gradients_is_refused():
    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x

    with pytest.raises(ValueError, match="zero or not finite, so it has no field"):
        receptive_field(Constant(), torch.randn(1, 1, 5, 5))


def test_the_page_shows_what_was_measured():
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "explanation" / "receptive-fields.md").read_text(encoding="utf-8")
    for which in ("2d", "3d", "trained"):
        fields = json.loads((root / "benchmarks" / "results" / f"receptive_fields_{which}.json").read_text())["fields"]
        if which == "trained":
            assert set(fields) == {"LoGVMamba", "VMamba", "NoSSM", "StockNetwork"}
            fields = {f"{name}, {when}": seen for name, both in fields.items() for when, seen in both.items()}
        else:
            assert {"PlainConvUNet", "NoSSM", "VMamba", "LoGVMamba"} <= fields.keys()
        rows = []
        for name, seen in fields.items():
            half, most = (" × ".join(map(str, seen[share])) for share in ("half", "most"))
            rows.append(f"| {name} | {half} | {most} | {seen['far']:.1e} |")
        assert "\n".join(rows) in page
