"""Whole released networks with random weights on a CPU: one training iteration of two methods, and what must hold.

    python bench/real_size_cpu.py --json bench/results/real_size_cpu.json ["MODEL, METHOD" ...]
    python bench/real_size.py --cpu            # the same

All blocks of each network, weights in bf16, a LoRA in fp32, activations computed again in the backward pass: one
prompt, two images of two steps.  Text encoders and the autoencoder are left out; prompts are random numbers of the
encoders' shapes.  A pair of a model and a method has a process of its own, and pairs that the file holds are not made
again.  Each is measured in this order:

    iteration  ratios, gradients on every adapted layer, CPU seconds, and the peak of the resident set beside what
               `afterflow train --plan` counts for the same run
    resume     in small: a second iteration, and the same one from the checkpoint with all that is trained overwritten
    lora       in small: velocities of what is trained, and of its file as load_lora_weights of the stock pipeline
               reads it

CPU seconds are those of the process: other programs may share the machine, so that seconds of a clock say little.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from harness import failure, make_parser, provenance, read_json, write_json
from real_size import materialise, prompts
from released import released
from torch import Tensor, nn

from afterflow.algorithms.base import OnPolicy
from afterflow.algorithms.diffusion_nft import DiffusionNFT
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.prompts import PromptFile
from afterflow.experiment.config import Run, on_model_schedule
from afterflow.experiment.cost_estimate import CostEstimate, estimate_cost, random_scores
from afterflow.experiment.passes import tensor_bytes
from afterflow.experiment.setup import start_processes, weight_state
from afterflow.experiment.velocities import VelocityFactory
from afterflow.models.adapters import LoRA, attach, trainable_parameters
from afterflow.models.pipeline import Model
from afterflow.sampling.conditioning import Conditioning, Velocity
from afterflow.train.checkpoint import load_checkpoint, optimizer_tensors, save_checkpoint
from afterflow.train.clock import Clock
from afterflow.train.explore import ExploreOptions, Explorer
from afterflow.train.loop import Trainer, TrainOptions
from afterflow.train.one_pass import iterations

REWARD, IMAGES = {"jpeg_compressibility": 1.0}, 2
METHODS: dict[str, OnPolicy] = {
    "flow_grpo": FlowGRPO(REWARD, steps=2, group=IMAGES, beta=0.0),
    "diffusion_nft": DiffusionNFT(REWARD, steps=2, group=IMAGES),
}
STORED = str(Path(__file__).parent / "results" / "real_size_cpu.json")
COMMAND = "python bench/real_size_cpu.py --json bench/results/real_size_cpu.json"
MOST_GIB = 13.0
"""Memory that a process may ask for; beyond it the pair fails, and the file says so."""


@dataclass(frozen=True)
class Size:
    """How a model is tried."""

    options: dict[str, int]
    """Options of the model."""
    rank: int = 32
    """Rank of the LoRA."""
    in_file: bool = False
    """Whether the frozen weights lie in a file that is mapped into memory, so that the system may let go of them."""


SIZES = {
    "SD3.5 medium": Size({"size": 256}),
    "Wan 2.1 1.3B": Size({"height": 256, "width": 256, "frames": 5}),
    "FLUX.2-klein 4B": Size({"size": 256, "max_sequence_length": 64}, in_file=True),
    "Z-Image": Size({"size": 256, "max_sequence_length": 64}, rank=8, in_file=True),
}
PAIRS = [f"{model}, {method}" for model in SIZES for method in METHODS]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""One thread.  Freed tensors go back to the system at once, so that the resident set is what is in use; they come in
large pages, since making many small ones takes a fifth of the time."""


def run_of(name: str, method: str, folder: Path, options: Mapping[str, int], rank: int = 32, **of_run: object) -> Run:
    """Return the run of a released model with a method, whose files are written to a folder."""
    (folder / "prompts.txt").write_text("a cat\n")
    config = released(name, folder / "model", **options)
    tune, data = LoRA(rank=rank, alpha=2 * rank), PromptFile(f"{folder}/prompts.txt")
    run = Run(METHODS[method], data, config, tune, name="real_size")
    return run.with_options(batch=1, retained_rows=0, mixed_precision="bf16", **of_run)


def count_needs(run: Run) -> tuple[CostEstimate, int]:
    """Return what `--plan` counts for a run, and the bytes of it without those of the autoencoder."""
    counted = estimate_cost(run)
    vae = run.model.load("meta").vae
    return counted, counted.total_bytes - tensor_bytes([*vae.parameters(), *vae.buffers()])


