"""On another device than the CPU every method trains every family, and the host hardly ever waits."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

import pretended_runs
from afterflow.algorithms.base import explores
from afterflow.algorithms.forward_process import learns_from_finished
from afterflow.experiment.execute import execute
from afterflow.models.families import FAMILIES
from small_runs import METHODS, in_this_half
from tinies import BUILDERS, saved

PAIRS = [
    ("sft", "z_image"),
    ("soar", "flux"),
    ("dpo", "flux2_klein"),
    ("ddpo", "qwen_image"),
    ("flow_grpo", "sd3"),
    ("dance_grpo", "wan"),
    ("mix_grpo", "wan_pair"),
    ("branch_grpo", "flux_kontext"),
    ("pref_grpo", "sd3"),
    ("flow_opd", "sd3"),
    ("nft", "wan_image"),
    ("awm", "qwen_image_edit"),
    ("v_grpo", "wan_ti2v"),
    ("flow_awr", "sd3"),
    ("dgpo", "flux"),
    ("crd", "sd3"),
    ("online_dpo", "sd3"),
]
"""Every method and every family at least once; bench/pretended_device.py has all pairs."""
TODAY = [pair for number, pair in enumerate(PAIRS) if in_this_half(number)]


@pytest.fixture(scope="module")
def ask():
    """Asks a process that has the device, which this one must not have."""
    with ProcessPoolExecutor(1, get_context("spawn"), pretended_runs.start) as process:
        yield lambda function, *arguments, **options: process.submit(function, *arguments, **options).result()
        process.submit(os._exit, 0)  # an end in order takes seconds


def test_a_tensor_of_the_cpu_is_refused_as_by_cuda(ask):
    outcomes = ask(pretended_runs.outcomes)
    allowed = [line for line, error in outcomes.items() if error is None]
    assert allowed == list(outcomes)[-9:]
    assert outcomes.pop("there.numpy()") == "TypeError" and set(outcomes.values()) == {"RuntimeError", None}


def test_what_the_host_waits_for_is_noted(ask):
    kinds = ask(pretended_runs.waits_by_line)
    waits, free = list(kinds.values())[:13], list(kinds.values())[13:]
    assert waits == [["number"]] * 4 + [["to host"]] * 2 + [["shape"]] * 4 + [["to device"]] * 3
    assert free == [[]] * 8


def test_the_pairs_are_of_all_methods_and_families():
    assert {method for method, _ in PAIRS} == set(METHODS)
    assert {family for _, family in PAIRS} == set(BUILDERS) - {"deep_sd3"}
    assert {type(saved(family)) for _, family in PAIRS} == set(FAMILIES)


@pytest.mark.parametrize("method, family", TODAY)
def test_every_method_and_family_trains_there(ask, tmp_path, method, family):
    result = ask(pretended_runs.trained, method, family, tmp_path)
    assert len(result["metrics"]) == 2 and all(line["grad_norm"] > 0 for line in result["metrics"])
    assert result["moved"] > 0
    # A loss is asked whether it is finite, and a pair of transformers which rows are whose.
    assert result["own"] == {"step": int(family == "wan_pair"), "loss": 1}, result["counts"]
    # Of the networks, Qwen-Image's copies a number or two to the device.
    assert all("qwenimage" in file for file in result["within"]), result["counts"]


@pytest.mark.parametrize(
    "options",
    [
        {"mixed_precision": "bf16", "gradient_checkpointing": True, "updates": 2},
        {"offload": True, "overlap": True, "grad_partitions": 2, "retained_rows": 0},
    ],
)
def test_options_of_accelerators_work_there(ask, tmp_path, options):
    result = ask(pretended_runs.trained, "branch_grpo", "sd3", tmp_path, iterations=1, **options)
    assert result["metrics"][0]["ratio_mean"] == pytest.approx(1.0, abs=1e-3)
    # States that wait in the CPU's memory are copied there, two tensors a step.
    assert result["own"] == {"step": 2 * ("offload" in options), "loss": 1}, result["counts"]


def has_steps(method):
    return explores(METHODS[method]) and not learns_from_finished(METHODS[method])


@pytest.mark.parametrize("method", [*METHODS, *(f"{method} in one pass" for method in METHODS if has_steps(method))])
def test_no_wait_grows_with_the_rows_or_passes(ask, method):
    name, _, one_pass = method.partition(" ")
    sizes = ((4, 256), (8, 16))  # prompts, and rows of a pass
    few, many = (ask(pretended_runs.waits_of_the_toy, name, *size, bool(one_pass)) for size in sizes)
    assert few == many and few["loss"] == 1 and few["step"] == 0


def test_the_numbers_are_those_of_the_cpu(ask, tmp_path, monkeypatch):
    folders = tmp_path / "there", tmp_path / "here"
    for folder in folders:
        folder.mkdir()
    there = ask(pretended_runs.trained, "flow_grpo", "sd3", folders[0])["metrics"]
    monkeypatch.chdir(tmp_path)
    here = pretended_runs.metrics_of(execute(pretended_runs.run_of("flow_grpo", "sd3", folders[1]), "here").folder)
    for line, expected in zip(there, here, strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_run_is_evaluated_resumed_and_exported_there(ask, tmp_path):
    life = ask(pretended_runs.whole_life, tmp_path)
    for made in (life["metrics"], life["held_out"]):
        assert made[0] == made[1] and len(made[0]) >= 2
    assert life["differences"] == [] and life["codes"] == [0, 0, 0]
    assert {"grid.png", "report.json", "runs/at_once/lora/kohya.safetensors"} <= set(life["files"])
    assert any(file.startswith("runs/at_once/samples/") for file in life["files"])


def test_the_doctor_passes_what_is_sound_there(ask, tmp_path):
    findings = ask(pretended_runs.findings, tmp_path)
    assert {check: detail for check, (passed, detail) in findings.items() if passed is False} == {}
    assert sum(passed is True for passed, _ in findings.values()) == 8


def test_a_reward_is_a_network_there(ask, tmp_path):
    (line,) = ask(pretended_runs.scored_by_a_network, tmp_path)
    assert line["reward_std/clipscore"] > 0 and line["grad_norm"] > 0
