"""Pictures by the ODE, and what they are worth."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.prompts import ShapesPrompts
from ..envs.shapes import population
from ..envs.shapes.fidelity import fidelity
from ..envs.shapes.render import render_batch
from ..envs.shapes.verify import verify
from ..envs.shapes.world import TAGS, world_size
from ..models.base import Model
from ..models.wrappers import guided, in_chunks
from ..sampling.conditioning import Cond, Velocity, condition
from ..sampling.kernels import flow_sde
from ..sampling.rollout import chain, draw, sample
from ..sampling.seeds import generator, number
from .shapes_report import VERDICTS, Judged, Report, Settings, report

CHUNK = 64
"""Images of one forward pass."""


def starting_noise(cond: Cond, per_prompt: int, shape: Sequence[int], seed: int) -> Tensor:
    """(P, per_prompt, ...): depends on seed and the place of the prompt alone, so that two models can be paired."""
    sources = [generator(seed, "evaluation", place) for place in cond.index.tolist()]
    return draw(sources, per_prompt, torch.empty(len(cond), 1, *shape, device=cond.index.device))


def finished(velocity: Velocity, model: Model, cond: Cond, noise: Tensor, steps: int) -> Tensor:
    """Noise (P, G, ...) → latents of finished images (P, G, ...), by the ODE on the pipeline's own grid."""
    plan = chain(model.schedule.times(steps), noise.shape[1], 0.0, ())
    return sample(velocity, flow_sde, plan, cond, noise, ()).leaves


def decoded(model: Model, latents: Tensor) -> np.ndarray:
    """Latents (P, G, ...) → uint8 (P, G, H, W, 3)."""
    images = model.decode(latents.flatten(0, 1))
    return images.reshape(*latents.shape[:2], *images.shape[1:])


def spread(latents: Tensor) -> dict[str, float]:
    """Of finished latents (P, G, ...): how far the images of a prompt are apart, and how far all are from their mean.

    Root mean squares over coordinates.  What learns from images may narrow both before any reward shows it.
    """
    x = latents.float().flatten(2)
    G = x.shape[1]
    found = {"std": (x - x.mean((0, 1))).square().mean().sqrt().item()}
    if G > 1:
        # Of two independent draws the squared distance is twice the variance.
        found["diversity"] = (2 * x.var(1).mean(-1)).sqrt().mean().item()
    return found


def picture_prompts(
    model: Model,
    records: Sequence[dict],
    per_prompt: int,
    steps: int,
    guidance: float,
    seed: int,
    rows: Sequence[int] | None = None,
) -> np.ndarray:
    """P records, or those in `rows` → uint8 (P, per_prompt, H, W, 3)."""
    cond = encoded(model, records)
    if rows is not None:
        cond = cond[torch.tensor(rows)]
    chunk = min(CHUNK, len(cond) * per_prompt)
    velocity = in_chunks(guided(model.velocity(model.module), guidance, model.combine), chunk)
    return decoded(model, finished_in_parts(velocity, model, cond, per_prompt, steps, seed, chunk))


def encoded(model: Model, records: Sequence[dict]) -> Cond:
    """One row per record; every text is encoded once, and the empty one with them.  Embeddings stay on the CPU."""
    texts = list(dict.fromkeys(record["prompt"] for record in records))
    embedding = model.encode([*texts, ""])
    place = {text: i for i, text in enumerate(texts)}
    device = next(model.module.parameters()).device
    rows = torch.tensor([place[record["prompt"]] for record in records], device=device)
    return condition(embedding.rows(slice(-1)), embedding.rows(slice(-1, None)).to(device), records, rows)


