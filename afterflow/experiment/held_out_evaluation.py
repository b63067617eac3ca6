"""Rewards on held-out prompts while a run trains: measured from the same noise every time, prompt by prompt."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..algorithms.base import WIN_RATE
from ..models.generate import decode_groups, draw_latents, latent_spread
from ..objectives.preferences import win_rates
from ..rewards.grouped import all_pairs, judge_groups, score_groups
from ..sampling.conditioning import Conditioning
from ..sampling.seeds import generator
from ..system.atomic_files import writing
from ..system.errors import CheckpointError
from ..system.input_pictures import content_key
from ..system.side_outputs import SideOutputs
from ..train.distributed import Processes
from ..train.repeated_prompts import repeated_rows
from ..train.reward_hacking import reward_hacking_signs
from .metrics_file import metrics_file
from .run_folder import REPEATED, RunFolder, rewards_of
from .setup import TrainingSetup
from .shown_pictures import HeldOutPictures
from .tracker_pictures import HeldOutMeasurement

_log = logging.getLogger(__name__)


class PolicySampler:
    """Draws images by the averaged policy, from noise that depends on the run's seed alone."""

    def __init__(self, setup: TrainingSetup) -> None:
        self.setup = setup

    def latents(self, cond: Conditioning, per_prompt: int) -> Tensor:
        """Return finished latents (P, per_prompt, ...)."""
        setup, run = self.setup, self.setup.run
        velocity, steps = setup.models.guided or setup.models.policy, run.evaluation.inference_steps
        with setup.averaged():
            return draw_latents(velocity, setup.model, cond, per_prompt, steps, run.seed, run.batches.chunk)

    def images(self, cond: Conditioning, per_prompt: int) -> np.ndarray:
        """Return uint8 images (P, per_prompt, H, W, 3), or clips; each process draws its share."""
        processes = self.setup.processes
        latents = self.latents(cond[processes.evaluation_rows(len(cond))], per_prompt)
        return processes.all_gather_rows(torch.from_numpy(decode_groups(self.setup.model, latents)), len(cond)).numpy()


