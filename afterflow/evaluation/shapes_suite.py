"""Pictures by the ODE, and what they are worth."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..data.prompts import ShapesPrompts
from ..envs.shapes import population
from ..envs.shapes.fidelity import fidelity
from ..envs.shapes.render import render_batch
from ..envs.shapes.verify import verify
from ..envs.shapes.world import TAGS, world_size
from ..models.base import Model
from ..models.generate import picture_prompts
from ..sampling.seeds import number
from .shapes_report import VERDICTS, Judged, Report, Settings, report


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
    features = population.texture_features(reference.reshape(-1, *tuned.shape[2:]))
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
    return population.frechet_distance(population.texture_features(images.reshape(-1, *images.shape[2:])), features)
