"""What a run will need, before a weight is loaded: memory by what takes it, and passes and FLOPs of an iteration.

The network is built without weights, on torch's device `meta`, where a forward and a backward pass compute shapes
alone; what autograd keeps for the backward pass is counted there, and so are FLOPs.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from ..algorithms.base import WIN_RATE, Models, OnPolicy, Scores, explores
from ..data.images import ImageSource
from ..models.adapters import Full, attach
from ..models.base import Model
from ..models.pipeline import PipelineModel, Pretrained
from ..models.quantize import saved_bytes
from ..sampling.conditioning import Conditioning, Embedding, condition
from ..sampling.seeds import generator
from ..train.clock import Clock
from ..train.distributed import Processes
from ..train.explore import ExploreOptions, Explorer, Iteration
from ..train.reward_history import RewardHistory
from .config import Run
from .prompt_checks import held_out_records, prompt_records
from .setup import on_model_schedule

PRECISION = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Forecast:
    memory: dict[str, int]
    """Bytes, by what takes them."""
    rows: dict[str, float]
    """Rows of the network in an iteration, by what asks for them; guidance doubles them."""
    flops: dict[str, float]
    """Of an iteration: forward passes, and forward and backward passes of the update."""
    prompts: int
    """Bytes of encoded prompts, which stay in the CPU's memory."""

    @property
    def bytes(self) -> int:
        return sum(self.memory.values())


def forecast(run: Run) -> Forecast:
    """ValueError for a model whose parts do not exist yet."""
    if not isinstance(run.model, Pretrained):
        raise ValueError(f"{run.name}: the model is made from nothing, so there is nothing to plan with")
    model = run.model.load("meta")
    run = replace(run, algorithm=on_model_schedule(run.algorithm, model))
    precision = PRECISION[run.optimization.mixed_precision]
    spared = saved_bytes(model.module, model.config.quantize) if model.config.quantize is not None else 0
    frozen = stored(model.module.parameters())
    parameters = attach(model, run.tune)
    weights = stored([*model.module.parameters(), *model.vae.parameters()]) - spared
    trained = sum(parameter.numel() for parameter in parameters.values())
    if precision is not None:  # autocast has no device `meta`; the weights in that precision compute in its shapes
        model.module.to(precision)
    if run.optimization.gradient_checkpointing:
        model.module.enable_gradient_checkpointing()  # type: ignore[operator]
    # What images teach is not guided while it learns.
    guided = 1 if not explores(run.algorithm) or run.batches.guidance_scale == 1 else 2
    kept, forward, backward = passes(model, run.batches.chunk * guided)
    rows = rows_of(run)
    memory = {
        "frozen and trained weights": weights,
        "gradients, Adam and EMA": trained
        * (4 + (8 if run.optimization.optimizer == "adamw" else 2) + 4 * (run.optimization.ema_decay is not None)),
        "reference, teachers, anchor": others(run, frozen, trained),
        "weights in the mixed precision": cast(run, frozen),
        "activations of one chunk": kept,
        "states of a rollout": states(run, model),
    }
    per_row = lambda flops: flops / (run.batches.chunk * guided)
    update = rows["update"]
    explored = sum(rows.values()) - update
    flops = {
        "forward only": guided * explored * per_row(forward),
        "forward and backward": guided * update * per_row(forward + backward),
    }
    rows = {name: guided * each for name, each in rows.items()}
    return Forecast(memory, rows, flops, prompts(run, model))