@dataclass
class Trial:
    """A model with random weights, ready to be trained."""

    run: Run
    model: Model
    parameters: dict[str, nn.Parameter]
    """Factors of its LoRA, of which no B is zero, so that every A has a gradient."""
    factory: VelocityFactory

    @classmethod
    def build(cls, run: Run, device: torch.device, file: Path | None = None) -> "Trial":
        """Make the model of a run on a device, with weights that are drawn there; norms have ones.

        file: where frozen weights are to lie, if not in memory alone.
        """
        model = run.model.load("meta")
        attach(model, run.tune)
        if run.optimization.gradient_checkpointing:
            model.module.enable_gradient_checkpointing()
        materialise(model, device, None if file is None else partial(map_weights, file=file))
        for name, parameter in model.module.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):  # of a norm
                nn.init.ones_(parameter)
        parameters = trainable_parameters(model.module)
        return cls(run, model, parameters, VelocityFactory(run, model, start_processes(run, [])))

    def trainer(self, latent_shape: tuple[int, ...], cond: Conditioning) -> tuple[Trainer, Explorer]:
        """Return a trainer with a new optimizer, and an explorer of latents of this shape, as a run has them."""
        models, processes = self.factory.models(), self.factory.processes
        algorithm = on_model_schedule(self.run.algorithm, self.model.schedule)
        assert isinstance(algorithm, OnPolicy)
        weights = weight_state(self.run, self.model, self.parameters, processes, self.factory.copies())
        clock, score = Clock(), partial(random_scores, algorithm)
        options = ExploreOptions(self.run.seed, latent_shape, self.run.batches.chunk)
        explorer = Explorer(algorithm, models, lambda step: cond, score, options, processes, clock)
        return Trainer(algorithm, models, weights, clock, TrainOptions(lambda step: 1e-4, max_grad_norm=1.0)), explorer

    def velocity(self) -> Velocity:
        """Return the velocity of the network as it stands, in the run's precision."""
        return self.factory.precise(self.model.velocity(self.model.module))


def measure(pair: str) -> dict:
    """Measure a model with a method, in this process."""
    name, method = pair.split(", ")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    peak, size = matmul_peak(), SIZES[name]
    with tempfile.TemporaryDirectory() as folder:
        options = {"chunk": IMAGES, "gradient_checkpointing": True}
        run = run_of(name, method, Path(folder), size.options, size.rank, **options)
        counted, needed = count_needs(run)
        resource.setrlimit(resource.RLIMIT_DATA, (int(MOST_GIB * 2**30),) * 2)
        before = resident_bytes("RssAnon" if size.in_file else "VmRSS")
        started = time.process_time()
        trial = Trial.build(run, torch.device("cpu"), Path(folder) / "weights" if size.in_file else None)
        made = time.process_time() - started
        with anonymous_peak() as anonymous:
            trainer, measured = one_iteration(trial)
        result = about(trial) | {"options": size.options, "cpu_seconds_to_make": round(made, 1)} | measured
        peak_bytes = anonymous[0] + (Path(folder) / "weights").stat().st_size if size.in_file else resident_peak()
        memory = memory_beside(needed, peak_bytes, before)
        result |= {"memory": memory | {"weights_in_file": size.in_file, "parts": counted.memory}}
        result |= work_beside(sum(counted.flops.values()), measured["cpu_seconds"], peak)
        result |= {"resume": resumed(trial, trainer, Path(folder) / "checkpoints")}
        del trainer
        return result | {"lora": stored_lora(trial, Path(folder) / "lora")}


def about(trial: Trial) -> dict:
    """Return the sizes of a trial."""
    network, tune = trial.model.module, trial.run.tune
    assert isinstance(tune, LoRA)
    return {
        "frozen": sum(p.numel() for name, p in network.named_parameters() if ".lora_" not in name),
        "trained": sum(parameter.numel() for parameter in trial.parameters.values()),
        "blocks": {name: len(part) for name, part in network.named_children() if isinstance(part, nn.ModuleList)},
        "rank": tune.rank,
        "latent_shape": list(trial.model.latent_shape),
        "text_shape": [length for length in trial.model.text_shape if length],
    }


