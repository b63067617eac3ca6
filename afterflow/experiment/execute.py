"""A run carried out.  Only here do borders meet algorithms."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..algorithms.base import explores
from ..data.images import ImageSource
from ..data.prompts import prompt_rows
from ..models.generate import encoded
from ..rewards.grouped import all_pairs, judge_groups
from ..rewards.registry import check_rewards
from ..sampling.conditioning import Conditioning
from ..sampling.seeds import generator
from ..train.budget import Budget
from ..train.checkpoint import WeightState
from ..train.clock import Clock
from ..train.distributed import select_device
from ..train.explore import ExploreOptions, Explorer, Iteration, supervised
from ..train.loop import Trainer, TrainOptions
from ..train.out_of_memory import explain_out_of_memory
from .config import Run
from .latent_dataset import image_pairs
from .learning_rate import learning_rate
from .model_card import write_card
from .monitor import Window, follow
from .prompt_checks import held_out_records, prompt_records
from .provenance import tracker_options, write_record
from .scoring import scorer
from .serialization import to_json
from .setup import Session, prepare


def execute(run: Run, recipe: str, resume: bool = False) -> Path:
    """Train as configured; the run's folder, with `lora/` or `model/` in it when done.

    ValueError before anything is trained when the configuration cannot be run, TrainingStopped when training cannot
    go on.
    """
    records = prompt_records(run)
    held_out = held_out_records(run)
    select_device()
    check_rewards(run.rewards, run.reward_models)
    clock = Clock()
    with explain_out_of_memory(clock):
        session = prepare(run, resume)
        train_on(run, recipe, session, records, held_out, clock)
    return run.folder


def train_on(
    run: Run, recipe: str, session: Session, records: Sequence[dict], held_out: Sequence[dict], clock: Clock
) -> None:
    """From the iteration that the session begins with to the result."""
    processes = session.processes
    if processes.main:
        for sentence in write_record(run.folder, to_json(run), recipe, run.seed, session.first, processes.count):
            print(f"resumed at iteration {session.first}: {sentence}")
    if run.logging.tracker != "none":
        options = tracker_options(run.folder, run.name) if processes.main else {}
        processes.accelerator.init_trackers("afterflow", {"run": json.dumps(to_json(run))}, options)
    budget = Budget(run.batches.iterations, run.batches.budget_seconds)
    with processes.accelerator.local_main_process_first():  # what the first has encoded, others find in the cache
        source, prompts = examples(session, records, clock)
        watched_prompts = encoded(session.model, held_out) if held_out else None
    check_before_sampling(session, prompts)
    optimization = run.optimization
    options = TrainOptions(learning_rate(run, budget), optimization.max_grad_norm, optimization.nonfinite == "skip")
    weights = WeightState(session.parameters, session.optimizer, session.ema, processes=processes)
    steps = Trainer(session.run.algorithm, session.models, weights, clock, options).train(source)
    follow(session, steps, Window(session, prompts, watched_prompts), budget, clock)
    result = run.folder / session.kind
    partial = result.with_suffix(".partial")  # a result that is there is whole, and its run has ended
    if processes.main:
        shutil.rmtree(partial, ignore_errors=True)
    session.leave(partial)
    if processes.main:
        shutil.rmtree(result, ignore_errors=True)
        partial.rename(result)
        write_card(run, result)
    processes.accelerator.end_training()


def examples(session: Session, records: Sequence[dict], clock: Clock) -> tuple[Iterator[Iteration], Conditioning]:
    """The iterations to train on, and the encoded prompts they are about."""
    run, model, batches, processes = session.run, session.model, session.run.batches, session.processes
    iterations = range(session.first, batches.iterations)
    if isinstance(run.data, ImageSource):
        pairs, prompts = image_pairs(run, run.data, model)
        options = {"seed": run.seed, "chunk": batches.chunk, "processes": processes}
        return supervised(run.algorithm, pairs, iterations, **options), prompts
    assert explores(run.algorithm)
    prompts = encoded(model, records)
    explorer = Explorer(
        run.algorithm,
        session.models,
        lambda step: prompts[prompt_rows(records, batches.tag_schedule, step, batches.batch, run.seed)],
        scorer(model, run.algorithm, run.judge, run.reward_models),
        ExploreOptions(
            seed=run.seed,
            latent_shape=model.latent_shape,
            chunk=batches.chunk,
            updates=batches.updates,
            states_device="cpu" if batches.offload else None,
            max_missing=batches.max_missing,
            overlap=batches.overlap,
        ),
        processes,
        clock,
        session.memory,
    )
    return explorer.iterations(iterations), prompts


def check_before_sampling(session: Session, prompts: Conditioning) -> None:
    """ValueError for a judge that answers nonsense, and for a budget too short for the rollout of one iteration."""
    run, algorithm = session.run, session.run.algorithm
    if not explores(algorithm):
        return
    if run.judge is not None:
        like = torch.zeros(2, *session.model.latent_shape, device=prompts.index.device)
        blank, record = session.model.decode(like)[None], [prompts.prompts[0]]
        _, failures = judge_groups(run.judge, blank, record, all_pairs(1, 2), [generator(run.seed, "probe")])
        if failures:
            raise ValueError(f"the judge does not work here: {failures[0]}")
    if run.batches.budget_seconds is not None:
        plan = algorithm.plan(0, generator(run.seed, 0, "plan"))
        passes = plan.evaluations * plan.widths[-1] * run.batches.batch / run.batches.chunk / session.processes.count
        rows = prompts[torch.arange(run.batches.chunk) % len(prompts)]
        x = torch.zeros(run.batches.chunk, *session.model.latent_shape, device=prompts.index.device)
        forward = lambda: session.models.policy(x, x.new_ones(run.batches.chunk), rows)
        with torch.no_grad():
            forward()  # the first pass also warms up
            start = time.perf_counter()
            forward()
        least = passes * max(session.processes.all_gather_objects(time.perf_counter() - start))
        if least > run.batches.budget_seconds:
            takes = f"the rollout of one iteration takes about {least:.2g} s"
            raise ValueError(f"budget_seconds = {run.batches.budget_seconds:g}: {takes}; raise it, or lower batch")
