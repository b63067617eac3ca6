import copy
import itertools
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import afterflow
from afterflow.algorithms.base import Models, Scores
from afterflow.algorithms.crd import CRD
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.lag import Lag
from afterflow.algorithms.sft import SFT
from afterflow.experiment.provenance import tracker_options, write_record
from afterflow.sampling.kernels import flow_sde
from afterflow.sampling.rollout import Plan, sample, transitions
from afterflow.sampling.schedules import LinearShift
from afterflow.sampling.seeds import generator, number
from afterflow.system.errors import TrainingStopped
from afterflow.train import checkpoint as state
from afterflow.train.clock import Clock
from afterflow.train.distributed import Processes
from afterflow.train.ema import Ema
from afterflow.train.explore import Iteration
from afterflow.train.gradients import gradients
from afterflow.train.local_rows import local_rows
from afterflow.train.loop import MAX_SKIPPED
from afterflow.train.out_of_memory import explain_out_of_memory
from toy import MLP, averages, draws, exact, images, learn, optimize, prompts, score

GRPO = FlowGRPO({"near": 1.0}, steps=4, group=4, clip=0.2, beta=0.0)
CRD_TOY = CRD({"near": 1.0}, steps=4, group=4, schedule=LinearShift(3.0), kl=0.0, drawing_lag=Lag(start=0.5))


def named(model):
    return dict(model.named_parameters())


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def unequal_rows():
    """Rows of a tree that differ in how many children count."""
    stochastic = torch.tensor([1.0, 1.0, 0.0])
    plan = Plan(LinearShift().times(3), 0.7 * stochastic, (1, 3, 6, 6), stochastic.bool()[:, None].expand(3, 6))
    noise = torch.randn(4, 1, 2, generator=generator("noise"))
    rollout = sample(exact, flow_sde, plan, prompts(4), noise, [generator(p) for p in range(4)])
    draws = generator("advantage")
    advantages = [torch.randn(4, w, 1, generator=draws) for w in (3, 6, 6)]
    advantages[1][:2, 1::2] = torch.nan
    return transitions(rollout, advantages)


def accumulated(rows, size):
    model, microbatches = MLP(), torch.arange(len(rows)).split(size)
    iteration, processes = Iteration(0, rows, [[microbatches]]), Processes(Accelerator(cpu=True))
    metrics, _ = gradients(GRPO, Models(model), iteration, [microbatches], list(model.parameters()), processes)
    return torch.cat([p.grad.flatten() for p in model.parameters()]), metrics


def test_microbatches_add_up_to_one_batch():
    rows = unequal_rows()
    assert len({rows.mass(part) / len(part) for part in torch.arange(len(rows)).split(5)}) > 1
    whole, metrics = accumulated(rows, len(rows))
    summed, part_metrics = accumulated(rows, 5)
    torch.testing.assert_close(summed, whole)
    torch.testing.assert_close(part_metrics, metrics)
    assert metrics["ratio_max"] > metrics["ratio_mean"]


def test_the_rollout_is_replayed_at_ratio_one_and_each_row_is_trained_once():
    model, seen = MLP(), []

    def watched(x, t, cond):
        seen.extend(x if torch.is_grad_enabled() else [])
        return model(x, t, cond)

    # The optimizer's own rate is overruled: at 0 the second update replays at ratio 1 as well.
    flat = lambda *asked: Scores({"near": torch.arange(32.0).view(8, 4)})
    still = optimize(model, lr=1.0)
    ((_, metrics),) = learn(GRPO, model, 1, velocity=watched, optimizer=still, lr=0.0, score=flat, chunk=10)
    assert metrics["ratio_mean"] == metrics["ratio_max"] == 1
    assert metrics["nfe/update"] * 32 == 8 * 4 * 3 == len(seen) == len(torch.stack(seen).unique(dim=0))
    assert metrics["reward/near"] == 15.5 and metrics["zero_std_groups"] == 0


