"""The library's tolerance, and that of the tests, which judges the library."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from seenn_plugin import tolerance
from seenn_plugin.state.values import close, same

from . import closeness

NUMBERS = st.floats(-1e3, 1e3, width=32)


@given(st.lists(st.tuples(NUMBERS, st.floats(-1, 1)), min_size=1, max_size=8))
def test_the_library_is_no_more_tolerant_than_the_tests(values):
    """What the library calls equal the tests do too: else a check could pass what a test would refuse."""
    wanted = torch.tensor([[a] for a, _ in values])
    found = wanted + torch.tensor([[b] for _, b in values]) * 4 * (tolerance.ATOL + tolerance.RTOL * wanted.abs())
    library = (~tolerance.rows_agree(found, wanted)).nonzero().flatten().tolist()
    # Values at the very border may fall on either side by float32 rounding.
    border = (found - wanted).double().abs() / (tolerance.ATOL + tolerance.RTOL * wanted.double().abs())
    clear = [row for row in range(len(values)) if abs(float(border[row]) - 1) > 0.01]
    tests = closeness.differing_rows(found, wanted)
    assert [row for row in tests if row in clear] == [row for row in library if row in clear]


def test_a_difference_beyond_the_tolerance_is_seen_in_its_row():
    wanted = torch.ones(3, 2)
    found = wanted.clone()
    found[1, 1] += 1e-3
    assert tolerance.rows_agree(found, wanted).tolist() == [True, False, True]
    assert closeness.differing_rows(found, wanted) == [1]
    assert not tolerance.agree(found, wanted)
    assert not close({"a": [found]}, {"a": [wanted]})


def test_nan_equals_nan_and_nothing_else():
    nan, one = torch.tensor([[float("nan")]]), torch.ones(1, 1)
    assert bool(tolerance.rows_agree(nan, nan).all())
    assert closeness.differing_rows(nan, nan) == []
    assert not bool(tolerance.rows_agree(nan, one).any())
    assert closeness.differing_rows(nan, one) == [0]
    assert same(nan, nan.clone())
    assert not same(nan, one)


def test_values_of_another_form_are_not_close():
    x = torch.ones(2)
    assert close((x, 3, None), (x + 1e-7, 3, None))
    assert not close((x, 3), (x, 4))
    assert not close((x,), (x, x))
    assert not close(x, x.double())
    assert not close(x, torch.ones(2, 1))
