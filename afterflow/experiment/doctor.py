"""A recipe is examined: its model, method and rewards are tried on a small scale before hours go into it."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import torch
from rich.markup import escape
from torch import Tensor

from ..algorithms.base import Algorithm, explores
from ..models.adapters import LoRA
from ..models.generate import encode_records, solve_ode
from ..rewards.grouped import all_pairs, judge_groups, score_groups
from ..rewards.registry import canary_complaint, find_reward, resolve_reward
from ..rewards.vlm.judge import VLMJudge
from ..rewards.votes.judge import Votes
from ..sampling.conditioning import Conditioning, Pairs, move_rows
from ..sampling.rollout import Plan, prompt_noise, sample
from ..sampling.seeds import generator
from ..system.errors import ConfigError
from ..system.escapes import one_line
from ..system.folder_lock import locked_folder
from ..train.clock import Clock
from ..train.cpu_threads import cpu_threads
from ..train.explore import ExploreOptions, Iteration, supervised
from ..train.gradients import gradients
from .cards import peak_flops, reset_peak_memory
from .config import Run
from .cost_estimate import estimate_cost, trial_iteration
from .network_counts import network_counts, rollout_ratio, rollout_rows, rows_of_pass
from .prompt_checks import caption_records, number_of_inputs, prompt_records
from .setup import TrainingSetup, fp32_streams

ANYTHING = [{"prompt": "a photo of a red cube on a wooden table"}, {"prompt": "a dog"}]
"""Prompts, where images bring theirs."""
TRIAL_STEPS = 4
MOST_CLIPPED = 0.05
"""Share of the rows that rounding may clip."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    passed: bool | None
    """Whether it passed.  None: a figure that is neither good nor bad."""
    detail: str
    """Result in words."""
    remedy: str = ""
    """Advice where the check did not pass."""


def examine(run: Run) -> Iterator[Finding]:
    """Yield the findings one by one; nothing stays on disk."""
    reset_peak_memory()
    for name in run.rewards:
        resolve_reward(name)
    small = run.with_options(
        name=f"doctor_{uuid4().hex}",
        tracker="none",
        batch=trial_prompts(run.algorithm),
        grad_partitions=1,
        shard="none",
        fp32_streams=fp32_streams(run),
    )
    # The lock takes its folder away again, because nothing is written into it.
    threads = cpu_threads(run.distribution.threads)
    with tempfile.TemporaryDirectory() as folder, locked_folder(small.folder), threads:
        setup = TrainingSetup.build(small, resume=False)
        cond = encode_records(setup.model, trial_records(run)[:2])
        yield from check_sampler(setup, cond)
        yield from check_training(setup, cond, run)
        if isinstance(run.tune, LoRA):
            yield check_saved_lora(setup, cond, Path(folder) / "lora")
        yield from check_canaries(run)
        yield from check_reward_values(setup, cond)
        if run.judge is not None:
            yield check_judge(setup, cond)
        yield peak_memory(setup)


def trial_records(run: Run) -> list[dict]:
    """Return prompts to try the model with: the run's own, or those of its images where these are edits."""
    return prompt_records(run) or (caption_records(run.data) if number_of_inputs(run) else []) or ANYTHING


def noise_for(setup: TrainingSetup, count: int, name: str) -> Tensor:
    """Return noise (count, 1, ...) that depends on the run's seed and a name."""
    shape = torch.empty(1, 1, *setup.model.latent_shape, device=setup.processes.accelerator.device)
    sources = [generator(setup.run.seed, "doctor", name, i) for i in range(count)]
    return prompt_noise(sources, 1, shape.expand(count, *shape.shape[1:]))


