"""Where every token stands, and that it is found again."""

import itertools

import pytest
import torch

from nnunet_logvmamba.layers import DIRECTIONS, PLACEMENTS, raster_order, sequence_orders, token_positions


def spell(placement: str, num_local: int, num_global: int) -> str:
    """The sequence as text: a number for a local token, g<number> for a global one."""
    local_at, global_at = token_positions(placement, num_local, num_global)
    words = [""] * (num_local + num_global)
    for index, position in enumerate(local_at.tolist()):
        words[position] = str(index)
    for index, position in enumerate(global_at.tolist()):
        words[position] = f"g{index}"
    return " ".join(words)


@pytest.mark.parametrize(
    ("placement", "num_local", "num_global", "sequence"),
    [
        ("head", 3, 2, "g0 g1 0 1 2"),
        ("middle", 5, 2, "0 1 g0 g1 2 3 4"),
        ("split", 3, 3, "g0 0 1 2 g1 g2"),
        ("interleaved", 8, 3, "g0 0 1 2 g1 3 4 5 g2 6 7"),
        ("interleaved", 7, 5, "g0 g1 0 g2 1 2 g3 3 4 g4 5 6"),
        ("interleaved", 6, 9, "g0 g1 g2 0 g3 1 g4 2 g5 3 g6 4 g7 5 g8"),
    ],
)
def test_small_sequences_read_as_documented(placement, num_local, num_global, sequence):
    assert spell(placement, num_local, num_global) == sequence


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_position_is_filled_once_and_each_kind_keeps_its_order(placement):
    for num_local, num_global in itertools.product(range(1, 26), range(0, 26)):
        local_at, global_at = token_positions(placement, num_local, num_global)
        together = torch.cat((local_at, global_at)).sort().values
        assert together.tolist() == list(range(num_local + num_global)), (num_local, num_global)
        assert (local_at.diff() > 0).all(), (num_local, num_global)
        assert (global_at.diff() > 0).all(), (num_local, num_global)


def test_every_position_is_filled_once_where_a_division_is_a_product_with_the_reciprocal(monkeypatch):
    """As on CUDA; 49 * (1 / 49) is less than 1 in double precision, and so are 49, 98, 103, 107 and every eighth."""
    monkeypatch.setattr(torch.Tensor, "__truediv__", lambda tensor, number: tensor * (1.0 / number))
    assert (torch.tensor([49.0], dtype=torch.float64) / 49 < 1).all()
    for run in range(1, 1200):
        for num_global in (1, 2, 7):
            for num_local in (run * num_global, run * num_global - num_global // 2):
                positions = torch.cat(token_positions("interleaved", num_local, num_global))
                assert torch.equal(positions.sort().values, torch.arange(num_local + num_global)), (run, num_global)
    (order,) = sequence_orders((20, 80, 64), 108, "interleaved")
    assert torch.equal(order.sort().values, torch.arange(20 * 80 * 64 + 108))


def test_directions_scan_rows_columns_and_both_backwards():
    orders = [raster_order((2, 3), direction).tolist() for direction in range(4)]
    assert orders == [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]]


def test_only_the_last_two_axes_are_exchanged_in_3d():
    order = raster_order((2, 2, 3), 1).tolist()
    assert order == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("num_global", [0, 7])
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_every_direction_reads_its_raster_with_global_tokens_in_their_places(directions, num_global, placement):
    spatial = (3, 2, 5)
    local_at, global_at = token_positions(placement, 30, num_global)
    orders = sequence_orders(spatial, num_global, placement, directions)
    assert len(orders) == directions
    for direction, order in enumerate(orders):
        if order is None:
            assert (direction, num_global) == (0, 0)
            continue
        assert order[local_at].tolist() == raster_order(spatial, direction).tolist()
        assert order[global_at].tolist() == list(range(30, 30 + num_global))


def test_unknown_words_are_refused_naming_the_valid_ones():
    with pytest.raises(ValueError, match="'tail'.*'head', 'middle', 'split', 'interleaved'"):
        token_positions("tail", 4, 2)
    with pytest.raises(ValueError, match="directions is 3; valid are 1, 2, 4"):
        sequence_orders((2, 2), 1, "head", 3)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("numbers", [(0, 2), (2, -1)])
def test_numbers_of_tokens_that_there_cannot_be_are_refused(numbers, placement):
    with pytest.raises(ValueError, match=f"there are {numbers[0]} local and {numbers[1]} global tokens"):
        token_positions(placement, *numbers)


@pytest.mark.parametrize(("num_local", "num_global"), [(288, 27), (1000, 59), (64, 64)])
def test_compiled_for_a_cpu_every_token_has_its_position(num_local, num_global):
    """An integer division by what does not divide the length would leave the last positions unwritten (torch 2.13)."""
    torch._dynamo.reset()
    compiled = torch.compile(sequence_orders, fullgraph=True)
    orders = [make((num_local // 8, 8), num_global, "interleaved", 2) for make in (sequence_orders, compiled)]
    for expected, found in zip(*orders, strict=True):
        assert torch.equal(expected, found)
