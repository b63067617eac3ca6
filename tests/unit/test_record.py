"""Runs as JSON and back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.prompts import PromptFile
from afterflow.experiment.compatibility import RENAMED, refuse_renamed, upgrade
from afterflow.experiment.config import GROUPS, Run
from afterflow.experiment.serialization import from_json, to_json
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3
from afterflow.models.tiny_parts.tokenizer import MAX_LENGTH
from afterflow.models.tiny_parts.video import CLIP_FRAMES, CLIP_SIZE
from afterflow.models.wan import Wan
from afterflow.recipes import RECIPES
from afterflow.sampling.schedules import LinearShift


def through_json(instance):
    return from_json(type(instance), json.loads(json.dumps(to_json(instance))))


@dataclass(frozen=True)
class Leaf:
    width: float = 0.1


@dataclass(frozen=True)
class Root:
    leaves: Mapping[str, Leaf]
    pairs: tuple[tuple[int, str], ...] = ()
    either: Mapping[str, float] | None = None
    place: Literal["here", "there", 1] = "here"
    switch: bool = False
    rates: tuple[float, ...] = field(default=(1e-30, 1 / 3))


def flat(config):
    """A configuration as version 0.1 wrote it: no groups, and the old names."""
    old = {new: name for name, new in RENAMED.items()}
    options = {name: value for name, value in config.items() if name not in GROUPS}
    return options | {old.get(name, name): value for group in GROUPS for name, value in config[group].items()}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_read_from_a_record_of_version_0_1(name):
    run = RECIPES[name]()
    for stage in getattr(run, "stages", [run]):
        if isinstance(stage, Run):
            assert from_json(Run, upgrade(json.loads(json.dumps(flat(to_json(stage)))))) == stage


@pytest.mark.parametrize(
    "model, pipeline",
    [
        ({"type": "TinyParts", "folder": "runs/parts", "seed": 0}, SD3("runs/parts")),
        (
            {"type": "TinyVideoParts", "folder": "runs/parts", "seed": 0},
            Wan("runs/parts", height=CLIP_SIZE, width=CLIP_SIZE, frames=CLIP_FRAMES, max_sequence_length=MAX_LENGTH),
        ),
    ],
)
def test_a_model_that_version_0_1_built_is_read_as_the_pipeline_in_its_folder(model, pipeline):
    data = flat(to_json(RECIPES["tiny_sd3_pretrain"]().stages[-1])) | {"model": model}
    assert from_json(Run, upgrade(data)).model == pipeline


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name):
    run = RECIPES[name]()
    assert through_json(run) == run


def test_every_alternative_of_a_run_survives_json():
    algorithm = FlowGRPO({"jpeg_compressibility": 1}, schedule=LinearShift(1 / 3), window=2, window_range=(1, 7))
    run = Run(algorithm, PromptFile("a.txt"), SD3(size=512), LoRA(targets=("to_q", "to_k"))).with_options(
        ema_decay=None, threads=3
    )
    again = through_json(run)
    assert again == run
    assert isinstance(again.algorithm, FlowGRPO) and isinstance(again.algorithm.schedule, LinearShift)
    assert again.algorithm.window_range == (1, 7) and isinstance(again.optimization.adam_betas, tuple)


def test_nested_tuples_and_mappings_survive_json():
    root = Root({"a": Leaf(2.0), "b": Leaf(1e-300)}, ((1, "x"), (2, "y")), {"k": 0.1 + 0.2}, 1, True)
    assert through_json(root) == root
    assert through_json(replace(root, either=None)).either is None


def test_a_field_left_out_keeps_its_default():
    assert from_json(Root, {"leaves": {}}) == Root({})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lerning_rate": 1.0}, "no field of Run is called 'lerning_rate'; did you mean learning_rate?"),
        ({"algorithm": {"type": "FlowGRPO", "grup": 3}}, "no field of algorithm is called 'grup'; did you mean group?"),
        ({"algorithm": {"type": "FlowGPRO"}}, "no type of algorithm is called 'FlowGPRO'; did you mean FlowGRPO?"),
        ({"algorithm": {"group": 3}}, 'algorithm: "type" must say which of SFT, FlowGRPO it is'),
        ({"iterations": "many"}, "batches.iterations = 'many': it must be int"),
        ({"iterations": True}, "batches.iterations = True: it must be int"),
        ({"iterations": 2.5}, "batches.iterations = 2.5: it must be int"),
        ({"ema": "0.9"}, "optimization.ema_decay = '0.9': it must be float or null"),
        ({"betas": [0.9]}, "optimization.adam_betas = [0.9]: it must be a list of float, float"),
        ({"betas": [0.9, None]}, "optimization.adam_betas[1] = None: it must be float"),
        ({"decay": "cosin"}, "no optimization.lr_schedule is called 'cosin'; did you mean cosine?"),
        ({"tune": {"type": "LoRA", "targets": [1]}}, "tune.targets[0] = 1: it must be str"),
        ({"model": 3}, "model = 3: it must be an object or an object"),
        ({"iterations": 0}, "iterations = 0: at least 1"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    data = flat(to_json(RECIPES["shapes_flow_grpo"]())) | change
    with pytest.raises(ValueError) as error:
        from_json(Run, upgrade(data))
    assert str(error.value).startswith(message.split("SFT, FlowGRPO")[0])


def test_options_of_algorithms_keep_the_records_of_their_old_names():
    soar, ddpo = RECIPES["shapes_soar"]().algorithm, RECIPES["shapes_ddpo_history"]().algorithm
    old = {"type": "SOAR", **to_json(soar)}
    old["least_time"] = old.pop("min_time")
    assert upgrade({"algorithm": old})["algorithm"] == {"type": "SOAR", **to_json(soar)}
    old = {"type": "DDPO", **to_json(ddpo)}
    old["least"] = old.pop("min_count")
    assert upgrade({"algorithm": old})["algorithm"] == {"type": "DDPO", **to_json(ddpo)}
    with pytest.raises(ValueError, match=r"--algorithm.draws is called --algorithm.num-noises since"):
        refuse_renamed(["--algorithm.draws=3"])


def test_a_missing_field_without_default_is_named():
    with pytest.raises(ValueError, match="Root has no field 'leaves', which it needs"):
        from_json(Root, {})
