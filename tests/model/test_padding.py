import pytest
import torch

from edgemm.model.padding import by_length, in_row_order


def padded(lengths: list[int], groups: list[list[int]]) -> int:
    return sum(len(rows) * max(lengths[row] for row in rows) for rows in groups)


@pytest.mark.parametrize("lengths", [[5], [7, 7, 7, 7], [60, 55, 62, 94, 57, 90], [1, 100], [100, 1, 1, 1], [3, 2, 1]])
def test_every_row_is_in_one_group_and_no_other_cut_fills_up_less(lengths: list[int]) -> None:
    groups, order = by_length(lengths), sorted(range(len(lengths)), key=lengths.__getitem__)
    assert sorted(row for rows in groups for row in rows) == list(range(len(lengths)))
    least = min(padded(lengths, [rows for rows in (order[:k], order[k:]) if rows]) for k in range(len(order)))
    assert padded(lengths, groups) == least or least > 0.9 * len(lengths) * max(lengths)


def test_alike_rows_stay_together() -> None:
    assert by_length([90, 91, 92, 93]) == [[0, 1, 2, 3]]


def test_what_groups_gave_comes_back_row_by_row() -> None:
    counts, groups = [2, 1, 3, 1], [[1, 3], [0, 2]]
    rows = [torch.full((count, 2), float(row)) for row, count in enumerate(counts)]
    parts = [torch.cat([rows[row] for row in group]) for group in groups]
    assert in_row_order(parts, groups, counts).equal(torch.cat(rows))


def test_long_rows_are_cut_in_two_though_it_saves_little() -> None:
    groups = by_length([250, 290, 280, 300])
    assert groups == [[0], [1, 2, 3]] and padded([250, 290, 280, 300], groups) == 1150
