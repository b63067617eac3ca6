"""The suite `shapes`: prompts of the shapes world, verdicts on the images, and their report.

The overall score is the mean over those of GenEval's six tags that the split can hold out.  A lone object has no fact
to hold back, so `single_object` stands apart in test; so does `text`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.prompts import ShapesPrompts
from ..envs.shapes import population
from ..envs.shapes.fidelity import fidelity
from ..envs.shapes.render import render_batch
from ..envs.shapes.verify import verify
from ..envs.shapes.world import TAGS, world_size
from ..experiment.intervals import Estimate
from ..models.generate import draw_images
from ..models.pipeline import Model
from ..sampling.seeds import number
from .report import (
    AVERAGE,
    GENEVAL_TAGS,
    VERDICTS,
    Comparison,
    Report,
    ShapesSettings,
    averaged_tags,
    compare_figures,
    rows_by_tag,
)


@dataclass(frozen=True)
class Judged:
    """The figures of the images of P prompts."""

    figures: Mapping[str, np.ndarray]
    """Metric → (P,): the mean over a prompt's images."""
    strict: np.ndarray
    """Boolean (P, K): the images that passed."""
    frechet: float
    """Distance of all images to as many renders of the same prompts."""


def suite_prompts(settings: ShapesSettings, sides: tuple[int, int]) -> list[dict]:
    """Return the records of the suite, tag by tag; those of one seed and split are the same for every model."""
    size = world_size(*sides)
    tags = tuple(tag for tag in TAGS if (settings.split, tag) != ("ood", "single_object"))
    return ShapesPrompts(settings.split, settings.prompts, tags, size).records(number(settings.seed, "suite"))


def suite_pictures(
    model: Model, records: Sequence[dict], settings: ShapesSettings, rows: Sequence[int] | None = None
) -> np.ndarray:
    """Draw all P records, or those in `rows`, from the noise they have among all: uint8 (P, images, H, W, 3)."""
    s = settings
    return draw_images(model, records, s.images, s.steps, s.guidance, s.seed, rows)


def strict_of_teachers(
    records: Sequence[dict], settings: ShapesSettings, teachers: Mapping[str, str], load: Callable[[str], Model]
) -> np.ndarray:
    """Return strict (P,) of the teacher of each record's tag, NaN where it has none.

    Every teacher draws the prompts of its own tags alone.  teachers: tag → folder of a LoRA, of which `load` makes a
    model.
    """
    strict = np.full(len(records), np.nan)
    for folder in dict.fromkeys(teachers.values()):
        rows = [i for i, record in enumerate(records) if teachers.get(record["tag"]) == folder]
        if rows:
            images = suite_pictures(load(folder), records, settings, rows)
            strict[rows] = verdicts(images, [records[i] for i in rows])["strict"].mean(1)
    return strict


def compare_pictures(
    settings: ShapesSettings,
    records: Sequence[dict],
    tuned: np.ndarray,
    base: np.ndarray | None,
    model: str,
    against: str | None,
) -> tuple[Report, Judged, Judged | None]:
    """Judge images of the same P records beside fresh renders of them.

    Args:
        settings: How the images were drawn.
        records: The P prompts.
        tuned: Images (P, K, H, W, 3) of the model.
        base: Images of the model to compare with.
        model: Name of the model in the report.
        against: Name of the model to compare with.
    """
    features, truth = true_pictures(records, tuned.shape, settings.seed)
    judged = judge(tuned, records, features)
    judged_base = None if base is None else judge(base, records, features)
    return shapes_report(settings, records, judged, judged_base, truth, (model, against)), judged, judged_base


def true_pictures(records: Sequence[dict], shape: Sequence[int], seed: int) -> tuple[np.ndarray, dict[str, float]]:
    """Render two sets of true images of P records in `shape` (P, K, S, S, 3): features (P * K, F), figures.

    The features are those of the first set, to which others are compared; the figures are what the second set gets.
    """
    reference, fresh = (renders(records, shape, seed, name) for name in ("reference", "fresh"))
    features = population.texture_features(reference.reshape(-1, *shape[2:]))
    truth = {"frechet": frechet(fresh, features)}
    if shape[1] > 1:
        truth["diversity"] = float(np.mean([population.diversity(images) for images in fresh]))
    return features, truth


def judge(images: np.ndarray, records: Sequence[dict], features: np.ndarray) -> Judged:
    """Judge images (P, K, H, W, 3) of P records, with the features (P * K, F) of renders of them."""
    scores = verdicts(images, records)
    figures = {name: score.mean(1) for name, score in scores.items()}
    if images.shape[1] > 1:
        figures["diversity"] = np.array([population.diversity(of_prompt) for of_prompt in images])
    return Judged(figures, scores["strict"] == 1, frechet(images, features))


