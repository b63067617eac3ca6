"""How a value of an option is read: numbers are finite, and mappings are written NAME VALUE NAME VALUE."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ..system.checks import finite_number, whole_number
from ..system.errors import ConfigError

READERS: dict[Any, Callable[[str], Any]] = {float: finite_number, int: whole_number}
"""Type of an option → what reads its text; the other types are read by tyro."""
OPTIONS = ConstructorRegistry()


@OPTIONS.primitive_rule
def numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Let numbers be finite; Python reads `nan` and `1e400` as numbers."""
    if info.type not in READERS:
        return None
    read = READERS[info.type]
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=info.type.__name__.upper(),
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, int | info.type) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


@OPTIONS.primitive_rule
def whole_mapping(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Let `--weights a 0.5 b 0.5` replace a mapping; tyro's own rule only changes values of keys that exist."""
    if info.type_origin is not Mapping:
        return None
    kind = get_args(info.type)[1]
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME NUMBER ...]",
        instance_from_str=partial(values_by_name, read=READERS.get(kind) or kind),
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [str(word) for pair in value.items() for word in pair],
    )


def values_by_name(words: Sequence[str], read: Callable[[str], Any]) -> dict[str, Any]:
    """Return the values of NAME NUMBER or NAME=NUMBER, any number of times."""
    words = [part for word in words for part in word.split("=", 1)]
    if len(words) % 2:
        raise ConfigError(f"{words[-1]!r} has no number after it; write NAME NUMBER NAME NUMBER ...")
    names = words[::2]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name} is there twice; give it one value")
    return {name: read(value) for name, value in zip(names, words[1::2])}
