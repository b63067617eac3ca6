"""What a Python function is made of, as a text that changes with it: its source, and every value that it uses.

Followed are functions and classes of a user's own modules, with what their methods use.  Of libraries, the name alone
is in the text: their versions are no part of a reward.
"""

import dis
import hashlib
import inspect
import re
import sys
import sysconfig
import textwrap
from collections import deque
from collections.abc import Iterator, Mapping, Set
from dataclasses import is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import cache, cached_property, partial
from logging import Logger
from pathlib import Path, PurePath
from threading import Lock, RLock
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from PIL import Image

PLAIN = (bool, int, float, complex, str, bytes, range, slice, Decimal, Fraction, date, time, timedelta, PurePath)
"""Types whose texts say all of a value."""
ENDS = 2**16
"""Bytes at either end that stand for a tensor of a network, whose weights are large."""
INDIFFERENT = (Logger, type(Lock()), type(RLock()))
"""Types of objects that change no score."""
GENERATED = ("__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", "_abc_impl", "__abstractmethods__")
"""Members that Python gives a class, beside its source."""


class Description:
    """Describes a function or an object, and remembers of which objects it knows the class alone."""

    def __init__(self, root: Any) -> None:
        """Take what is described; its module counts as a user's own wherever it lies."""
        self.home = top_module(root)
        self.numbers: dict[int, int] = {}
        self.alive: list[Any] = []  # an object that is gone would give its id to another one
        self.opaque: dict[str, None] = {}
        self.result = self.text(root)

    def text(self, value: Any, above: tuple[int, ...] = ()) -> str:
        """Return the text of a value; `above` holds the ids of the containers that it lies in."""
        if value is None or isinstance(value, PLAIN):
            return repr(value)
        if isinstance(value, re.Pattern):
            return repr((value.pattern, value.flags))
        if isinstance(value, Enum):
            return f"{name_of(type(value))}.{value.name}"
        if id(value) in above:
            return "itself"
        inside = (*above, id(value))
        if isinstance(value, list | tuple | deque):
            return f"[{', '.join(self.text(item, inside) for item in value)}]"
        if isinstance(value, Mapping):
            entries = sorted(f"{self.text(key, inside)}: {self.text(item, inside)}" for key, item in value.items())
            return f"{type(value).__qualname__}{{{', '.join(entries)}}}"
        if isinstance(value, Set):
            return f"{type(value).__qualname__}{{{', '.join(sorted(self.text(item, inside) for item in value))}}}"
        return array_text(value) or self.numbered(value)

    def numbered(self, value: Any) -> str:
        """Return the text of a function, class or object, and its number alone where it was described before."""
        if id(value) in self.numbers:
            return f"#{self.numbers[id(value)]}"
        self.numbers[id(value)] = len(self.numbers)
        self.alive.append(value)
        if isinstance(value, FunctionType):
            return self.function_text(value)
        if isinstance(value, MethodType):
            return f"method {self.text(value.__func__)} of {self.text(value.__self__)}"
        if isinstance(value, partial):
            return f"partial {self.text([value.func, value.args, value.keywords])}"
        if isinstance(value, type):
            return self.class_text(value)
        if is_network(value):
            return self.network_text(value)
        return self.object_text(value)

    def is_own(self, module: str | None) -> bool:
        """Return whether a module is a user's own, or that of what is described, and no library."""
        return (module or "").partition(".")[0] == self.home or not is_library(module or "")

    def function_text(self, function: FunctionType) -> str:
        """Return a function's source and what it uses; the name of a library's function."""
        if not self.is_own(function.__module__):
            return name_of(function)
        return f"{source_of_function(function)} {self.text(self.used(function))} {self.text(vars(function))}"

    def used(self, function: FunctionType) -> list[tuple[str, Any]]:
        """Return the values that a function has from outside, by name: defaults, closure, globals, and of own modules.

        Modules of libraries are left out.
        """
        values: dict[str, Any] = {}
        for code in codes_of(function.__code__):
            for name, attribute in global_names(code):
                value = function.__globals__.get(name)
                if isinstance(value, ModuleType):
                    if attribute is not None and self.is_own(value.__name__) and hasattr(value, attribute):
                        values[f"{name}.{attribute}"] = getattr(value, attribute)
                elif name in function.__globals__ and name != "__builtins__":
                    values[name] = value
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            try:
                values[name] = cell.cell_contents
            except ValueError:  # a cell is empty until the function around it has ended
                continue
        defaults = [("defaults", function.__defaults__), ("keywords", function.__kwdefaults__)]
        return [
            *defaults,
            *((name, values[name]) for name in sorted(values) if not isinstance(values[name], ModuleType)),
        ]

    def class_text(self, cls: type) -> str:
        """Return a class's source, with what its methods use and what its attributes are; a library's name."""
        if not self.is_own(cls.__module__):
            return name_of(cls)
        members: list[tuple[str, Any]] = []
        for name, member in sorted(vars(cls).items()):
            if name in GENERATED or (name.startswith("__") and not functions_of(member)):
                continue
            functions = [part for part in functions_of(member) if not is_written_by_dataclass(cls, part)]
            if functions:
                members += [(name, self.used(function)) for function in functions]
            elif not functions_of(member) and (not hasattr(type(member), "__get__") or isinstance(member, type)):
                members.append((name, member))
        return f"{source_of_function(cls)} {self.text([base for base in cls.__bases__])} {self.text(members)}"

    def object_text(self, value: Any) -> str:
        """Return an object's class and attributes; of a library's object the name of its class alone, which is said."""
        cls, state = type(value), attributes_of(value)
        if self.is_own(cls.__module__):
            return f"object of {self.text(cls)} {self.text(state)}"
        if callable(value):
            wrapped = getattr(value, "__wrapped__", None)
            return f"{name_of(cls)} {name_of(value)} {self.text(wrapped)} {self.text(state)}"
        if is_dataclass(value):
            return f"{name_of(cls)} {self.text(state)}"
        if not isinstance(value, INDIFFERENT):
            self.opaque[name_of(cls)] = None
        return name_of(cls)

    def network_text(self, network: Any) -> str:
        """Return a network's form and the ends of its tensors; of an own class also its source and plain attributes."""
        tensors = {name: array_text(tensor, ENDS) for name, tensor in network.state_dict().items()}
        own = self.is_own(type(network).__module__)
        state = [(name, item) for name, item in attributes_of(network) if own and not name.startswith("_")]
        return f"{self.text(type(network))} {network!r} {self.text(tensors)} {self.text(state)}"


