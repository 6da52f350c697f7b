"""Memory layouts: told apart, made, kept."""

from __future__ import annotations

import pytest
import torch

from seenn_plugin.state.memory_format import channels_last, is_dense, same_format, select


@pytest.mark.parametrize(
    ("shape", "strides", "dense"),
    [
        ((2, 3, 4), (12, 4, 1), True),
        ((2, 3, 4), (12, 1, 3), True),
        ((2, 3, 4), (1, 2, 6), True),
        ((2, 1, 4), (4, 99, 1), True),
        ((2, 3, 4), (24, 8, 2), False),
        ((2, 3, 4), (0, 4, 1), False),
        ((2, 3, 4), (13, 4, 1), False),
        ((2, 3, 4), (4, 4, 1), False),
    ],
)
def test_dense_means_without_gaps_and_overlaps(shape, strides, dense):
    assert is_dense(torch.empty(100).as_strided(shape, strides)) is dense


def test_dimensions_of_size_1_do_not_make_a_layout():
    x = torch.empty(5, 1, 3, 3)
    assert same_format(x, x.contiguous(memory_format=torch.channels_last))
    assert not same_format(torch.empty(5, 2, 3, 3), torch.empty(5, 2, 3, 3).to(memory_format=torch.channels_last))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3)])
@pytest.mark.parametrize("dim", [0, 1])
def test_select_keeps_the_layout(order, dim):
    back = sorted(range(4), key=order.__getitem__)
    x = torch.randn(4, 3, 5, 2).permute(order).contiguous().permute(back)
    index = torch.tensor([2, 0, 2])
    found = select(x, dim, index)
    assert torch.equal(found, x.index_select(dim, index))
    assert is_dense(found)
    assert sorted(range(4), key=found.stride) == sorted(range(4), key=x.stride)


def test_frames_in_channels_last():
    x = torch.randn(3, 4, 2, 5, 6)
    found = channels_last(x, sequence=True)
    assert torch.equal(found, x)
    assert all(frame.is_contiguous(memory_format=torch.channels_last) for frame in found)
    assert channels_last(x[0]).is_contiguous(memory_format=torch.channels_last)
    assert channels_last(x[0, 0, 0]) is x[0, 0, 0] or channels_last(x[0, 0]).is_contiguous()