class HeldOutEvaluator:
    """Measures rewards on held-out prompts, and how far a judge prefers the images to those before training."""

    def __init__(self, setup: TrainingSetup, sampler: PolicySampler, prompts: Conditioning, side: SideOutputs) -> None:
        self.setup, self.sampler, self.prompts = setup, sampler, prompts
        self.pictures = HeldOutPictures(setup, prompts.records(), side)
        self.file = metrics_file(setup, RunFolder(setup.run.folder).held_out_file)
        measured = RunFolder(setup.run.folder).measurements_of_now() if setup.first and self.file is not None else []
        self.earliest = rewards_of(measured[0]) if measured else {}
        self.repeated = repeated_rows([content_key(record) for record in prompts.records()])
        """The rows that repeat a prompt."""
        self.base_images = self._base_images() if setup.run.held_out_judge is not None else None
        self.last: HeldOutMeasurement | None = None
        """The last measurement, on the first process."""

    def _base_images(self) -> np.ndarray:
        """Return the images before training; they are saved, because a resumed run has no such model."""
        file = self.setup.run.folder / "held_out_base.npy"
        if self.setup.first == 0:
            images = self.sampler.images(self.prompts, self.setup.run.evaluation.eval_images)
            if self.setup.processes.main:
                with writing(file):
                    np.save(file, images)
            return images
        if RunFolder(self.setup.run.folder).unchanged_since("held-out prompts"):
            raise CheckpointError(
                f"{file} has the base's images of other held-out prompts, and the win rate compares with those; "
                "take the prompts of before, or start the run anew"
            )
        if not file.is_file():
            raise CheckpointError(f"{file} is gone, and with it the base of the win rate; start the run anew")
        return np.load(file, allow_pickle=False)

    def draw_base(self) -> np.ndarray:
        """Return the images (P, K, ...) before training of the prompts whose pictures are stored."""
        if self.base_images is not None:
            return self.base_images[self.pictures.rows]
        # As many of each prompt as are measured, so that the first begins from the same noise.
        shown = self.prompts[torch.from_numpy(self.pictures.rows)]
        return self.sampler.images(shown, self.setup.run.evaluation.eval_images)

    def measure(self, step: int) -> dict[str, float]:
        """Return the mean of each reward over the held-out prompts, the spread of images, and the alarm.

        Every prompt's own figures are written to held_out.jsonl.
        """
        run, processes, total = self.setup.run, self.setup.processes, len(self.prompts)
        share = processes.evaluation_rows(total)
        latents = self.sampler.latents(self.prompts[share], run.evaluation.eval_images)
        parts = processes.run_on_all(lambda: self._scores(decode_groups(self.setup.model, latents), share, step))
        rewards = self._gather(parts, step)
        by_prompt = {name: values.tolist() for name, values in rewards.items()}
        if rewards and self.file is not None:
            self.file.write(step, by_prompt | ({REPEATED: self.repeated} if self.repeated else {}))
        self.earliest = self.earliest or by_prompt
        if processes.main:
            files = self.pictures.save(step, [entry for part in parts for entry in part["pictures"]])
            self.last = HeldOutMeasurement(step, self.prompts.records(), self.earliest, by_prompt, files)
        means = {name: values.nanmean().item() for name, values in rewards.items()}
        means |= latent_spread(processes.all_gather_rows(latents, total))
        return {f"eval/{name}": value for name, value in means.items()} | self._alarm(step, by_prompt)

    def _gather(self, parts: Sequence[Mapping[str, Any]], step: int) -> dict[str, Tensor]:
        """Return every reward of all prompts, (P,) each, from what each process measured."""
        run, processes, total = self.setup.run, self.setup.processes, len(self.prompts)
        join = lambda lists: torch.tensor([value for values in lists for value in values])[:total]
        rewards = {name: join(part["rewards"][name] for part in parts) for name in run.watched}
        for name in run.watched:
            failures = without_repeats([why for part in parts for why in part["failures"][name]], total, processes)
            if failures:
                _log.warning(f"step {step}: {len(failures)} held-out images have no {name}, first {failures[0]}")
        if self.base_images is not None:
            rewards[WIN_RATE] = join(part["wins"] for part in parts).nanmean(1)
            undecided = without_repeats([why for part in parts for why in part["undecided"]], total, processes)
            if undecided:
                _log.warning(f"{len(undecided)} comparisons with the base have no verdict, first {undecided[0]}")
        return rewards

    def _alarm(self, step: int, by_prompt: Mapping[str, list[float]]) -> dict[str, float]:
        """Return whether trained rewards rise while hidden ones fall, and log how."""
        hidden = self.setup.run.hidden
        trained = [name for name in by_prompt if name not in hidden]
        if not hidden or not trained:
            return {}
        signs = reward_hacking_signs(self.earliest, by_prompt, trained, hidden, self.repeated)
        for sentence in signs:
            _log.warning(f"step {step}: ALARM: {sentence}; look at samples/, the policy may be cheating")
        return {"alarm": float(bool(signs))}

    def _scores(self, images: np.ndarray, share: Tensor, step: int) -> dict[str, Any]:
        """Return rewards and wins over the base's images, of images (P, K, H, W, 3) of this process's prompts.

        The pictures that are stored are returned with them.
        """
        run, records = self.setup.run, self.prompts[share].records()
        scores = {name: score_groups(name, images, records, run.reward_models) for name in run.watched}
        wins, undecided = ([], []) if self.base_images is None else self._wins(images, records, share)
        return {
            "rewards": {name: score.values.nanmean(1).tolist() for name, score in scores.items()},
            "failures": {name: list(score.failures) for name, score in scores.items()},
            "wins": wins,
            "undecided": undecided,
            "pictures": self.pictures.of_process(images, share.tolist(), scores, step),
        }

    def _wins(self, images: np.ndarray, records: Sequence[dict], share: Tensor) -> tuple[list[list[float]], list[str]]:
        """Return (P, K) how far the judge prefers each image to the base's from the same noise, and failures."""
        run, K = self.setup.run, images.shape[1]
        assert run.held_out_judge is not None and self.base_images is not None
        pairs = np.stack([images, self.base_images[share.numpy()]], 2).reshape(-1, 2, *images.shape[2:])
        pair_records = [record for record in records for _ in range(K)]
        # The same flaws of the judge at every iteration, so that a curve shows the policy alone.
        streams = [generator(run.seed, "held out", prompt, k) for prompt in share.tolist() for k in range(K)]
        judged, failures = judge_groups(run.held_out_judge, pairs, pair_records, all_pairs(len(pairs), 2), streams)
        return win_rates(judged)[:, 0].view(-1, K).tolist(), failures


def without_repeats(reasons: Sequence[str], total: int, processes: Processes) -> list[str]:
    """Return reasons without those that are there twice because processes share the last prompt."""
    return list(reasons) if total % processes.count == 0 else list(dict.fromkeys(reasons))
