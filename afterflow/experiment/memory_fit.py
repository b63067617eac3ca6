"""How a run fits a card of so much memory: with the same prompts, images, steps, seeds and number of updates.

What may change is how much is computed at once and where it waits: the chunk of a forward pass, whether activations are
computed again, whether states of rollouts wait in the CPU's memory, and in how many bits frozen weights are stored.
The last alone moves what the network predicts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..algorithms.base import explores
from ..models.adapters import LoRA
from ..system.errors import ConfigError, MissingDependencyError
from .config import Run, on_model_schedule
from .cost_estimate import memory_needs, passes_of
from .network_counts import NetworkCounts, network_counts

SHARE = 0.9
"""Share of a card that a run may fill by this count; the rest is for the decoder, the driver and gaps."""
SMALL_CHUNK = 4
"""By how much a chunk may shrink before something else is tried: small passes leave a card idle."""
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "offload": True},
    {"gradient_checkpointing": True, "offload": True, "quantize": "int8"},
    {"gradient_checkpointing": True, "offload": True, "quantize": "nf4"},
)
"""Changes that are tried one after another, each with smaller and smaller chunks."""


@dataclass(frozen=True)
class MemoryFit:
    """A run that fits, and how."""

    run: Run
    """The run with its changes."""
    bytes_needed: int
    """Bytes of accelerator memory that it needs."""
    changes: dict[str, tuple[Any, Any]]
    """Option → what it was and what it is now."""

    def sentence(self, gigabytes: float) -> str:
        """Say in one line what was changed and what that comes to."""
        what = ", ".join(f"{name} {was} → {now}" for name, (was, now) in self.changes.items()) or "nothing is changed"
        bits = "; frozen weights in fewer bits predict a little otherwise" if "model.quantize" in self.changes else ""
        return (
            f"fit {gigabytes:g} GB: {what}{bits}; counted {self.bytes_needed / 10**9:.1f} GB, of which the decoder, "
            "reward models and text encoders are no part"
        )


def fit_run(run: Run, gigabytes: float) -> MemoryFit:
    """Return the run as it fits a card of so many gigabytes (10⁹ bytes), with as little changed as that takes.

    ConfigError says what the smallest variant needs where none fits.
    """
    if not gigabytes > 0:
        raise ConfigError(f"--fit {gigabytes:g}: the memory of a card in GB, such as 24")
    limit, large = SHARE * gigabytes * 10**9, max(1, run.batches.chunk // SMALL_CHUNK)
    small: MemoryFit | None = None
    smallest: MemoryFit | None = None
    for fit in fitted_variants(run):
        if fit.bytes_needed <= limit and fit.run.batches.chunk >= large:
            return fit
        if fit.bytes_needed <= limit and small is None:
            small = fit
        smallest = fit if smallest is None or fit.bytes_needed < smallest.bytes_needed else smallest
    if small is not None:
        return small
    assert smallest is not None
    raise ConfigError(
        f"--fit {gigabytes:g}: {run.name} needs {smallest.bytes_needed / 10**9:.1f} GB at least, and "
        f"{limit / 10**9:.1f} GB of such a card are counted with; take a smaller model or model.size{missing_bits(run)}"
    )


def fitted_variants(run: Run) -> Iterator[MemoryFit]:
    """Yield the run in every way, each with chunks from its own down to 1; what it refuses is left out."""
    for way in WAYS:
        changed = with_way(run, way)
        if changed is None:
            continue
        counts, chunk = network_counts(changed), run.batches.chunk
        while chunk:
            smaller = changed.with_options(chunk=chunk)
            yield MemoryFit(smaller, needed_bytes(smaller, counts, run.batches.chunk), changed_options(run, smaller))
            chunk = -(-chunk // 2) if chunk > 1 else 0


def missing_bits(run: Run) -> str:
    """Return how frozen weights could be stored in fewer bits, where a library for that is missing."""
    if not isinstance(run.tune, LoRA):
        return ""
    try:
        replace(run.model, quantize=run.model.quantize or "nf4")
    except MissingDependencyError as error:
        return f", or let frozen weights have fewer bits: {error}"
    return ""


def with_way(run: Run, way: dict[str, Any]) -> Run | None:
    """Return the run with these changes; None where one cannot be made."""
    # States of rollouts can wait elsewhere, and a run that learns from images has none.
    idle = {"quantize"} if explores(run.algorithm) else {"quantize", "offload"}
    options = {name: value for name, value in way.items() if name not in idle}
    if "quantize" in way:
        if not isinstance(run.tune, LoRA) or run.model.quantize is not None:
            return None
        try:
            options["model"] = replace(run.model, quantize=way["quantize"])
        except MissingDependencyError:
            return None
    try:
        return run.with_options(**options)
    except ConfigError:
        return None


def needed_bytes(run: Run, counts: NetworkCounts, chunk: int) -> int:
    """Return the bytes that a run needs in two passes, by counts of its network for passes of `chunk` rows.

    One pass is taken only where its graphs fit as well.
    """
    network = counts.of_chunk(run.batches.chunk, chunk)
    run = run.with_options(algorithm=on_model_schedule(run.algorithm, network.schedule))
    two = run if run.batches.retained_rows is not None else run.with_options(retained_rows=0)
    return sum(memory_needs(two, network, passes_of(two, network)).values())


def changed_options(run: Run, changed: Run) -> dict[str, tuple[Any, Any]]:
    """Return the options that differ, by their names."""
    values = lambda r: {
        "chunk": r.batches.chunk,
        "gradient_checkpointing": r.optimization.gradient_checkpointing,
        "offload": r.batches.offload,
        "model.quantize": r.model.quantize,
    }
    before, after = values(run), values(changed)
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}