def memory_beside(needed: int, peak: int, before: int) -> dict[str, float]:
    """Return a peak of memory beside what was counted, in GiB.

    before: bytes of the process when only libraries were loaded; they are no part of either.
    """
    sizes = {"measured_gib": peak - before, "counted_gib": needed, "libraries_gib": before}
    ratio = {"measured_over_counted": round((peak - before) / needed, 4)}
    return {name: round(size / 2**30, 3) for name, size in sizes.items()} | ratio


def work_beside(flops: float, seconds: float, peak: float) -> dict[str, float]:
    """Return the counted work, and its rate beside that of plain matrix products."""
    rates = {"gflops": round(flops / seconds / 1e9, 1), "gflops_of_matmul": round(peak / 1e9, 1)}
    return {"tflop": round(flops / 1e12, 3)} | rates | {"share_of_matmul": round(flops / seconds / peak, 3)}


def one_iteration(trial: Trial) -> tuple[Trainer, dict]:
    """Train one iteration in full size; return what trained it and what was measured."""
    model = trial.model
    trainer, explorer = trial.trainer(model.latent_shape, prompts(model, 1, model.device))
    seen: dict[str, list[str]] = {}
    with watched_gradients(trial.parameters, trainer.weights.optimizer, seen):
        clock, started = time.perf_counter(), time.process_time()
        ((_, metrics),) = trainer.train(iterations(explorer, range(1), 0))
        seconds = {"cpu_seconds": time.process_time() - started, "seconds_of_the_clock": time.perf_counter() - clock}
    ratios = {name: metrics[name] for name in ("ratio_mean", "ratio_max") if name in metrics}
    measured = ratios | {"grad_norm": metrics["grad_norm"], "adapted_tensors": len(trial.parameters), **seen}
    return trainer, measured | {name: round(value, 1) for name, value in seconds.items()}


@contextmanager
def watched_gradients(
    parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, seen: dict[str, list[str]]
) -> Iterator[None]:
    """Note in `seen`, before each step of the optimizer, which parameters have no finite gradient, or one of zeros."""

    def look(*_: object) -> None:
        gradients = {name: p.grad for name, p in parameters.items()}
        seen["not_finite"] = [name for name, g in gradients.items() if g is not None and not g.isfinite().all()]
        seen["without_gradient"] = [name for name, g in gradients.items() if g is None or not g.any()]

    hook = optimizer.register_step_pre_hook(look)
    yield
    hook.remove()


