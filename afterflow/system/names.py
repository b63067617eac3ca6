"""Names that users type, and the error for a name that does not exist."""

import difflib
from collections.abc import Iterable

from .errors import ConfigError


def unknown_name(kind: str, name: str, names: Iterable[str]) -> ConfigError:
    """Return the error for a name that does not exist, with the nearest of `names`: one for a typo, else three."""
    names = sorted(names)
    typo, near = (difflib.get_close_matches(name, names, count, cutoff) for count, cutoff in ((1, 0.85), (3, 0.4)))
    if near:
        further = [] if typo else near[1:]
        hint = f"did you mean {near[0]}?" + (f" Also near: {', '.join(further)}" if further else "")
    elif len(names) <= 12:
        hint = "there are " + ", ".join(names)
    else:
        nearest = difflib.get_close_matches(name, names, 3, 0.0)
        hint = f"the nearest of {len(names)} are {', '.join(nearest)}"
    return ConfigError(f"no {kind} is called {name!r}; {hint}")
