"""A function's text changes with everything that decides its scores, and with nothing else."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from functools import cached_property, lru_cache, partial, wraps
from pathlib import Path
from types import MappingProxyType, ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from afterflow.rewards.base import Reward
from afterflow.rewards.function_digest import Description
from afterflow.rewards.functions import give_function

LOOK = 0
STATIC, KEYED = 1.0, 2.0


class Way(Enum):
    UP = 1
    DOWN = 2


@dataclass
class Setting:
    scale: float
    shares: dict = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slotted:
    scale: float


def looking(images, records):
    return images.mean((1, 2, 3)) * (LOOK is None)


def text_with(value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "LOOK", value)
        return Description(looking).result


class Simple:
    def __init__(self, **values):
        vars(self).update(values)


def layer(value):
    network = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Dropout(0.5))
    torch.nn.init.constant_(network[0].weight, value)
    torch.nn.init.zeros_(network[0].bias)
    return network


VALUES = {
    "dictionaries": lambda n: {"a": n, "b": 2},
    "dictionaries in dictionaries": lambda n: {"a": {"b": [n]}},
    "keys": lambda n: {n: "a", (n, 1): 2},
    "mappings": lambda n: MappingProxyType({"a": n}),
    "sets": lambda n: {"x", n},
    "frozen sets": lambda n: frozenset({("x", n)}),
    "arrays": lambda n: np.array([[1.0, n]]),
    "arrays of another shape": lambda n: np.zeros((n, 6 // n)),
    "arrays of another type": lambda n: np.zeros(4, np.int32 if n == 1 else np.float32),
    "arrays of objects": lambda n: np.array([{"a": n}, None]),
    "numbers of numpy": np.int64,
    "tensors": lambda n: torch.tensor([1.0, n]),
    "tensors of bfloat16": lambda n: torch.tensor([1.0, n], dtype=torch.bfloat16),
    "networks": layer,
    "networks' options": lambda n: torch.nn.Dropout(n / 4),
    "pictures": lambda n: Image.new("RGB", (2, 2), (n, 0, 0)),
    "dataclasses": Setting,
    "dataclasses in lists": lambda n: [Setting(1.0, {"x": n})],
    "dataclasses with slots": Slotted,
    "objects": lambda n: Simple(scale=n),
    "objects in objects": lambda n: Simple(inner=Simple(table={"a": np.array([n])})),
    "enumerations": Way,
    "patterns": lambda n: re.compile("a" * 300 + str(n)),
    "paths": lambda n: Path(str(n)),
    "decimals": Decimal,
    "complex numbers": complex,
    "bytes": lambda n: bytearray([n]),
    "partial functions": lambda n: partial(max, n),
    "functions of libraries": lambda n: np.mean if n == 1 else np.median,
    "compiled functions": lambda n: np.exp if n == 1 else np.log,
    "built-in functions": lambda n: max if n == 1 else min,
    "classes of libraries": lambda n: Decimal if n == 1 else complex,
    "bound methods": lambda n: Simple(scale=n).__init__,
    "rewards": lambda n: Reward("x", partial(max, n)),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_that_a_function_uses_is_in_its_text(kind):
    make = VALUES[kind]
    assert text_with(make(1)) == text_with(make(1)) != text_with(make(2))


def scaled(factor):
    def inner(images, records):
        return [factor * image.mean() for image in images]

    return inner


def helper(x):
    return LOOK * x


class Methods:
    """Each method uses the global LOOK in another way."""

    shares = {"a": 1}  # noqa: RUF012 - what a user writes

    def __call__(self, images, records):
        return self.score(images)

    def score(self, images):
        return helper(images.mean((1, 2, 3)))

    @property
    def width(self):
        return 1


class Inherits(Methods):
    def __call__(self, images, records):
        return super().__call__(images, records)


class Static:
    def __call__(self, images, records):
        return self.static(images) + self.of_class(images) + self.once

    @staticmethod
    def static(images):
        return STATIC

    @classmethod
    def of_class(cls, images):
        return KEYED

    @cached_property
    def once(self):
        return LOOK


class Network(torch.nn.Module):
    def forward(self, images):
        return helper(images)


def through_a_lambda(images, records):
    return list(map(lambda image: LOOK * image.mean(), images))


def through_a_generator(images, records):
    return np.array([sum(LOOK * value for value in image.mean((0, 1))) for image in images])


def through_an_object(images, records):
    return OBJECT(images, records)


def through_a_class(images, records):
    return Methods()(images, records)


def keyword(images, records, *, scale=helper):
    return scale(images.mean((1, 2, 3)))


@lru_cache
def cached(images, records):
    return helper(images)


@wraps(helper)
def wrapped(images, records):
    return helper(images)


OBJECT = Methods()
USERS = {
    "a method": Methods(),
    "a bound method": Methods().score,
    "an inherited method": Inherits(),
    "a cached property": Static(),
    "a network's method": Network(),
    "a lambda in it": through_a_lambda,
    "a generator in it": through_a_generator,
    "an object's method": through_an_object,
    "a class's method": through_a_class,
    "a function that is a keyword's default": keyword,
    "a cached function": cached,
    "a wrapped function": wrapped,
    "a reward": Reward("x", through_a_class),
}


@pytest.mark.parametrize("user", USERS.values(), ids=list(USERS))
def test_what_anything_in_a_reward_uses_is_in_its_text(user, monkeypatch):
    texts = []
    for value in (1.0, 1.0, 2.0, np.array([3.0])):
        monkeypatch.setitem(globals(), "LOOK", value)
        texts.append(Description(user).result)
    assert texts[0] == texts[1] and len(set(texts)) == 3


@pytest.mark.parametrize("name", ["STATIC", "KEYED"])
def test_what_static_and_class_methods_use_is_in_the_text(name, monkeypatch):
    before = Description(Static()).result
    monkeypatch.setitem(globals(), name, 9.0)
    assert Description(Static()).result != before


def test_attributes_of_a_class_and_of_a_function_are_in_the_text(monkeypatch):
    seen = {Description(Methods()).result}
    monkeypatch.setattr(Methods, "shares", {"a": 2})
    seen.add(Description(Methods()).result)
    seen.add(Description(keyword).result)
    monkeypatch.setattr(keyword, "table", {"a": 1}, raising=False)
    seen.add(Description(keyword).result)
    assert len(seen) == 4


def test_values_and_functions_of_another_module_of_a_user_are_in_the_text(monkeypatch, tmp_path):
    module = ModuleType("their_helpers")
    module.__file__ = str(tmp_path / "their_helpers.py")
    exec("SCALE = 1.0\ndef scale(x):\n    return SCALE * x\n", vars(module))
    monkeypatch.setitem(sys.modules, "their_helpers", module)
    scope = {"__name__": "their_reward", "their_helpers": module}
    exec("def f(images, records):\n    return their_helpers.scale(images.mean((1, 2, 3)))", scope)
    before = Description(scope["f"]).result
    module.SCALE = 2.0
    assert Description(scope["f"]).result != before


def test_objects_that_lead_to_themselves_end(monkeypatch):
    one, rows = Simple(), [1]
    one.itself, one.rows = one, rows
    rows.append(rows)
    assert text_with(one) == text_with(one)


def test_many_functions_that_call_each_other_take_no_time():
    names = [f"f{i}" for i in range(60)]
    scope = {"__name__": "many"}
    for name, later in zip(names, [*names[1:], None]):
        body = "0" if later is None else f"{later}(x, y) + {later}(y, x)" + "".join(f" + {n}(x, y)" for n in names[:3])
        exec(f"def {name}(x, y):\n    return {body}", scope)
    assert len(Description(scope["f0"]).result) < 100_000


def test_an_object_whose_content_is_unknown_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr("afterflow.system.once._SAID", set())
    monkeypatch.setitem(globals(), "LOOK", np.random.default_rng(0))
    for _ in range(2):
        give_function("looking", looking)
    [said] = [record.getMessage() for record in caplog.records]
    assert re.match(r"reward looking: of numpy\.random\S*Generator its digest holds the class alone", said)


SCRIPT = """
import numpy as np
from afterflow.rewards.function_digest import Description

TABLE, WORDS = {"b": {1, "x", "y"}, "a": frozenset("abc")}, {"red", "green", "blue"}


class Scale:
    def __init__(self):
        self.weights = np.arange(4.0)

    def __call__(self, images, records):
        return [len(TABLE) * record["prompt"] in {"p", "q", "r"} for record in records if WORDS]


print(Description(Scale()).result)
"""


def test_another_process_has_the_same_text(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    texts = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, str(tmp_path / "script.py")]
        texts.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(texts) == 1 and "Scale" in texts.pop()
