"""Names that users type."""

import difflib
from collections.abc import Iterable
from typing import Literal

from .errors import ConfigError

Family = Literal["SD3", "Flux", "QwenImage", "Wan"]
"""Of models."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that does not exist: what was meant, and what there is."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1, 0.4)
    hint = f"did you mean {near[0]}?" if near else "there are " + ", ".join(known)
    return ConfigError(f"no {kind} is called {name!r}; {hint}")
