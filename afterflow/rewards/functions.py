"""Python functions as rewards: given by a script or a notebook, known by their name and a digest of their source.

A record holds both and never the function itself, so what it names is trained on only where the same is given again.
"""

import hashlib
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from functools import partial

from ..system.errors import ConfigError
from ..system.once import say_once
from .base import Reward, Scorer
from .function_digest import Description

_log = logging.getLogger(__name__)

GIVEN: dict[str, tuple[Reward, str]] = {}
"""Name → the function that was given last under it, as a reward, and its digest."""
NOT_GIVEN = ""
"""The digest of a function that a record names and that was not given."""


def give_function(name: str, function: "Scorer | Reward") -> str:
    """Make a function or a `Reward` known by its name, and return its digest.

    ConfigError where the name cannot stand in a record, or the function does not take images and records.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"a reward needs a name of letters, not {name!r}; write it as `def name(images, records)`")
    scorer = (function.load or function.score) if isinstance(function, Reward) else function
    digest = hashlib.sha256()
    if isinstance(function, Reward):
        stated = function.low, function.high, function.scale, function.clips, function.version
        digest.update(repr(stated).encode())
    else:
        check_arguments(name, function)
    description = Description(scorer)
    digest.update(description.result.encode())
    if description.opaque:
        message = (
            f"reward {name}: of {', '.join(description.opaque)} its digest holds the class alone, so a change inside "
            "is not noticed when a run goes on"
        )
        say_once(_log, message, message)
    reward = function if isinstance(function, Reward) else Reward(name, function)
    GIVEN[name] = reward, digest.hexdigest()[:32]
    return GIVEN[name][1]


def function_name(function: "Scorer | Reward") -> str:
    """Return the name of a reward or a function, of what `partial` calls, or of the class of a callable object."""
    if isinstance(function, Reward):
        return function.name
    function = function.func if isinstance(function, partial) else function
    return getattr(function, "__name__", type(function).__name__)


def check_arguments(name: str, function: Callable) -> None:
    """Raise ConfigError where a function does not take images and records."""
    if not callable(function):
        raise ConfigError(f"a reward is a name or a function, not {function!r}")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise ConfigError(f"reward {name} must take (images, records): {error}") from None
    except ValueError:  # a function of C does not say what it takes
        return


def check_given(functions: Mapping[str, str]) -> None:
    """Raise ConfigError where a function of a run is not given here, or another one under its name."""
    for name, digest in functions.items():
        if not is_given(name):
            raise not_given(name)
        if GIVEN[name][1] != digest:
            raise ConfigError(
                f"reward {name} is not the function that this run was made with (its source has changed); make the run "
                "again from the new one, or give back the old one"
            )


def is_given(name: str) -> bool:
    """Return whether a function was given under that name; a record may name one that was not."""
    return name in GIVEN and GIVEN[name][1] != NOT_GIVEN


def expect_function(name: str) -> None:
    """Let a run of a record be read whose function is not here; it cannot be trained."""
    GIVEN.setdefault(name, (Reward(name, None), NOT_GIVEN))


def not_given(name: str) -> ConfigError:
    """Return the error for a function that only a record knows."""
    return ConfigError(
        f"reward {name} is a Python function, of which a record holds the name and a digest alone; go on from the "
        "script or notebook that defines it, with execute(run, resume=True)"
    )
