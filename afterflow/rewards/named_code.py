"""Code that a name points at, `module:function`: which names may be imported, and which file would run.

A file may hold such a name, and a file may come from anybody.  So a name is imported only where a person gave it: on
this command line, in this Python process, or with --trust-code for all that a file names.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import Any

from ..system.errors import ConfigError

NAMED: dict[str, bool] = {}
"""Names that a person gave, each with whether its module may lie in the working folder."""
FROM_FILES: set[str] = set()
"""Names that this process read from files before a person gave them."""
ANY = "*"
"""The entry of `NAMED` that stands for every name: --trust-code."""
CODE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@contextmanager
def names_of_command(words: Iterable[str]) -> Iterator[None]:
    """Let the names among the words of a command line be imported for the block, from the working folder too."""
    before = dict(NAMED)
    NAMED.update({part: True for word in words for part in re.split(r"[=,]", word) if CODE_NAME.fullmatch(part)})
    try:
        yield
    finally:
        NAMED.clear()
        NAMED.update(before)


def trust_code() -> None:
    """Let every name be imported, from the working folder too, whoever wrote it: --trust-code."""
    NAMED[ANY] = True


def named_in_process(names: Iterable[str]) -> None:
    """Let names be imported that a run of this process has, but for those that it read from a file."""
    for name in names:
        if ":" in name and name not in FROM_FILES:
            NAMED.setdefault(name, False)


def read_from_file(data: Any) -> None:
    """Remember the names in what a file holds, so that a run made of it does not count as a person's word."""
    values = [data]
    while values:
        value = values.pop()
        if isinstance(value, Mapping):
            values += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            values += value
        elif isinstance(value, str) and ":" in value and value not in NAMED:
            FROM_FILES.add(value)


def may_import(name: str) -> bool:
    """Return whether a person gave that name, or trusts all."""
    return name in NAMED or ANY in NAMED


def check_code_name(name: str) -> None:
    """Raise ConfigError for what does not read `module:function`."""
    if not CODE_NAME.fullmatch(name):
        raise ConfigError(f"reward {name!r}: code is named by module:function, in letters, digits and _")


def import_named(name: str) -> Any:
    """Import the module of `module:function` and return what it names.

    ConfigError is raised where nobody gave the name here, which says the file that would run, where there is no such
    module or function, and where the module cannot be run, which says the line.
    """
    check_code_name(name)
    module, _, attribute = name.partition(":")
    if not may_import(name):
        raise ConfigError(
            f"reward {name} is code that a file names, and reading a file runs nothing; {module_file(module)} would "
            "run. If you trust it, say so by --trust-code; in Python, by "
            "afterflow.rewards.named_code.trust_code()"
        )
    folder = os.getcwd()
    if NAMED.get(name, ANY in NAMED) and folder not in sys.path:  # a console script's path does not have it
        sys.path.append(folder)
    reads = "it reads module:function, of a module that Python finds from this folder"
    try:
        imported = import_module(module)
    except ImportError as error:
        raise ConfigError(f"reward {name}: {error}; {reads}") from error
    except Exception as error:  # a person's code may raise anything when it is run
        file, line, words = where_it_failed(error)
        raise ConfigError(f"reward {name}: {file}, line {line}: {words}; mend it there") from error
    if not hasattr(imported, attribute):
        raise ConfigError(f"reward {name}: module {module!r} has no attribute {attribute!r}; {reads}")
    reward_function = getattr(imported, attribute)
    if not callable(reward_function):
        raise ConfigError(f"reward {name} is no function of (images, records)")
    return reward_function


def where_it_failed(error: Exception) -> tuple[str, int | None, str]:
    """Return the file and the line at which code could not be read or run, and why, in one line."""
    words = f"{type(error).__name__}: {error}".partition("\n")[0]
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno, f"{type(error).__name__}: {error.msg}"
    last = extract_tb(error.__traceback__)[-1]
    return last.filename, last.lineno, words


def module_file(module: str) -> str:
    """Return the file of a module as Python would find it from here, without importing its packages."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return str(loaded)
    folders, file = [Path(folder or ".") for folder in [*sys.path, os.getcwd()]], None
    for part in module.split("."):
        candidates = [path for folder in folders for path in (folder / part / "__init__.py", folder / f"{part}.py")]
        file = next((path for path in candidates if path.is_file()), None)
        folders = [file.parent] if file is not None else [folder / part for folder in folders]
    return f"module {module}" if file is None else str(file.resolve())