def small_case(trial: Trial) -> tuple[tuple[int, ...], Conditioning]:
    """Return the shape of a latent of a quarter of the sides, and a prompt of few tokens."""
    *first, height, width = trial.model.latent_shape
    cond = prompts(trial.model, 1, trial.model.device)
    shorter = lambda embedding: embedding._replace(sequence=embedding.sequence[:, :32])
    cond = replace(cond, positive=shorter(cond.positive), negative=shorter(cond.negative))
    return (*first, height // 4, width // 4), cond


def resumed(trial: Trial, trained: Trainer, folder: Path) -> dict:
    """Go on in small, once at once and once from a checkpoint, and compare all that training changes."""
    saved = save_checkpoint(folder, 0, trained.weights, keep=1)
    shape, cond = small_case(trial)

    def continued(weights_from: Path | None) -> dict[str, Tensor]:
        trainer, explorer = trial.trainer(shape, cond)
        trainer = trainer if weights_from else replace(trainer, weights=trained.weights)
        first = load_checkpoint(weights_from, trainer.weights) if weights_from else 1
        for _ in trainer.train(iterations(explorer, range(first, first + 1), 0)):
            pass
        return state_of(trainer)

    before, at_once = state_of(trained), continued(None)
    with torch.no_grad():
        for p in [*trial.parameters.values(), *lagged_of(trained).values()]:
            p.normal_()
    again = continued(saved)
    return {
        "tensors": len(at_once),
        "changed": sum(not before[name].equal(value) for name, value in at_once.items()),
        "differing": [name for name, value in at_once.items() if not again[name].equal(value)],
    }


def lagged_of(trainer: Trainer) -> dict[str, Tensor]:
    """Return the averages of the policy by name."""
    policies = trainer.weights.lagged.items()
    return {f"{kind} {name}": p for kind, policy in policies for name, p in policy.parameters.items()}


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Return copies of all that training changes: weights, averages, and the optimizer's tensors."""
    weights = trainer.weights
    tensors = {**weights.parameters, **lagged_of(trainer), **optimizer_tensors(weights.optimizer, weights.parameters)}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def stored_lora(trial: Trial, folder: Path) -> dict:
    """Save the LoRA, load its file into the bare network as diffusers does, and compare velocities."""
    model, (shape, cond) = trial.model, small_case(trial)
    x, t = torch.randn(IMAGES, *shape), torch.linspace(0.5, 1, IMAGES)
    rows, field = cond[torch.zeros(IMAGES, dtype=torch.long)], trial.velocity()
    trained = field(x, t, rows)
    model.save_lora(folder)
    trial.parameters.clear()
    model.module.delete_adapters(list(model.module.peft_config))
    base = field(x, t, rows)
    model.pipe.load_lora_weights(folder)
    loaded = field(x, t, rows)
    largest = lambda other: (other.float() - trained.float()).abs().max().item()
    return {
        "pipeline": type(model.pipe).__name__,
        "largest_difference": largest(loaded),
        "largest_difference_without_it": largest(base),
        "largest_velocity": trained.float().abs().max().item(),
    }


def matmul_peak() -> float:
    """Return the most FLOP/s of CPU time that bf16 matrix products reach here, of the sizes of the networks' layers."""
    best = 0.0
    for rows, width in ((512, 1536), (512, 3840), (4096, 4096)):
        a, b = (torch.randn(n, width, dtype=torch.bfloat16) for n in (rows, width))
        repeats = max(1, 2**33 // (rows * width**2))
        for _ in range(4):
            started = time.process_time()
            for _ in range(repeats):
                nn.functional.linear(a, b)
            best = max(best, repeats * 2 * rows * width**2 / (time.process_time() - started))
    return best


def map_weights(module: nn.Module, file: Path) -> None:
    """Give tensors without memory some: frozen weights in one file that is mapped, all others in memory."""
    frozen = [p for p in module.parameters() if p.is_meta and not p.requires_grad]
    (dtype,) = {p.dtype for p in frozen}
    numbers = torch.from_file(str(file), shared=True, size=sum(p.numel() for p in frozen), dtype=dtype)
    parts = iter(numbers.split([p.numel() for p in frozen]))
    for part in module.modules():
        for name, p in list(part.named_parameters(recurse=False)):
            data = torch.empty_like(p, device="cpu") if p.requires_grad else next(parts).view(p.shape)
            setattr(part, name, nn.Parameter(data, p.requires_grad))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty_like(buffer, device="cpu"))


def resident_bytes(kind: str) -> int:
    """Return the bytes of this process that are in memory, of a kind that the system counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith(f"{kind}:"))


def resident_peak() -> int:
    """Return the most bytes of this process that were in memory at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


@contextmanager
def anonymous_peak() -> Iterator[list[int]]:
    """Look twenty times a second how much memory of no file is in use; the list holds the most that was seen."""
    most, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            most[0] = max(most[0], resident_bytes("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def measured_in_a_process(pair: str) -> dict:
    """Measure a pair in a process of its own; where it fails, the result is the last line of what it said."""
    command = [sys.executable, __file__, "--one", pair]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
    if ended.returncode:
        print(ended.stderr, file=sys.stderr)
        return {"failed": failure(ended.returncode, ended.stderr.splitlines())} | provenance(COMMAND)
    return json.loads(ended.stdout.splitlines()[-1]) | provenance(COMMAND)


def measure_all(pairs: list[str], file: str) -> int:
    """Measure pairs that the file does not hold, and store each at once; return the number of those that failed."""
    stored: dict[str, dict] = {}
    for pair in pairs or PAIRS:
        stored = read_json(file).get("pairs", {})
        if pair in stored and "failed" not in stored[pair]:
            continue
        made = measured_in_a_process(pair)
        stored = read_json(file).get("pairs", {}) | {pair: made}  # other pairs may have been stored meanwhile
        print(pair, stored[pair], flush=True)
        ordered = {name: stored[name] for name in PAIRS if name in stored}
        write_json({"pairs": ordered}, file, indent=1, show=False)
    return sum("failed" in stored.get(pair, {}) for pair in pairs or PAIRS)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("pairs", nargs="*", help="all of them without a name", metavar="MODEL, METHOD")
    parser.add_argument("--one", choices=PAIRS, help="measure this pair in this process, and print it")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    sys.exit(min(1, measure_all(options.pairs, options.json)))


if __name__ == "__main__":
    main()
