"""A run is watched while it trains: log, sample pictures, held-out rewards, best weights and checkpoints."""

import json
import logging
import math
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress

import torch

from ..algorithms.base import explores
from ..data.images import ImageSource
from ..sampling.conditioning import Conditioning
from ..sampling.seeds import generator
from ..system.atomic_files import make_folder, write_text_atomically
from ..system.ended import TERMINATIONS, signal_name
from ..system.errors import TrainingStopped
from ..system.running_time import RUNNING_TIME, running_seconds
from ..system.side_outputs import SideOutputs, failure_words
from ..train.budget import Budget
from ..train.clock import Clock
from ..train.distributed import Processes
from ..train.signals import INTERRUPTIBLE_STAGES, Preempted, interruptible
from .config import Run
from .group_recorder import GroupRecorder
from .health import HealthWatch
from .held_out_evaluation import HeldOutEvaluator, PolicySampler
from .image_grid import save_groups
from .metrics_file import metrics_file
from .progress_display import Progress
from .run_folder import BASE_STEP, RunFolder
from .setup import TrainingSetup
from .shown_pictures import GroupPictures, SamplePictures
from .tracker_pictures import TrackerPictures

_log = logging.getLogger(__name__)

SAMPLE_PROMPTS = 8
"""Number of prompts in the sample pictures."""
SAMPLE_IMAGES = 4
"""Number of images of each of them."""


class BestKeeper:
    """Saves the averaged weights in best/ whenever the chosen held-out reward is the highest so far."""

    def __init__(self, setup: TrainingSetup, side: SideOutputs) -> None:
        self.setup, self.side = setup, side
        best = RunFolder(setup.run.folder).best()
        self.value = best["value"] if best is not None and best["step"] < setup.first else -math.inf

    def offer(self, step: int, metrics: Mapping[str, float]) -> None:
        """Save the weights of iteration `step` if their figure is the best."""
        setup, run = self.setup, self.setup.run
        name = run.best_reward
        if name is None or not metrics[f"eval/{name}"] > self.value:
            return
        self.value = metrics[f"eval/{name}"]
        with self.side.making("best/", step):
            setup.replace_export(run.folder / "best" / setup.result_name)
            if setup.processes.main:
                text = json.dumps({"step": step, "reward": name, "value": self.value}) + "\n"
                write_text_atomically(RunFolder(run.folder).best_file, text)


