"""Dataclasses as JSON and back, exactly: how a run is written down and repeated.

A dataclass becomes an object of its fields.  Where a field may hold one of several, "type" says which; tuples and
mappings know from the annotation what they hold.
"""

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..rewards.named_code import read_from_file
from ..system.checks import check_finite
from ..system.errors import ConfigError
from ..system.names import unknown_name

D = TypeVar("D")


def to_json(instance: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as values that `json.dumps` takes."""
    hints = get_type_hints(type(instance))
    return {field.name: _encode(hints[field.name], getattr(instance, field.name)) for field in fields(instance)}


def from_json(kind: type[D], data: Mapping[str, Any], path: str = "") -> D:
    """Return the dataclass that `to_json` wrote; a field that is left out has its default.

    `path` says in messages where `data` stands in the whole.  ConfigError is raised for a field or type that does not
    exist, and for a value of the wrong type.
    """
    if not path:
        read_from_file(data)
    declared = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in data:
        if name not in declared:
            raise unknown_name(f"field of {path or kind.__name__}", name, declared)
    for name, field in declared.items():
        if name not in data and field.default is field.default_factory is MISSING:
            raise ConfigError(f"{path or kind.__name__} has no field {name!r}, which it needs")
    hints = get_type_hints(kind)
    inside = f"{path}." if path else ""
    return kind(**{name: _decode(hints[name], value, inside + name) for name, value in data.items()})


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each field in which two records differ."""
    changes = []
    for name in dict.fromkeys([*one, *other]):
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changes += [f"{name}.{change}" for change in differences(a, b)]
        elif a != b:
            changes.append(f"{name} = {json.dumps(a)} there, {json.dumps(b)} here")
    return changes


def _encode(hint: Any, value: Any) -> Any:
    if is_dataclass(value):
        named = {"type": type(value).__name__} if len(_dataclasses(hint)) > 1 else {}
        return named | to_json(value)
    if isinstance(value, Mapping):
        item_hint = get_args(_alternative(hint, Mapping))[1]
        return {key: _encode(item_hint, item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_encode(item_hint, item) for item_hint, item in zip(_items(hint, len(value)), value)]
    return value


def _decode(hint: Any, data: Any, path: str) -> Any:
    check_finite(data, path)
    if isinstance(data, Mapping) and _dataclasses(hint):
        return _decode_dataclass(_dataclasses(hint), data, path)
    if isinstance(data, Mapping) and _alternative(hint, Mapping):
        item_hint = get_args(_alternative(hint, Mapping))[1]
        return {key: _decode(item_hint, item, f"{path}.{key}") for key, item in data.items()}
    if isinstance(data, list) and _alternative(hint, tuple):
        items = _items(hint, len(data))
        if len(items) == len(data):
            return tuple(
                _decode(item_hint, item, f"{path}[{i}]") for i, (item_hint, item) in enumerate(zip(items, data))
            )
    elif _admits(hint, data):
        return data
    elif isinstance(data, str) and _alternative(hint, Literal):
        raise unknown_name(path, data, map(str, get_args(_alternative(hint, Literal))))
    raise ConfigError(f"{path} = {data!r}: it must be {_words(hint)}")


def _decode_dataclass(kinds: list[type], data: Mapping[str, Any], path: str) -> Any:
    if len(kinds) == 1:
        return from_json(kinds[0], data, path)
    by_name = {kind.__name__: kind for kind in kinds}
    name = data.get("type")
    if not isinstance(name, str):
        raise ConfigError(f'{path}: "type" must say which of {", ".join(by_name)} it is')
    if name not in by_name:
        raise unknown_name(f"type of {path}", name, by_name)
    return from_json(by_name[name], {key: value for key, value in data.items() if key != "type"}, path)


def _admits(hint: Any, data: Any) -> bool:
    """Return whether a number, text, truth value or null is of that type."""
    for option in _alternatives(hint):
        if get_origin(option) is Literal:
            # 1 == True == 1.0, but they are three different things to write.
            if any(data == choice and type(data) is type(choice) for choice in get_args(option)):
                return True
        elif type(data) is option or (option is float and type(data) is int):
            return True
    return False


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _dataclasses(hint: Any) -> list[type]:
    return [option for option in _alternatives(hint) if isinstance(option, type) and is_dataclass(option)]


def _alternative(hint: Any, origin: Any) -> Any:
    """Return the alternative of that kind, as Mapping[str, float] of Mapping[str, float] | None; None without one."""
    return next((option for option in _alternatives(hint) if _origin(option) is origin), None)


def _origin(hint: Any) -> Any:
    origin = get_origin(hint)
    return Mapping if isinstance(origin, type) and issubclass(origin, Mapping) else origin


def _items(hint: Any, length: int) -> tuple[Any, ...]:
    """Return the types of the `length` items of a tuple."""
    of = get_args(_alternative(hint, tuple))
    return (of[0],) * length if of[-1:] == (Ellipsis,) else of


def _words(hint: Any) -> str:
    """Return a type as a user would write it."""
    return " or ".join(_word(option) for option in _alternatives(hint))


def _word(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if hint is types.NoneType:
        return "null"
    if _origin(hint) is tuple:
        return f"a list of {', '.join(_word(item) if item is not Ellipsis else '...' for item in get_args(hint))}"
    return "an object" if _origin(hint) is Mapping or is_dataclass(hint) else hint.__name__
