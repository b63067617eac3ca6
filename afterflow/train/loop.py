"""The training loop.  It descends the losses of an algorithm and knows none by name."""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ..algorithms.base import Algorithm, Models
from ..system.errors import TrainingStopped
from .checkpoint import WeightState
from .clock import Clock
from .explore import Iteration
from .gradients import gradients
from .one_pass import OnePass

_log = logging.getLogger(__name__)

MAX_SKIPPED = 20
"""Number of updates in a row that may be left out."""


@dataclass(frozen=True)
class TrainOptions:
    """How an optimizer descends."""

    learning_rate: Callable[[int], float]
    """Learning rate of an iteration."""
    max_grad_norm: float
    """Norm that longer gradients are shortened to."""
    skip_nonfinite: bool = False
    """Whether updates whose loss or gradient is not finite are left out and counted; else they stop training."""


class SkipPolicy:
    """Decides which updates are left out, and stops training where they are too many in a row."""

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.in_a_row = 0

    def accept(self, step: int, problem: str | None, overflow: bool) -> bool:
        """Return whether an update of iteration `step` counts; it does where there is no problem.

        TrainingStopped is raised for a problem that is neither to be skipped nor an overflow of a gradient scaler.
        """
        self.in_a_row = 0 if problem is None else self.in_a_row + 1
        if self.in_a_row > (MAX_SKIPPED if self.skip or overflow else 0):
            raise TrainingStopped(f"step {step}: {problem}")
        if problem is not None and self.skip:
            _log.warning(f"step {step}: an update is left out, because {problem}")
        return problem is None


@dataclass(frozen=True)
class Trainer:
    """Descends the updates of iterations."""

    algorithm: Algorithm
    models: Models
    weights: WeightState
    clock: Clock
    options: TrainOptions

    def train(self, iterations: Iterable[Iteration | OnePass]) -> Iterator[tuple[int, dict[str, float]]]:
        """Descend each iteration's updates; yield its number and its metrics when it is done.

        What happens between iterations (logs, pictures, checkpoints) is the caller's, who may stop at any yield.
        TrainingStopped is raised where a loss or a gradient is not finite, if such updates are not to be skipped.
        """
        policy = SkipPolicy(self.options.skip_nonfinite)
        for iteration in iterations:
            rate = self.options.learning_rate(iteration.step)
            for group in self.weights.optimizer.param_groups:
                group["lr"] = rate
            history: defaultdict[str, list[float]] = defaultdict(list)
            updates = 0
            for measured, problem in self._gradients(iteration):
                problem, overflow = self._descend(measured, problem)
                accepted = policy.accept(iteration.step, problem, overflow)
                updates += accepted
                for name, value in measured.items() if accepted else ():
                    history[name].append(value)
                if self.options.skip_nonfinite:
                    history["skipped"].append(float(not accepted))
            for lagged in self.weights.lagged.values():
                lagged.follow(self.weights.parameters, updates)
            means = {name: max(v) if name.endswith("_max") else sum(v) / len(v) for name, v in history.items()}
            yield iteration.step, {**iteration.metrics, **means, "learning_rate": rate, **self.clock.read()}
            del iteration  # its rows need not be in memory while the next are explored

    def _gradients(self, iteration: Iteration | OnePass) -> Iterator[tuple[dict[str, float], str | None]]:
        """Leave the gradients of each update in turn; yield what was measured and what is not finite."""
        parameters = list(self.weights.parameters.values())
        if isinstance(iteration, OnePass):
            yield from iteration.gradients(parameters)
            return
        for update in iteration.updates:
            with self.clock("update"):
                made = gradients(self.algorithm, self.models, iteration, update, parameters, self.weights.processes)
            yield made

    def _descend(self, measured: dict[str, float], problem: str | None) -> tuple[str | None, bool]:
        """Make one update where the loss and the gradient are finite, and add the gradient's norm to `measured`.

        Returns what is not finite, and whether that is an overflow of a gradient scaler.
        """
        weights, processes = self.weights, self.weights.processes
        with self.clock("update"):
            parameters, overflow = list(weights.parameters.values()), False
            if problem is None:
                measured["grad_norm"] = norm = processes.clip(parameters, self.options.max_grad_norm).item()
                if not math.isfinite(norm):
                    problem = f"the gradient norm is {norm}; lower the learning rate"
                # A gradient scaler looks for its scale by overflowing now and then, and leaves such updates out.
                overflow = problem is not None and processes.accelerator.scaler is not None
                if problem is None or overflow:
                    weights.optimizer.step()
            if problem is None and weights.ema is not None:
                weights.ema.update(weights.parameters)
            weights.optimizer.zero_grad()
        return problem, overflow
