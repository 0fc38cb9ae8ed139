"""The original Mamba block, which U-Mamba and SegMamba use: causal convolution, selective scan, gate."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_logvmamba.ops import causal_conv1d, selective_scan
from nnunet_logvmamba.ops.backends import check_name

from .arguments import flag, whole, words
from .selective_ssm import draw_step_bias

MAMBA_DIRECTIONS = {"forward": "", "backward": "_b", "slices": "_s"}
"""Orders in which tokens are read, and the ending of the names of their weights, which are the published ones."""

_STATES, _KERNEL, _EXPAND = 16, 4, 2


class Mamba(nn.Module):
    """Mamba-1: in-projection, then for each direction a causal convolution and a scan, their sum times a gate.

    Tokens stay where they are: a direction is an order in which the convolution and the scan read them. Each has
    weights of its own, but for the projections in and out and for the gate, which is the same for all and so is applied
    once to their sum.

    Args:
        channels: Width of the tokens.
        directions: Words of ``MAMBA_DIRECTIONS``.
        drawn_steps: Directions whose steps start between 0.001 and 0.1, as Mamba's do; the others keep PyTorch's
            initial values, with which a step starts near 0.7. None means all.
        backend: Scan backend, see ``nnunet_logvmamba.ops.available_backends``.

    Attributes:
        undecayed: As of :class:`SelectiveSSM`.

    Shape: (batch, length, channels) -> (batch, length, channels)

    Raises:
        ValueError: If the width, a direction or the backend is none, or ``drawn_steps`` names other directions.

    References: Gu and Dao (2023), "Mamba", section 3.4; for three directions SegMamba (arXiv 2401.13560).
    """

    undecayed: ClassVar = tuple(name for end in MAMBA_DIRECTIONS.values() for name in (f"A{end}_log", f"D{end}"))

    def __init__(
        self,
        channels: int,
        directions: Sequence[str] = ("forward",),
        drawn_steps: Sequence[str] | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        check_name(backend)
        inner = _EXPAND * whole("channels", channels)
        self.directions, self.backend = words("directions", directions, MAMBA_DIRECTIONS), backend
        if not self.directions:
            raise ValueError(f"directions is empty; valid are {', '.join(map(repr, MAMBA_DIRECTIONS))}")
        drawn_steps = self.directions if drawn_steps is None else words("drawn_steps", drawn_steps, self.directions)
        self.step_rank = math.ceil(channels / 16)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        for direction in self.directions:
            end = MAMBA_DIRECTIONS[direction]
            self.register_module(f"conv1d{end}", nn.Conv1d(inner, inner, _KERNEL, groups=inner))
            self.register_module(f"x_proj{end}", nn.Linear(inner, self.step_rank + 2 * _STATES, bias=False))
            self.register_module(f"dt_proj{end}", nn.Linear(self.step_rank, inner))
            decays = torch.arange(1.0, _STATES + 1).log().expand(inner, -1).clone()
            self.register_parameter(f"A{end}_log", nn.Parameter(decays))
            self.register_parameter(f"D{end}", nn.Parameter(torch.ones(inner)))
            if direction in drawn_steps:
                steps = getattr(self, f"dt_proj{end}")
                nn.init.uniform_(steps.weight, -(self.step_rank**-0.5), self.step_rank**-0.5)
                draw_step_bias(steps.bias)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, tokens: Tensor, slices: int = 1) -> Tensor:
        """Mix tokens; ``slices`` is the number of equal runs that the direction of that name jumps between."""
        inner, gate = self.in_proj(tokens).chunk(2, dim=-1)
        outputs = [
            self.scan(inner, MAMBA_DIRECTIONS[direction], self.order(direction, tokens, slices))
            for direction in self.directions
        ]
        return self.out_proj(sum(outputs[1:], start=outputs[0]) * F.silu(gate))

    def scan(self, inner: Tensor, end: str, order: Tensor | None) -> Tensor:
        """Convolve and scan in one order; rows stay in place.

        Args:
            inner: (batch, length, inner channels).
            end: Of the names of its weights.
            order: Row that comes t-th; None means as they lie.
        """
        conv = getattr(self, f"conv1d{end}")
        steps = getattr(self, f"dt_proj{end}")
        A_log: Tensor = getattr(self, f"A{end}_log")
        u = causal_conv1d(inner, conv.weight.squeeze(1), conv.bias, order=order, silu=True)
        sizes = (self.step_rank, _STATES, _STATES)
        step, B, C = getattr(self, f"x_proj{end}")(u).split(sizes, dim=-1)
        return selective_scan(
            u,
            F.linear(step, steps.weight),
            -torch.exp(A_log if A_log.dtype == torch.float64 else A_log.float()),
            B.unsqueeze(2),
            C.unsqueeze(2),
            getattr(self, f"D{end}"),
            delta_bias=steps.bias,
            order=order,
            backend=self.backend,
        )

    @staticmethod
    def order(direction: str, tokens: Tensor, slices: int) -> Tensor | None:
        """Row that comes t-th in a direction.

        Between slices, the sequence visits the first token of every slice, then the second of every slice, and so on.
        """
        if direction == "forward":
            return None
        rows = torch.arange(tokens.shape[1], device=tokens.device)
        if direction == "backward":
            return rows.flip(0)
        if tokens.shape[1] % slices:
            raise ValueError(f"{tokens.shape[1]} voxels cannot be cut into {slices} equal slices: leave slices None")
        return rows.view(slices, -1).t().reshape(-1)


class MambaLayer(nn.Module):
    """Layer norm and Mamba over the voxels of a map, all of it in single precision whatever autocast says.

    With ``tokens="patch"`` each voxel is a token of ``width`` channels, last axis fastest. With ``"channel"`` each
    channel is a token, whose width is the number of voxels: a layer for maps of one size.

    Args:
        width: Channels of the map, or with channel tokens its voxels.
        tokens: ``patch`` or ``channel``.
        residual: Whether the map is added to the result, in place of which it comes otherwise.
        slices: Runs that the direction ``slices`` jumps between; None means the planes of the first axis.
        mamba_options: Further arguments of :class:`Mamba`.

    Shape: (batch, channels, *spatial) -> (batch, channels, *spatial), float32 under autocast

    Raises:
        ValueError: If an argument does not fit (the message names it) or, when called, the tokens do not have the width
            or cannot be cut into ``slices`` equal runs.

    References: U-Mamba (arXiv 2401.04722), SegMamba (arXiv 2401.13560).
    """

    def __init__(
        self, width: int, *, tokens: str = "patch", residual: bool = False, slices: int | None = None, **mamba_options
    ):
        super().__init__()
        if tokens not in ("patch", "channel"):
            raise ValueError(f"unknown tokens {tokens!r}; valid are 'patch', 'channel'")
        self.width, self.tokens, self.residual = whole("width", width), tokens, flag("residual", residual)
        self.slices = None if slices is None else whole("slices", slices)
        self.norm = nn.LayerNorm(width)
        self.mamba = Mamba(width, **mamba_options)

    def forward(self, x: Tensor) -> Tensor:
        with single_precision(x.device.type):
            x = x.to(self.norm.weight.dtype)
            channels_last = self.tokens == "patch"
            tokens = x.flatten(2).transpose(1, 2) if channels_last else x.flatten(2)
            if tokens.shape[2] != self.width:
                what = "channels" if channels_last else "voxels"
                raise ValueError(f"the map has {tokens.shape[2]} {what} and this layer was made for {self.width}")
            slices = x.shape[2] if self.slices is None else self.slices
            y = self.mamba(self.norm(tokens), slices)
            y = (y.transpose(1, 2) if channels_last else y).unflatten(2, x.shape[2:])
            return x + y if self.residual else y

    @property
    def directions(self) -> int:
        """Number of orders in which the tokens are read."""
        return len(self.mamba.directions)

    def length(self, channels: int, spatial: Sequence[int]) -> int:
        """Number of tokens of a map."""
        return math.prod(spatial) if self.tokens == "patch" else channels

    @property
    def states(self) -> int:
        """Number of states of all directions, each of which is computed anew for every token."""
        return sum(p.numel() for name, p in self.mamba.named_parameters() if name.endswith("_log"))


def single_precision(device_type: str):
    """Switch autocast off for a device, where it is on; for shapes alone (``meta``), what may stand in for it."""
    if device_type == "meta":
        return torch._C.DisableTorchFunction()
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
