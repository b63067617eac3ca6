"""A whole run on a tiny pipeline with random weights: what it leaves behind, and what Ctrl-C does to it."""

import itertools
import json
import math
import os
import shutil
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._inductor import config as inductor

from afterflow.algorithms.ddpo import DDPO
from afterflow.algorithms.dgpo import DGPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.flow_opd import FlowOPD
from afterflow.algorithms.lag import Lag
from afterflow.algorithms.mix_grpo import MixGRPO
from afterflow.algorithms.pref_grpo import PrefGRPO
from afterflow.algorithms.sft import SFT
from afterflow.cli.main import main
from afterflow.data.images import ShapesImages
from afterflow.data.prompts import PromptFile, ShapesPrompts
from afterflow.envs.shapes.world import TAGS
from afterflow.experiment import progress
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.held_out_evaluation import HeldOutEvaluator, PolicySampler
from afterflow.experiment.run_folder import RunFolder
from afterflow.experiment.setup import TrainingSetup
from afterflow.models.adapters import LoRA, Teacher
from afterflow.models.sd3 import SD3
from afterflow.objectives.advantages import Blend
from afterflow.rewards import registry as rewards
from afterflow.rewards.base import RewardModels
from afterflow.rewards.shapes_judge import ShapesJudge
from afterflow.rewards.vlm.judge import VLMJudge
from afterflow.system.errors import CheckpointError, TrainingStopped

JPEG = {"jpeg_compressibility": 1.0}


def short(pipeline):
    algorithm = FlowGRPO(weights=JPEG, steps=4, group=4, window=2, beta=0.01)
    return Run(
        algorithm, ShapesPrompts(count=10), SD3(pipeline, max_sequence_length=0), LoRA(rank=4, alpha=8), name="short"
    ).with_options(iterations=3, batch=2, chunk=8, learning_rate=1e-3, inference_steps=2, sample_every=0, save_every=1)


@pytest.fixture
def run(pipeline, own_folder):
    return short(pipeline)


