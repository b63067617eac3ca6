"""Dataclasses as JSON and back, exactly: how a run is written down and repeated.

A dataclass becomes an object of its fields.  Where a field may hold one of several, "type" says which; tuples and
mappings know from the annotation what they hold.
"""

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..system.names import unknown_name

T = TypeVar("T")


def to_json(instance: Any) -> dict[str, Any]:
    """The fields of a dataclass as what `json.dumps` takes."""
    hints = get_type_hints(type(instance))
    return {field.name: _encode(hints[field.name], getattr(instance, field.name)) for field in fields(instance)}


def from_json(kind: type[T], data: Mapping[str, Any], place: str = "") -> T:
    """The dataclass that `to_json` wrote; a field that is left out keeps its default.

    ValueError for a field or type that does not exist and for a value of the wrong type.  `place` is where `data`
    stands in the whole, for those messages.
    """
    declared = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in data:
        if name not in declared:
            raise unknown_name(f"field of {place or kind.__name__}", name, declared)
    for name, field in declared.items():
        if name not in data and field.default is field.default_factory is MISSING:
            raise ValueError(f"{place or kind.__name__} has no field {name!r}, which it needs")
    hints = get_type_hints(kind)
    inside = f"{place}." if place else ""
    return kind(**{name: _decode(hints[name], value, inside + name) for name, value in data.items()})


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What `to_json` says of two instances that is not the same, a sentence each."""
    found = []
    for name in dict.fromkeys([*one, *other]):
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += [f"{name}.{each}" for each in differences(a, b)]
        elif a != b:
            found.append(f"{name} = {json.dumps(a)} there, {json.dumps(b)} here")
    return found


def _encode(hint: Any, value: Any) -> Any:
    if is_dataclass(value):
        named = {"type": type(value).__name__} if len(_dataclasses(hint)) > 1 else {}
        return named | to_json(value)
    if isinstance(value, Mapping):
        each = get_args(_alternative(hint, Mapping))[1]
        return {key: _encode(each, item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_encode(each, item) for each, item in zip(_items(hint, len(value)), value)]
    return value


def _decode(hint: Any, data: Any, place: str) -> Any:
    if isinstance(data, Mapping) and _dataclasses(hint):
        return _decode_dataclass(_dataclasses(hint), data, place)
    if isinstance(data, Mapping) and _alternative(hint, Mapping):
        each = get_args(_alternative(hint, Mapping))[1]
        return {key: _decode(each, item, f"{place}.{key}") for key, item in data.items()}
    if isinstance(data, list) and _alternative(hint, tuple):
        items = _items(hint, len(data))
        if len(items) == len(data):
            return tuple(_decode(each, item, f"{place}[{i}]") for i, (each, item) in enumerate(zip(items, data)))
    elif _admits(hint, data):
        return data
    elif isinstance(data, str) and _alternative(hint, Literal):
        raise unknown_name(place, data, map(str, get_args(_alternative(hint, Literal))))
    raise ValueError(f"{place} = {data!r}: it must be {_words(hint)}")


def _decode_dataclass(kinds: list[type], data: Mapping[str, Any], place: str) -> Any:
    if len(kinds) == 1:
        return from_json(kinds[0], data, place)
    by_name = {kind.__name__: kind for kind in kinds}
    name = data.get("type")
    if not isinstance(name, str):
        raise ValueError(f'{place}: "type" must say which of {", ".join(by_name)} it is')
    if name not in by_name:
        raise unknown_name(f"type of {place}", name, by_name)
    return from_json(by_name[name], {key: value for key, value in data.items() if key != "type"}, place)


def _admits(hint: Any, data: Any) -> bool:
    """Whether a number, text, truth value or null may stand there as it is."""
    for each in _alternatives(hint):
        if get_origin(each) is Literal:
            # 1 == True == 1.0, but they are three different things to write.
            if any(data == choice and type(data) is type(choice) for choice in get_args(each)):
                return True
        elif type(data) is each or (each is float and type(data) is int):
            return True
    return False


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _dataclasses(hint: Any) -> list[type]:
    return [each for each in _alternatives(hint) if isinstance(each, type) and is_dataclass(each)]


def _alternative(hint: Any, origin: Any) -> Any:
    """The alternative of that kind: Mapping[str, float] of Mapping[str, float] | None, say; None without one."""
    return next((each for each in _alternatives(hint) if _origin(each) is origin), None)


def _origin(hint: Any) -> Any:
    found = get_origin(hint)
    return Mapping if isinstance(found, type) and issubclass(found, Mapping) else found


def _items(hint: Any, length: int) -> tuple[Any, ...]:
    """What each of `length` items of a tuple must be."""
    of = get_args(_alternative(hint, tuple))
    return (of[0],) * length if of[-1:] == (Ellipsis,) else of


def _words(hint: Any) -> str:
    """A type as a user would write it."""
    return " or ".join(_word(each) for each in _alternatives(hint))


def _word(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if hint is types.NoneType:
        return "null"
    if _origin(hint) is tuple:
        return f"a list of {', '.join(_word(each) if each is not Ellipsis else '...' for each in get_args(hint))}"
    return "an object" if _origin(hint) is Mapping or is_dataclass(hint) else hint.__name__
