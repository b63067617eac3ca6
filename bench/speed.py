"""What an iteration costs in one pass and in two, with lean LoRA layers and with peft's, beside bare passes.

    python bench/speed.py --json bench/results/speed.json

An iteration is real (rollout, credit, loss, optimizer, EMA, metrics file), its velocities are those of a run
(precision, guidance, reference), and rewards are random: decoding and rewards are left out.  `bare` are the passes of a
two-pass Flow-GRPO alone, forward and backward, on tensors of the same shapes, with peft's layers.  All are timed in
turn, in seconds of this process's CPU time; a ratio is of sums over all rounds.

Each variant also takes one iteration from the same weights and seed, for its rows, its FLOPs and its gradient.
`gradient` is its distance to that of two passes with peft's layers, relative.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from harness import make_parser, provenance, read_json, write_json
from timing import setting, timing_options, trained_iterations
from torch.utils.flop_counter import FlopCounterMode

from afterflow.algorithms.base import Models, Scores
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.prompts import ShapesPrompts, batch_rows
from afterflow.experiment.config import Batches, Optimization, Run
from afterflow.experiment.setup import compile_blocks
from afterflow.experiment.velocities import VelocityFactory
from afterflow.models.adapters import LoRA, attach
from afterflow.models.generate import encode_records
from afterflow.models.sd3 import SD3
from afterflow.train.clock import Clock
from afterflow.train.distributed import Processes, make_accelerator
from afterflow.train.explore import ExploreOptions, Explorer
from afterflow.train.gradients import gradients
from afterflow.train.one_pass import OnePass, iterations

ALGORITHM = FlowGRPO(weights={"shapes_strict": 1.0}, steps=10, group=16, beta=0.0)
SETTINGS = {
    "fp32": Batches(chunk=64),
    "fp32, KL and guidance": Batches(chunk=64, guidance_scale=4.5),
    "bf16": Batches(chunk=64),
}
VARIANTS = {
    "two passes": (0, "peft"),
    "two passes, lean": (0, "lean"),
    "one pass": (100_000, "peft"),
    "one pass, lean": (100_000, "lean"),
    "one pass, lean, compiled": (100_000, "compiled"),
}
"""Rows whose graphs may wait, and the network: with peft's layers, with lean ones, or with lean ones compiled."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    options = timing_options(parser, rounds=3, prompts=4, chunk=64)
    settings = read_json(options.json).get("settings", {})
    for name in options.settings:
        settings[name] = measure_setting(options, name, SETTINGS[name]) | provenance()
        about = {"images": options.prompts * ALGORITHM.group, **setting(options)}
        write_json({"settings": settings, **about}, options.json, indent=1)


@dataclass(frozen=True)
class Subject:
    """A model with its LoRA, and the velocities of a run."""

    run: Run
    model: object
    parameters: dict
    models: Models
    processes: Processes
    initial: list[torch.Tensor]
    """The trained weights as they were loaded."""
    compiled: bool

    @classmethod
    def load(cls, options: argparse.Namespace, name: str, batches: Batches, network: str) -> "Subject":
        """Load the model for a setting; every one has the same weights, and a LoRA that acts."""
        algorithm = replace(ALGORITHM, beta=0.04) if "KL" in name else ALGORITHM
        precision = Optimization(mixed_precision="bf16" if "bf16" in name else "no")
        run = Run(algorithm, ShapesPrompts(), SD3(options.model), LoRA(lean=network != "peft"), batches=batches)
        run = replace(run, optimization=precision)
        processes = Processes(make_accelerator(run.optimization.mixed_precision))
        model = run.model.load()
        torch.manual_seed(0)
        parameters = attach(model, run.tune)
        for name, parameter in parameters.items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.01)
        if network == "compiled":
            compile_blocks(model.module)
        initial = [parameter.detach().clone() for parameter in parameters.values()]
        return cls(
            run,
            model,
            parameters,
            VelocityFactory(run, model, processes).models(),
            processes,
            initial,
            network == "compiled",
        )


