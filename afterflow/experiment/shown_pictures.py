"""Which pictures a run stores while it trains, and when: samples, held-out pictures and groups of the rollout."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..algorithms.base import explores
from ..rewards.grouped import GroupScores
from ..sampling.seeds import generator
from ..system.side_outputs import SideOutputs
from .group_recorder import GroupRecorder
from .image_grid import spread_rows
from .picture_store import PictureStore, encode_picture, score_pictures, scores_of_pictures
from .setup import TrainingSetup

SHOWN_HELD_OUT = 16
"""Number of held-out prompts whose first picture is stored, at most."""


class SamplePictures:
    """Stores the pictures of the sampler's prompts, with the scores of rewards of ours that are functions."""

    def __init__(self, setup: TrainingSetup, records: Sequence[dict], per_prompt: int, side: SideOutputs) -> None:
        self.setup, self.records, self.per_prompt, self.side = setup, records, per_prompt, side
        self.store = PictureStore(setup.run.folder, "samples")
        if setup.processes.main and setup.run.logging.sample_every:
            with side.making("stored pictures"):
                self.store.begin(setup.first, records, per_prompt)

    def save(self, step: int, images: np.ndarray) -> None:
        """Store images (P, K, ...) of iteration `step`."""
        with self.side.making("stored pictures", step):
            self.store.write_inputs(self.records, *images.shape[-3:-1])
            about = score_pictures(self.setup.run, images, self.records)
            self.store.write(step, [encode_picture(image) for of_prompt in images for image in of_prompt], about)


class HeldOutPictures:
    """Stores the first picture of some held-out prompts, which are drawn and scored to be measured."""

    def __init__(self, setup: TrainingSetup, records: Sequence[dict], side: SideOutputs) -> None:
        self.setup, self.side = setup, side
        self.rows = spread_rows(len(records), SHOWN_HELD_OUT)
        """The rows of the prompts, spread over all."""
        self.records = [records[row] for row in self.rows]
        self.store = PictureStore(setup.run.folder, "held_out")
        if setup.processes.main:
            with side.making("stored held-out pictures"):
                self.store.begin(setup.first, self.records)

    def of_process(
        self, images: np.ndarray, rows: Sequence[int], scores: Mapping[str, GroupScores], step: int
    ) -> list[dict[str, Any]]:
        """Return the stored pictures among images (P, K, ...) of these rows, with their scores, as JSON holds them."""
        entries = []
        with self.side.making("stored held-out pictures", step):
            for i, row in enumerate(rows):
                if row in self.rows:
                    of_one = {name: first_image(score, i) for name, score in scores.items()}
                    picture = base64.b64encode(encode_picture(images[i, 0])).decode()
                    entries.append({"row": row, "picture": picture, **scores_of_pictures(of_one)})
        return entries

    def save(self, step: int, entries: Sequence[Mapping[str, Any]]) -> dict[int, Path]:
        """Store what all processes returned from `of_process`, and return the files by the rows of their prompts."""
        by_row, files = {entry["row"]: entry for entry in entries}, []
        with self.side.making("stored held-out pictures", step):
            chosen = [by_row[row] for row in self.rows]
            about = {
                kind: {name: [entry[kind].get(name, [None])[0] for entry in chosen] for name in chosen[0][kind]}
                for kind in ("scores", "parts")
            }
            pictures = [base64.b64decode(entry["picture"]) for entry in chosen]
            with Image.open(io.BytesIO(pictures[0])) as first:
                width, height = first.size
            self.store.write_inputs(self.records, height, width)
            files = self.store.write(step, pictures, about)
        return dict(zip(self.rows.tolist(), files))

    def save_base(self, step: int, images: np.ndarray) -> None:
        """Store the first of each prompt's images (P, K, ...), which were drawn before the first iteration."""
        with self.side.making("stored held-out pictures", step):
            self.store.write_inputs(self.records, *images.shape[-3:-1])
            about = score_pictures(self.setup.run, images[:, :1], self.records)
            self.store.write(step, [encode_picture(of_prompt[0]) for of_prompt in images], about)


class GroupPictures:
    """Stores groups of the rollouts of some iterations: their rewards, and their best and worst picture."""

    def __init__(self, setup: TrainingSetup, recorder: GroupRecorder) -> None:
        self.setup, self.recorder = setup, recorder
        self.store = PictureStore(setup.run.folder, "groups")
        every = setup.run.logging.sample_every
        self.every = every if setup.processes.main and explores(setup.algorithm) else 0
        """Iterations between stored groups; 0: this process stores none."""
        if self.every:
            with recorder.side.making("stored groups"):
                self.store.begin(setup.first)
        self.arm(setup.first)

    def arm(self, step: int) -> None:
        """Let the recorder wait for iteration `step`, if its groups are stored."""
        last = self.setup.run.batches.iterations - 1
        self.recorder.arm(step if self.every and (step % self.every == 0 or step == last) else None)

    def save(self, step: int) -> None:
        """Store the groups of iteration `step`, if they were recorded, and wait for those of the next."""
        algorithm, run = self.setup.algorithm, self.setup.run
        if self.recorder.step == step and explores(algorithm):
            self.recorder.write(self.store, algorithm.plan(step, generator(run.seed, step, "plan")))
        self.arm(step + 1)


def first_image(score: GroupScores, row: int) -> GroupScores:
    """Return the scores of the first image of one prompt."""
    parts = {name: values[row : row + 1, :1] for name, values in score.parts.items()}
    return GroupScores(score.values[row : row + 1, :1], parts, ())
