"""The memory and the FLOPs that a run will need, counted before a weight is loaded.

network_counts.py counts the network; here its counts are multiplied by the rows of the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rich.table import Column, Table
from torch import Tensor

from ..algorithms.base import WIN_RATE, Models, OnPolicy, Scores, explores
from ..algorithms.forward_process import learns_from_finished
from ..data.images import ImageSource
from ..data.pairs import SampledPairs
from ..models.adapters import Full
from ..models.base import default_device
from ..models.families import FAMILIES
from ..sampling.conditioning import Conditioning, Embedding, condition
from ..sampling.seeds import generator
from ..system.input_pictures import prompt_key
from ..train.clock import Clock
from ..train.distributed import Processes
from ..train.explore import ExploreOptions, Explorer, Iteration
from ..train.reward_history import RewardHistory
from .config import Run, on_model_schedule
from .network_counts import NetworkCounts, network_counts, reference_ratio, rollout_ratio, rows_of_pass
from .passes import NO_ROLLOUT, Passes, choose_passes, copied_networks, graph_memory
from .prompt_checks import held_out_records, prompt_records


@dataclass(frozen=True)
class CostEstimate:
    """Memory, rows and FLOPs of a run."""

    memory: dict[str, int]
    """Bytes of accelerator memory, by what needs them."""
    rows: dict[str, float]
    """Rows of the network in an iteration, by what needs them.  Guidance doubles them."""
    flops: dict[str, float]
    """FLOPs of an iteration: of forward passes alone, and of the update's forward and backward passes."""
    prompts: int
    """Bytes of encoded prompts, which stay in CPU memory."""
    passes: Passes
    """Whether the update computes the rollout again."""

    @property
    def total_bytes(self) -> int:
        """All bytes of accelerator memory."""
        return sum(self.memory.values())


def estimate_cost(run: Run) -> CostEstimate:
    """Count what a run needs."""
    network = network_counts(run)
    run = run.with_options(algorithm=on_model_schedule(run.algorithm, network.schedule))
    rows, guided = count_rows(run), rows_of_pass(run) // run.batches.chunk
    passes = passes_of(run, network)
    memory = memory_needs(run, network, passes)
    per_row = lambda flops: flops / (run.batches.chunk * guided)
    update = rows["update"]
    explored = sum(rows.values()) - update
    if passes.retained_rows:  # the forward passes of the update are those of the rollout
        explored -= update
    flops = {
        "forward only": guided * explored * per_row(network.forward),
        "forward and backward": guided * update * per_row(network.forward + network.backward),
    }
    rows = {name: guided * count for name, count in rows.items()}
    return CostEstimate(memory, rows, flops, prompt_bytes(run, network), passes)


def passes_of(run: Run, network: NetworkCounts) -> Passes:
    """Return whether the update of a run, on the model's own schedule, computes the rollout again."""
    if not explores(run.algorithm):
        return NO_ROLLOUT
    limit = graph_memory(run, default_device(), network.computed, network.trained)
    return choose_passes(run, run.algorithm, network.saved / run.batches.chunk, limit)


