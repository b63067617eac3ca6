"""Optional dependencies: libraries that only some uses of afterflow need."""

from collections.abc import Sequence
from importlib.util import find_spec

from .errors import MissingDependencyError


def check_extra(user: str, libraries: Sequence[str], extra: str | None) -> None:
    """Raise MissingDependencyError where a library is not installed, with the extra of afterflow that installs it."""
    missing = [library for library in libraries if find_spec(library) is None]
    if missing:
        raise MissingDependencyError(f"{user} needs {', '.join(missing)}; pip install 'afterflow[{extra}]'")