@torch.no_grad()
def check_sampler(setup: TrainingSetup, cond: Conditioning) -> Iterator[Finding]:
    """Check that we sample as the stock pipeline does, the same twice, and with noise as spread out as without."""
    run, model = setup.run, setup.model
    noise = noise_for(setup, len(cond), "drawing")
    field = model.guided_velocity(run.batches.guidance_scale, len(cond))
    ours = solve_ode(field, cond, noise, model.schedule.times(TRIAL_STEPS))
    stock = model.stock_latents(cond, noise[:, 0], TRIAL_STEPS, run.batches.guidance_scale)
    error = relative(ours[:, 0], stock)
    yield Finding(
        "our ODE draws what the stock pipeline draws",
        error < (1e-3 if model.module.dtype == torch.float32 else 0.1),
        f"relative difference {error:.1e} of the latents after {TRIAL_STEPS} steps",
        "the pipeline's scheduler or its guidance is not one that afterflow knows; report it with model_index.json",
    )
    again = solve_ode(field, cond, noise, model.schedule.times(TRIAL_STEPS))
    yield Finding(
        "the same noise draws the same picture twice",
        torch.equal(ours, again),
        "bit for bit" if torch.equal(ours, again) else f"relative difference {relative(again, ours):.1e}",
        "set CUBLAS_WORKSPACE_CONFIG=:4096:8 and torch.use_deterministic_algorithms(True) where you need it exact",
    )
    if explores(setup.algorithm):
        plan = setup.algorithm.plan(0, generator(run.seed, "plan"))
        if plan.eta.any():  # without noise, latents differ by the solver and the number of steps alone
            yield check_spread(setup, cond, ours, plan)
        yield compare_grids(setup)


def check_spread(setup: TrainingSetup, cond: Conditioning, ours: Tensor, plan: Plan) -> Finding:
    """Check that noise in the steps leaves latents as spread out as the ODE's; few images tell it roughly."""
    run, model = setup.run, setup.model
    assert explores(setup.algorithm)
    sources = [generator(run.seed, "doctor", "sde")]
    shape = torch.empty(1, 1, *model.latent_shape, device=setup.processes.accelerator.device)
    noise, one = prompt_noise(sources, plan.widths[0], shape), cond[torch.zeros(1, dtype=torch.long)]
    leaves = sample(setup.models.draws, setup.algorithm.step_kernel, plan, one, noise, sources).leaves
    ratio = (leaves.float().std() / ours.float().std()).item()
    return Finding(
        "noise in the steps leaves the latents as spread out as they were",
        0.7 < ratio < 1.4,
        f"standard deviation {ratio:.2f} of the ODE's, {plan.widths[-1]} images of {plan.steps} steps",
        "lower algorithm.eta or raise algorithm.steps; pictures of a rollout are noise otherwise",
    )


def compare_grids(setup: TrainingSetup) -> Finding:
    """Compare the times of the rollout with the pipeline's own grid; papers choose either."""
    algorithm = setup.algorithm
    assert explores(algorithm)
    plan = algorithm.plan(0, generator(setup.run.seed, "plan"))
    apart = (plan.times - setup.model.schedule.times(plan.steps)).abs().max().item()
    advice = "" if apart < 1e-6 else "; algorithm.schedule = None takes the pipeline's"
    return Finding("times of the rollout", None, f"at most {apart:.3f} from those of the pipeline's own grid{advice}")


def check_training(setup: TrainingSetup, cond: Conditioning, run: Run) -> Iterator[Finding]:
    """Check one small iteration: a ratio of 1, gradients that arrive, a KL that has some, and the time of all."""
    clock, algorithm = Clock(), setup.algorithm
    small_iteration(setup, cond, Clock())  # the first one also warms up
    iteration = small_iteration(setup, cond, clock)
    with clock("update"):
        parameters, update = list(setup.weights.parameters.values()), iteration.updates[0]
        measured, _ = gradients(algorithm, setup.models, iteration, update, parameters, setup.processes)
    seconds = clock.read()
    gradient = gradient_norm(setup)
    if "ratio_max" in measured:
        deviation = max(abs(float(measured[name]) - 1) for name in ("ratio_max", "ratio_mean"))
        yield Finding(
            "the policy replays its own rollout at a ratio of 1",
            deviation == 0,
            f"largest deviation {deviation:.1e} in chunks of {run.batches.chunk}, "
            f"precision {run.optimization.mixed_precision}",
            "rollout and update differ by dropout, a compiled part, or a kernel that is not deterministic",
        )
        yield check_ratio_noise(setup, cond, run)
    yield Finding(
        "gradients arrive at what is trained",
        0 < gradient < float("inf"),
        f"norm {gradient:.2e} over {len(setup.weights.parameters)} tensors",
        "no gradient: tune.targets may match nothing that is used; infinite: take mixed_precision = bf16 or no",
    )
    if algorithm.requirements.reference:
        yield check_kl(setup, cond)
    yield from expected_time(setup, iteration, seconds, run)


