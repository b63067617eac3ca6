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
        metavar=f"[NAME {'NUMBER' if kind in READERS else 'VALUE'} ...]",
        instance_from_str=partial(values_by_name, read=READERS.get(kind) or kind),
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [str(word) for pair in value.items() for word in pair],
    )


def values_by_name(words: Sequence[str], read: Callable[[str], Any]) -> dict[str, Any]:
    """Return the values of NAME VALUE or NAME=VALUE, any number of times; a value may have = in it."""
    kind, pairs, rest = "NUMBER" if read in READERS.values() else "VALUE", {}, list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not equals and not rest:
            raise ConfigError(f"{name!r} has no {kind.lower()} after it; write NAME {kind} NAME {kind} ...")
        if name in pairs:
            raise ConfigError(f"{name} is there twice; give it one value")
        pairs[name] = read(value if equals else rest.pop(0))
    return pairs