@pytest.mark.parametrize("shared", [False, True])
def test_every_image_starts_from_its_own_noise_unless_it_is_shared(shared):
    starts = []
    rows = 8 if shared else 32  # images of one noise are one row until they part
    velocity = lambda x, t, cond: (starts.append(x) if t[0] == 1 and len(x) == rows else 0, 0 * x)[1]
    algorithm = FlowGRPO({"near": 1.0}, steps=2, group=4, beta=0.0, shared_noise=shared)
    flat = lambda *asked: Scores({"near": torch.ones(8, 4)})
    list(learn(algorithm, MLP(), 2, velocity=velocity, score=flat))
    assert len(starts) == 2  # each iteration draws anew, each prompt too
    assert len(torch.cat(starts).unique(dim=0)) == 2 * rows


def test_ema_forgets_faster_at_first():
    p = torch.nn.Parameter(torch.tensor([1.0]))
    ema = Ema({"p": p}, decay=0.3)
    average = 1.0
    for n, keep in enumerate([2 / 11, 3 / 12, 0.3, 0.3], 1):
        with torch.no_grad():
            p.fill_(10.0 * n)
        ema.update({"p": p})
        average = keep * average + (1 - keep) * 10.0 * n
        assert ema.values["p"].item() == pytest.approx(average)


def test_the_average_is_applied_inside_and_undone_outside_even_after_an_error():
    model = MLP()
    before = copy.deepcopy(model)
    ema = Ema(named(model), 0.9)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    moved = copy.deepcopy(model)
    with ema.applied(named(model)):
        assert same(model, before)
    assert same(model, moved)
    with pytest.MonkeyPatch.context() as patch:  # broken off in the middle of the copy
        copy_, calls = torch.Tensor.copy_, itertools.count()
        patch.setattr(torch.Tensor, "copy_", lambda p, value: 1 / 0 if next(calls) == 1 else copy_(p, value))
        with pytest.raises(ZeroDivisionError), ema.applied(named(model)):
            pass
    assert same(model, moved)
    with pytest.raises(KeyError), ema.applied(named(model)):
        raise KeyError
    assert same(model, moved)
    assert torch.equal(ema.values["net.0.weight"], before.net[0].weight)


@pytest.mark.parametrize("algorithm", [GRPO, SFT(), CRD_TOY], ids=["FlowGRPO", "SFT", "CRD"])
def test_a_resumed_run_goes_on_bit_for_bit(algorithm, tmp_path):
    def start():
        model = MLP()
        return model, optimize(model), Ema(named(model), 0.9), averages(algorithm, model)

    def advance(run, last, first=0):
        model, optimizer, ema, lagged = run
        return [m for _, m in learn(algorithm, model, last, first, optimizer=optimizer, ema=ema, lagged=lagged)]

    def weights(run):
        model, optimizer, ema, lagged = run
        return state.WeightState(
            named(model), optimizer, ema, lagged={name: each for name, (_, each) in lagged.items()}
        )

    through, halted, resumed = start(), start(), start()
    metrics = advance(through, 6)
    advance(halted, 3)
    folder = state.save_checkpoint(tmp_path, 2, weights(halted), keep=1)
    first = state.load_checkpoint(folder, weights(resumed))
    assert first == 3
    again = advance(resumed, 6, first)
    assert same(resumed[0], through[0])
    assert not same(resumed[0], halted[0])
    assert resumed[2].updates == through[2].updates
    assert all(torch.equal(value, through[2].values[name]) for name, value in resumed[2].values.items())
    for name, (network, policy) in through[3].items():
        assert same(resumed[3][name][0], network) and resumed[3][name][1].updates == policy.updates == 12
        assert not same(network, through[0])
    seconds = lambda m: {name: value for name, value in m.items() if not name.startswith("seconds")}
    assert [seconds(m) for m in again] == [seconds(m) for m in metrics[3:]]


