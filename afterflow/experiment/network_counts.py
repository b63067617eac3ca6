"""The weights, FLOPs and activations of a network, counted before a weight is loaded, and kept in the cache folder.

The network is built without weights, on torch's device `meta`, where a forward and a backward pass compute shapes
alone.  What autograd saves for the backward pass is counted there, and so are FLOPs.  That takes the libraries of the
network, which need seconds to import; counts that are kept take none of them.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..algorithms.base import Reference, explores
from ..algorithms.forward_process import learns_from_finished
from ..models.adapters import attach
from ..models.base import cache_folder, caching
from ..models.pipeline import Model
from ..models.pipeline_files import locate
from ..models.quantize import saved_bytes
from ..sampling.conditioning import Conditioning, Embedding, condition
from ..sampling.schedules import AnySchedule
from ..system.atomic_files import make_folder, write_text_atomically
from ..system.errors import ConfigError, InputError
from ..system.stamps import file_stamps, options_digest, source_digest
from ..system.text_files import read_json
from .config import Run
from .passes import graph_bytes, tensor_bytes
from .prompt_checks import number_of_inputs
from .serialization import from_json, to_json

_log = logging.getLogger(__name__)

PRECISION = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
COUNTING = ("models", "experiment/network_counts.py", "experiment/passes.py")
"""What of afterflow counts: a change of it makes the counts anew."""


@dataclass(frozen=True)
class NetworkCounts:
    """What a network and what is trained of it need, and the shapes of what goes in."""

    frozen: int
    """Bytes of the network's weights before anything is attached to it or stored in fewer bits."""
    weights: int
    """Bytes of all weights as they are stored: network, adapters and autoencoder, with their buffers."""
    computed: int
    """Bytes of the network's weights and adapters in the precision that passes compute in."""
    trained: int
    """Number of weights that are trained."""
    saved: int
    """Bytes that autograd saves in the forward pass of a chunk."""
    forward: int
    """FLOPs of the forward pass of a chunk."""
    backward: int
    """FLOPs of its backward pass."""
    latent_shape: tuple[int, ...]
    """Shape of one image's latents."""
    input_shape: tuple[int, ...]
    """Shape of the latents of an input picture."""
    text_shape: tuple[int, int, int | None]
    """Number and width of the vectors of an encoded prompt, and the width of the pooled one if there is one."""
    schedule: AnySchedule
    """The sampling grid of the pipeline."""

    def of_chunk(self, chunk: int, counted: int) -> "NetworkCounts":
        """Return the counts for passes of `chunk` rows, where these are of `counted`; what a pass needs is linear."""
        scaled = {name: getattr(self, name) * chunk // counted for name in ("saved", "forward", "backward")}
        return replace(self, **scaled)


def network_counts(run: Run) -> NetworkCounts:
    """Return the counts of a run's network, from the cache where it has been counted before."""
    if isinstance(getattr(run.tune, "start", None), str):
        return count_network(run)  # its layers are those of a file that may change
    file = cache_folder() / "counts" / f"{counts_key(run)}.json"
    counts = read_counts(file)
    if counts is None:
        counts = count_network(run)
        with caching(file):
            make_folder(file.parent)
            write_text_atomically(file, json.dumps(to_json(counts), indent=1) + "\n")
    return counts


def rows_of_pass(run: Run) -> int:
    """Return the rows of a chunk of the update.  Guidance doubles them; what images teach has none."""
    guided = explores(run.algorithm) and not learns_from_finished(run.algorithm)
    return run.batches.chunk * (rollout_rows(run) if guided else 1)


def rollout_rows(run: Run) -> int:
    """Return the rows of the network for each velocity of a rollout: guidance doubles them."""
    return 1 if not explores(run.algorithm) or run.batches.guidance_scale == 1 else 2


def rollout_ratio(run: Run) -> float:
    """Return the rows of the network for a velocity of a rollout, over those of the update, which may be unguided."""
    return rollout_rows(run) * run.batches.chunk / rows_of_pass(run)


def reference_ratio(run: Run, reference: Reference) -> float:
    """Return the rows of the network for a velocity of a reference, over those of the update."""
    if reference.guidance_scale is None:
        return 1.0
    return (1 if reference.guidance_scale == 1 else 2) * run.batches.chunk / rows_of_pass(run)


def counts_key(run: Run) -> str:
    """Return a digest of all that decides the counts: options, the pipeline's files, libraries, and what counts."""
    options = {
        "model": [type(run.model).__name__, to_json(run.model)],
        "tune": [type(run.tune).__name__, to_json(run.tune)],
        "precision": run.optimization.mixed_precision,
        "checkpointing": run.optimization.gradient_checkpointing,
        "rows": rows_of_pass(run),
        "inputs": number_of_inputs(run),
        "files": file_stamps(locate(run.model.path, run.model.revision, weights=False)),
        "libraries": {name: version(name) for name in ("torch", "diffusers", "peft")},
        "afterflow": source_digest(COUNTING),
    }
    return options_digest(options)


def read_counts(file: Path) -> NetworkCounts | None:
    """Return the counts in a file of the cache; None where there is none that can be read."""
    if not file.is_file():
        return None
    try:
        return from_json(NetworkCounts, read_json(file), str(file))
    except (InputError, ConfigError, TypeError, AttributeError) as error:
        _log.warning(f"{file} in the cache cannot be read and is made anew: {error}")
        return None


def count_network(run: Run) -> NetworkCounts:
    """Build a run's network without weights, and count what it needs."""
    model = run.model.load("meta")
    precision = PRECISION[run.optimization.mixed_precision]
    quantized = saved_bytes(model.module, model.config.quantize) if model.config.quantize is not None else 0
    frozen = tensor_bytes(model.module.parameters())
    parameters = attach(model, run.tune)
    buffers = [*model.module.buffers(), *model.vae.buffers()]
    weights = tensor_bytes([*model.module.parameters(), *model.vae.parameters(), *buffers]) - quantized
    trained = sum(parameter.numel() for parameter in parameters.values())
    if precision is not None:  # autocast has no device `meta`; the weights in that precision compute in its shapes
        model.module.to(precision)
    if run.optimization.gradient_checkpointing:
        model.module.enable_gradient_checkpointing()  # type: ignore[operator]
    saved, forward, backward = count_passes(model, rows_of_pass(run), number_of_inputs(run))
    computed = tensor_bytes(model.module.parameters())
    shapes = {name: getattr(model, name) for name in ("latent_shape", "input_shape", "text_shape", "schedule")}
    return NetworkCounts(frozen, weights, computed, trained, saved, forward, backward, **shapes)


def count_passes(model: Model, rows: int, inputs: int = 0) -> tuple[int, int, int]:
    """Return the bytes that autograd saves in a forward pass of so many rows, its FLOPs, and the backward pass's.

    inputs: number of pictures that each prompt is about.
    """
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.zeros(rows, *model.latent_shape, device="meta")
    cond = blank_prompt(model, inputs)[torch.zeros(rows, dtype=torch.long)]
    velocities: list[Tensor] = []

    def compute() -> Tensor:
        velocities.append(model.velocity(model.module)(x, torch.ones(rows, device="meta"), cond))
        return velocities[0]

    with fused_attention(), FlopCounterMode(display=False) as forward:
        saved = graph_bytes(compute, model.module)
    # Where activations are computed again, they are here.
    with fused_attention(), FlopCounterMode(display=False) as backward:
        velocities[0].sum().backward()
    return saved, forward.get_total_flops(), backward.get_total_flops()


@contextmanager
def fused_attention() -> Iterator[None]:
    """Compute attention as accelerators do, without a stored matrix of weights; the device `meta` would store it."""
    original = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: object) -> Tensor:
        assert not options.get("is_causal") and not options.get("enable_gqa")
        if attn_mask is None:
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[0]

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def blank_prompt(model: Model, inputs: int) -> Conditioning:
    """Return one encoded prompt of the family's shape, about so many pictures."""
    length, width, pooled = model.text_shape
    embedding = Embedding(
        torch.zeros(1, length, width, device="meta"),
        None if pooled is None else torch.zeros(1, pooled, device="meta"),
    )
    if inputs:
        embedding = embedding._replace(pictures=torch.zeros(1, inputs, *model.input_shape, device="meta"))
    return condition(embedding, embedding, [{}])