@torch.no_grad()
def check_ratio_noise(setup: TrainingSetup, cond: Conditioning, run: Run) -> Finding:
    """Check that rounding alone does not clip ratios where an iteration has several updates.

    A little away from the start, the trained weights are moved by 1e-5, which should hardly move a ratio.
    """
    algorithm = cast(Algorithm[Any], setup.algorithm)
    with moved(setup, 0.01):
        iteration = small_iteration(setup, cond, Clock())
        rows = iteration.rows[torch.arange(min(len(iteration.rows), run.batches.chunk))]
        rows = move_rows(rows, setup.processes.accelerator.device)
        with moved(setup, 1e-5):
            measured = [metrics for _, metrics in algorithm.losses(setup.models, rows)]
    limit = getattr(algorithm, "divergence", None)
    name, bound = ("clip", getattr(algorithm, "clip", 0.0)) if limit is None else ("divergence", limit)
    stopped = "clip_fraction" if limit is None else "masked_fraction"
    clipped = sum(float(metrics[stopped]) for metrics in measured) / len(measured)
    noise = max(float(metrics["ratio_max"]) - 1 for metrics in measured)
    precision = run.optimization.mixed_precision if run.optimization.mixed_precision != "no" else run.model.dtype
    return Finding(
        "ratios are of learning and not of rounding",
        None if run.batches.updates == 1 else clipped < MOST_CLIPPED,
        f"ratio noise of {precision}: up to {noise:.0e}, {name} {bound:.0e}: "
        f"rounding would {'clip' if limit is None else 'mask'} {clipped:.0%} of the rows after a first update",
        f"take updates = 1, mixed_precision = no, fp32_streams = True, or a wider algorithm.{name}",
    )


@contextmanager
def moved(setup: TrainingSetup, size: float) -> Iterator[None]:
    """Add noise of a size to what is trained, inside the context."""
    parameters = list(setup.weights.parameters.values())
    originals = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            draws = torch.Generator().manual_seed(i)
            parameter.add_(size * torch.randn(parameter.shape, generator=draws).to(parameter))
    yield
    with torch.no_grad():
        for parameter, original in zip(parameters, originals):
            parameter.copy_(original)


def small_iteration(setup: TrainingSetup, cond: Conditioning, clock: Clock) -> Iteration:
    """Return an iteration of a few prompts and random scores, or of two random images."""
    run, algorithm, model = setup.run, setup.algorithm, setup.model
    if not explores(algorithm):
        rejected = noise_for(setup, len(cond), "rejected")[:, 0] if algorithm.requirements.pairs else None
        pairs = Pairs(noise_for(setup, len(cond), "images")[:, 0], cond, rejected=rejected)
        options = {"seed": 0, "chunk": run.batches.chunk, "processes": setup.processes}
        return next(supervised(algorithm, lambda step: pairs, range(1), **options))
    count = trial_prompts(algorithm)
    options = ExploreOptions(run.seed, model.latent_shape, run.batches.chunk, low_noise=model.low_noise)
    some = cond[torch.arange(count) % len(cond)]
    return trial_iteration(algorithm, setup.models, some, options, clock, setup.weights.history)


def trial_prompts(algorithm: Algorithm) -> int:
    """Return the number of prompts of a small iteration.

    A method that draws one image of a prompt compares it with those of others, and so has two.
    """
    return 1 if getattr(algorithm, "group", 2) > 1 else 2


