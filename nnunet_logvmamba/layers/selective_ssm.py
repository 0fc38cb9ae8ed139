"""The state-space part of a block: projections of the tokens to step, B and C, and the selective scan."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_logvmamba.ops import selective_scan
from nnunet_logvmamba.ops.backends import check_name

_SMALLEST_STEP, _LARGEST_STEP, _STEP_FLOOR = 1e-3, 1e-1, 1e-4


def exempt_from_weight_decay(parameter: nn.Parameter) -> nn.Parameter:
    """Mark a parameter that weight decay would pull to a meaningless value; our trainers look at the mark."""
    parameter._no_weight_decay = True
    return parameter


class SelectiveSSM(nn.Module):
    """Selective state-space model (S6) along ready-made sequences, one or more directions in one scan.

    Each direction has its own projections, decay, skip and step bias. States and exponentials are float32 whatever the
    autocast dtype.

    Args:
        channels: Width of the tokens.
        state_size: Number of states per channel.
        step_rank: Rank of the step projection.
        directions: Number of sequences made from the same tokens.
        backend: Scan backend, see ``nnunet_logvmamba.ops.available_backends``.

    Shape: (batch, length, directions, channels) -> (batch, length, directions, channels)

    Raises:
        ValueError: If the state size is below 1 or the backend is unknown.

    References: Gu and Dao (2023), "Mamba", Algorithm 2; initial values as there.
    """

    def __init__(
        self, channels: int, state_size: int = 16, step_rank: int = 1, directions: int = 1, backend: str = "auto"
    ):
        super().__init__()
        check_name(backend)
        if state_size < 1:
            raise ValueError(f"state_size is {state_size}; at least 1 is needed")
        self.state_size, self.step_rank, self.directions, self.backend = state_size, step_rank, directions, backend
        self.x_proj_weight = nn.Parameter(torch.empty(directions, step_rank + 2 * state_size, channels))
        self.dt_proj_weight = nn.Parameter(torch.empty(directions, channels, step_rank))
        self.dt_bias = exempt_from_weight_decay(nn.Parameter(torch.empty(directions, channels)))
        self.A_log = exempt_from_weight_decay(nn.Parameter(torch.empty(directions * channels, state_size)))
        self.D = exempt_from_weight_decay(nn.Parameter(torch.empty(directions * channels)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial values: decays 1, 2, …, steps log-uniform between 0.001 and 0.1, skip 1."""
        nn.init.uniform_(
            self.x_proj_weight, -(self.x_proj_weight.shape[-1] ** -0.5), self.x_proj_weight.shape[-1] ** -0.5
        )
        nn.init.uniform_(self.dt_proj_weight, -(self.step_rank**-0.5), self.step_rank**-0.5)
        step = torch.empty_like(self.dt_bias).uniform_(math.log(_SMALLEST_STEP), math.log(_LARGEST_STEP)).exp()
        step.clamp_(min=_STEP_FLOOR)
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        self.A_log.copy_(torch.arange(1, self.state_size + 1, dtype=self.A_log.dtype).log())
        nn.init.ones_(self.D)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step before bias and softplus, B and C of every token.

        Shape: (batch, length, directions, channels) -> (batch, length, directions, channels) and twice
        (batch, length, directions, state)
        """
        sizes = (self.step_rank, self.state_size, self.state_size)
        if self.directions == 1:
            step, b, c = F.linear(x, self.x_proj_weight[0]).split(sizes, dim=-1)
            return F.linear(step, self.dt_proj_weight[0]), b, c
        step, b, c = torch.einsum("blkc,krc->blkr", x, self.x_proj_weight).split(sizes, dim=-1)
        return torch.einsum("blkr,kcr->blkc", step, self.dt_proj_weight), b, c

    def forward(self, x: Tensor) -> Tensor:
        delta, b, c = self.project(x)
        y = selective_scan(
            x.flatten(2),
            delta.flatten(2),
            -torch.exp(self.A_log.float() if self.A_log.dtype != torch.float64 else self.A_log),
            b,
            c,
            self.D,
            delta_bias=self.dt_bias.flatten(),
            backend=self.backend,
        )
        return y.unflatten(2, x.shape[2:])


class SkipOnly(nn.Module):
    """What is left of a ``SelectiveSSM`` without its states: ``y = D * x``. The control of our ablations.

    Shape: (batch, length, directions, channels) -> (batch, length, directions, channels)
    """

    def __init__(self, channels: int, directions: int = 1):
        super().__init__()
        self.D = exempt_from_weight_decay(nn.Parameter(torch.ones(directions * channels)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.D.unflatten(0, x.shape[2:]).to(x.dtype)
