"""Checks of arguments that several modules share."""

from __future__ import annotations

LARGEST_SEED = 2**64 - 1  # of torch's generators


def whole_number(name: str, value: object, *, least: int = 1, most: int | None = None) -> None:
    """Raise unless ``value`` is an int, not a bool, of ``least`` or more and ``most`` or less.

    Raises:
        ValueError: it is not; names the argument.
    """
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and least <= value
        and (most is None or value <= most)
    ):
        return
    bounds = f", {least} or more" if most is None else f" from {least} to {most}"
    raise ValueError(f"{name} is {value!r}; it must be a whole number{bounds}")