def stored(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def passes(model: PipelineModel, rows: int) -> tuple[int, int, int]:
    """Bytes that autograd keeps of a forward pass of so many rows, its FLOPs, and those of the backward pass."""
    x = torch.zeros(rows, *model.latent_shape, device="meta")
    cond = blank(model)[torch.zeros(rows, dtype=torch.long, device="meta")]
    weights = {parameter.untyped_storage()._cdata for parameter in model.module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    counted, hooks = FlopCounterMode(display=False), torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved)
    with fused_attention(), counted as forward, hooks:
        v = model.velocity(model.module)(x, torch.ones(rows, device="meta"), cond)
    # Where activations are computed again, they are here.
    with fused_attention(), FlopCounterMode(display=False) as backward:
        v.sum().backward()
    return sum(kept.values()), forward.get_total_flops(), backward.get_total_flops()


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention as accelerators compute it, which keep no matrix of weights; the device `meta` would."""
    own = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: object) -> Tensor:
        assert not options.get("is_causal") and not options.get("enable_gqa")
        if attn_mask is None:
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[0]

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


def blank(model: PipelineModel) -> Conditioning:
    """One encoded prompt of the family's shape."""
    length, width, pooled = model.text_shape
    embedding = Embedding(
        torch.zeros(1, length, width, device="meta"),
        None if pooled is None else torch.zeros(1, pooled, device="meta"),
    )
    return condition(embedding, embedding, [{}])


def rows_of(run: Run) -> dict[str, float]:
    """Velocities of an iteration without guidance, by what asks for them; it is run on states of one number."""
    algorithm = run.algorithm
    if not explores(algorithm):
        return {"update": run.batches.batch * algorithm.requirements.evaluations}
    still = lambda x, t, cond: torch.zeros_like(x)
    asks, tasks = algorithm.requirements, [task for teacher in run.teachers for task in teacher.tasks]
    taught = dict.fromkeys(tasks, still)
    models = Models(still, still if asks.reference else None, taught, still if asks.anchor else None)
    embedding = Embedding(torch.zeros(1, 1, 1))
    record = {"prompt": "", **({asks.route: tasks[0]} if asks.route else {})}
    cond = condition(
        embedding, embedding, [record] * run.batches.batch, torch.zeros(run.batches.batch, dtype=torch.long)
    )
    memory = RewardHistory(asks.history) if asks.history else None
    found = tried(algorithm, models, cond, (1,), run.seed, run.batches.chunk, Clock(), memory).metrics
    images = run.batches.batch * algorithm.plan(0, generator(run.seed, 0, "plan")).widths[-1]
    return {name.removeprefix("nfe/"): images * each for name, each in found.items() if name.startswith("nfe/")}


def tried(
    algorithm: OnPolicy,
    models: Models,
    cond: Conditioning,
    shape: Sequence[int],
    seed: int,
    chunk: int,
    clock: Clock,
    memory: RewardHistory | None = None,
) -> Iteration:
    """An iteration of these prompts with one update, on latents of that shape and random scores."""
    score, options = partial(random_scores, algorithm), ExploreOptions(seed, shape, chunk)
    return Explorer(algorithm, models, lambda step: cond, score, options, Processes(), clock, memory).iteration(0)


def random_scores(
    algorithm: OnPolicy, leaves: Tensor, records: Sequence[dict], draws: Sequence[torch.Generator], clock: Clock
) -> Scores:
    """As many as there are images, and no two alike."""
    P, G = leaves.shape[:2]
    value = lambda *shape: torch.rand(shape, generator=draws[0])
    judged = {WIN_RATE: value(P, G, G).where(~torch.eye(G, dtype=torch.bool), torch.nan)}
    rewards = {name: value(P, G) for name in algorithm.requirements.rewards}
    return Scores(rewards, judged if algorithm.requirements.comparisons else {})


def others(run: Run, weights: int, trained: int) -> int:
    """Copies beside the policy: adapters of a LoRA, whole networks where all weights are trained."""
    asks = run.algorithm.requirements
    if isinstance(run.tune, Full):
        return weights * (len(run.teachers) + asks.reference + (asks.anchor == "base"))
    adapters = sum(teacher.lora is not None for teacher in run.teachers)
    return 4 * trained * (adapters + (asks.reference and run.tune.start is not None))


def cast(run: Run, weights: int) -> int:
    """Autocast keeps a copy of full-precision weights until the backward pass is done."""
    assert isinstance(run.model, Pretrained)
    return weights // 2 if run.model.dtype == "float32" and run.optimization.mixed_precision != "no" else 0


def states(run: Run, model: Model) -> int:
    """The states and means of all trees of an iteration, fp32; of a batch of images, its latents and noise.

    Elsewhere they lie in the CPU's memory, but for the last two of a step.
    """
    each = 4 * torch.Size(model.latent_shape).numel()
    if not explores(run.algorithm):
        return 2 * run.batches.batch * each
    widths = run.algorithm.plan(0, generator(run.seed, 0, "plan")).widths
    if run.batches.offload:
        return run.batches.batch * each * 2 * widths[-1]
    return run.batches.batch * each * (sum(widths) + sum(widths[:-1]))


def prompts(run: Run, model: PipelineModel) -> int:
    """Encoded once and kept; captions of a folder are not counted before they are read."""
    texts = {record["prompt"] for record in [*held_out_records(run), *prompt_records(run)]}
    length, width, pooled = model.text_shape
    assert isinstance(run.model, Pretrained)
    size = torch.finfo(getattr(torch, run.model.dtype)).bits // 8
    return (len(texts) + 1) * (length * width + (pooled or 0)) * size


def render(run: Run, found: Forecast) -> Table:
    """As a table, in GiB and TFLOP."""
    table = Table("what", "needs", title=f"{run.name}: {type(run.algorithm).__name__}")
    for name, size in found.memory.items():
        table.add_row(name, f"{size / 2**30:.3f} GiB")
    table.add_row("together", f"{found.bytes / 2**30:.3f} GiB")
    table.add_row("encoded prompts, in the CPU's memory", f"{found.prompts / 2**30:.3f} GiB", end_section=True)
    for name, rows in found.rows.items():
        table.add_row(f"rows an iteration, {name}", f"{rows:.0f}")
    for name, flops in found.flops.items():
        table.add_row(f"TFLOP an iteration, {name}", f"{flops / 1e12:.3f}")
    total = sum(found.flops.values()) * run.batches.iterations
    table.add_row(f"PFLOP in {run.batches.iterations} iterations", f"{total / 1e15:.3f}")
    left_out = "Not counted: reward models, the text encoders while they encode, the decoder's activations"
    table.caption = left_out + (", captions before they are read." if isinstance(run.data, ImageSource) else ".")
    return table
