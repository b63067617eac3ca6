"""Names that users type, and the error for a name that does not exist."""

import difflib
from collections.abc import Iterable
from typing import Literal

from .errors import ConfigError

Family = Literal["SD3", "Flux", "QwenImage", "Wan"]
"""Families of models, as diffusers names their pipelines."""


def unknown_name(kind: str, name: str, names: Iterable[str]) -> ConfigError:
    """Return the error for a name that does not exist, with the nearest of `names`, or all of them."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, 1, 0.4)
    hint = f"did you mean {near[0]}?" if near else "there are " + ", ".join(names)
    return ConfigError(f"no {kind} is called {name!r}; {hint}")
