"""Volume to sequence and back: raster orders, and where global tokens enter the sequence.

Everything here is index arithmetic on integers; no feature tensor is touched.
"""

from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor

Placement = Literal["head", "middle", "split", "interleaved"]
PLACEMENTS: tuple[str, ...] = get_args(Placement)
DIRECTIONS = (1, 2, 4)


def check_placement(placement: str) -> None:
    """Raise ValueError, naming the valid words, unless ``placement`` is one of them."""
    if placement not in PLACEMENTS:
        raise ValueError(f"unknown placement {placement!r}; valid are {', '.join(map(repr, PLACEMENTS))}")


def check_directions(directions: int) -> None:
    """Raise ValueError unless ``directions`` is 1, 2 or 4."""
    if not isinstance(directions, Integral) or directions is True or directions not in DIRECTIONS:
        raise ValueError(f"directions is {directions!r}; valid are {', '.join(map(str, DIRECTIONS))}")


def _head(num_local: int, num_global: int, local: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    return local + num_global, context


def _middle(num_local: int, num_global: int, local: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    half = num_local // 2
    return torch.where(local < half, local, local + num_global), context + half


def _split(num_local: int, num_global: int, local: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    half = num_global // 2
    return local + half, torch.where(context < half, context, context + num_local)


def _interleaved(num_local: int, num_global: int, local: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    run = -(-num_local // num_global)  # local tokens between two global ones
    period = run + 1
    first = period * -(-(num_global - num_local // run) // period)  # position of the first interleaved global token
    excess = num_global - -(-(num_local + num_global - first) // period)  # global tokens ahead of everything
    lead = first - excess  # local tokens between the excess and the first interleaved global token
    late = local - lead
    # Whole numbers divided as such are a loop that torch.compile cuts short on a CPU: the last positions would not be
    # written (findings/compiled_division_forgets_the_rest.sh). By the numbers in the middle between two, in double
    # precision, the quotient never comes near the next whole number: on CUDA, and compiled for it, what is divided by a
    # number is multiplied by its reciprocal, and 49 * (1 / 49) is less than 1.
    on_mps = late.device.type == "mps"  # which has no double precision
    runs = late // run if on_mps else torch.floor((late.double() + 0.5) / run).long()
    return (
        torch.where(late < 0, local + excess, first + 1 + late + runs),
        torch.where(context < excess, context, first + (context - excess) * period),
    )


_POSITIONS = {"head": _head, "middle": _middle, "split": _split, "interleaved": _interleaved}


def token_positions(
    placement: str, num_local: int, num_global: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Positions of the local and of the global tokens in the joined sequence.

    Both kinds keep their own order. ``head`` puts the global tokens first, ``middle`` between the two halves of the
    local ones, ``split`` one half at each end, ``interleaved`` at fixed intervals with any excess at the beginning.

    Args:
        placement: One of ``PLACEMENTS``.
        num_local: Number of local tokens, at least 1.
        num_global: Number of global tokens; 0 gives the local order as it is.
        device: Where the index vectors are wanted.

    Returns:
        Two int64 vectors of ``num_local`` and ``num_global`` entries that together are a permutation of all positions.

    Raises:
        ValueError: If ``placement`` is not a known word, or a number is too small.

    References: LoG-VMamba (arXiv 2408.14415), section 3.3.
    """
    check_placement(placement)
    if num_local < 1 or num_global < 0:
        raise ValueError(f"there are {num_local} local and {num_global} global tokens; at least 1 and 0 are needed")
    local = torch.arange(num_local, device=device)
    context = torch.arange(num_global, device=device)
    if num_global == 0:
        return local, context
    return _POSITIONS[placement](num_local, num_global, local, context)


def raster_order(spatial: tuple[int, ...], direction: int, device: torch.device | str = "cpu") -> Tensor:
    """Raster index of the token that comes t-th in scanning direction ``direction``.

    0: last axis fastest; 1: last two axes exchanged; 2 and 3: the reverse of 0 and of 1.
    """
    grid = torch.arange(torch.Size(spatial).numel(), device=device).view(spatial)
    if direction % 2:
        grid = grid.transpose(-1, -2)
    order = grid.reshape(-1)
    return order.flip(0) if direction >= 2 else order


def sequence_orders(
    spatial: tuple[int, ...], num_global: int, placement: str, directions: int = 1, device: torch.device | str = "cpu"
) -> list[Tensor | None]:
    """Which row comes t-th in each direction; rows are the local tokens in raster order, then the global ones.

    Args:
        spatial: Size of the map, (height, width) or (depth, height, width).
        num_global: Number of global tokens, placed anew in each direction.
        placement: One of ``PLACEMENTS``.
        directions: 1: raster; 2: raster and last two axes exchanged; 4: both, forwards and backwards.
        device: Where the index vectors are wanted.

    Returns:
        One int64 vector of length + num_global entries per direction, a permutation; None where rows lie in order.

    Raises:
        ValueError: If ``placement`` or ``directions`` is not a valid value.
    """
    check_directions(directions)
    num_local = torch.Size(spatial).numel()
    local_at, global_at = token_positions(placement, num_local, num_global, device)
    positions = torch.cat((local_at, global_at))
    context = num_local + torch.arange(num_global, device=device)
    orders: list[Tensor | None] = []
    for direction in range(directions):
        if direction == 0 and num_global == 0:
            orders.append(None)
            continue
        rows = torch.cat((raster_order(spatial, direction, device), context))
        orders.append(torch.empty_like(rows).scatter(0, positions, rows))
    return orders
