"""Pairs of the model's own images, drawn before training: of each prompt the best and the worst by a reward."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..algorithms.base import WIN_RATE, Comparisons, Requirements
from ..data.pairs import SampledPairs
from ..models.adapters import LoRA
from ..models.base import latents_file, read_cache_file, write_cache_file
from ..models.generate import solve_ode
from ..models.pipeline import Model
from ..models.wrappers import in_chunks
from ..objectives.advantages import combine
from ..objectives.preferences import best_and_worst, win_rates
from ..sampling.conditioning import Conditioning, Velocity
from ..sampling.rollout import prompt_noise
from ..sampling.seeds import generator
from ..system.errors import InputError
from ..system.input_pictures import with_digests
from ..train.clock import Clock
from ..train.distributed import ALONE, Processes
from .config import Run
from .contents import digest, lora_contents, pipeline_contents, reward_contents
from .prompt_checks import prompt_records
from .scoring import score_latents

_log = logging.getLogger(__name__)

UNSCORED = "with fewer than two scored images"
EQUAL = "whose images all have one score"
LOW = "whose best image is below min_reward"
REASONS = (UNSCORED, EQUAL, LOW)
IMAGES = 256
"""Number of images that are drawn together and kept in one file of the cache."""


@dataclass(frozen=True)
class PairSampler:
    """Draws the images of a run's prompts by the model before training, and takes the best and the worst of each."""

    run: Run
    data: SampledPairs
    model: Model
    reference: Velocity
    """The model before training, without guidance."""

    @cached_property
    def scale(self) -> float:
        """The guidance scale of the images."""
        own = self.data.guidance_scale
        return self.run.batches.guidance_scale if own is None else own

    @property
    def requirements(self) -> Requirements:
        """The rewards of the images, and all pairs of a prompt's images where a judge compares them."""
        rewards = dict.fromkeys([*self.data.weights, *self.data.min_reward], 1.0)
        return Requirements(rewards, comparisons=Comparisons() if WIN_RATE in self.data.weights else None)

    def gather(
        self, encode: Callable[[Sequence[dict]], Conditioning], processes: Processes = ALONE
    ) -> tuple[Tensor, list[dict], Counter[str], str]:
        """Return latents (N, 2, ...) of winners and losers, their prompts' records, what is left out, and a digest.

        The first process of a machine draws before the others, which find its images in the cache if there is one.
        What is left out is reason → number of prompts.  The digest says which images the pairs are.  InputError is
        raised where no prompt has a best and a worst image.
        """
        self.model.check_guidance(self.model.folder, self.scale)
        records, left_out = prompt_records(self.run), Counter()
        cond = encode(records)
        parts, chosen, which = [], [], []
        with processes.main_first():
            for rows in torch.arange(len(records)).split(max(1, IMAGES // self.data.per_prompt)):
                latents, members, reasons = self.part(cond[rows], rows, [records[i] for i in rows.tolist()])
                parts.append(latents)
                prompts = rows[members[:, 0]].tolist()
                chosen += [records[i] for i in prompts]
                which += [[i, *pair] for i, pair in zip(prompts, members[:, 1:].tolist())]
                left_out += reasons
        words = f"{len(chosen)} of {len(records)} prompts have a best and a worst image"
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        _log.info(words + (f"; left out: {reasons}" if left_out else ""))
        if not chosen:
            raise InputError(
                f"none of {len(records)} prompts makes a pair: {reasons}; take more images of a prompt "
                "(data.per_prompt), prompts that are met now and then, or a reward with degrees (data.weights)"
            )
        return torch.cat(parts), chosen, left_out, digest(json.dumps(which))

    @torch.no_grad()
    def part(self, cond: Conditioning, rows: Tensor, records: Sequence[dict]) -> tuple[Tensor, Tensor, Counter[str]]:
        """Return latents (n, 2, ...) of the pairs of some prompts, (n, 3) which they are, and what is left out.

        Which they are: the row of the prompt, and the numbers of its best and its worst image.

        Args:
            cond: The prompts.
            rows: Their numbers, on which their noise depends.
            records: Their records.
        """
        file = self.cache_file(rows, records)
        stored = read_cache_file(file) if self.data.cache else None
        if stored is not None and "members" in stored:
            counts: Counter[str] = Counter(dict(zip(REASONS, stored["left_out"].tolist())))
            return stored["latents"], stored["members"], +counts
        noise = prompt_noise(
            [generator(self.run.seed, "pairs", i) for i in rows.tolist()],
            self.data.per_prompt,
            torch.empty(len(rows), 1, *self.model.latent_shape, device=cond.device),
        )
        field = in_chunks(self.model.guide(self.reference, self.scale), self.run.batches.chunk)
        images = solve_ode(field, cond.on_device(), noise, self.model.schedule.times(self.data.steps))
        best, worst, reason = self.judge(images, rows, records)
        pairs = torch.tensor([i for i, why in enumerate(reason) if why is None], dtype=torch.long)
        both = torch.stack([best[pairs], worst[pairs]], 1).to(images.device)
        latents = images[pairs.to(images.device)[:, None], both].cpu()
        members = torch.stack([pairs, best[pairs], worst[pairs]], 1)
        left_out = Counter(why for why in reason if why is not None)
        if self.data.cache and not left_out[UNSCORED]:  # what has no score today is asked for again
            columns = {"members": members, "left_out": torch.tensor([left_out[why] for why in REASONS])}
            write_cache_file(file, {"latents": latents.contiguous(), **columns})
        return latents, members, left_out

    def judge(
        self, images: Tensor, rows: Tensor, records: Sequence[dict]
    ) -> tuple[Tensor, Tensor, Sequence[str | None]]:
        """Return the best and the worst image of each prompt, (P,) each, and why it makes no pair.

        Args:
            images: Latents (P, G, ...).
            rows: Numbers of the prompts.
            records: Their records.
        """
        streams = [generator(self.run.seed, "pairs judge", i) for i in rows.tolist()]
        judge, models = self.run.judge, self.run.reward_models
        scores = score_latents(self.model, self.requirements, judge, models, images, records, streams, Clock())
        rewards = {**scores.rewards, **{name: win_rates(judged) for name, judged in scores.judged.items()}}
        total = combine(rewards, self.data.weights)
        best, worst, spread = best_and_worst(total)
        reached = [rewards[name].gather(1, best[:, None])[:, 0] >= low for name, low in self.data.min_reward.items()]
        passes = torch.stack(reached).all(0) if reached else torch.ones(len(total), dtype=torch.bool)
        known = (~total.isnan()).sum(1) >= 2
        checks = {UNSCORED: known, EQUAL: spread, LOW: passes}
        return best, worst, [next((why for why, ok in checks.items() if not ok[i]), None) for i in range(len(total))]

    def cache_file(self, rows: Tensor, records: Sequence[dict]) -> Path:
        """Return the file of these prompts' pairs; its name is a digest of everything that decides them."""
        run, data = self.run, self.data
        start = run.tune.start if isinstance(run.tune, LoRA) else None
        names = [name for name in (*data.weights, *data.min_reward) if name != WIN_RATE]
        inputs = [
            "pairs",
            __version__,
            pipeline_contents(self.model.folder),
            repr(run.model),
            None if start is None else lora_contents(start),
            [run.optimization.mixed_precision, run.batches.chunk, run.seed],
            [data.per_prompt, data.steps, self.scale, dict(data.weights), dict(data.min_reward)],
            {name: reward_contents(name, run.reward_models) for name in names},
            repr(run.reward_models),
            repr(run.judge),
            list(zip(rows.tolist(), map(with_digests, records))),
        ]
        return latents_file(inputs)
