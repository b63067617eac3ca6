"""A run followed: its log, its pictures, its figures on held-out prompts, its checkpoints."""

import json
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..algorithms.base import WIN_RATE
from ..models.generate import decoded, finished_in_parts, spread
from ..objectives.preferences import win_rates
from ..rewards.grouped import all_pairs, judge_groups, score_groups
from ..sampling.conditioning import Conditioning
from ..sampling.seeds import generator
from ..system.atomic_files import write_text_atomically
from ..system.errors import TrainingStopped
from ..train.budget import Budget
from ..train.clock import Clock
from ..train.distributed import Processes
from ..train.progress import Progress
from ..train.reward_hacking import reward_hacking_signs
from ..train.signals import INTERRUPTIBLE_STAGES, Preempted, interruptible
from .config import Run
from .image_grid import save_pictures
from .run_folder import MetricsFile, RunFolder
from .setup import Session

SHOWN = 8
"""Prompts of the sample pictures, four images each."""


class Window:
    """What a user looks at while training goes on: pictures from the same noise, rewards of held-out prompts."""

    def __init__(self, session: Session, prompts: Conditioning, held_out: Conditioning | None) -> None:
        self.session = session
        # Prompts of a tag stand together, so the shown ones are spread over all of them.
        self.shown = prompts[torch.linspace(0, len(prompts) - 1, min(SHOWN, len(prompts))).long()]
        self.held_out = held_out
        by_prompt = RunFolder(session.run.folder).held_out_file
        written = self.held_out is not None and session.processes.main
        self.by_prompt = MetricsFile(by_prompt, session.first) if written else None
        earliest = self.by_prompt.earliest if self.by_prompt is not None else {}
        self.earliest = {name: values for name, values in earliest.items() if name != "step"}
        self.best = best_before(session)
        self.base = self._base_pictures() if self.held_out is not None and session.run.judge is not None else None

    def _base_pictures(self) -> np.ndarray:
        """What the held-out prompts look like before training; kept, because a resumed run has no such model."""
        assert self.held_out is not None
        file = self.session.run.folder / "held_out_base.npy"
        if self.session.first == 0:
            drawn = self.pictures(self.held_out, self.session.run.evaluation.eval_images)
            if self.session.processes.main:
                np.save(file, drawn)
            return drawn
        if not file.is_file():
            raise ValueError(f"{file} is gone, and with it the base of the win rate; start the run anew")
        return np.load(file, allow_pickle=False)

    def finished(self, cond: Conditioning, per_prompt: int) -> Tensor:
        """Latents (P, per_prompt, ...) by the averaged policy."""
        session, model = self.session, self.session.model
        run, velocity = session.run, session.models.guided or session.models.policy
        with session.averaged():
            return finished_in_parts(
                velocity, model, cond, per_prompt, run.evaluation.inference_steps, run.seed, run.batches.chunk
            )

    def pictures(self, cond: Conditioning, per_prompt: int) -> np.ndarray:
        """uint8 (P, per_prompt, H, W, 3), or clips, by the averaged policy; each process draws its share."""
        processes = self.session.processes
        mine = self.finished(cond[processes.even_share(len(cond))], per_prompt)
        return processes.all_gather_rows(torch.from_numpy(decoded(self.session.model, mine)), len(cond)).numpy()

    def save_samples(self, step: int) -> None:
        images = self.pictures(self.shown, 4)
        if not self.session.processes.main:
            return
        captions = [record["prompt"] for record in self.shown.records() for _ in range(4)]
        folder = self.session.run.folder / "samples"
        folder.mkdir(exist_ok=True)
        save_pictures(folder / f"step_{step:06d}.png", images.reshape(-1, *images.shape[2:]), captions, 8)

    def evaluate(self, step: int) -> dict[str, float]:
        """The mean of each reward over the held-out prompts, and how much pictures differ.

        Every prompt's own figures are kept in held_out.jsonl.
        """
        run, start, processes = self.session.run, time.perf_counter(), self.session.processes
        assert self.held_out is not None
        total = len(self.held_out)
        mine = processes.even_share(total)
        latents = self.finished(self.held_out[mine], run.evaluation.eval_images)
        told = processes.run_on_all(lambda: self._said(decoded(self.session.model, latents), mine))
        of_all = lambda values: torch.tensor([value for of_process in values for value in of_process])[:total]
        rewards = {name: of_all(each["rewards"][name] for each in told) for name in run.watched}
        for name in run.watched:
            failures = said_once([why for each in told for why in each["failures"][name]], total, processes)
            if failures:
                print(f"step {step}: {len(failures)} held-out images have no {name}, first {failures[0]}")
        if self.base is not None:
            rewards[WIN_RATE] = of_all(each["wins"] for each in told).nanmean(1)
            unknown = said_once([why for each in told for why in each["undecided"]], total, processes)
            if unknown:
                print(f"{len(unknown)} comparisons with the base have no verdict, first {unknown[0]}")
        by_prompt = {name: values.tolist() for name, values in rewards.items()}
        if rewards and self.by_prompt is not None:
            self.by_prompt.write(step, by_prompt)
        self.earliest = self.earliest or by_prompt
        means = {name: values.nanmean().item() for name, values in rewards.items()}
        means |= spread(processes.all_gather_rows(latents, total))
        means = {f"eval/{name}": value for name, value in means.items()}
        trained = [name for name in rewards if name not in run.hidden]
        if run.hidden and trained:
            found = reward_hacking_signs(self.earliest, by_prompt, trained, run.hidden)
            means["alarm"] = float(bool(found))
            for sentence in found:
                print(f"step {step}: ALARM: {sentence}; look at samples/, the policy may be cheating")
        self._keep_best(step, means)
        return means | {"seconds/eval": time.perf_counter() - start}

    def _keep_best(self, step: int, means: Mapping[str, float]) -> None:
        """The averaged weights in best/, with their figure, whenever it is the highest so far."""
        session, run = self.session, self.session.run
        name = run.evaluation.best_by or next(iter(run.hidden), None)
        if name is None or not means[f"eval/{name}"] > self.best:
            return
        self.best = means[f"eval/{name}"]
        session.leave(run.folder / "best" / session.kind)
        if session.processes.main:
            write_text_atomically(
                RunFolder(run.folder).best_file, json.dumps({"step": step, "reward": name, "value": self.best}) + "\n"
            )

    def _said(self, images: np.ndarray, mine: Tensor) -> dict[str, Any]:
        """Of pictures (P, K, H, W, 3) of some held-out prompts: rewards, (P,) each, and wins over the base's."""
        run = self.session.run
        assert self.held_out is not None
        records = self.held_out[mine].records()
        answers = {name: score_groups(name, images, records, run.reward_models) for name in run.watched}
        wins, undecided = ([], []) if self.base is None else self._wins(images, self.base[mine.numpy()], records, mine)
        return {
            "rewards": {name: answer.values.nanmean(1).tolist() for name, answer in answers.items()},
            "failures": {name: list(answer.failures) for name, answer in answers.items()},
            "wins": wins,
            "undecided": undecided,
        }

    def _wins(
        self, images: np.ndarray, base: np.ndarray, records: Sequence[dict], mine: Tensor
    ) -> tuple[list[list[float]], list[str]]:
        """(P, K): how far the judge prefers each picture to the base's from the same noise; and why it did not say."""
        run, K = self.session.run, images.shape[1]
        assert run.judge is not None
        both = np.stack([images, base], 2).reshape(-1, 2, *images.shape[2:])
        of_pair = [record for record in records for _ in range(K)]
        # The same flaws of the judge at every iteration, so that a curve shows the policy alone.
        draws = [generator(run.seed, "held out", place, k) for place in mine.tolist() for k in range(K)]
        judged, failures = judge_groups(run.judge, both, of_pair, all_pairs(len(both), 2), draws)
        return win_rates(judged)[:, 0].view(-1, K).tolist(), failures


