"""A run is carried out, from its configuration to its result.  Only here models, rewards and data meet an algorithm."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch

from ..algorithms.base import explores
from ..data.images import ImageSource, image_noun
from ..data.prompts import prompt_rows
from ..rewards.functions import check_given
from ..rewards.grouped import all_pairs, judge_groups
from ..rewards.registry import check_judge_sees, check_rewards, resolve_reward
from ..sampling.conditioning import Conditioning
from ..sampling.seeds import generator
from ..system.errors import CheckpointError, ConfigError, TrainingStopped
from ..system.folder_lock import locked_folder
from ..system.launcher import launched_rank
from ..system.messages import show_messages_by_default
from ..system.own_folders import check_place
from ..system.side_outputs import SideOutputs, failure_words
from ..system.streams import lasting_streams
from ..train.clock import Clock
from ..train.cpu_threads import cpu_threads
from ..train.distributed import select_device
from ..train.explore import ExploreOptions, Explorer, Iteration, supervised
from ..train.loop import Trainer, TrainOptions
from ..train.one_pass import OnePass, iterations
from ..train.out_of_memory import explain_out_of_memory
from .config import Run
from .config_checks import check_model
from .contents import check_contents, run_contents
from .first_lines import describe_run, expected_words, pass_seconds
from .function_rewards import check_same_functions
from .group_recorder import GroupRecorder
from .latent_dataset import image_pairs
from .learning_rate import learning_rate_schedule
from .model_card import write_card
from .monitor import RunMonitor
from .network_counts import rollout_ratio
from .passes import NO_ROLLOUT, Passes, setup_passes
from .prompt_checks import check_drawn_size, check_input_pictures, held_out_records, prompt_records
from .prompt_encoder import PromptEncoder
from .provenance import tracker_options, write_record
from .result import Result
from .run_folder import RunFolder, read_record
from .scoring import scorer
from .serialization import to_json
from .setup import TrainingSetup

_log = logging.getLogger(__name__)


def execute(run: Run, recipe: str | None = None, resume: bool = False, accept_changed_data: bool = False) -> Result:
    """Train a run and return its result: the folder, which holds lora/ or model/, the metrics and their plot.

    ConfigError, InputError or CheckpointError is raised before anything is trained where the run cannot be trained as
    configured; TrainingStopped where training cannot go on.

    Args:
        run: The run.
        recipe: The name that reports give to runs of this kind; None takes the algorithm's.
        resume: Whether to go on from the last checkpoint.  Rewards that are functions must be the same ones.
        accept_changed_data: Whether a resumed run may be made from other contents than it began with.
    """
    show_messages_by_default()
    check_given(run.functions)
    if resume:
        check_same_functions(run)
    check_place(run.folder)
    RunFolder(run.folder).check_safe()
    clock = Clock()
    # Rank 0 writes the folder; where it is refused, its launcher ends the others.
    claim = locked_folder(run.folder) if launched_rank() == 0 else nullcontext()
    threads = cpu_threads(run.distribution.threads)
    with lasting_streams(announces=True), claim, SideOutputs() as side, explain_out_of_memory(clock), threads:
        resolve_rewards(run)
        records, held_out = prompt_records(run), held_out_records(run)
        inputs = check_input_pictures(run, [*records, *held_out])
        check_drawn_size(run.model, run.rewards, "--model.size", run.data)
        select_device()
        check_rewards(run.rewards, run.reward_models)
        setup = TrainingSetup.build(run, resume)
        recipe = recipe or type(run.algorithm).__name__
        contents = run_contents(run, records, held_out, setup.model.folder) if setup.processes.main else {}
        start_records(setup, recipe, contents, accept_changed_data)
        if inputs and setup.processes.main:
            RunFolder(run.folder).write_data({"input_pictures": inputs})
        start_tracker(setup, side)
        for line in describe_run(setup, recipe, records, held_out):
            _log.info(line)
        train_setup(setup, records, held_out, clock, side, accept_changed_data)
        save_result(setup, side)
    return Result(run.folder)


def resolve_rewards(run: Run) -> None:
    """Import the rewards of a run that are code by name, and check the model against what they judge.

    ConfigError where nobody but a file named one of them.
    """
    for name in run.rewards:
        resolve_reward(name)
    check_model(run)


def start_records(setup: TrainingSetup, recipe: str, contents: dict[str, str], accept_changed_data: bool) -> None:
    """Write run.json with the digests of what the run is made from.

    CheckpointError where the run is resumed and is made from something else, unless `accept_changed_data`.
    """
    run, processes = setup.run, setup.processes
    if processes.main:
        file, changes = RunFolder(run.folder).record_file, []
        if setup.first and file.is_file():
            changes = check_contents(run.folder, read_record(file), contents, accept_changed_data)
        changes += write_record(run.folder, to_json(run), recipe, run.seed, setup.first, processes.count, contents)
        for sentence in changes:
            _log.info(f"resumed at iteration {setup.first}: {sentence}")


def start_tracker(setup: TrainingSetup, side: SideOutputs) -> None:
    """Open the tracker if the run has one; where that fails, the run goes on without."""
    run, accelerator = setup.run, setup.processes.accelerator
    if run.logging.tracker == "none":
        return
    options = tracker_options(run.folder, run.name) if setup.processes.main else {}
    about = {"run": json.dumps(to_json(run)), "folder": str(run.folder), "page": f"afterflow view {run.folder}"}
    with side.making(f"start of {run.logging.tracker}"):
        accelerator.init_trackers("afterflow", about, options)
        return
    accelerator.trackers = []  # perhaps half open


def train_setup(
    setup: TrainingSetup,
    records: Sequence[dict],
    held_out: Sequence[dict],
    clock: Clock,
    side: SideOutputs,
    accept_changed_data: bool = False,
) -> None:
    """Train from the first iteration to the last, and watch it.

    Args:
        setup: The run, loaded.
        records: The prompts to explore; none where images come with theirs.
        held_out: The held-out prompts.
        clock: The clock that the stages of an iteration are timed by.
        side: What may fail without ending the run.
        accept_changed_data: Whether a resumed run may learn from other pairs than it began with.
    """
    optimization = setup.run.optimization
    recorder = GroupRecorder(setup.algorithm.requirements.weights, side)
    encode = PromptEncoder(setup, held_out, clock)
    source, prompts, passes, drawn = training_data(setup, records, encode, recorder)
    if drawn is not None:
        check_drawn_pairs(setup, drawn, accept_changed_data)
    if isinstance(setup.run.data, ImageSource):
        _log.info(f"  data      {len(prompts)} {image_noun(setup.run.data)} to learn from")
    seconds = pass_seconds(setup, prompts)
    check_before_sampling(setup, prompts, seconds)
    if setup.first < setup.run.batches.iterations:
        _log.info(expected_words(setup, seconds, passes))
    monitor = RunMonitor(setup, prompts, encode.held_out_prompts, clock, side, recorder)
    rate, skip = learning_rate_schedule(setup.run, monitor.budget), optimization.nonfinite == "skip"
    trainer = Trainer(
        setup.algorithm, setup.models, setup.weights, clock, TrainOptions(rate, optimization.max_grad_norm, skip)
    )
    monitor.follow(trainer.train(source))


def save_result(setup: TrainingSetup, side: SideOutputs) -> None:
    """Write the LoRA or pipeline with its model card; a result that exists is whole, and its run has ended.

    TrainingStopped is raised where the disk does not take it.
    """
    run, accelerator = setup.run, setup.processes.accelerator
    result = run.folder / setup.result_name
    try:
        setup.replace_export(result)
    except OSError as error:
        raise TrainingStopped(f"trained, and {failure_words(error)}; {RunFolder(run.folder).advice()}") from error
    if setup.processes.main:
        with side.making("the model card"):
            write_card(run, result)
    for tracker in accelerator.trackers:
        with side.making(f"end of {tracker.name}"):
            tracker.finish()
    accelerator.trackers = []
    accelerator.end_training()


class TrainingData(NamedTuple):
    """What a run trains on."""

    source: Iterator[Iteration | OnePass]
    """The iterations."""
    prompts: Conditioning
    """The encoded prompts that they are about."""
    passes: Passes
    drawn: str | None = None
    """Digest of which images are the pairs that were drawn for the run; None where there are none."""


def check_drawn_pairs(setup: TrainingSetup, drawn: str, accept_changed_data: bool) -> None:
    """Check that all processes have the same drawn pairs, and a resumed run those that it began with.

    CheckpointError says what is to be done.
    """
    folder = RunFolder(setup.run.folder)
    if len(set(setup.processes.all_gather_objects(drawn))) > 1:
        raise CheckpointError(
            "the processes have drawn or judged other pairs than each other; let them share a cache (data.cache), or "
            "draw the pairs with one process first"
        )
    if not setup.processes.main:
        return
    begun = folder.data().get("drawn_pairs") if setup.first else None
    if begun is not None and begun != drawn and not accept_changed_data:
        raise CheckpointError(
            f"{folder.path}: pairs are drawn or judged otherwise than when the run began, as a judge that varies or a "
            "lost cache can make them; go on with those of now by --accept-changed-data, or start anew"
        )
    folder.write_data({"drawn_pairs": drawn})


def training_data(
    setup: TrainingSetup, records: Sequence[dict], encode: PromptEncoder, recorder: GroupRecorder
) -> TrainingData:
    """Return what a run trains on."""
    run, model, batches = setup.run, setup.model, setup.run.batches
    steps = range(setup.first, batches.iterations)
    if isinstance(run.data, ImageSource):
        images = image_pairs(run, run.data, model, encode, setup.models.reference, setup.processes)
        if setup.processes.main:
            RunFolder(run.folder).write_data({"images": len(images.prompts), "left_out": images.left_out})
        options = {"seed": run.seed, "chunk": batches.chunk, "processes": setup.processes}
        source = supervised(setup.algorithm, images.pairs, steps, **options)
        return TrainingData(source, images.prompts, NO_ROLLOUT, images.drawn)
    assert explores(setup.algorithm)
    prompts = encode(records)
    explorer = Explorer(
        setup.algorithm,
        setup.models,
        lambda step: prompts[prompt_rows(records, batches.tag_schedule, step, batches.batch, run.seed)],
        scorer(model, setup.algorithm, run.judge, run.reward_models, recorder),
        ExploreOptions(
            seed=run.seed,
            latent_shape=model.latent_shape,
            chunk=batches.chunk,
            updates=batches.updates,
            states_device="cpu" if batches.offload else None,
            max_missing=batches.max_missing,
            overlap=batches.overlap,
            low_noise=model.low_noise,
        ),
        setup.processes,
        encode.clock,
        setup.weights.history,
    )
    passes = setup_passes(setup, prompts)
    _log.info(f"  passes    {passes.words}")
    return TrainingData(iterations(explorer, steps, passes.retained_rows), prompts, passes)


def check_before_sampling(setup: TrainingSetup, prompts: Conditioning, seconds_per_pass: float) -> None:
    """Check that the judge answers sensibly and the budget lasts for one rollout.  ConfigError says what to change."""
    if not explores(setup.algorithm):
        return
    if setup.run.judge is not None:
        blank = torch.zeros(2, *setup.model.latent_shape, device=prompts.device)
        images, streams = setup.model.decode(blank)[None], [generator(setup.run.seed, "probe")]
        _, failures = judge_groups(setup.run.judge, images, [prompts.prompts[0]], all_pairs(1, 2), streams)
        if failures:
            raise ConfigError(f"the judge does not work here: {failures[0]}")
        check_judge_sees(setup.run.judge, setup.run.reward_models)
    budget = setup.run.batches.budget_seconds
    if budget is not None:
        seconds = rollout_seconds(setup, seconds_per_pass)
        if seconds > budget:
            raise ConfigError(
                f"budget_seconds = {budget:g}: the rollout of one iteration takes about {seconds:.2g} s; raise it, or "
                "lower batch"
            )


def rollout_seconds(setup: TrainingSetup, seconds_per_pass: float) -> float:
    """Return the seconds of one iteration's forward passes, from those of one."""
    batches = setup.run.batches
    assert explores(setup.algorithm)
    plan = setup.algorithm.plan(0, generator(setup.run.seed, 0, "plan"))
    # The timed pass is the update's.
    rows = plan.evaluations * plan.widths[-1] * batches.batch * rollout_ratio(setup.run)
    passes = rows / batches.chunk / setup.processes.count
    return passes * seconds_per_pass