@pytest.mark.gpu
def test_a_checkpoint_goes_on_where_the_optimizer_is_fused_on_an_accelerator(tmp_path):
    models = [MLP().cuda(), MLP().cuda()]
    optimizers = [optimize(model) for model in models]
    for model in models[:1]:
        model.net(torch.ones(1, 5, device="cuda")).sum().backward()
    optimizers[0].step()
    first, second = (state.WeightState(named(model), optimizer) for model, optimizer in zip(models, optimizers))
    state.load_checkpoint(state.save_checkpoint(tmp_path, 0, first, keep=1), second)
    for model, optimizer in zip(models, optimizers):
        optimizer.zero_grad()
        model.net(torch.ones(1, 5, device="cuda")).sum().backward()
        optimizer.step()
    assert same(*models)


def test_checkpoints_are_whole_and_the_newest_are_kept(tmp_path, monkeypatch):
    model = MLP()
    write = lambda step: state.save_checkpoint(tmp_path, step, state.WeightState(named(model), optimize(model)), keep=2)
    for step in (0, 9, 10, 100, 100):
        write(step)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_000010", "step_000100"]
    assert state.list_checkpoints(tmp_path) == sorted(tmp_path.iterdir())
    monkeypatch.setattr(json, "dumps", lambda _: 1 / 0)  # killed in the middle of writing
    with pytest.raises(ZeroDivisionError):
        write(200)
    assert [path.name for path in state.list_checkpoints(tmp_path)] == ["step_000010", "step_000100"]
    monkeypatch.undo()
    write(200)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_000100", "step_000200"]