def padded_rows(plan: Plan, prompts: int, chunk: int) -> int:
    """Return the rows that the passes of a rollout compute: in each step the last pass is padded to a chunk."""
    return sum(-(-prompts * width // chunk) * chunk for width in plan.widths[:-1])


def gradient_norm(setup: TrainingSetup) -> float:
    """Return the norm of all gradients, and clear them."""
    norms = [p.grad.float().norm() for p in setup.weights.parameters.values() if p.grad is not None]
    setup.weights.optimizer.zero_grad()
    return float(torch.stack(norms).norm()) if norms else 0.0


def check_kl(setup: TrainingSetup, cond: Conditioning) -> Finding:
    """Check that the KL has a gradient a little away from the start, where it is 0 and flat."""
    models = setup.models
    assert models.reference is not None
    x, t = noise_for(setup, len(cond), "kl")[:, 0], torch.full((len(cond),), 0.7, device=cond.device)
    with moved(setup, 0.01):
        with torch.no_grad():
            reference = models.reference(x, t, cond)
        (models.policy(x, t, cond).float() - reference.float()).square().mean().backward()
        gradient = gradient_norm(setup)
    return Finding(
        "the KL to the reference pulls the policy back",
        gradient > 0,
        f"gradient norm {gradient:.2e} a little away from it",
        "the reference is the policy itself, or its distance is computed without gradients",
    )


def expected_time(setup: TrainingSetup, iteration: Iteration, seconds: dict[str, float], run: Run) -> Iterator[Finding]:
    """Report the speed of the small iteration, and the hours of the whole recipe without rewards."""
    needs, chunk = estimate_cost(run), run.batches.chunk
    rollout, update = (seconds.get(f"seconds/{stage}", 0.0) for stage in ("rollout", "update"))
    algorithm = setup.algorithm
    guidance, images, padded = rows_of_pass(run) // chunk, len(iteration.rows), {"rollout": 0}
    if explores(algorithm):
        plan, prompts = algorithm.plan(0, generator(run.seed, "plan")), trial_prompts(algorithm)
        images, padded = prompts * plan.widths[-1], {"rollout": padded_rows(plan, prompts, chunk)}
    # Forward passes of a chunk are padded, so a small iteration pays for rows that a large one uses.
    padded["update"] = math.ceil(images * iteration.metrics["nfe/update"] / chunk) * chunk
    whole = {
        "rollout": needs.rows.get("rollout", 0.0) / rollout_rows(run),
        "update": needs.rows["update"] / guidance,
    }
    row_seconds = {
        name: spent / padded[name] for name, spent in (("rollout", rollout), ("update", update)) if padded[name]
    }
    if needs.passes.retained_rows:  # the rollout's forward passes are the update's too
        row_seconds["update"] = max(0.0, row_seconds["update"] - row_seconds["rollout"])
    hours = run.batches.iterations * sum(whole[name] * cost for name, cost in row_seconds.items()) / 3600
    hours = min(hours, (run.batches.budget_seconds or float("inf")) / 3600)
    yield Finding(
        "speed", None, f"{images / (rollout + update):.2f} images a second, rollout and update, of a small iteration"
    )
    yield Finding("the whole recipe", None, f"about {hours:.2g} hours, without rewards")
    device = setup.processes.accelerator.device
    if device.type == "cuda" and "rollout" in row_seconds:
        yield rollout_mfu(run, row_seconds["rollout"], device)


def rollout_mfu(run: Run, row_seconds: float, device: torch.device) -> Finding:
    """Report which share of a card's peak the network's own FLOPs of a rollout make up.

    row_seconds: seconds of a velocity, guidance included.
    """
    peak = peak_flops(device)
    if peak is None:
        detail = f"unknown: there is no peak of {torch.cuda.get_device_name(device)} in afterflow/experiment/cards.py"
    else:
        flops = network_counts(run).forward / run.batches.chunk * rollout_ratio(run)
        detail = f"{flops / row_seconds / peak:.0%} of {peak / 1e12:.0f} TFLOP/s"
    return Finding("MFU of the rollout", None, detail)


@torch.no_grad()
def check_saved_lora(setup: TrainingSetup, cond: Conditioning, folder: Path) -> Finding:
    """Check that a saved LoRA gives the same velocity when it is loaded again, under another name."""
    model = setup.model
    draws = torch.Generator().manual_seed(0)
    for parameter in setup.weights.parameters.values():
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=draws).to(parameter))
    # At two times, of which a pair of networks has one each.
    x, t = noise_for(setup, len(cond), "lora")[:, 0], torch.linspace(0.5, 1, len(cond), device=cond.device)
    field = model.velocity(model.module)
    trained = field(x, t, cond)
    model.save_lora(folder)
    for parameter in setup.weights.parameters.values():
        parameter.zero_()
    others = [name for name in model.module.peft_config if name != "default"]  # type: ignore[union-attr]
    model.module.delete_adapters([*others, "default"])  # type: ignore[operator]
    for options in model.lora_calls:
        model.pipe.load_lora_weights(folder, **options)  # as a user of the file does
    difference = (field(x, t, cond).float() - trained.float()).abs().max().item()
    # Only a power of two goes into the file's weights without rounding.
    assert isinstance(setup.run.tune, LoRA)
    exact = 0.0 if math.frexp(setup.run.tune.alpha / setup.run.tune.rank)[0] == 0.5 else 1e-3
    return Finding(
        "a saved LoRA is the same when it is loaded",
        difference <= (exact if model.module.dtype == torch.float32 else 0.05),
        f"largest difference of a velocity {difference:.1e}",
        "peft and diffusers may not fit together; take the versions in constraints.txt",
    )


