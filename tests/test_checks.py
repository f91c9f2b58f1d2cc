"""Checks of arguments."""

import pytest

from amdim_fast.checks import whole_number


@pytest.mark.parametrize("value", [0, True, 2.0, "2", None])
def test_a_whole_number_is_an_int_of_at_least_the_least(value):
    whole_number("n", 1)
    whole_number("n", 0, least=0)
    with pytest.raises(ValueError, match=f"^n is {value!r}; it must be a whole number, 1 or more$"):
        whole_number("n", value)


def test_a_whole_number_may_have_an_upper_bound():
    whole_number("n", 8, most=8)
    with pytest.raises(ValueError, match=r"^n is 9; it must be a whole number from 1 to 8$"):
        whole_number("n", 9, most=8)
