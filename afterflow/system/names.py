"""Names that users type: the error for one that does not exist, and whether one can name a folder."""

import difflib
import re
from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath

from .errors import ConfigError

MAX_NAME = 200
"""Length of the name of a folder in bytes, so that names of files made of it fit into 255."""


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


def check_folder_name(option: str, name: str) -> None:
    """Raise ConfigError for a name that is no folder below runs/ on every system; `a/b` is one."""
    parts = name.split("/")
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or name.startswith("~"):
        problem = (
            f"it is a path, and the folder is runs/NAME; go to the folder that should hold runs/, and write {option}"
        )
        problem += f" {PureWindowsPath(name).name or 'my_run'}"
    elif any(part.strip() in ("", ".", "..") for part in parts):
        problem = "a folder needs a name that is not empty, . or ..; write for instance my_run"
    elif not all(re.fullmatch(r"[\w.-]+", part) for part in parts):
        problem = "a name is words of letters, digits, . _ and -, joined by /"
    elif any(part[-1] == "." for part in parts):
        problem = "no part of it may end with a dot"
    elif any(len(part.encode()) > MAX_NAME for part in parts):
        problem = f"it is too long; take at most {MAX_NAME} bytes"
    else:
        return
    raise ConfigError(f"{option} {name!r}: {problem}")