def check_canaries(run: Run) -> Iterator[Finding]:
    """Check that each reward and judge that is a network tells the pictures apart on which it is tried."""
    networks = [name for name in run.watched if find_reward(name).load or name in run.reward_models.servers]
    tries: dict[str, Callable[[], str | None]] = {
        name: partial(canary_complaint, name, run.reward_models) for name in networks
    }
    if isinstance(run.judge, VLMJudge):
        tries["the judge"] = run.judge.complaint
    for name, complaint_of in tries.items():
        try:
            complaint = complaint_of()
        except ConfigError as error:
            complaint = str(error)
        remedy = "see its weights, its server and the versions in constraints.txt"
        yield Finding(f"canary of {name}", complaint is None, complaint or "it scores known pictures rightly", remedy)


def check_reward_values(setup: TrainingSetup, cond: Conditioning) -> Iterator[Finding]:
    """Check that each reward has a finite score for pictures of noise, the same twice."""
    run = setup.run
    records = cond.records()
    images = setup.model.decode(noise_for(setup, len(cond), "rewards")[:, 0])[:, None]
    for name in run.watched:
        start = time.perf_counter()
        first, second = (score_groups(name, images, records, setup.run.reward_models).values for _ in range(2))
        seconds = (time.perf_counter() - start) / 2 / len(images)
        passed = bool(np.isfinite(first.numpy()).all()) and torch.equal(first, second)
        yield Finding(
            f"reward {name}",
            passed,
            f"{first.mean().item():.3f} for pictures of noise, {1e3 * seconds:.1f} ms an image",
            "it changes its mind on the same picture, or has no number for it; no advantage can be had from that",
        )


def check_judge(setup: TrainingSetup, cond: Conditioning) -> Finding:
    """Check a judge on two pictures in both orders; `judge_groups` refuses answers outside [0, 1]."""
    judge, records = setup.run.judge, cond.records()[:1]
    assert judge is not None
    if isinstance(judge, Votes):
        return Finding("the judge", None, f"people, who are asked while the run trains: afterflow vote {judge.path}")
    images = setup.model.decode(noise_for(setup, 2, "judge")[:, 0])[None]
    shares, failures = judge_groups(judge, images, records, all_pairs(1, 2), [generator(setup.run.seed, "judge")])
    if failures:
        return Finding("the judge", False, failures[0], "see that its server runs, and what it answers")
    one, other = shares[0, 0, 1].item(), shares[0, 1, 0].item()
    return Finding(
        "the judge", None, f"{one:.2f} and {other:.2f} in the two orders; without a favourite they add up to 1"
    )


def peak_memory(setup: TrainingSetup) -> Finding:
    """Report the largest memory of the device since the recipe is examined, or of the process since it began."""
    if setup.processes.accelerator.device.type == "cuda":
        return Finding("memory", None, f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB at the most on the device")
    import resource

    return Finding("memory", None, f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB at the most")


def relative(a: Tensor, b: Tensor) -> float:
    """Return ‖a − b‖ / ‖b‖."""
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def finding_text(finding: Finding) -> str:
    """Return a line for the console, and a second one where something is to be done."""
    mark = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "    "}[finding.passed]
    check, detail, remedy = (escape(one_line(text)) for text in (finding.check, finding.detail, finding.remedy))
    return f"{mark}  {check}: {detail}" + (f"\n      [red]{remedy}[/]" if finding.passed is False else "")