def verdicts(images: np.ndarray, records: Sequence[dict]) -> dict[str, np.ndarray]:
    """Return every verdict, (P, K), on the images (P, K, H, W, 3) of P records."""
    rows = [[verify(record, image) for image in of_prompt] for record, of_prompt in zip(records, images)]
    scores = {name: np.array([[v[name] for v in row] for row in rows]) for name in VERDICTS if name != "fidelity"}
    flat = images.reshape(-1, *images.shape[2:])
    return scores | {"fidelity": np.array([fidelity(image) for image in flat]).reshape(images.shape[:2])}


def renders(records: Sequence[dict], shape: Sequence[int], seed: int, name: str) -> np.ndarray:
    """Render true images of P records, uint8 in `shape` (P, K, S, S, 3); another `name` gives others."""
    rng = np.random.default_rng(number(seed, "renders", name))
    return render_batch([record for record in records for _ in range(shape[1])], shape[2], rng).reshape(shape)


def frechet(images: np.ndarray, features: np.ndarray) -> float:
    """Return the Fréchet distance of images (P, K, H, W, 3) to as many others, given as features (P * K, F)."""
    return population.frechet_distance(population.texture_features(images.reshape(-1, *images.shape[2:])), features)


def shapes_report(
    settings: ShapesSettings,
    records: Sequence[dict],
    tuned: Judged,
    base: Judged | None,
    truth: Mapping[str, float],
    names: tuple[str, str | None],
) -> Report:
    """Report judged images of the same P records: scores, deltas and intervals.

    Args:
        settings: How the images were drawn.
        records: The P prompts.
        tuned: Figures of the model.
        base: Figures of the model to compare with.
        truth: Figures of fresh renders.
        names: Names of the model and of the one to compare with.
    """
    prompts = prompts_of_suite(records)
    figures = by_prompt(tuned.figures, records, prompts)
    base_figures = None if base is None else by_prompt(base.figures, records, prompts)
    rows = rows_by_tag(prompts)
    rng = np.random.default_rng(settings.seed)

    def over(tags: Sequence[str]) -> dict[str, Comparison]:
        return compare_figures(figures, base_figures, [rows[tag] for tag in tags], settings.draws, rng)

    distance = Comparison(Estimate(tuned.frechet))
    if base is not None:
        distance = Comparison(distance.tuned, Estimate(base.frechet), Estimate(tuned.frechet - base.frechet))
    # One generator serves all three in this order, so the order is part of the figures.
    overall = over(averaged_tags(settings.split, rows))
    six = over([tag for tag in rows if tag in GENEVAL_TAGS])["strict"]
    tags = {tag: over([tag]) for tag in rows}
    counts = {tag: len(of_tag) for tag, of_tag in rows.items()}
    return Report(settings, *names, settings.images, settings.draws, counts, overall, tags, six, distance, truth)


def beside_teachers(
    settings: ShapesSettings, records: Sequence[dict], strict: np.ndarray, of_teachers: np.ndarray
) -> dict[str, Comparison]:
    """Return `Report.taught` of strict (P,) of a student and of the teachers, NaN where a tag has no teacher."""
    taught = np.flatnonzero(~np.isnan(of_teachers))
    records = [records[i] for i in taught.tolist()]
    prompts = list({record["prompt"]: record for record in records}.values())
    student, teacher = (by_prompt({"strict": x[taught]}, records, prompts) for x in (strict, of_teachers))
    rows, rng = rows_by_tag(prompts), np.random.default_rng(settings.seed)

    def over(tags: Sequence[str]) -> Comparison:
        return compare_figures(student, teacher, [rows[tag] for tag in tags], settings.draws, rng)["strict"]

    return {tag: over([tag]) for tag in rows} | {AVERAGE: over(list(rows))}


def prompts_of_suite(records: Sequence[dict]) -> list[dict]:
    """Return the records of a suite without those that repeat a prompt."""
    return list({record["prompt"]: record for record in records}.values())


def by_prompt(
    figures: Mapping[str, np.ndarray], records: Sequence[dict], prompts: Sequence[dict]
) -> dict[str, np.ndarray]:
    """Average figures (P,) of records that repeat a prompt: (U,) of the U different prompts."""
    number_of = {record["prompt"]: i for i, record in enumerate(prompts)}
    index = np.array([number_of[record["prompt"]] for record in records])
    repeats = np.bincount(index, minlength=len(prompts))
    return {name: np.bincount(index, figure, len(prompts)) / repeats for name, figure in figures.items()}