def best_before(session: Session) -> float:
    """The figure of what best/ holds, if it is of an iteration before the first one."""
    best = RunFolder(session.run.folder).best()
    return best["value"] if best is not None and best["step"] < session.first else -math.inf


def follow(
    session: Session,
    steps: Iterator[tuple[int, dict[str, float]]],
    window: Window,
    budget: Budget,
    clock: Clock,
) -> None:
    """Log, draw and save while the iterations go by; Ctrl-C ends after the one under way.

    TrainingStopped after SIGTERM, when the iteration under way is saved, or the one before it where the grace was
    too short.
    """
    run, processes = session.run, session.processes
    log = MetricsFile(RunFolder(run.folder).metrics_file, session.first) if processes.main else None
    budget.used = processes.all_gather_objects(log.before.get("seconds_trained", 0.0) if log is not None else 0.0)[0]
    if session.first and budget.ends(session.first - 1):
        return
    done, agreed = session.first - 1, set[int]()
    try:
        bar = Progress(run.name, budget, session.first)
        with interruptible(clock, run.checkpoints.grace_seconds, leavable(processes)) as signals, bar as progress:
            try:
                for step in watched(session, steps, window, budget, log, progress, clock, signals, agreed):
                    done = step
            except Preempted:  # before the update of an iteration, which is left out
                if done >= session.first:
                    session.save(done)
                raise TrainingStopped(f"SIGTERM in iteration {done + 1}; {gone_on(run, done)}") from None
    finally:
        if log is not None:
            log.close()
        if window.by_prompt is not None:
            window.by_prompt.close()
    if signal.SIGTERM in agreed and not budget.ends(done):
        raise TrainingStopped(f"SIGTERM; {gone_on(run, done)}")
    if agreed and not budget.ends(done):
        print(f"Stopped after iteration {done}; go on with: afterflow train --resume {run.folder}")


