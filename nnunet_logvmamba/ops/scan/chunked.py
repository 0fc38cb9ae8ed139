"""The portable scan: plain PyTorch, any device, and never a tensor of batch x length x channels x state.

The sequence is cut into *lanes* of ``LANE_LENGTH`` consecutive steps, and a *piece* is as many lanes as fit into a
bounded workspace. Inside a piece all lanes advance together, so there are few and large operations:

1. every lane runs from a zero state to its end, which gives what it adds to the state that enters it;
2. the entering states follow one another: ``entry[j+1] = end[j] + exp(A * sum of dt in lane j) * entry[j]``;
3. every lane runs again from its entering state, now keeping the state of each step.

The gradient of the state obeys the same kind of recurrence in the opposite direction and takes the same three steps.
Decays are only ever multiplied, never divided by, so they may underflow to zero.

Axes of the workspaces: (step in lane, lane, batch, group, state, channel in group).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_logvmamba.ops.backends import compute_dtype

from .reference import step, step_slope

LANE_LENGTH = 16
WORKSPACE_ELEMENTS = 2**20  # of each workspace; the forward pass needs two, the backward pass three


@dataclass(frozen=True)
class Piece:
    """Steps ``start`` to ``stop`` of the sequence as ``lanes`` lanes of equal length, ``first_lane`` in all lanes."""

    start: int
    stop: int
    lanes: int
    first_lane: int

    @property
    def lane_length(self) -> int:
        return (self.stop - self.start) // self.lanes

    def of(self, sequence: Tensor) -> Tensor:
        """View (batch, length, ...) as (step in lane, lane, batch, ...)."""
        part = sequence[:, self.start : self.stop].unflatten(1, (self.lanes, self.lane_length))
        return part.permute(2, 1, 0, *range(3, part.dim()))

    def of_lanes(self, per_lane: Tensor) -> Tensor:
        """View the lanes of this piece in a tensor (all lanes, ...)."""
        return per_lane[self.first_lane : self.first_lane + self.lanes]


class _Problem:
    """The arguments in the compute dtype and the shapes of the workspaces, with the steps shared by both directions."""

    def __init__(self, u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus):
        self.dtype = compute_dtype(u, delta, A, B, C, D, delta_bias, initial_state)
        self.batch, self.length, self.channels = u.shape
        self.groups, self.state = B.shape[2:]
        self.u, self.B, self.C = self.cast(u), self.cast(B), self.cast(C)
        self.D, self.delta_bias, self.delta_softplus = self.cast(D), self.cast(delta_bias), delta_softplus
        self.delta = self.cast(delta)
        self.dt = step(self.delta, self.delta_bias, delta_softplus)
        self.x = self.dt * self.u
        self.A = self.grouped(self.cast(A).T).movedim(0, -2).contiguous()  # (group, state, channel)
        self.initial_state = None if initial_state is None else self.grouped_state(self.cast(initial_state))
        per_lane = self.batch * self.channels * self.state * LANE_LENGTH
        self.lanes_per_piece = max(1, WORKSPACE_ELEMENTS // max(per_lane, 1))

    def cast(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(self.dtype)

    def grouped(self, tensor: Tensor) -> Tensor:
        """(..., channels) -> (..., group, channel)."""
        return tensor.unflatten(-1, (self.groups, self.channels // self.groups))

    def grouped_state(self, state: Tensor) -> Tensor:
        """(batch, channels, state) -> (batch, group, state, channel)."""
        return self.grouped(state.transpose(1, 2)).transpose(1, 2)

    def plain_state(self, state: Tensor) -> Tensor:
        """(batch, group, state, channel) -> (batch, channels, state), a copy."""
        return state.transpose(1, 2).flatten(2).transpose(1, 2).clone(memory_format=torch.contiguous_format)

    def pieces(self) -> list[Piece]:
        """The whole sequence in order: full lanes first, then what is left as one short lane."""
        all_lanes, rest = divmod(self.length, LANE_LENGTH)
        pieces = []
        for first in range(0, all_lanes, self.lanes_per_piece):
            lanes = min(self.lanes_per_piece, all_lanes - first)
            pieces.append(Piece(first * LANE_LENGTH, (first + lanes) * LANE_LENGTH, lanes, first))
        if rest:
            pieces.append(Piece(self.length - rest, self.length, 1, all_lanes))
        return pieces

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (self.batch, self.groups, self.state, self.channels // self.groups)

    def workspaces(self, pieces: list[Piece], count: int) -> Iterator[Tensor]:
        """Memory for the largest piece, allocated once: fresh pages cost more than the arithmetic."""
        rows = max((piece.stop - piece.start for piece in pieces), default=0)
        for _ in range(count):
            yield self.u.new_empty((rows, *self.state_shape))

    def shaped(self, workspace: Tensor, piece: Piece) -> Tensor:
        rows = piece.stop - piece.start
        return workspace[:rows].view(piece.lane_length, piece.lanes, *self.state_shape)

    def first_state(self) -> Tensor:
        return self.u.new_zeros(self.state_shape) if self.initial_state is None else self.initial_state

    def decays(self, piece: Piece, workspace: Tensor) -> Tensor:
        """exp(dt * A) for every step of a piece."""
        decay = self.shaped(workspace, piece)
        torch.mul(self.grouped(piece.of(self.dt)).unsqueeze(-2), self.A, out=decay)
        return decay.exp_()

    def outer(self, per_channel: Tensor, per_state: Tensor, piece: Piece, workspace: Tensor) -> Tensor:
        """Product of (batch, length, channels) and (batch, length, group, state) for every step of a piece."""
        product = self.shaped(workspace, piece)
        return torch.mul(
            self.grouped(piece.of(per_channel)).unsqueeze(-2), piece.of(per_state).unsqueeze(-1), out=product
        )

    def lane_decays(self, piece: Piece) -> Tensor:
        """exp(A * sum of dt over a lane), (lane, batch, group, state, channel); finite, so that zero states stay."""
        decays = torch.exp(self.grouped(piece.of(self.dt).sum(0)).unsqueeze(-2) * self.A)
        return decays.clamp_(max=torch.finfo(decays.dtype).max)

    def entries(self, piece: Piece, decay: Tensor, added: Tensor, entry: Tensor) -> Tensor:
        """States that enter each lane, when ``entry`` enters the first: (lane, batch, group, state, channel)."""
        entries = entry.new_empty((piece.lanes, *self.state_shape))
        entries[0] = entry
        if piece.lanes > 1:
            end = added[0, :-1].clone()
            for t in range(1, piece.lane_length):
                torch.addcmul(added[t, :-1], decay[t, :-1], end, out=end)
            lane_decay = self.lane_decays(piece)
            for lane in range(piece.lanes - 1):
                torch.addcmul(end[lane], lane_decay[lane], entries[lane], out=entries[lane + 1])
        return entries

    def exits(self, piece: Piece, decay: Tensor, added: Tensor, leaving: Tensor) -> Tensor:
        """Gradients of the states that leave each lane, when ``leaving`` is that of the last lane."""
        exits = leaving.new_empty((piece.lanes, *self.state_shape))
        exits[-1] = leaving
        if piece.lanes > 1:
            begin = added[-1, 1:].clone()
            for t in range(piece.lane_length - 2, -1, -1):
                torch.addcmul(added[t, 1:], decay[t + 1, 1:], begin, out=begin)
            begin.mul_(decay[0, 1:])
            lane_decay = self.lane_decays(piece)
            for lane in range(piece.lanes - 1, 0, -1):
                torch.addcmul(begin[lane - 1], lane_decay[lane], exits[lane], out=exits[lane - 1])
        return exits


def forward(u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus):
    """Output (batch, length, channels) and last state (batch, channels, state), both in the compute dtype."""
    p = _Problem(u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus)
    y = p.u.new_empty(p.u.shape)
    pieces = p.pieces()
    decay_memory, state_memory = p.workspaces(pieces, 2)
    state = p.first_state()
    for piece in pieces:
        decay = p.decays(piece, decay_memory)
        states = p.outer(p.x, p.B, piece, state_memory)
        _run_forwards(states, decay, p.entries(piece, decay, states, state))
        p.grouped(piece.of(y)).copy_(_weighted_sum(piece.of(p.C), states))
        state = states[-1, -1].clone()
    if p.D is not None:
        y.addcmul_(p.D, p.u)
    return y, p.plain_state(state)


def backward(grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus):
    """Gradients of the eight tensor arguments in their order, in the compute dtype; None where one is absent.

    Nothing is kept from the forward pass: a first sweep recomputes the states that enter the lanes
    (1 / ``LANE_LENGTH`` of all states), the second one goes through the pieces from the last to the first.
    """
    p = _Problem(u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus)
    grad_y, leaving = p.cast(grad_y), p.grouped_state(p.cast(grad_last_state))
    pieces = p.pieces()
    decay_memory, state_memory, grad_memory = p.workspaces(pieces, 3)

    all_entries = p.u.new_empty((pieces[-1].first_lane + pieces[-1].lanes, *p.state_shape))
    state = p.first_state()
    for piece in pieces:
        decay = p.decays(piece, decay_memory)
        added = p.outer(p.x, p.B, piece, state_memory)
        entries = piece.of_lanes(all_entries)
        entries.copy_(p.entries(piece, decay, added, state))
        if piece is not pieces[-1]:
            state = entries[-1].clone()
            for t in range(piece.lane_length):
                torch.addcmul(added[t, -1], decay[t, -1], state, out=state)

    grad_x, grad_dt = torch.empty_like(p.x), torch.empty_like(p.dt)
    grad_A = torch.zeros_like(p.A)
    grad_B, grad_C = p.B.new_empty(p.B.shape), p.C.new_empty(p.C.shape)
    for piece in reversed(pieces):
        decay = p.decays(piece, decay_memory)
        states = p.outer(p.x, p.B, piece, state_memory)
        entries = piece.of_lanes(all_entries)
        _run_forwards(states, decay, entries)
        grads = p.outer(grad_y, p.C, piece, grad_memory)
        _run_backwards(grads, decay, p.exits(piece, decay, grads, leaving))
        leaving = grads[0, 0] * decay[0, 0]

        piece.of(grad_C).copy_(_channel_sum(states, p.grouped(piece.of(grad_y))))
        piece.of(grad_B).copy_(_channel_sum(grads, p.grouped(piece.of(p.x))))
        p.grouped(piece.of(grad_x)).copy_(_weighted_sum(piece.of(p.B), grads))
        # Gradient of dt * A: grads * decay * (the state before the step).
        grads.mul_(decay)
        grads[0].mul_(entries)
        grads[1:].mul_(states[:-1])
        p.grouped(piece.of(grad_dt)).copy_(torch.mul(grads, p.A, out=decay).sum(-2))
        grad_A += grads.mul_(p.grouped(piece.of(p.dt)).unsqueeze(-2)).sum((0, 1, 2))

    grad_u = grad_x * p.dt
    grad_delta = grad_dt.addcmul_(grad_x, p.u)
    if p.delta_softplus:
        grad_delta.mul_(step_slope(p.delta, p.delta_bias, True))
    if p.D is not None:
        grad_u.addcmul_(grad_y, p.D)
    return (
        grad_u,
        grad_delta,
        grad_A.transpose(1, 2).flatten(0, 1),
        grad_B,
        grad_C,
        None if p.D is None else (grad_y * p.u).sum((0, 1)),
        None if p.delta_bias is None else grad_delta.sum((0, 1)),
        None if p.initial_state is None else p.plain_state(leaving),
    )


def _run_forwards(states: Tensor, decay: Tensor, entries: Tensor) -> None:
    """Turn what each step adds into the state after each step, in place."""
    previous = entries
    for t in range(states.shape[0]):
        states[t].addcmul_(decay[t], previous)
        previous = states[t]


def _run_backwards(grads: Tensor, decay: Tensor, exits: Tensor) -> None:
    """Turn the gradient each step's output gives its state into the gradient of that state, in place."""
    grads[-1] += exits
    for t in range(grads.shape[0] - 2, -1, -1):
        grads[t].addcmul_(decay[t + 1], grads[t + 1])


def _weighted_sum(weights: Tensor, states: Tensor) -> Tensor:
    """Sum over the state axis: (..., group, state), (..., group, state, channel) -> (..., group, channel)."""
    return torch.matmul(weights.unsqueeze(-2), states).squeeze(-2)


def _channel_sum(states: Tensor, per_channel: Tensor) -> Tensor:
    """Sum over the channels: (..., group, state, channel), (..., group, channel) -> (..., group, state)."""
    return torch.matmul(states, per_channel.unsqueeze(-1)).squeeze(-1)