def measure_setting(options: argparse.Namespace, name: str, batches: Batches) -> dict:
    """Time the variants of a setting in turn, and compare their rows, FLOPs and gradients."""
    networks = dict.fromkeys(network for _, network in VARIANTS.values())
    subjects = {network: Subject.load(options, name, batches, network) for network in networks}
    prompts = encode_records(subjects["peft"].model, ShapesPrompts(count=64).records(0))
    explore = lambda rows, network: Exploration(options, subjects[network], prompts, rows)
    explorations = {variant: explore(*how) for variant, how in VARIANTS.items()}
    for exploration in explorations.values():
        next(exploration.iterations())  # also compiles, which is not done while FLOPs are counted
    facts = {variant: exploration.facts() for variant, exploration in explorations.items()}
    expected = facts["two passes"]["gradient"]
    calls: dict[str, Callable[[], object]] = {"bare": bare_passes(options, subjects["peft"], prompts)}
    calls |= {variant: exploration.iterations().__next__ for variant, exploration in explorations.items()}
    calls["bare"]()
    seconds = {variant: 0.0 for variant in calls}
    for _ in range(options.rounds):
        for variant, call in calls.items():
            start = time.process_time()
            call()
            seconds[variant] += time.process_time() - start
    return {
        variant: {
            "over_bare": round(seconds[variant] / seconds["bare"], 4),
            "over_two_passes": round(seconds[variant] / seconds["two passes"], 4),
            "images_a_second": round(options.rounds * options.prompts * ALGORITHM.group / seconds[variant], 2),
            "rows": facts[variant]["rows"],
            "TFLOP": None if facts[variant]["flops"] is None else round(facts[variant]["flops"] / 1e12, 4),
            "gradient": float(f"{(facts[variant]['gradient'] - expected).norm() / expected.norm():.2g}"),
        }
        for variant in VARIANTS
    } | {"bare_seconds": round(seconds["bare"] / options.rounds, 3)}


@dataclass(frozen=True)
class Exploration:
    """Iterations of a subject, in one pass or two."""

    options: argparse.Namespace
    subject: Subject
    prompts: object
    retained_rows: int

    def explorer(self) -> Explorer:
        """Return an explorer of random rewards, the same ones for every variant."""
        rewards, subject, options = torch.Generator().manual_seed(0), self.subject, self.options
        score = lambda leaves, *context: Scores({"shapes_strict": torch.rand(leaves.shape[:2], generator=rewards)})
        batch = lambda step: self.prompts[batch_rows(len(self.prompts), step, options.prompts, 0)]
        exploring = ExploreOptions(0, subject.model.latent_shape, options.chunk)
        return Explorer(subject.run.algorithm, subject.models, batch, score, exploring, subject.processes, Clock())

    def iterations(self) -> Iterator[dict[str, float]]:
        """Train; yield the metrics of every iteration."""
        explorer, subject = self.explorer(), self.subject
        source = iterations(explorer, range(1000), self.retained_rows)
        return trained_iterations(subject.run.algorithm, subject.models, subject.parameters, source, explorer.clock)

    def facts(self) -> dict:
        """Return the rows that are differentiated, the FLOPs and the gradient of the first iteration."""
        explorer, subject = self.explorer(), self.subject
        parameters = list(subject.parameters.values())
        with torch.no_grad():
            torch._foreach_copy_(parameters, subject.initial)
        # A counter of FLOPs switches compilation off for good, so those of a compiled network are not counted.
        counter = FlopCounterMode(display=False)
        with nullcontext() if subject.compiled else counter:
            if self.retained_rows:
                iteration = OnePass(explorer, 0, self.retained_rows)
                list(iteration.gradients(parameters))
            else:
                iteration = explorer.iteration(0)
                (update,) = iteration.updates
                gradients(subject.run.algorithm, subject.models, iteration, update, parameters, subject.processes)
        gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
        for parameter in parameters:
            parameter.grad = None
        images = self.options.prompts * ALGORITHM.group
        rows = round(iteration.metrics["nfe/update"] * images)
        return {"rows": rows, "flops": None if subject.compiled else counter.get_total_flops(), "gradient": gradient}


def bare_passes(options: argparse.Namespace, subject: Subject, prompts: object) -> Callable[[], None]:
    """Return a function that makes the passes of a two-pass iteration, and nothing else."""
    chunk, images = options.chunk, options.prompts * ALGORITHM.group
    x, t = torch.randn(chunk, *subject.model.latent_shape), torch.rand(chunk)
    cond = prompts[torch.arange(chunk) % len(prompts)]
    policy, reference = subject.models.policy, subject.models.reference

    def passes() -> None:
        with torch.no_grad():
            for _ in range(ALGORITHM.steps * images // chunk):
                policy(x, t, cond)
        for _ in range((ALGORITHM.steps - 1) * images // chunk):
            if reference is not None:
                reference(x, t, cond)
            policy(x, t, cond).sum().backward()
        subject.model.module.zero_grad()

    return passes


if __name__ == "__main__":
    main()