def top_module(root: Any) -> str:
    """Return the first part of the name of the module that a function or an object is of."""
    while isinstance(root, partial):
        root = root.func
    return str(getattr(inspect.unwrap(root), "__module__", None) or type(root).__module__).partition(".")[0]


def is_network(value: Any) -> bool:
    """Return whether an object is a module of torch, which is not imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def array_text(value: Any, ends: int | None = None) -> str | None:
    """Return type, shape and a digest of an array, a tensor, a picture or bytes; None for another value.

    ends: Number of bytes at either end that are read.  None: all of them.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        flat = value.detach().to_dense().contiguous().reshape(-1).view(torch.uint8)
        if ends is not None and len(flat) > 2 * ends:  # before anything leaves its device
            flat = torch.cat([flat[:ends], flat[-ends:]])
        form, data = f"{value.dtype} {tuple(value.shape)}", flat.cpu().numpy().tobytes()
    elif isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        form = f"{array.dtype} {array.shape}"
        data = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
    elif isinstance(value, Image.Image):
        form, data = f"{value.mode} {value.size}", value.tobytes()
    elif isinstance(value, bytearray | memoryview):
        form, data = type(value).__qualname__, bytes(value)
    else:
        return None
    read = data if ends is None or len(data) <= 2 * ends else data[:ends] + data[-ends:]
    return f"{form} {hashlib.sha256(read).hexdigest()}"


def attributes_of(value: Any) -> list[tuple[str, Any]]:
    """Return the attributes of an object by name, those in slots too."""
    slots = [name for cls in type(value).__mro__ for name in np.atleast_1d(getattr(cls, "__slots__", ())).tolist()]
    inside = {
        name: getattr(value, name) for name in slots if name not in ("__dict__", "__weakref__") and hasattr(value, name)
    }
    return sorted((getattr(value, "__dict__", {}) | inside).items())


def functions_of(member: Any) -> list[FunctionType]:
    """Return the functions of a class's member: of a method, a property, or what is static or cached."""
    if isinstance(member, property):
        parts = [member.fget, member.fset, member.fdel]
    elif isinstance(member, cached_property):
        parts = [member.func]
    else:
        parts = [getattr(member, "__func__", getattr(member, "__wrapped__", member))]
    return [part for part in parts if isinstance(part, FunctionType)]


def is_written_by_dataclass(cls: type, function: FunctionType) -> bool:
    """Return whether `dataclass` wrote a method, from the fields that the class's source names."""
    return is_dataclass(cls) and function.__name__.startswith("__") and function.__code__.co_filename == "<string>"


def codes_of(code: CodeType) -> Iterator[CodeType]:
    """Yield the compiled code of a function, and of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_of(constant)


def global_names(code: CodeType) -> Iterator[tuple[str, str | None]]:
    """Yield the names that compiled code reads from its module, each with the attribute that is read of it at once."""
    instructions = list(dis.get_instructions(code))
    for i, instruction in enumerate(instructions):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            after = instructions[i + 1] if i + 1 < len(instructions) else None
            reads = after is not None and after.opname in ("LOAD_ATTR", "LOAD_METHOD")
            yield str(instruction.argval), str(after.argval) if reads and after is not None else None


def is_library(module: str) -> bool:
    """Return whether a module is of Python, of afterflow or of an installed package."""
    top = module.partition(".")[0]
    if top == "__main__":
        return False
    if top in sys.stdlib_module_names or top in ("builtins", "afterflow"):
        return True
    file = getattr(sys.modules.get(module) or sys.modules.get(top), "__file__", None)
    return file is not None and any(Path(file).is_relative_to(folder) for folder in installed_folders())


@cache
def installed_folders() -> frozenset[str]:
    """Return the folders of Python's own modules and of installed packages."""
    return frozenset(filter(None, map(sysconfig.get_path, ("purelib", "platlib", "stdlib"))))


def name_of(value: Any) -> str:
    """Return the whole name of a function or class, as far as it has one."""
    name = getattr(value, "__qualname__", getattr(value, "__name__", ""))
    return f"{getattr(value, '__module__', '')}.{name}"


def source_of_function(function: Any) -> str:
    """Return the source of a function or class; its compiled code where there is no file, as in a bare interpreter."""
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            return code_text(code)
        methods = [part for member in vars(function).values() for part in functions_of(member)]
        return f"{name_of(function)} {[code_text(method.__code__) for method in methods]}"


def code_text(code: CodeType) -> str:
    """Return compiled code as a text: its instructions, names and constants."""
    constants = [code_text(item) if isinstance(item, CodeType) else constant_text(item) for item in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"


def constant_text(constant: Any) -> str:
    """Return a constant of compiled code as a text; the order of a set differs between processes."""
    return f"{{{sorted(map(repr, constant))}}}" if isinstance(constant, frozenset) else repr(constant)