@pytest.mark.parametrize("moment", ["manifest", "rename", "delete"])
def test_killed_at_any_moment_of_saving_a_whole_checkpoint_is_left(tmp_path, monkeypatch, moment):
    model = MLP()
    write = lambda step: state.save_checkpoint(tmp_path, step, state.WeightState(named(model), optimize(model)), keep=1)
    write(1)
    if moment == "manifest":
        monkeypatch.setattr(state, "sha256", lambda file: 1 / 0)
    elif moment == "rename":
        monkeypatch.setattr(Path, "rename", lambda *paths: 1 / 0)
    else:
        monkeypatch.setattr(state, "delete_checkpoint", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(2)
    monkeypatch.undo()
    newest = state.list_checkpoints(tmp_path)[-1]
    assert newest.name == ("step_000002" if moment == "delete" else "step_000001")
    assert state.find_damage(newest) is None
    write(3)
    assert [path.name for path in state.list_checkpoints(tmp_path)] == ["step_000003"]


@pytest.mark.parametrize("harm", ["bit", "cut", "gone", "manifest"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_offered(tmp_path, harm):
    model = MLP()
    for step in (1, 2):
        folder = state.save_checkpoint(tmp_path, step, state.WeightState(named(model), optimize(model)), keep=2)
    file = folder / ("manifest.json" if harm == "manifest" else "weights.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    {"bit": lambda: file.write_bytes(content), "cut": lambda: file.write_bytes(content[:-9])}.get(harm, file.unlink)()
    again = lambda at: state.load_checkpoint(at, state.WeightState(named(model), optimize(model)))
    with pytest.raises(ValueError, match=r"step_000002 is damaged: .*; delete it to go on from step_000001"):
        again(folder)
    assert again(tmp_path / "step_000001") == 2
    (tmp_path / "step_000001" / "optimizer.safetensors").unlink()
    with pytest.raises(ValueError, match="no other is whole, so start the run anew"):
        again(folder)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    model, other = MLP(), MLP(width=32)
    folder = state.save_checkpoint(tmp_path, 0, state.WeightState(named(model), optimize(model)), keep=1)
    with pytest.raises(ValueError, match=f"{folder}.*resume with the recipe that wrote it"):
        state.load_checkpoint(folder, state.WeightState(named(other), optimize(other)))


def test_a_loss_that_is_not_a_number_stops_and_leaves_the_checkpoint(tmp_path):
    model = MLP()
    optimizer = optimize(model)

    def spoil(step):
        with torch.no_grad():
            model.net[0].weight.fill_(torch.nan)

    with pytest.raises(TrainingStopped, match=r"step 2: the loss is nan.*'left'"):
        for step, _ in learn(SFT(), model, 5, optimizer=optimizer):
            folder = state.save_checkpoint(tmp_path, step, state.WeightState(named(model), optimizer), keep=1)
            if step == 1:
                weights = copy.deepcopy(model)
                spoil(step)
    assert state.list_checkpoints(tmp_path) == [folder]
    assert state.load_checkpoint(folder, state.WeightState(named(model), optimizer)) == 2
    assert same(model, weights)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_touched():
    class Steep(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x.clone())
        backward = staticmethod(lambda ctx, g: g * torch.inf)

    model = MLP()
    before = copy.deepcopy(model)
    steep = lambda x, t, cond: Steep.apply(model(x, t, cond))
    with pytest.raises(TrainingStopped, match=r"step 0: the gradient norm is (nan|inf); lower the learning rate"):
        next(learn(SFT(), model, 1, velocity=steep))
    assert same(model, before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_reward_that_is_not_finite_stops_with_its_name_and_prompt(bad):
    def fails(leaves, records, generator, clock):
        rewards = score(leaves, records).rewards["near"]
        rewards[5, 2] = bad  # the sixth prompt is "right"
        return Scores({"near": rewards, "other": torch.zeros_like(rewards)})

    with pytest.raises(
        TrainingStopped, match=r"step 7: 1 of 32 images have no near; 'right': it is not a finite number"
    ):
        next(learn(GRPO, MLP(), 9, 7, score=fails))


def test_an_iteration_that_teaches_nothing_changes_nothing():
    model = MLP()
    before = copy.deepcopy(model)
    flat = lambda leaves, *asked: Scores({"near": torch.ones(leaves.shape[:2])})
    ((_, metrics),) = learn(GRPO, model, 1, score=flat)
    assert metrics["nfe/update"] == 0 and metrics["zero_std_groups"] == 1
    assert same(model, before)


def test_an_iteration_with_fewer_rows_than_updates_still_trains():
    model, algorithm = MLP(), FlowGRPO({"near": 1.0}, steps=2, group=2, beta=0.0)
    before = copy.deepcopy(model)

    def one_group(leaves, records, generator, clock):
        rewards = torch.zeros(leaves.shape[:2])
        rewards[0, 0] = 1.0
        return Scores({"near": rewards})

    ((_, metrics),) = learn(algorithm, model, 1, score=one_group, updates=3)
    assert metrics["nfe/update"] * 16 == 2
    assert not same(model, before)


def test_dropped_prompts_are_trained_as_the_empty_one():
    seen = []
    velocity = lambda x, t, cond: seen.append(cond) or torch.zeros_like(x)
    batch = images(4000, generator())
    list(SFT(dropout=0.25).regression_losses(Models(velocity), batch, draws(len(batch))))
    dropped = seen[0].index < 0
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (seen[0].embedding().sequence[dropped] == 0).all()
    assert torch.equal(seen[0].index[~dropped], batch.cond.index[~dropped])


def test_seeds_are_the_same_on_every_machine_and_differ_by_key():
    assert number(0, 1, "noise") == 5921487384644017451
    assert len({number(*key) for key in [(0, 1), (1, 0), (0, "1"), (1, 1), (0, 1, 0)]}) == 5


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")])
def test_out_of_memory_says_where_and_what_to_change(error):
    clock = Clock()
    with (
        pytest.raises(TrainingStopped, match=r"^out of memory in update: set --gradient-checkpointing"),
        explain_out_of_memory(clock),
    ):
        with clock("rollout"):
            pass
        with clock("update"):
            raise error
    with (
        pytest.raises(TrainingStopped, match=r"^out of memory in loading or saving: take --model.dtype bfloat16"),
        explain_out_of_memory(Clock()),
    ):
        torch.empty(10**15)
    with pytest.raises(RuntimeError, match=r"^another fault$"), explain_out_of_memory(Clock()):
        raise RuntimeError("another fault")


def test_an_update_that_is_not_finite_is_left_out_and_counted_on_request(caplog):
    model, spoiled = MLP(), iter([False, False, True, True] + [False] * 100)

    def velocity(x, t, cond):
        return model(x, t, cond) * (torch.nan if next(spoiled) else 1.0)

    before, seen = copy.deepcopy(model), []
    for step, metrics in learn(SFT(), model, 6, velocity=velocity, skip=True):
        seen.append((step, metrics["skipped"], same(model, before)))
        before = copy.deepcopy(model)
    assert seen == [(0, 0, False), (1, 0, False), (2, 1, True), (3, 1, True), (4, 0, False), (5, 0, False)]
    assert "step 2: an update is left out, because the loss is nan for 2 prompts" in caplog.text
    spoiled = iter([True] * 100)
    with pytest.raises(TrainingStopped, match=f"step {MAX_SKIPPED}: the loss is nan"):
        list(learn(SFT(), model, 50, velocity=velocity, skip=True))


def test_a_run_that_goes_on_elsewhere_says_what_is_different(tmp_path, monkeypatch):
    assert write_record(tmp_path, {"batch": 4}, "recipe", 0) == []
    first = json.loads((tmp_path / "run.json").read_text())
    assert write_record(tmp_path, {"batch": 4}, "recipe", 0, first=5) == []
    versions = {"torch": "2.6.0"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: versions.get(name, first["versions"][name]))
    (said, other) = write_record(tmp_path, {"batch": 4}, "recipe", 0, first=9, processes=2)
    assert (
        said == f'versions.torch = "{version("torch")}" there, "2.6.0" here' and other == "processes = 1 there, 2 here"
    )
    record = json.loads((tmp_path / "run.json").read_text())
    assert {name: record[name] for name in first} == first
    assert [each["iteration"] for each in record["resumed"]] == [5, 9]


def test_a_machine_without_git_and_an_afterflow_that_is_not_installed_leave_a_record(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.metadata.version", version_but_of_afterflow)
    assert write_record(tmp_path, {}, "recipe", 0) == []
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["git_commit"] is None and record["versions"]["afterflow"] == afterflow.__version__


def version_but_of_afterflow(name):
    if name == "afterflow":
        raise PackageNotFoundError(name)
    return "1.0"


def test_a_tracker_goes_on_with_its_curves(tmp_path):
    begun = tracker_options(tmp_path, "short")
    assert tracker_options(tmp_path, "short") == begun and begun["wandb"]["resume"] == "allow"
    (tmp_path / "other").mkdir()
    assert tracker_options(tmp_path / "other", "short")["wandb"]["id"] != begun["wandb"]["id"]


def test_rows_of_two_halves_of_the_prompts_are_numbered_as_those_of_all():
    """Whoever has which prompts, a row has the same index among all, and the same numbers in it."""
    algorithm = FlowGRPO({"near": 1.0}, steps=4, group=4, beta=0.0, shared_noise=True)
    plan, noise = algorithm.plan(0, generator()), torch.randn(5, 1, 2, generator=generator("noise"))
    sources = lambda: [generator(p) for p in range(5)]
    part = lambda rows: sample(
        exact, flow_sde, plan, prompts(5)[rows], noise[rows], [sources()[p] for p in rows.tolist()]
    )
    advantages = [torch.randn(5, w, 1, generator=generator(w)) for w in plan.widths[1:]]
    advantages[1][3, :] = torch.nan
    advantages[2][0, 2] = torch.nan
    whole = local_rows(part(torch.arange(5)), advantages, torch.arange(5))
    assert whole.global_index.tolist() == list(range(whole.global_count)) == list(range(len(whole.examples)))
    halves = [local_rows(part(rows), advantages, rows) for rows in (torch.arange(2), torch.arange(2, 5))]
    assert sorted(torch.cat([half.global_index for half in halves]).tolist()) == whole.global_index.tolist()
    for half in halves:
        assert half.global_count == whole.global_count
        assert torch.equal(half.examples.x_next, whole.examples[half.global_index].x_next)
        assert torch.equal(half.prompt, whole.prompt[half.global_index])