def memory_needs(run: Run, network: NetworkCounts, passes: Passes) -> dict[str, int]:
    """Return the bytes of accelerator memory that a run needs, by what needs them."""
    trained, chunk = network.trained, run.batches.chunk
    # Of winner and loser; and the passes of a unit that one backward pass takes whole.
    passes_of_unit = -(-run.algorithm.unit_rows // chunk) if learns_from_finished(run.algorithm) else 1
    waiting = max(chunk * (passes_of_unit + run.algorithm.requirements.pairs), passes.retained_rows)
    return {
        "frozen and trained weights": network.weights,
        "gradients, Adam and EMA": trained
        * (4 + (8 if run.optimization.optimizer == "adamw" else 2) + 4 * (run.optimization.ema_decay is not None)),
        "reference, teachers, averages": copy_bytes(run, network.frozen, trained),
        "weights in the mixed precision": cast_bytes(run, network.frozen),
        "graphs until their backward pass": network.saved * waiting // chunk,
        "states of a rollout": rollout_bytes(run, network),
    }


def count_rows(run: Run) -> dict[str, float]:
    """Return the velocities of an iteration, in those of the update, by what needs them.

    The iteration is run on states of one number.
    """
    algorithm = run.algorithm
    if not explores(algorithm):
        images = run.batches.batch * algorithm.requirements.evaluations
        return {"update": images, **({"reference": images} if algorithm.requirements.reference is not None else {})}
    still = lambda x, t, cond: torch.zeros_like(x)
    requirements, tasks = algorithm.requirements, [task for teacher in run.teachers for task in teacher.tasks]
    taught = dict.fromkeys(tasks, still)
    reference, anchor = (still if part else None for part in (requirements.reference, requirements.anchor))
    models = Models(still, reference, taught, anchor, lagged=dict.fromkeys(requirements.lagged, still))
    embedding = Embedding(torch.zeros(1, 1, 1))
    record = {"prompt": "", **({requirements.route: tasks[0]} if requirements.route else {})}
    cond = condition(
        embedding, embedding, [record] * run.batches.batch, torch.zeros(run.batches.batch, dtype=torch.long)
    )
    history = RewardHistory(requirements.history) if requirements.history else None
    options = ExploreOptions(run.seed, (1,), run.batches.chunk, run.batches.updates)
    metrics = trial_iteration(algorithm, models, cond, options, Clock(), history).metrics
    images = run.batches.batch * algorithm.plan(0, generator(run.seed, 0, "plan")).widths[-1]
    rows = {name.removeprefix("nfe/"): images * count for name, count in metrics.items() if name.startswith("nfe/")}
    rows["rollout"] *= rollout_ratio(run)
    if requirements.reference is not None:
        rows["reference"] *= reference_ratio(run, requirements.reference)
    return rows


def trial_iteration(
    algorithm: OnPolicy,
    models: Models,
    cond: Conditioning,
    options: ExploreOptions,
    clock: Clock,
    history: RewardHistory | None = None,
) -> Iteration:
    """Return an iteration with random scores.

    Args:
        algorithm: The method that explores.
        models: The velocities it calls.
        cond: The prompts of the iteration.
        options: Seed, shape of latents and rows of a pass.
        clock: The clock that times the stages.
        history: Earlier rewards, where the method needs them.
    """
    score = partial(random_scores, algorithm)
    return Explorer(algorithm, models, lambda step: cond, score, options, Processes(), clock, history).iteration(0)


def random_scores(
    algorithm: OnPolicy, leaves: Tensor, records: Sequence[dict], streams: Sequence[torch.Generator], clock: Clock
) -> Scores:
    """Return random scores of all images, no two alike.

    Args:
        algorithm: The method, which says which rewards it needs.
        leaves: Finished latents (P, G, ...).
        records: P records, which random scores do not read.
        streams: Generators; the first one is used.
        clock: The clock of the iteration, which random scores do not need.
    """
    P, G = leaves.shape[:2]
    value = lambda *shape: torch.rand(shape, generator=streams[0])
    judged = {WIN_RATE: value(P, G, G).where(~torch.eye(G, dtype=torch.bool), torch.nan)}
    rewards = {name: value(P, G) for name in algorithm.requirements.rewards}
    return Scores(rewards, judged if algorithm.requirements.comparisons else {})


def copy_bytes(run: Run, weights: int, trained: int) -> int:
    """Return the bytes of copies beside the policy: adapters of a LoRA, or networks where all weights are trained."""
    requirements = run.algorithm.requirements
    if isinstance(run.tune, Full):
        return weights * copied_networks(run)
    reference = requirements.reference
    start = reference is not None and reference.model == "start" and run.tune.start is not None
    adapters = sum(teacher.lora is not None for teacher in run.teachers) + start + len(requirements.lagged)
    return 4 * trained * adapters


def cast_bytes(run: Run, weights: int) -> int:
    """Return the bytes of autocast's copy of full-precision weights, which lives until the backward pass is done."""
    return weights // 2 if run.model.dtype == "float32" and run.optimization.mixed_precision != "no" else 0


def rollout_bytes(run: Run, network: NetworkCounts) -> int:
    """Return the bytes of an iteration's states and means in fp32; of a batch of images, of latents and noise.

    With offload they lie in CPU memory, but for the last two of a step.
    """
    state = 4 * torch.Size(network.latent_shape).numel()
    if not explores(run.algorithm):
        return (2 + run.algorithm.requirements.pairs) * run.batches.batch * state
    plan = run.algorithm.plan(0, generator(run.seed, 0, "plan"))
    widths = plan.widths
    if run.batches.offload or not plan.states:
        return run.batches.batch * state * 2 * widths[-1]
    return run.batches.batch * state * (sum(widths) + sum(widths[:-1]))


def prompt_bytes(run: Run, network: NetworkCounts) -> int:
    """Return the bytes of all encoded prompts and of their pictures' latents, a request about each picture by itself.

    Captions of a folder are not counted before they are read.
    """
    prompts = {prompt_key(record) for record in [*held_out_records(run), *prompt_records(run)]}
    length, width, pooled = network.text_shape
    size = torch.finfo(getattr(torch, run.model.dtype)).bits // 8
    empty = len(prompts) if FAMILIES[type(run.model)].reads_pictures else 1
    pictures = sum(len(names) for _, names in prompts) * torch.Size(network.input_shape).numel()
    return (len(prompts) + empty) * (length * width + (pooled or 0)) * size + 4 * pictures


def cost_table(run: Run, cost: CostEstimate) -> Table:
    """Return the estimate as a table, in GiB and TFLOP."""
    table = Table(
        Column("what", overflow="fold"),
        Column("needs", overflow="fold"),
        title=f"{run.name}: {type(run.algorithm).__name__}",
    )
    for name, size in cost.memory.items():
        table.add_row(name, f"{size / 2**30:.3f} GiB")
    table.add_row("together", f"{cost.total_bytes / 2**30:.3f} GiB")
    table.add_row("encoded prompts, in the CPU's memory", f"{cost.prompts / 2**30:.3f} GiB", end_section=True)
    if cost.passes.words:
        table.add_row("passes", cost.passes.words)
    for name, rows in cost.rows.items():
        table.add_row(f"rows an iteration, {name}", f"{rows:.0f}")
    for name, flops in cost.flops.items():
        table.add_row(f"TFLOP an iteration, {name}", f"{flops / 1e12:.3f}")
    total = sum(cost.flops.values()) * run.batches.iterations
    table.add_row(f"PFLOP in {run.batches.iterations} iterations", f"{total / 1e15:.3f}")
    left_out = "Not counted: reward models, the text encoders while they encode, the decoder's activations"
    if isinstance(run.data, ImageSource):
        drawn = isinstance(run.data, SampledPairs)
        left_out += ", the images that pairs are made of" if drawn else ", captions before they are read"
    table.caption = f"{left_out}."
    return table
