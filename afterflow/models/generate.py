"""Pictures of prompts: starting noise, the ODE from it, and the decoded images."""

import logging
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from ..sampling.conditioning import Conditioning, Velocity, condition
from ..sampling.kernels import flow_sde
from ..sampling.rollout import chain, prompt_noise, sample
from ..sampling.seeds import generator
from ..system.errors import InputError
from ..system.input_pictures import check_inputs, prompt_key, read_input
from ..system.once import say_once
from ..system.pictures import picture_digest
from .pipeline import InputPictures, Model

_log = logging.getLogger(__name__)

CHUNK = 64
"""Largest number of images of one forward pass."""
MOST_DECODED = 2**30
"""Bytes of decoded input pictures that are kept until all are encoded.  The last may go beyond."""


def starting_noise(cond: Conditioning, per_prompt: int, shape: Sequence[int], seed: int) -> Tensor:
    """Draw noise (P, per_prompt, *shape) by the seed and the prompts' indices alone, so that two models are paired."""
    sources = [generator(seed, "evaluation", index) for index in cond.index.tolist()]
    return prompt_noise(sources, per_prompt, torch.empty(len(cond), 1, *shape, device=cond.device))


def solve_ode(velocity: Velocity, cond: Conditioning, noise: Tensor, times: Tensor) -> Tensor:
    """Solve the ODE on a grid of times (N + 1,): noise (P, G, ...) → the latents of images (P, G, ...)."""
    return sample(velocity, flow_sde, chain(times, noise.shape[1], 0.0, ()), cond, noise, ()).leaves


def decode_groups(model: Model, latents: Tensor) -> np.ndarray:
    """Decode latents (P, G, ...) to uint8 images (P, G, H, W, 3)."""
    images = model.decode(latents.flatten(0, 1))
    return images.reshape(*latents.shape[:2], *images.shape[1:])


def latent_spread(latents: Tensor) -> dict[str, float]:
    """Measure how far the images of a prompt are apart, and how far all are from their mean: latents (P, G, ...).

    Both are root mean squares over coordinates.  Training may narrow them before any reward shows it.
    """
    x = latents.float().flatten(2)
    G = x.shape[1]
    measured = {"std": (x - x.mean((0, 1))).square().mean().sqrt().item()}
    if G > 1:
        # The squared distance of two independent draws is twice the variance.
        measured["diversity"] = (2 * x.var(1).mean(-1)).sqrt().mean().item()
    return measured


def draw_images(
    model: Model,
    records: Sequence[dict],
    per_prompt: int,
    steps: int,
    guidance: float,
    seed: int,
    rows: Sequence[int] | None = None,
) -> np.ndarray:
    """Draw images of P records, or of those in `rows`: uint8 (P, per_prompt, H, W, 3).

    Args:
        model: the model that draws.
        records: dicts with the text under "prompt".
        per_prompt: images of each prompt.
        steps: ODE steps.
        guidance: scale of classifier-free guidance.
        seed: seed of the noise, which also depends on a prompt's index.
        rows: indices of the records to draw.  None: all.
    """
    cond = encode_records(model, records)
    if rows is not None:
        cond = cond[torch.tensor(rows)]
    chunk = min(CHUNK, len(cond) * per_prompt)
    velocity = model.guided_velocity(guidance, chunk)
    return decode_groups(model, draw_latents(velocity, model, cond, per_prompt, steps, seed, chunk))


def encode_records(model: Model, records: Sequence[dict]) -> Conditioning:
    """Encode the prompts of P records to P rows, with the pictures that they are about.

    A text, with its pictures, is encoded once, and embeddings stay on the CPU.  Prompts that are longer than an encoder
    reads are told once.  InputError for pictures that the model cannot draw from, and where it needs some.
    """
    for cut in model.cut_prompts(distinct_prompts(records)):
        say_once(_log, cut.sentence(), cut.sentence())
    check_inputs(records, model.takes_pictures, model.stock, model.most_pictures)
    about = [prompt_key(record) for record in records]
    texts = {text: i for i, text in enumerate(dict.fromkeys(about))}
    prompts, inputs = [prompt for prompt, _ in texts], [names for _, names in texts]
    positive, negative = model.encode_texts(prompts, read_inputs(model, inputs))
    device = next(model.module.parameters()).device
    rows = torch.tensor([texts[text] for text in about])
    # Where each text has an empty one of its own, they stay on the CPU with it.
    negative = negative.resident(device) if len(negative.sequence) == 1 else negative
    return condition(positive, negative, records, rows, device)


def read_inputs(model: Model, inputs: Sequence[Sequence[str]]) -> InputPictures | None:
    """Read the N input pictures of each of U texts, as the model takes them; None where there are none."""
    if not inputs or not inputs[0]:
        return None
    names = {name: i for i, name in enumerate(dict.fromkeys(name for of_text in inputs for name in of_text))}
    views, fitted = SeenPictures(model), 0
    for name in names:  # of which none is kept in its own size
        pixels = read_input(name)
        taken = model.fit_input(pixels)
        views.add(name, taken)
        fitted += taken.shape != pixels.shape
    if fitted:
        height, width = model.drawn_size
        sentence = f"{fitted} of {len(names)} input pictures are cropped or scaled to draw {width} x {height} px"
        say_once(_log, sentence, sentence)
    return InputPictures(views, views.digests, torch.tensor([[names[name] for name in of_text] for of_text in inputs]))


@final
class SeenPictures(Sequence[tuple[np.ndarray, ...]]):
    """Input pictures in the sizes in which a model sees them: the first are kept, others are read again when asked for.

    InputError where one that is read again has changed.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names: list[str] = []
        self.digests: list[str] = []
        self.first: list[tuple[np.ndarray, ...]] = []
        self.room = MOST_DECODED

    def add(self, name: str, taken: np.ndarray) -> None:
        """Add a picture as the model takes it, uint8 (H, W, 3)."""
        self.names.append(name)
        self.digests.append(picture_digest(taken))
        if self.room > 0:
            self.first.append(self.model.views(taken))
            self.room -= sum(view.nbytes for view in self.first[-1])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:  # type: ignore[override]
        if index < len(self.first):
            return self.first[index]
        taken = self.model.fit_input(read_input(self.names[index]))
        if picture_digest(taken) != self.digests[index]:
            raise InputError(f"{self.names[index][:200]}: the picture changed while it was encoded; start again")
        return self.model.views(taken)


def distinct_prompts(records: Sequence[dict]) -> list[str]:
    """Return the texts of records, each once."""
    return list(dict.fromkeys(record["prompt"] for record in records))


def draw_latents(
    velocity: Velocity, model: Model, cond: Conditioning, per_prompt: int, steps: int, seed: int, chunk: int
) -> Tensor:
    """Draw latents (P, per_prompt, ...) of P prompts, with the states of only about a chunk in memory.

    Args:
        velocity: the velocity field.
        model: the model whose grid and shapes are taken.
        cond: the P prompts.
        per_prompt: images of each prompt.
        steps: ODE steps.
        seed: seed of the noise.
        chunk: number of images that are drawn together.
    """
    parts, times = [], model.schedule.times(steps)
    for rows in torch.arange(len(cond)).split(max(1, chunk // per_prompt)):
        noise = starting_noise(cond[rows], per_prompt, model.latent_shape, seed)
        parts.append(solve_ode(velocity, cond[rows], noise, times))
    return torch.cat(parts)