class RunMonitor:
    """Follows the iterations of a run: what is logged, drawn, measured and saved after each."""

    def __init__(
        self,
        setup: TrainingSetup,
        prompts: Conditioning,
        held_out: Conditioning | None,
        clock: Clock,
        side: SideOutputs,
        recorder: GroupRecorder,
    ) -> None:
        """Watch a run from its first iteration on.

        Args:
            setup: The run, loaded.
            prompts: The prompts of the run; sample pictures show some of them.
            held_out: Prompts to measure on, if any.
            clock: The clock that the stages of an iteration are timed by.
            side: What may fail without ending the run.
            recorder: What sees the groups of a rollout when they are scored.
        """
        self.setup, self.clock, self.side = setup, clock, side
        self.sampler = PolicySampler(setup)
        # Prompts of a tag stand together, so the shown ones are spread over all of them.
        self.shown = prompts[torch.linspace(0, len(prompts) - 1, min(SAMPLE_PROMPTS, len(prompts))).long()]
        self.samples = SamplePictures(setup, self.shown.records(), SAMPLE_IMAGES, side)
        self.groups = GroupPictures(setup, recorder)
        self.tracked = TrackerPictures(setup, side)
        self.best = BestKeeper(setup, side)
        self.evaluator = HeldOutEvaluator(setup, self.sampler, held_out, side) if held_out is not None else None
        folder = RunFolder(setup.run.folder)
        self.log = metrics_file(setup, folder.metrics_file)
        self.record = folder.record_file.read_text(encoding="utf-8") if setup.processes.main else ""
        batches = setup.run.batches
        spent = self.log.before.get("seconds_trained", 0.0) if self.log is not None else 0.0
        self.budget = Budget(batches.iterations, batches.budget_seconds, setup.processes.all_gather_objects(spent)[0])
        self.health = HealthWatch()
        self.signals: set[int] = set()
        """Signals that all processes know of; a later one is agreed on after the next iteration."""

    def follow(self, steps: Iterator[tuple[int, dict[str, float]]]) -> None:
        """Log, save and draw while the iterations go by; Ctrl-C ends after the current one.

        TrainingStopped is raised after SIGTERM and SIGHUP, when the current iteration is saved, or the one before it
        where the grace was too short, and where a checkpoint or metrics.jsonl cannot be written.
        """
        setup, run = self.setup, self.setup.run
        if setup.first and self.budget.ends(setup.first - 1):
            self.close()
            return
        last = setup.first - 1
        try:
            bar = self._progress()
            grace, stages = run.checkpoints.grace_seconds, breakable_stages(setup.processes)
            watched = interruptible(self.clock, grace, stages, lambda: last + 1)
            with RUNNING_TIME.watched(), watched as signals, bar as progress:
                try:
                    for step in self._watch(steps, progress, signals):
                        last = step
                except Preempted:  # before the update of an iteration, which is left out
                    if last >= setup.first:
                        self._save(last)
                    name = termination_name(signals)
                    raise TrainingStopped(f"{name} in iteration {last + 1}; {resume_advice(run, last)}") from None
        finally:
            self.close()
        if self.signals & set(TERMINATIONS) and not self.budget.ends(last):
            raise TrainingStopped(f"{termination_name(self.signals)}; {resume_advice(run, last)}")
        if self.signals and not self.budget.ends(last):
            _log.info(f"Stopped after iteration {last}; go on with: afterflow train --resume {run.folder}")

    def _progress(self) -> Progress:
        """Return what shows how far the run is, on the first process, with the lines of a run that is resumed."""
        setup, earlier = self.setup, []
        if setup.first and setup.processes.main:
            with self.side.making("the progress line"):
                earlier = RunFolder(setup.run.folder).metrics()
        items = items_of_iteration(setup)
        return Progress(setup.run.name, self.budget, self.side, items, earlier, setup.processes.main)

    def _watch(
        self, steps: Iterator[tuple[int, dict[str, float]]], progress: Progress, signals: Sequence[int]
    ) -> Iterator[int]:
        """Yield each iteration when it is logged and, where it should be, saved and drawn.

        The checkpoint comes before all that may fail: trackers, the progress line, pictures.
        """
        run = self.setup.run
        self._save_base()
        start = before = running_seconds()
        for step, metrics in steps:
            self._agree(running_seconds() - before, signals)
            last = self.budget.ends(step) or signal.SIGINT in self.signals
            # A machine that is taken away has no time for evaluation and pictures.
            try:
                if self.evaluator is not None and is_due(run.evaluation.eval_every, step, last) and not self.preempted:
                    metrics |= self._evaluate(step)
                    self._look_again(signals)
            except Exception:
                if self.setup.processes.count == 1:  # several would wait for each other in a checkpoint
                    self._keep(step, metrics, start, saves=True)
                raise
            saves = last or self.preempted or (step + 1) % run.checkpoints.save_every == 0
            self._keep(step, metrics, start, saves)
            self._show(step, metrics, progress)
            if is_due(run.logging.sample_every, step, last) and not self.preempted:
                self._save_samples(step)
                self._look_again(signals)
                if self.preempted and not saves:
                    self._save(step)
            self.groups.save(step)
            yield step
            if last or self.preempted:
                return
            before = running_seconds()

    @property
    def preempted(self) -> bool:
        """Whether the machine is being taken away, as far as all processes know."""
        return bool(self.signals & set(TERMINATIONS))

    def _look_again(self, signals: Sequence[int]) -> None:
        """See a signal that came while the only process measured or drew; several agree after the next iteration."""
        if self.setup.processes.count == 1:
            self.signals |= {int(number) for number in signals if number in TERMINATIONS}

    def _keep(self, step: int, metrics: dict[str, float], start: float, saves: bool) -> None:
        """Write the metrics of an iteration, with the seconds since `start`, and a checkpoint where it is due."""
        metrics |= {"seconds": running_seconds() - start, "seconds_trained": self.budget.used}
        if self.log is not None:
            self.log.write(step, metrics)
        if saves:
            self._save(step)

    def _save(self, step: int) -> None:
        """Save a checkpoint, with what is the record of the run where the disk does not take that elsewhere.

        TrainingStopped is raised where the checkpoint cannot be written, and after it where metrics.jsonl cannot.
        """
        setup, main = self.setup, self.setup.processes.main
        files = [self.log, self.evaluator.file if self.evaluator is not None else None]
        failed = [file for file in files if file is not None and file.failure is not None]
        record = RunFolder(setup.run.folder).record_file
        if main and not record.is_file():
            _log.warning(f"{record} is gone and is written again")
            make_folder(record.parent)
            write_text_atomically(record, self.record)
        setup.save(step, {name: text for file in failed for name, text in file.unwritten().items()})
        why = [failure_words(file.failure) for file in failed if file.failure is not None]
        why = [sentence for sentences in setup.processes.all_gather_objects(why) for sentence in sentences]
        if why:
            saved = f"iteration {step} is saved with the lines that are missing there"
            advice = f"make room, then go on with: afterflow train --resume {setup.run.folder}"
            raise TrainingStopped(f"step {step}: {why[0]}; {saved}; {advice}")

    def _show(self, step: int, metrics: Mapping[str, float], progress: Progress) -> None:
        """Say what should be looked at, and give the metrics to the tracker and the progress line."""
        for sentence in self.health.warnings(metrics):
            _log.warning(f"step {step}: {sentence}")
        for tracker in self.setup.processes.accelerator.trackers:
            with self.side.making(f"curves of {tracker.name}", step):
                tracker.log(metrics, step=step)
        measured = self.evaluator.last if self.evaluator is not None else None
        if measured is not None and measured.step == step:
            self.tracked.tabulate(measured)
        with self.side.making("the progress line", step):
            progress.show(step, metrics)

    def _agree(self, seconds: float, signals: Sequence[int]) -> None:
        """Share clock and signals: processes would wait for each other in vain if only some went on."""
        gathered = self.setup.processes.all_gather_objects([seconds, [int(number) for number in signals]])
        self.budget.used += max(spent for spent, _ in gathered)
        self.signals |= {number for _, numbers in gathered for number in numbers}

    def _evaluate(self, step: int) -> dict[str, float]:
        """Return the metrics of held-out prompts; none where SIGTERM breaks the measurement off."""
        assert self.evaluator is not None
        start, metrics = running_seconds(), {}
        with suppress(Preempted), self.clock.within("evaluation"):
            metrics = self.evaluator.measure(step)
        if metrics:
            self.best.offer(step, metrics)
            metrics |= {"seconds/eval": running_seconds() - start}
        return metrics

    def _save_base(self) -> None:
        """Store the pictures before the first iteration, of a run that starts with it.

        Preempted is raised where SIGTERM breaks the drawing off: nothing is trained yet.
        """
        if self.setup.first:
            return
        with self.clock.within("pictures"):
            samples = self.sampler.images(self.shown, SAMPLE_IMAGES) if self.setup.run.logging.sample_every else None
            held_out = self.evaluator.draw_base() if self.evaluator is not None else None
        if self.setup.processes.main:
            if samples is not None:
                self.samples.save(BASE_STEP, samples)
            if self.evaluator is not None and held_out is not None:
                self.evaluator.pictures.save_base(BASE_STEP, held_out)

    def _save_samples(self, step: int) -> None:
        """Save the sample pictures, each and in a sheet, from the same noise every time."""
        images = None
        with suppress(Preempted), self.clock.within("pictures"):
            images = self.sampler.images(self.shown, SAMPLE_IMAGES)
        if images is None or not self.setup.processes.main:
            return
        self.samples.save(step, images)
        with self.side.making("sample pictures", step):
            folder = self.setup.run.folder / "samples"
            make_folder(folder)
            files = save_groups(folder / f"step_{step:06d}.png", self.shown.records(), images, 2)
            self.tracked.show_samples(step, files)

    def close(self) -> None:
        """Close the files of metrics."""
        for file in (self.log, self.evaluator.file if self.evaluator is not None else None):
            if file is not None:
                file.close()


