"""Libraries that only some uses of afterflow need."""

from collections.abc import Sequence
from importlib.util import find_spec

from .errors import MissingDependencyError


def check_extra(user: str, libraries: Sequence[str], extra: str | None) -> None:
    """MissingDependencyError that names the extra of afterflow which brings the libraries, where one is not installed."""
    missing = [library for library in libraries if find_spec(library) is None]
    if missing:
        raise MissingDependencyError(f"{user} needs {', '.join(missing)}; pip install 'afterflow[{extra}]'")