def gone_on(run: Run, done: int) -> str:
    saved = f"iteration {done} is saved, go on with: afterflow train --resume {run.folder}"
    return saved if done >= 0 else f"nothing was trained yet; start anew with: afterflow train --from {run.folder}"


def watched(
    session: Session,
    steps: Iterator[tuple[int, dict[str, float]]],
    window: Window,
    budget: Budget,
    log: MetricsFile | None,
    progress: Progress,
    clock: Clock,
    signals: list[int],
    agreed: set[int],
) -> Iterator[int]:
    """The iterations' numbers, each when it is logged and, where it should be, drawn and saved.

    agreed: the signals that all processes know of; what comes to one of them later is told after the next iteration.

    A machine that is taken away has no time for evaluation and pictures: after SIGTERM they are left out.
    """
    run, processes = session.run, session.processes
    start = before = time.perf_counter()
    for step, metrics in steps:
        # One clock and one will for all: they would wait for each other in vain if some went on.
        told = processes.all_gather_objects([time.perf_counter() - before, [int(each) for each in signals]])
        budget.used += max(seconds for seconds, _ in told)
        agreed |= {each for _, others in told for each in others}
        last, reclaimed = budget.ends(step) or signal.SIGINT in agreed, signal.SIGTERM in agreed
        with suppress(Preempted), clock.within("evaluation"):
            if due(run.evaluation.eval_every, step, last) and not reclaimed:
                metrics |= window.evaluate(step)
        metrics |= {"seconds": time.perf_counter() - start, "seconds_trained": budget.used}
        if log is not None:
            log.write(step, metrics)
        processes.accelerator.log(metrics, step)
        progress.show(step, metrics)
        with suppress(Preempted), clock.within("pictures"):
            if due(run.logging.sample_every, step, last) and not reclaimed:
                window.save_samples(step)
        ends = last or reclaimed
        if ends or (step + 1) % run.checkpoints.save_every == 0:
            session.save(step)
        yield step
        if ends:
            return
        before = time.perf_counter()


def said_once(reasons: Sequence[str], total: int, processes: Processes) -> list[str]:
    """Without those that are there twice because processes have had the last prompt twice."""
    return list(reasons) if total % processes.count == 0 else list(dict.fromkeys(reasons))


def leavable(processes: Processes) -> tuple[str, ...]:
    """Stages that SIGTERM may break off: with several processes those whose end all wait for together."""
    if processes.count == 1:
        return (*INTERRUPTIBLE_STAGES, "evaluation", "pictures")
    return INTERRUPTIBLE_STAGES[1:] if processes.sharded else INTERRUPTIBLE_STAGES


def due(every: int, step: int, last: bool) -> bool:
    return every > 0 and (step % every == 0 or last)
