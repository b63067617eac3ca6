"""Adapters side by side: what is trained, what it started from, and who teaches it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters import load, save_lora
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.data.prompts import PromptFile, ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.models.adapters import Full, LoRA, Teacher, attach, before_training, frozen, without_adapters
from afterflow.models.sd3 import SD3
from afterflow.models.wrappers import in_context
from afterflow.sampling.conditioning import condition
from afterflow.system.errors import ConfigError, InputError

SMALL = LoRA(rank=4, alpha=8)
TAGS = ("colors", "counting", "position")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def asked(model, velocity):
    """What a velocity field says of two states."""
    cond = condition(model.encode(["a", "b"]), model.encode([""]), [{"prompt": "a"}, {"prompt": "b"}])
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return velocity(x, torch.full((2,), 0.6), cond)


def alone(pipeline, folder=None):
    """What the pipeline says with one LoRA or none, and nothing else attached."""
    model = load(pipeline)
    if folder is not None:
        model.load_lora(folder)
    return asked(model, model.velocity(model.module))


def test_training_goes_on_from_a_lora_and_its_reference_stays_there(pipeline, tmp_path):
    start = save_lora(pipeline, tmp_path / "start", 1)
    model, tune = load(pipeline), replace(SMALL, start=start)
    parameters = attach(model, tune)
    assert len(parameters) == len(attach(load(pipeline), SMALL)) and all(".default." in name for name in parameters)
    reference, base = in_context(*before_training(model, tune)), in_context(*without_adapters(model, tune))
    policy = model.velocity(model.module)
    torch.testing.assert_close(asked(model, policy), alone(pipeline, start))
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.05)
    torch.testing.assert_close(asked(model, reference), alone(pipeline, start))
    torch.testing.assert_close(asked(model, base), alone(pipeline))
    assert not torch.allclose(asked(model, policy), alone(pipeline, start), atol=1e-3)
    assert {name for name, p in model.module.named_parameters() if p.requires_grad} == set(parameters)


def test_teachers_do_not_touch_the_student_or_each_other(pipeline, tmp_path):
    folders = [save_lora(pipeline, tmp_path / str(rank), rank, rank) for rank in (4, 2)]
    model = load(pipeline)
    parameters = attach(model, SMALL)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    teachers = [in_context(*frozen(model, folder, f"t{i}")) for i, folder in enumerate(folders)]
    for _ in range(2):
        for folder, teacher in zip(folders, teachers):
            torch.testing.assert_close(asked(model, teacher), alone(pipeline, folder))
        torch.testing.assert_close(asked(model, model.velocity(model.module)), alone(pipeline))
    assert {name for name, p in model.module.named_parameters() if p.requires_grad} == set(parameters)
    model.save_lora(tmp_path / "student")
    saved = load_file(tmp_path / "student" / "pytorch_lora_weights.safetensors")
    assert len(saved) == len(parameters) and all(torch.equal(before[n], parameters[n]) for n in before)


def test_adapters_keep_their_fp32_beside_a_base_in_bf16(pipeline, tmp_path):
    """peft would round them, and a reference would then not be where training starts."""
    start = save_lora(pipeline, tmp_path / "start", 1)
    model, tune = SD3(pipeline, dtype="bfloat16", max_sequence_length=0).load(), replace(SMALL, start=start)
    parameters = attach(model, tune)
    before_training(model, tune)
    stored = load_file(tmp_path / "start" / "pytorch_lora_weights.safetensors")
    for name, parameter in parameters.items():
        scale = 2 if "lora_B" in name else 1  # alpha / rank, which the file has in B
        assert torch.equal(scale * parameter, stored["transformer." + name.replace(".default", "")]), name
    reference = dict(model.module.named_parameters())
    for name, parameter in parameters.items():
        assert torch.equal(reference[name.replace(".default.", ".start.")], parameter)


def test_a_start_of_another_rank_is_refused(pipeline, tmp_path):
    start = save_lora(pipeline, tmp_path / "start", 1)
    with pytest.raises(ValueError, match=r"has rank 4 and alpha 8, not 32 and 64; set tune\.rank"):
        attach(load(pipeline), LoRA(start=start))
    with pytest.raises(ValueError, match="leave targets out"):
        attach(load(pipeline), replace(SMALL, start=start, targets=("to_q",)))


@pytest.fixture
def generalist(pipeline, tmp_path):
    """A run in which one teacher knows the colours and another the rest."""
    teachers = (
        Teacher("colours", save_lora(pipeline, tmp_path / "a", 1), ("colors",)),
        Teacher("rest", save_lora(pipeline, tmp_path / "b", 2), ("counting", "position"), guidance_scale=2.0),
    )
    return Run(
        FlowOPD(steps=4, group=2, route="tag"),
        ShapesPrompts(count=6, tags=("colors", "counting", "position")),
        SD3(pipeline, max_sequence_length=0),
        SMALL,
        teachers=teachers,
        name="short",
    ).with_options(iterations=4, batch=3, chunk=16, learning_rate=3e-3, inference_steps=2, sample_every=0, save_every=2)


@pytest.mark.parametrize("teaches", [False, True], ids=["start", "teacher"])
def test_a_lora_that_does_not_serve_is_refused_before_weights_are_loaded(generalist, tmp_path, monkeypatch, teaches):
    """A start or a teacher that is absent, no plain LoRA, or of another architecture; and a start of another rank."""
    monkeypatch.setattr("afterflow.experiment.setup.load_model", lambda *_: pytest.fail("weights are loaded"))
    Path("damaged.safetensors").write_bytes(b"no header")
    good = load_file(tmp_path / "a" / "pytorch_lora_weights.safetensors")
    wide = {name: torch.cat([x, x], 1) if "lora_A" in name else x for name, x in good.items()}
    save_file(wide, "wide.safetensors")
    faults = {
        "absent": "no pytorch_lora_weights.safetensors there",
        "damaged.safetensors": "no whole .safetensors file",
        "wide.safetensors": "is of another architecture",
    }
    for source, said in faults.items():
        start, teachers = (None, (Teacher("bad", source, TAGS),)) if teaches else (source, generalist.teachers)
        run = replace(generalist, tune=LoRA(4, 4, start=start), teachers=teachers)
        with pytest.raises(InputError, match=said):
            execute(run, "refused")
    if not teaches:
        with pytest.raises(ConfigError, match=r"has rank 4 and alpha 8, not 4 and 9; set tune\.rank"):
            execute(replace(generalist, tune=LoRA(4, 9, start=str(tmp_path / "a"))), "refused")
        with pytest.raises(ConfigError, match="leave targets out"):
            execute(replace(generalist, tune=LoRA(4, 8, ("to_q",), str(tmp_path / "a"))), "refused")


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tune", [SMALL, Full()], ids=["LoRA", "Full"])
def test_a_run_learns_from_its_teachers_and_goes_on_after_a_stop(generalist, tune):
    # A batch of all prompts, so that the distances of two iterations can be compared.
    run = generalist.with_options(tune=tune, batch=6, ema_decay=None, learning_rate=1e-2 if tune is SMALL else 1e-4)
    lines = metrics(execute(run, "short"))
    assert lines[-1]["teacher_distance"] < lines[0]["teacher_distance"] and lines[0]["anchor_distance"] < 1e-9
    assert all(line["nfe/teacher"] == line["nfe/reference"] == line["nfe/update"] == 3 for line in lines)
    assert not any(name.startswith("reward") for name in lines[0])
    execute(run.with_options(name="cut", iterations=2), "short")
    again = metrics(execute(replace(run, name="cut"), "short", resume=True))
    assert [line["cost"] for line in again] == [line["cost"] for line in lines]


def test_the_base_under_guidance_may_teach(generalist):
    tags = ("colors", "counting", "position")
    plain, guided = (Teacher("plain", None, tags, guidance_scale=scale) for scale in (1.0, 3.0))
    run = generalist.with_options(iterations=1)
    same = metrics(execute(replace(run, name="same", teachers=(plain,)), "short"))
    more = metrics(execute(replace(run, name="more", teachers=(guided,)), "short"))
    assert same[0]["teacher_distance"] < 1e-9 < 1e-5 < more[0]["teacher_distance"]


def test_the_anchor_may_be_a_teacher_of_no_task(generalist, pipeline, tmp_path):
    keeper = Teacher("keeper", save_lora(pipeline, tmp_path / "c", 3))
    algorithm = replace(generalist.algorithm, anchor="keeper", beta=1.0)
    run = generalist.with_options(algorithm=algorithm, teachers=(*generalist.teachers, keeper), iterations=1)
    assert metrics(execute(run, "short"))[0]["anchor_distance"] > 1e-4


def test_rewards_of_a_generalist_are_watched_and_not_trained_on(generalist):
    logged = replace(generalist.algorithm, weights={"shapes_strict": 1.0})
    plain, watched = execute(generalist, "short"), execute(replace(generalist, name="w", algorithm=logged), "short")
    assert [line["cost"] for line in metrics(plain)] == [line["cost"] for line in metrics(watched)]
    assert "reward/shapes_strict" in metrics(watched)[0]


def test_prompts_without_a_task_or_tasks_without_a_teacher_are_refused(generalist, tmp_path):
    other = replace(generalist, data=ShapesPrompts(count=6, tags=("colors", "text")))
    with pytest.raises(ValueError, match=r"the task 'text' of prompt .* has no teacher; there are teachers for colors"):
        execute(other, "short")
    file = tmp_path / "plain.txt"
    file.write_text("a red circle\n")
    with pytest.raises(ValueError, match="prompt 'a red circle' has no task under 'tag'"):
        execute(replace(generalist, data=PromptFile(str(file))), "short")


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda run: replace(run, teachers=()), "FlowOPD needs teachers with tasks"),
        (lambda run: replace(run, teachers=run.teachers[:1] * 2), "'colours' is there twice"),
        (
            lambda run: replace(run, teachers=(*run.teachers, Teacher("third", "c", ("colors",)))),
            "'colors' is there twice; a task has one teacher",
        ),
        (lambda run: replace(run, algorithm=replace(run.algorithm, anchor="keepr")), "no anchor is called 'keepr'"),
        (
            lambda run: replace(run, teachers=(*run.teachers, Teacher("base", "c", ("text",)))),
            "'base' cannot be a name",
        ),
        (lambda run: replace(run, teachers=(*run.teachers, Teacher("sd3.5", "c", ("text",)))), "cannot be a name"),
        (lambda run: replace(run, teachers=(*run.teachers, Teacher("idle", "c"))), "idle has no task and is no anchor"),
        (lambda run: replace(run, algorithm=FlowGRPO({"shapes_strict": 1.0})), "FlowGRPO needs no teachers"),
    ],
)
def test_teachers_that_cannot_be_are_refused(generalist, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        change(generalist)
