"""Bounds of options: each refuses what is outside it, and NaN; no number from outside is NaN or infinite."""

import json
import math
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace

import pytest

from afterflow.experiment.serialization import from_json, to_json
from afterflow.models.lora.merge import LoRAMerge
from afterflow.recipes import RECIPES
from afterflow.rewards.base import RewardModels
from afterflow.system.checks import check_at_least_one, check_finite, check_not_negative, check_positive, finite_number
from afterflow.system.errors import ConfigError, InputError
from afterflow.system.json_text import parse_strict_json
from afterflow.system.text_files import read_json


@pytest.mark.parametrize("check", [check_at_least_one, check_not_negative, check_positive])
def test_a_bound_refuses_what_is_outside_it_and_nan(check):
    for inside in (None, 1, 1.5):
        check(SimpleNamespace(width=inside), "width")
    for outside in (-1, float("nan")):
        with pytest.raises(ConfigError, match=f"^model.width = {outside}: "):
            check(SimpleNamespace(width=outside), "width", prefix="model.")


def test_zero_is_inside_one_bound_only():
    check_not_negative(SimpleNamespace(width=0), "width")
    for check in (check_at_least_one, check_positive):
        with pytest.raises(ConfigError, match=r"^width = 0: "):
            check(SimpleNamespace(width=0), "width")


# Numbers that are none


@pytest.mark.parametrize("word", ["nan", "NaN", "inf", "-inf", "Infinity", "1e400", "-1e400"])
def test_no_text_of_an_option_is_read_as_a_number_that_is_not_finite(word):
    with pytest.raises(ConfigError, match=f"^{word} is not a finite number"):
        finite_number(word)
    assert finite_number("-0") == 0 and finite_number("1e-400") == 0


@pytest.mark.parametrize("value", [{"a": 1.0, "b": math.nan}, (1.0, math.inf), [0.0, [-math.inf]]])
def test_what_is_not_finite_is_found_in_whatever_it_stands(value):
    with pytest.raises(ConfigError, match=r"^model\.x.*: it must be a finite number"):
        check_finite({"x": value}, "model")


def models_with(number):
    return RewardModels(options={"geneval_threshold": number})


@pytest.mark.parametrize("make", [lambda number: LoRAMerge(("a", "b"), (1.0, number)), models_with])
def test_objects_that_no_run_holds_refuse_it_too(make):
    with pytest.raises(ValueError):
        make(math.nan)


def decimals(instance, path=()):
    """Where the decimal numbers of a dataclass stand: paths of field names."""
    for field in fields(instance):
        value = getattr(instance, field.name)
        if isinstance(value, float):
            yield (*path, field.name)
        elif is_dataclass(value):
            yield from decimals(value, (*path, field.name))


def changed(instance, path, value):
    """The dataclass with one number replaced."""
    inner = value if len(path) == 1 else changed(getattr(instance, path[0]), path[1:], value)
    return replace(instance, **{path[0]: inner})


RUNS = [
    "shapes_flow_grpo",
    "shapes_pref_grpo",
    "shapes_branch_grpo",
    "shapes_soar",
    "shapes_dpo",
    "flux_dance_grpo_hps",
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("recipe", RUNS)
def test_no_decimal_number_of_a_run_may_be_other_than_finite(recipe, value):
    run = RECIPES[recipe]()
    assert list(decimals(run))
    for path in decimals(run):
        with pytest.raises(ValueError):
            changed(run, path, value)


def test_weights_of_rewards_are_finite_and_not_all_zero():
    run = RECIPES["shapes_flow_grpo"]()
    for weights in ({"shapes_strict": math.nan}, {"shapes_strict": 0.0, "shapes_partial": -0.0}):
        with pytest.raises(ConfigError, match=r"algorithm\.weights"):
            replace(run, algorithm=replace(run.algorithm, weights=weights))
    with pytest.raises(ConfigError, match="all 0"):
        LoRAMerge(("a", "b"), (0.0, 0.0))


def test_a_record_with_a_number_that_is_not_finite_is_refused():
    config = to_json(RECIPES["shapes_flow_grpo"]())
    config["optimization"]["adam_betas"] = [0.9, math.nan]
    with pytest.raises(ConfigError, match=r"optimization\.adam_betas\[1\] = nan: it must be a finite number"):
        from_json(type(RECIPES["shapes_flow_grpo"]()), config)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e400", "[" * 100_000, "9" * 5000])
def test_json_of_no_plain_number_is_no_json(word, tmp_path):
    text = '{"NaN is a text": "-Infinity",\n "a": ' + word + "}"
    with pytest.raises(json.JSONDecodeError):
        parse_strict_json(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json: not JSON"):
        read_json(tmp_path / "a.json")


def test_json_says_where_the_number_stands():
    with pytest.raises(json.JSONDecodeError, match=r"NaN is not a finite number: line 2 column 7"):
        parse_strict_json('{"NaN is a text": "-Infinity",\n "a": NaN}')
    assert parse_strict_json('{"a": [1, -2.5e3, "NaN"]}') == {"a": [1, -2500.0, "NaN"]}
