"""The state-space part of a block: projections of the tokens to step, B and C, and the selective scan."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_logvmamba.ops import selective_scan
from nnunet_logvmamba.ops.backends import check_name

from .arguments import whole

_SMALLEST_STEP, _LARGEST_STEP, _STEP_FLOOR = 1e-3, 1e-1, 1e-4


@torch.no_grad()
def draw_step_bias(bias: nn.Parameter) -> None:
    """Fill a bias so that its softplus, the step, is log-uniform between 0.001 and 0.1."""
    step = torch.empty_like(bias).uniform_(math.log(_SMALLEST_STEP), math.log(_LARGEST_STEP)).exp()
    step.clamp_(min=_STEP_FLOOR)
    bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus


class SelectiveSSM(nn.Module):
    """Selective state-space model (S6) over tokens, in one or more directions whose outputs are added up.

    Each direction has its own projections, decay, skip and step bias. Tokens stay where they are: a direction is an
    order in which the scan reads them. States and exponentials are float32 whatever the autocast dtype.

    Args:
        channels: Width of the tokens.
        state_size: Number of states per channel.
        step_rank: Rank of the step projection.
        directions: Number of orders in which the tokens are read.
        backend: Scan backend, see ``nnunet_logvmamba.ops.available_backends``.

    Shape: (batch, length, channels), optionally with context (batch, extra, channels) -> (batch, length, channels)

    Attributes:
        undecayed: Names of the parameters that weight decay would pull to a meaningless value; our trainers read them.

    Raises:
        ValueError: If a number is none of at least 1 or the backend is unknown.

    References: Gu and Dao (2023), "Mamba", Algorithm 2; initial values as there.
    """

    undecayed: ClassVar = ("dt_bias", "A_log", "D")

    def __init__(
        self, channels: int, state_size: int = 16, step_rank: int = 1, directions: int = 1, backend: str = "auto"
    ):
        super().__init__()
        check_name(backend)
        channels, state_size = whole("channels", channels), whole("state_size", state_size)
        step_rank, directions = whole("step_rank", step_rank), whole("directions", directions)
        self.state_size, self.step_rank, self.directions, self.backend = state_size, step_rank, directions, backend
        self.x_proj_weight = nn.Parameter(torch.empty(directions, step_rank + 2 * state_size, channels))
        self.dt_proj_weight = nn.Parameter(torch.empty(directions, channels, step_rank))
        self.dt_bias = nn.Parameter(torch.empty(directions, channels))
        self.A_log = nn.Parameter(torch.empty(directions * channels, state_size))
        self.D = nn.Parameter(torch.empty(directions * channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial values: decays 1, 2, …, steps log-uniform between 0.001 and 0.1, skip 1."""
        nn.init.uniform_(
            self.x_proj_weight, -(self.x_proj_weight.shape[-1] ** -0.5), self.x_proj_weight.shape[-1] ** -0.5
        )
        nn.init.uniform_(self.dt_proj_weight, -(self.step_rank**-0.5), self.step_rank**-0.5)
        draw_step_bias(self.dt_bias)
        self.A_log.copy_(torch.arange(1, self.state_size + 1, dtype=self.A_log.dtype).log())
        nn.init.ones_(self.D)

    def project(self, tokens: Tensor, context: Tensor | None = None) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Step before bias and softplus, B and C of all rows, those of ``tokens`` and then those of ``context``.

        Returns:
            For each direction (batch, rows, channels) and twice (batch, rows, 1, state).
        """
        weight = self.x_proj_weight.flatten(0, 1)
        rows = F.linear(tokens, weight)
        if context is not None:
            rows = torch.cat((rows, F.linear(context, weight)), dim=1)
        sizes = (self.step_rank, self.state_size, self.state_size)
        projected = []
        for part, spread in zip(rows.chunk(self.directions, dim=-1), self.dt_proj_weight):
            step, b, c = part.split(sizes, dim=-1)
            projected.append((F.linear(step, spread), b.unsqueeze(2), c.unsqueeze(2)))
        return projected

    def forward(self, tokens: Tensor, context: Tensor | None = None, orders: Sequence[Tensor | None] = ()) -> Tensor:
        """Scan ``tokens`` and ``context`` in every order; without ``orders`` as they lie.

        ``orders`` has one entry per direction: which row comes t-th, or None for rows as they lie.

        Raises:
            ValueError: If there are others than one order per direction, or one does not fit the rows.
        """
        if orders and len(orders) != self.directions:
            raise ValueError(f"there are {len(orders)} orders for {self.directions} directions; one each is needed")
        A = -torch.exp(self.A_log if self.A_log.dtype == torch.float64 else self.A_log.float())
        outputs = [
            selective_scan(
                tokens, delta, decay, b, c, skip, delta_bias=bias, context=context, order=order, backend=self.backend
            )
            for (delta, b, c), decay, skip, bias, order in zip(
                self.project(tokens, context),
                A.chunk(self.directions),
                self.D.chunk(self.directions),
                self.dt_bias,
                orders or [None] * self.directions,
                strict=True,
            )
        ]
        return sum(outputs[1:], start=outputs[0])


class SkipOnly(nn.Module):
    """What is left of a ``SelectiveSSM`` without its states: ``y = D * x``. The control of our ablations.

    Shape: (batch, length, channels) -> (batch, length, channels)

    Raises:
        ValueError: If a number is none of at least 1.
    """

    undecayed: ClassVar = ("D",)

    def __init__(self, channels: int, directions: int = 1):
        super().__init__()
        channels, self.directions = whole("channels", channels), whole("directions", directions)
        self.D = nn.Parameter(torch.ones(self.directions * channels))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.D.unflatten(0, (self.directions, -1)).sum(0).to(tokens.dtype)
