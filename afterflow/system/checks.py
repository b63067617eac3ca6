"""Bounds of the numbers among options.  NaN is outside every bound, and no option takes NaN or infinity."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from .errors import ConfigError

LARGEST = 2**63 - 1
"""The largest whole number that torch counts with."""


def check_finite(value: object, name: str = "") -> None:
    """Raise ConfigError for a number that is NaN, infinite or beyond 64 bits.

    Dataclasses, mappings and tuples are looked through.  `name` is what the message calls the value; numbers inside it
    are named after it.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} = {value}: it must be a finite number")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ConfigError(f"{name or 'a number'} = {value}: it is larger than any count; take at most {LARGEST}")
    inside = f"{name}." if name else ""
    if is_dataclass(value):
        for field in fields(value):
            check_finite(getattr(value, field.name), inside + field.name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_finite(item, f"{inside}{key}")
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            check_finite(item, f"{name}[{i}]")


def finite_number(text: str) -> float:
    """Return the number that a text says.  ConfigError where it says none, NaN, infinity or one too large."""
    try:
        number = float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number") from None
    if not math.isfinite(number):
        raise ConfigError(f"{text} is not a finite number")
    return number


def whole_number(text: str) -> int:
    """Return the whole number that a text says.  ConfigError where it says none."""
    try:
        number = int(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a whole number") from None
    check_finite(number)
    return number


def check_at_least_one(options: object, *names: str, prefix: str = "") -> None:
    """Raise ConfigError for a field that is neither None nor at least 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not value >= 1:
            raise ConfigError(f"{prefix}{name} = {value}: at least 1")


def check_positive(options: object, *names: str, prefix: str = "") -> None:
    """Raise ConfigError for a field that is neither None nor above 0."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{prefix}{name} = {value}: it must be positive")


def check_not_negative(options: object, *names: str, prefix: str = "") -> None:
    """Raise ConfigError for a field that is neither None nor 0 or above."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not value >= 0:
            raise ConfigError(f"{prefix}{name} = {value}: 0 or more")