def finished_in_parts(
    velocity: Velocity, model: Model, cond: Cond, per_prompt: int, steps: int, seed: int, chunk: int
) -> Tensor:
    """P prompts → latents (P, per_prompt, ...); of what a rollout keeps, only about a chunk is ever in memory."""
    parts = []
    for rows in torch.arange(len(cond)).split(max(1, chunk // per_prompt)):
        noise = starting_noise(cond[rows], per_prompt, model.latent_shape, seed)
        parts.append(finished(velocity, model, cond[rows], noise, steps))
    return torch.cat(parts)


def picture_size(model: Model) -> tuple[int, int]:
    """Height and width in pixels, asked of the decoder."""
    device = next(model.module.parameters()).device
    height, width = model.decode(torch.zeros(1, *model.latent_shape, device=device)).shape[-3:-1]
    return height, width


def suite_prompts(settings: Settings, sides: tuple[int, int]) -> list[dict]:
    """The records of the suite `shapes`, tag by tag; those of one seed and split are the same for every model."""
    size = world_size(*sides)
    tags = tuple(tag for tag in TAGS if (settings.split, tag) != ("ood", "single_object"))
    return ShapesPrompts(settings.split, settings.prompts, tags, size).records(number(settings.seed, "suite"))


def suite_pictures(
    model: Model, records: Sequence[dict], settings: Settings, rows: Sequence[int] | None = None
) -> np.ndarray:
    """uint8 (P, images, H, W, 3) of all P records, or of those in `rows`, from the noise they have among all."""
    s = settings
    return picture_prompts(model, records, s.images, s.steps, s.guidance, s.seed, rows)


def strict_of_teachers(
    records: Sequence[dict], settings: Settings, teachers: Mapping[str, str], load: Callable[[str], Model]
) -> np.ndarray:
    """(P,): strict of the teacher of each record's tag, NaN where it has none; each draws its own prompts alone.

    teachers: tag → folder of a LoRA, of which `load` makes a model.
    """
    found = np.full(len(records), np.nan)
    for folder in dict.fromkeys(teachers.values()):
        rows = [i for i, record in enumerate(records) if teachers.get(record["tag"]) == folder]
        if rows:
            images = suite_pictures(load(folder), records, settings, rows)
            found[rows] = verdicts(images, [records[i] for i in rows])["strict"].mean(1)
    return found


def compare_pictures(
    settings: Settings,
    records: Sequence[dict],
    tuned: np.ndarray,
    base: np.ndarray | None,
    model: str,
    against: str | None,
) -> tuple[Report, Judged, Judged | None]:
    """Judge pictures (P, K, H, W, 3) of the same P records beside fresh renders of them."""
    reference, fresh = (renders(records, tuned.shape, settings.seed, name) for name in ("reference", "fresh"))
    features = population.features(reference.reshape(-1, *tuned.shape[2:]))
    judged = judge(tuned, records, features)
    judged_base = None if base is None else judge(base, records, features)
    truth = {"frechet": frechet(fresh, features)}
    if tuned.shape[1] > 1:
        truth["diversity"] = float(np.mean([population.diversity(images) for images in fresh]))
    return report(settings, records, judged, judged_base, truth, model, against), judged, judged_base


def judge(images: np.ndarray, records: Sequence[dict], features: np.ndarray) -> Judged:
    """Pictures (P, K, H, W, 3) of P records, with the features (P * K, F) of renders of them."""
    scores = verdicts(images, records)
    figures = {name: score.mean(1) for name, score in scores.items()}
    if images.shape[1] > 1:
        figures["diversity"] = np.array([population.diversity(of_prompt) for of_prompt in images])
    return Judged(figures, scores["strict"] == 1, frechet(images, features))


def verdicts(images: np.ndarray, records: Sequence[dict]) -> dict[str, np.ndarray]:
    """Every verdict on each of the pictures (P, K, H, W, 3) of P records, (P, K)."""
    said = [[verify(record, image) for image in of_prompt] for record, of_prompt in zip(records, images)]
    scores = {name: np.array([[v[name] for v in row] for row in said]) for name in VERDICTS if name != "fidelity"}
    flat = images.reshape(-1, *images.shape[2:])
    return scores | {"fidelity": np.array([fidelity(image) for image in flat]).reshape(images.shape[:2])}


def renders(records: Sequence[dict], shape: Sequence[int], seed: int, name: str) -> np.ndarray:
    """True pictures of P records, uint8 in `shape` (P, K, S, S, 3); another `name` gives others."""
    rng = np.random.default_rng(number(seed, "renders", name))
    return render_batch([record for record in records for _ in range(shape[1])], shape[2], rng).reshape(shape)


def frechet(images: np.ndarray, features: np.ndarray) -> float:
    """Distance of pictures (P, K, H, W, 3) to as many others, given as features (P * K, F)."""
    return population.frechet(population.features(images.reshape(-1, *images.shape[2:])), features)
