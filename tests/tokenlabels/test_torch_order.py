"""The order of rows: every row once, whatever the row groups, ranks, workers, batches and windows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenlabels.torch_order import (
    WINDOW_BYTES,
    Piece,
    Stretch,
    Window,
    of_rank,
    of_worker,
    sequence,
    shuffled,
    windows,
)

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12)


def rows_of(counts: list[int], window: Window) -> list[int]:
    """Numbers of the rows of a window in the build."""
    starts = np.cumsum([0, *counts])
    return [int(starts[p.group]) + row for p in window.pieces for row in range(p.first, p.first + p.rows)]


def whole(counts: list[int], seeds: tuple[int, int] | None) -> list[int]:
    starts = np.cumsum([0, *counts])
    return [int(starts[p.group]) + r for p in sequence(counts, seeds) for r in range(p.first, p.first + p.rows)]


@given(COUNTS, st.one_of(st.none(), st.tuples(st.integers(0, 2**70), st.integers(0, 50))))
def test_a_sequence_is_every_row_once(counts: list[int], seeds: tuple[int, int] | None) -> None:
    found = whole(counts, seeds)
    assert sorted(found) == list(range(sum(counts)))
    if seeds is None:
        assert found == sorted(found)


@given(st.integers(0, 200), st.integers(1, 9))
def test_ranks_share_rows(total: int, world: int) -> None:
    even = [of_rank(total, rank, world, drop_remainder=True) for rank in range(world)]
    assert {stretch.rows for stretch in even} == {total // world}
    assert all(before.start + before.rows == after.start for before, after in pairwise(even))
    uneven = [of_rank(total, rank, world, drop_remainder=False) for rank in range(world)]
    assert sum(stretch.rows for stretch in uneven) == total
    assert max(s.rows for s in uneven) - min(s.rows for s in uneven) <= 1
    assert all(before.start + before.rows == after.start for before, after in pairwise(uneven))


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 20))
def test_workers_asked_in_turn_give_the_batches_of_their_rank(total: int, workers: int, batch: int) -> None:
    """As a DataLoader asks them: all but the last batch are full, and no turn is missed before the end."""
    parts = [of_worker(Stretch(7, total), worker, workers, batch) for worker in range(workers)]
    assert sorted(row for part in parts for row in range(part.start, part.start + part.rows)) == list(
        range(7, 7 + total)
    )
    sizes = [[min(batch, part.rows - start) for start in range(0, part.rows, batch)] for part in parts]
    turns = [sizes[k % workers][k // workers] for k in range(-(-total // batch))]
    assert turns == [batch] * (total // batch) + [total % batch] * (total % batch > 0)


@settings(max_examples=300)
@given(st.data(), COUNTS, st.integers(1, 50), st.integers(1, 60))
def test_windows_hold_the_rows_of_a_stretch(data: st.DataObject, counts: list[int], batch: int, most: int) -> None:
    total = sum(counts)
    start = data.draw(st.integers(0, total))
    stretch = Stretch(start, data.draw(st.integers(0, total - start)))
    sizes = data.draw(st.lists(st.sampled_from([1, WINDOW_BYTES / 50]), min_size=len(counts), max_size=len(counts)))
    seeds = (data.draw(st.integers(0, 5)), 3)
    found = list(windows(sequence(counts, seeds), stretch, sizes, batch, most))
    assert [row for window in found for row in rows_of(counts, window)] == whole(counts, seeds)[
        stretch.start : stretch.start + stretch.rows
    ]
    place = stretch.start
    for window in found:
        assert window.start == place
        assert window is found[-1] or window.rows % batch == 0
        place += window.rows
        held = sum(piece.rows * sizes[piece.group] for piece in window.pieces)
        groups = [piece.group for piece in window.pieces]
        if len(groups) > 1 and window.rows >= 2 * batch:  # else it is as small as row groups and batches let it be
            assert window.rows <= max(most, batch + max(counts[group] for group in groups))
            assert held <= max(WINDOW_BYTES, max(counts) * max(sizes)) + batch * max(sizes)


def test_a_shuffled_order_is_a_permutation_unlike_others() -> None:
    orders = {tuple(shuffled(1000, seed, epoch).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert all(sorted(order) == list(range(1000)) for order in orders)


def test_places_of_a_shuffled_order_are_uniform() -> None:
    """Chi-squared of where each of 8 rows lands in 8,000 orders: 49 degrees of freedom, 99.99 % below 95."""
    places = np.array([shuffled(8, 5, epoch) for epoch in range(8000)])
    counts = np.stack([np.bincount(places[:, row], minlength=8) for row in range(8)])
    assert ((counts - 1000) ** 2 / 1000).sum() < 95


def test_the_order_is_the_same_on_every_machine() -> None:
    """Written down once; Python's hashes, which differ from run to run, have no part in it."""
    assert shuffled(8, 1, 2).tolist() == [5, 6, 3, 2, 1, 0, 4, 7]
    assert sequence([3, 1, 2], (4, 5)) == [Piece(0, 2, 1), Piece(1, 0, 1), Piece(2, 0, 2), Piece(0, 0, 2)]


def test_what_ranks_leave_out_changes_with_the_epoch() -> None:
    """Even where there is one row group only."""
    for counts in ([7], [7, 6, 8]):
        total = sum(counts)
        left_out = {whole(counts, (0, epoch))[total // 4 * 4 :][0] for epoch in range(200)}
        assert left_out == set(range(total))
