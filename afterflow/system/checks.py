"""Bounds of the numbers among options.  NaN is outside every bound."""

from .errors import ConfigError


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