def items_of_iteration(setup: TrainingSetup) -> tuple[int, str]:
    """Return how many images, clips or pairs an iteration draws or learns from, over all processes, and their name."""
    batch, source = setup.run.batches.batch, setup.run.data
    noun = "clips" if len(setup.model.latent_shape) == 4 else "images"
    if explores(setup.algorithm):
        return batch * setup.algorithm.plan(0, generator(setup.run.seed, 0, "plan")).widths[-1], noun
    return batch, "pairs" if isinstance(source, ImageSource) and source.pairs else noun


def termination_name(signals: Collection[int]) -> str:
    """Return the name of the signal that ends the run."""
    return next((signal_name(number) for number in TERMINATIONS if number in signals), signal_name(signal.SIGTERM))


def resume_advice(run: Run, last: int) -> str:
    """Return what is saved after iteration `last`, and the command that goes on."""
    if last < 0:
        return f"nothing was trained yet; start anew with: afterflow train --from {run.folder}"
    return f"iteration {last} is saved, go on with: afterflow train --resume {run.folder}"


def breakable_stages(processes: Processes) -> tuple[str, ...]:
    """Return the stages that SIGTERM may break off: with several processes, those whose end all wait for together."""
    if processes.count == 1:
        return (*INTERRUPTIBLE_STAGES, "evaluation", "pictures")
    return INTERRUPTIBLE_STAGES[1:] if processes.sharded else INTERRUPTIBLE_STAGES


def is_due(every: int, step: int, last: bool) -> bool:
    """Return whether something that happens every so many iterations happens after `step`."""
    return every > 0 and (step % every == 0 or last)
