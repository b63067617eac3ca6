"""A thousand configurations that are wrong in one place: none of them loads a model."""

import copy
import json
import random

import pytest

from afterflow.experiment.config import Run
from afterflow.experiment.serialization import from_json, to_json
from afterflow.recipes import RECIPES

BY_NAME = {"weights", "tag_schedule", "min_reward", "options", "servers", "gate"}
"""Mappings whose keys are names of something else."""
ANY_NUMBER = {("model", "seed")}


def places(data, path=()):
    """Every field of a configuration, and its value."""
    for name, value in data.items():
        if name != "type":
            yield (*path, name), value
        if isinstance(value, dict) and name not in BY_NAME:
            yield from places(value, (*path, name))


def misspelt(word, rng):
    i = rng.randrange(len(word) - 1)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :] if word[i] != word[i + 1] else word[:i] + word[i + 1 :]


def changed(data, path, change):
    data = copy.deepcopy(data)
    inner = data
    for name in path[:-1]:
        inner = inner[name]
    change(inner, path[-1])
    return data


@pytest.fixture(scope="module")
def fields():
    made = (recipe() for recipe in RECIPES.values())
    known = [json.loads(json.dumps(to_json(run))) for run in made if isinstance(run, Run)]
    return [(data, path, value) for data in known for path, value in places(data)]


def test_a_misspelt_option_is_refused_with_the_nearest_name(fields):
    rng, meant = random.Random(0), 0
    for data, path, _ in rng.sample(fields, 400):
        wrong = changed(data, path, lambda inner, name: inner.update({misspelt(name, rng): inner.pop(name)}))
        with pytest.raises(ValueError, match=r"did you mean \w+\?") as refused:
            from_json(Run, wrong)
        meant += f"did you mean {path[-1]}?" in str(refused.value)
    assert meant >= 390  # ebta is nearer to eta than to beta


def test_a_value_of_another_type_is_refused(fields):
    for data, path, value in random.Random(1).sample(fields, 300):
        wrong = 3 if isinstance(value, dict) else {"nonsense": 1}
        with pytest.raises(ValueError):
            from_json(Run, changed(data, path, lambda inner, name, wrong=wrong: inner.update({name: wrong})))


def test_a_number_out_of_range_is_refused(fields):
    numbers = [
        (data, path, value)
        for data, path, value in fields
        if isinstance(value, int | float) and not isinstance(value, bool) and path not in ANY_NUMBER
    ]
    for data, path, value in random.Random(2).sample(numbers, 300):
        wrong = type(value)(-(10**9))
        with pytest.raises(ValueError):
            from_json(Run, changed(data, path, lambda inner, name, wrong=wrong: inner.update({name: wrong})))


def test_without_a_mutation_they_are_fine(fields):
    for data in {id(data): data for data, _, _ in fields}.values():
        assert json.loads(json.dumps(to_json(from_json(Run, data)))) == data