@pytest.fixture(scope="module")
def whole(pipeline, tmp_path_factory):
    """The folder of the same run where nothing interrupted it."""
    path = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        return execute(replace(short(pipeline), name="whole"), "short").folder.resolve()


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_it_promises(run):
    watched = run.with_options(
        sample_every=2, tracker="tensorboard", held_out=ShapesPrompts("test", count=5), eval_every=2
    )
    folder = execute(watched, "short").folder
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[0]["ratio_max"] == lines[0]["ratio_mean"] == 1.0
    assert {f"seconds/{stage}" for stage in ("rollout", "decode", "reward", "update")} <= set(lines[1])
    assert ["eval/jpeg_compressibility" in line for line in lines] == [True, False, True]
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["step_000000.png", "step_000002.png"]
    assert (folder / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert json.loads((folder / "run.json").read_text())["config"]["optimization"]["learning_rate"] == 1e-3
    assert any(path.stat().st_size for path in folder.rglob("events.out.tfevents.*"))


def at_second_call(monkeypatch, act, number=2):
    """The reward does something else as well when it is asked for the second time; the images of every call.

    Where pictures are stored, those of the base and of iteration 0 are scored too, so that iteration 1 is call 4.
    """
    scored, asked = rewards.REWARDS["jpeg_compressibility"], []

    def acting(images, records):
        asked.append(len(images))
        if len(asked) == number:
            act()
        return scored(images, records)

    monkeypatch.setitem(rewards.REWARDS, "jpeg_compressibility", acting)
    return asked


@pytest.mark.parametrize("value", [0.5, math.nan])
def test_the_threads_of_a_run_end_with_it(run, value, noted_threads):
    inside = set()

    def counted(images, records):
        inside.add(torch.get_num_threads())
        return np.full(len(images), value)

    counting = replace(run, algorithm=replace(run.algorithm, weights={counted: 1.0})).with_options(iterations=1)
    for asked, used in ((3, 3), (None, 8)):
        inside.clear()
        with nullcontext() if value == value else pytest.raises(TrainingStopped):
            execute(counting.with_options(threads=asked, name=f"asked_{asked}"))
        assert inside == {used} and noted_threads[-1] == 8


def test_ctrl_c_ends_after_the_iteration_under_way_and_the_rest_follows_bit_for_bit(run, whole, monkeypatch, caplog):
    at_second_call(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT), number=4)
    caplog.set_level("INFO", "afterflow")
    run = run.with_options(sample_every=2)  # pictures, which the whole run has none of, change nothing
    folder = execute(run, "short").folder
    assert [line["step"] for line in metrics(folder)] == [0, 1]
    assert f"afterflow train --resume {folder}" in caplog.text
    execute(run, "short", resume=True)
    for name in ("lora/pytorch_lora_weights.safetensors", "checkpoints/step_000002/optimizer.safetensors"):
        ours, theirs = load_file(folder / name), load_file(whole / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("grace", [60.0, 0.0])
def test_a_machine_that_is_taken_away_leaves_a_checkpoint_and_the_rest_follows_bit_for_bit(
    run, whole, monkeypatch, grace
):
    """In time the iteration under way is saved, else the one before; a reward that excuses failures is no obstacle."""

    def reclaim():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1 if grace else 60)

    asked = at_second_call(monkeypatch, reclaim)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        TrainingStopped, match=f"SIGTERM.*iteration {1 if grace else 0} is saved, go on with: .*--resume"
    ):
        execute(run.with_options(grace_seconds=grace), "short")
    assert signal.getsignal(signal.SIGTERM) is before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert len(asked) == 2
    folder = execute(run.with_options(grace_seconds=grace), "short", resume=True).folder
    for name in ("lora/pytorch_lora_weights.safetensors", "checkpoints/step_000002/optimizer.safetensors"):
        ours, theirs = load_file(folder / name), load_file(whole / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("where", ["measure", "samples"])
def test_a_machine_that_is_taken_away_while_a_run_measures_or_draws_starts_no_other_iteration(run, monkeypatch, where):
    """The stage is broken off, and the iteration before it is saved although no checkpoint was due."""

    def reclaim(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    drawn = itertools.count()
    black = lambda cond, count: np.zeros((len(cond), count, 32, 32, 3), np.uint8)
    if where == "measure":
        monkeypatch.setattr(HeldOutEvaluator, "measure", reclaim)
        options = dict(held_out=ShapesPrompts("test", count=2), eval_every=1, eval_rewards=("jpeg_compressibility",))
    else:  # the first pictures are those of the base
        sampled = lambda self, cond, count: reclaim() if next(drawn) else black(cond, count)
        monkeypatch.setattr(PolicySampler, "images", sampled)
        options = {"sample_every": 1}
    slow = run.with_options(grace_seconds=0.0, save_every=50, iterations=60, **options)
    with pytest.raises(TrainingStopped, match=r"SIGTERM.*iteration 0 is saved, go on with: .*--resume"):
        execute(slow, "short")
    assert [line["step"] for line in metrics(run.folder)] == [0]
    assert [path.name for path in RunFolder(run.folder).checkpoints()] == ["step_000000"]


def test_an_extended_run_that_leaves_no_new_result_has_not_ended(run):
    folder = RunFolder(execute(run, "short").folder)
    assert folder.has_ended(3, None) and not folder.has_ended(5, None)
    kept = shutil.copytree(folder.path / "lora", folder.path / "kept")
    assert main(["train", "--extend", "runs/short", "--iterations", "5"]) == 0
    assert folder.has_ended(5, None)
    shutil.rmtree(folder.path / "lora")
    kept.rename(folder.path / "lora")  # as if it had died before the export
    assert len(folder.metrics()) == 5 and not folder.has_ended(5, None)
    how_far = progress.progress_of(folder, folder.metrics())
    assert how_far.share == 1 and progress.state_of(folder, how_far, time.time())[0] == "training"


def test_measurements_of_other_held_out_prompts_are_not_compared_with(run, tmp_path, monkeypatch, caplog):
    prompts = tmp_path / "held_out.txt"
    prompts.write_text("a star\na ring\n")
    measured = run.with_options(held_out=PromptFile(str(prompts)), eval_every=1, eval_rewards=("jpeg_compressibility",))
    at_second_call(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    execute(measured, "short")
    prompts.write_text("a star\na ring\na heart\n")
    with pytest.raises(CheckpointError, match="held-out prompts changed"):
        execute(measured, "short", resume=True)
    execute(measured, "short", resume=True, accept_changed_data=True)
    assert "failed" not in caplog.text, "the card compares the last two measurements"
    assert [len(line["jpeg_compressibility"]) for line in RunFolder(run.folder).held_out()] == [2, 3, 3]
    assert RunFolder(run.folder).unchanged_since("held-out prompts") == 1
    assert RunFolder(run.folder).unchanged_since("prompts") == 0


def state_of(folder):
    """Everything that a run leaves of its state: weights, optimizer, averages, and the result."""
    last = max((folder / "checkpoints").iterdir())
    files = [*sorted(last.glob("*.safetensors")), folder / "lora" / "pytorch_lora_weights.safetensors"]
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("algorithm", ["flow_grpo", "sft"])
def test_a_run_that_is_trained_further_is_the_longer_run_to_the_last_bit(run, algorithm):
    if algorithm == "sft":
        run = replace(run, algorithm=SFT(), data=ShapesImages(count=8)).with_options(batch=4)
    run = run.with_options(warmup=3)
    longer = execute(replace(run.with_options(iterations=5), name="longer"), "short")
    execute(run, "short")
    assert main(["train", "--extend", "runs/short", "--iterations", "5"]) == 0
    extended, from_start = state_of(run.folder), state_of(Path(getattr(longer, "folder", longer)))
    assert extended.keys() == from_start.keys()
    assert all(torch.equal(extended[name], from_start[name]) for name in extended)
    record = json.loads((run.folder / "run.json").read_text())
    assert record["config"]["batches"]["iterations"] == 5
    assert record["resumed"][0]["extended_from"] == {"iterations": 3}
    assert [line["step"] for line in metrics(run.folder)] == [0, 1, 2, 3, 4]


def test_an_extension_says_what_it_cannot_be(run, capsys, caplog):
    execute(run.with_options(lr_schedule="cosine", iterations=2, budget_seconds=1e6), "short")
    for words, sentence in (
        (["runs/short"], "has done 2 iterations; say how many in all, as --iterations 4"),
        (["runs/short", "--iterations", "2"], "has done 2 iterations"),
        (["runs/nobody", "--iterations", "9"], "no such folder"),
        (["runs/short", "--iterations", "9", "--seed", "3"], "--seed cannot be set"),
    ):
        assert main(["train", "--extend", *words]) == 2 and sentence in capsys.readouterr().err
    with caplog.at_level("INFO"):
        assert main(["train", "--extend", "runs/short", "--iterations", "3"]) == 0
    assert "the result is not that of so long a run from the start" in caplog.text
    assert "budget_seconds = 1e+06 no longer ends the run" in caplog.text
    assert len(metrics(run.folder)) == 3


def test_a_run_whose_prompts_have_changed_goes_on_only_where_that_is_accepted(run, tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a star\na ring\n")
    at_second_call(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    changed = replace(run, data=PromptFile(str(prompts)))
    execute(changed, "short")
    weights = load_file(run.folder / "checkpoints" / "step_000001" / "weights.safetensors")
    prompts.write_text("a star\na disk\n")
    with pytest.raises(CheckpointError, match="prompts changed since the run began"):
        execute(changed, "short", resume=True)
    assert main(["train", "--resume", "runs/short"]) == 2
    kept = load_file(run.folder / "checkpoints" / "step_000001" / "weights.safetensors")
    assert all(torch.equal(weights[name], kept[name]) for name in weights)
    assert main(["train", "--resume", "runs/short", "--accept-changed-data"]) == 0
    assert [line["step"] for line in metrics(run.folder)] == [0, 1, 2]


def test_a_run_is_not_written_over(run):
    run = run.with_options(iterations=1)
    execute(run, "short")
    with pytest.raises(ValueError, match="already holds a run; give this one another --name"):
        execute(run, "short")
    other = run.with_options(learning_rate=2e-3, algorithm=replace(run.algorithm, beta=0.0))
    apart = (
        r"with other options \(algorithm.beta = 0.01 there, 0.0 here; "
        r"optimization.learning_rate = 0.001 there, 0.002 here\); give"
    )
    with pytest.raises(ValueError, match=apart):
        execute(other, "short")


def test_a_win_rate_against_the_base_is_logged_and_survives_resuming(run, monkeypatch):
    judged = run.with_options(
        algorithm=PrefGRPO(steps=4, group=4, guard=False, eta=0.9),
        judge=ShapesJudge(noise=1.0),
        held_out=ShapesPrompts("test", count=5),
        eval_every=1,
        sample_every=0,
    )
    whole = metrics(execute(replace(judged, name="whole"), "short"))
    assert whole[0]["consistency/win_rate"] < 1 and whole[0]["reward/win_rate"] == pytest.approx(0.5)
    assert all(0 <= line["eval/win_rate"] <= 1 for line in whole)
    execute(judged.with_options(name="parts", iterations=2), "short")
    resumed = metrics(execute(replace(judged, name="parts"), "short", resume=True))
    assert resumed[2]["eval/win_rate"] == whole[2]["eval/win_rate"]
    by_prompt = [json.loads(line) for line in (run.folder.parent / "parts" / "held_out.jsonl").read_text().splitlines()]
    means = [np.mean(line["win_rate"]) for line in by_prompt]
    assert len(by_prompt[0]["win_rate"]) == 5 and means == pytest.approx([line["eval/win_rate"] for line in whole])
    (run.folder.parent / "parts" / "held_out_base.npy").unlink()
    with pytest.raises(ValueError, match="is gone, and with it the base"):
        execute(judged.with_options(name="parts", iterations=4), "short", resume=True)


def test_a_run_ends_when_its_budget_is_used_up_and_refuses_one_too_short(run, monkeypatch):
    ticks = itertools.count()  # a clock on which an iteration takes a second
    for module in ("first_lines", "monitor"):
        monkeypatch.setattr(f"afterflow.experiment.{module}.running_seconds", lambda: float(next(ticks)))
    long = run.with_options(name="long", iterations=1000, sample_every=0, chunk=64, budget_seconds=2.0)
    folder = execute(long, "short").folder
    assert [line["seconds_trained"] for line in metrics(folder)] == [1.0, 2.0]
    assert (folder / "lora").is_dir()
    execute(long.with_options(budget_seconds=3.0), "short", resume=True)
    assert [line["seconds_trained"] for line in metrics(folder)] == [1.0, 2.0, 3.0]
    # On that clock a forward pass takes a second too, and the rollout needs half of one.
    with pytest.raises(ValueError, match=r"the rollout of one iteration takes about 0\.5 s"):
        execute(long.with_options(name="too_short", budget_seconds=0.4), "short")
    assert not (run.folder.parent / "too_short" / "metrics.jsonl").exists()


def test_blocks_are_compiled_where_asked_and_round_as_they_would_otherwise(run, monkeypatch):
    """What that comes to takes minutes to compile: bench/real_size.py --compile prints ratios and times."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, options: compiled.append((block, options)))
    model = TrainingSetup.build(run.with_options(compile=True), resume=False).model
    rounding = {"emulate_precision_casts": True}
    assert compiled == [(block, rounding) for block in model.module.transformer_blocks]
    assert not inductor.emulate_precision_casts  # what else a process compiles is its own matter


@pytest.mark.gpu
@pytest.mark.parametrize("algorithm", [FlowGRPO(JPEG, steps=4, group=4, beta=0.01), FlowOPD(steps=4, group=4)])
def test_states_that_wait_in_the_memory_of_the_cpu_teach_the_same(run, algorithm):
    teachers = (Teacher("base", None, TAGS[1:]),) if isinstance(algorithm, FlowOPD) else ()
    short = run.with_options(algorithm=algorithm, teachers=teachers, sample_every=0)
    here, there = (execute(short.with_options(name=str(on), offload=on), "short") for on in (False, True))
    theirs, ours = (load_file(each / "lora/pytorch_lora_weights.safetensors") for each in (here, there))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


def test_averages_in_8_bits_learn_and_are_part_of_a_checkpoint(run):
    pytest.importorskip("bitsandbytes")
    small = run.with_options(optimizer="adamw_8bit", tune=LoRA(rank=64, alpha=64), ema_decay=None)
    whole = execute(replace(small, name="whole"), "short").folder
    state = load_file(whole / "checkpoints/step_000002/optimizer.safetensors")
    assert any(key.endswith("|state1") and value.dtype == torch.uint8 for key, value in state.items())
    execute(small.with_options(name="parts", iterations=2), "short")
    parts = execute(replace(small, name="parts"), "short", resume=True).folder
    precise = execute(small.with_options(name="precise", optimizer="adamw"), "short").folder
    ours, resumed, theirs = (
        load_file(each / "lora/pytorch_lora_weights.safetensors") for each in (whole, parts, precise)
    )
    assert all(torch.equal(value, resumed[name]) for name, value in ours.items())
    learnt = [name for name in ours if "lora_B" in name]  # they begin at 0
    flat = lambda weights: torch.cat([weights[name].flatten() for name in learnt])
    assert 0 < (flat(ours) - flat(theirs)).norm() < 0.2 * flat(theirs).norm()


@pytest.mark.parametrize(
    "options, advice",
    [
        (dict(algorithm=PrefGRPO()), "PrefGRPO needs a judge"),
        (dict(judge=ShapesJudge()), "needs no judge; leave it out"),
        (dict(algorithm=FlowGRPO({"win_rate": 1.0})), "win_rate is a reward of PrefGRPO and OnlineDPO"),
        (dict(algorithm=DDPO({"jpeg": 1.0})), "jpeg_"),
        (
            dict(algorithm=FlowGRPO({"jpeg_compressibility": 1.0}, blend=Blend(gate={"win_rate": 0.5}))),
            "of PrefGRPO and OnlineDPO",
        ),
        (dict(eval_rewards=("shapes_strict",)), "set held_out and eval_every as well"),
        (dict(algorithm=DDPO(JPEG, group=2, blend=Blend(gate={"sharpnes": 1.0}))), "sharpnes"),
        (dict(algorithm=MixGRPO({"jpeg_compressibility": -1.0})), "their sum must be positive"),
        (dict(algorithm=DDPO(JPEG, group=2, divergence=1e-6), updates=1), "no step is ever masked; take --updates 2"),
        (dict(algorithm=DGPO(JPEG, lag=Lag(highest=0.0)), updates=2), "the old policy would follow every update"),
        (dict(algorithm=DDPO(JPEG, group=1), batch=1), "an image is compared with nothing"),
        (dict(budget_seconds=0.0), "budget_seconds = 0.0: it must be positive"),
        (dict(algorithm=SFT(), data=ShapesImages(), offload=True), "offload is of rollouts; leave it out"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_loaded(run, options, advice):
    with pytest.raises(ValueError, match=advice):
        run.with_options(**options)


def test_a_judge_that_answers_nonsense_is_refused_before_any_sampling(run, monkeypatch):
    monkeypatch.setattr(ShapesJudge, "__call__", lambda self, pairs: np.ones(1))
    judged = replace(run, algorithm=PrefGRPO(steps=4, group=4), judge=ShapesJudge())
    with pytest.raises(ValueError, match="answered with shape"):
        execute(judged, "short")
    assert not (run.folder / "metrics.jsonl").exists()


def test_the_history_of_ddpo_is_part_of_a_checkpoint(run):
    remembering = replace(
        run, algorithm=DDPO(JPEG, steps=4, group=2, history=6, min_count=4), data=ShapesPrompts(count=5)
    )
    whole = execute(replace(remembering, name="whole"), "short").folder
    execute(remembering.with_options(name="parts", iterations=2), "short")
    parts = execute(replace(remembering, name="parts"), "short", resume=True).folder
    for name in ("lora/pytorch_lora_weights.safetensors", "checkpoints/step_000002/optimizer.safetensors"):
        ours, theirs = load_file(parts / name), load_file(whole / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_secrets_are_written_nowhere(run, monkeypatch):
    for name in ("HF_TOKEN", "AFTERFLOW_SERVER_KEY", "AFTERFLOW_REWARDS_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "hf_a-secret-that-nobody-may-see")
    execute(run, "short")
    files = [file for file in run.folder.rglob("*") if file.is_file()]
    assert len(files) > 5 and not [file for file in files if b"a-secret-that-nobody" in file.read_bytes()]


@pytest.mark.parametrize("address", ["https://me:secret@host:8000", "https://host/v1?key=secret"])
def test_an_address_with_a_secret_in_it_is_refused_without_repeating_it(address):
    for made in (lambda: RewardModels(servers={"ocr": address}), lambda: VLMJudge(url=address)):
        with pytest.raises(ValueError, match="set the environment variable with the key instead") as refused:
            made()
        assert "secret" not in str(refused.value)
