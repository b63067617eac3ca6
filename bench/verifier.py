"""Does the verifier of the shapes world tell right from wrong, and how fast?

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python bench/verifier.py --json bench/results/verifier.json

Prints, for 32 and 64 px: clean renders of each split, hard negatives (one fact edited), wrong prompts,
attacks on `closed`, corruption curves, the population's Fréchet distance, and timings. Only the timings do
not follow from the seed.
"""

import argparse
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Picture
from scipy import ndimage

from afterflow.envs.geneval_rules import Record
from afterflow.envs.shapes.detector import detect, segment
from afterflow.envs.shapes.fidelity import fidelity
from afterflow.envs.shapes.population import diversity, frechet_distance, texture_features
from afterflow.envs.shapes.prompts import draw, hard_negative, meaning
from afterflow.envs.shapes.reader import read_sign
from afterflow.envs.shapes.render import ImageArray, PlacedObject, background, develop, draw_objects, render_image
from afterflow.envs.shapes.verify import verify
from afterflow.envs.shapes.world import COLORS, SHAPES, SIZES, TAGS

Shown = tuple[Record, ImageArray]
Rates = dict[str, float]

CORRUPTIONS = {
    "noise": (2, 5, 10, 20, 30, 45),
    "blur": (0.4, 0.6, 1.0, 1.7, 3.0),
    "jpeg": (95, 75, 30),
    "down": (2, 4),
    "contrast": (0.8, 0.5),
    "grid": (6, 20),
    "hue": (20, 30),
    "flatbg": (160, 0),
    "mottle": (6, 12),
    "mix": (0.1, 0.3),
}
"""In grey levels, but blur in px, jpeg in quality, down and contrast as factors, mix as a share."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-tag", type=int, default=500, help="pictures of each tag for clean and hard negatives")
    parser.add_argument("--seed", type=int, default=777)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--json", metavar="FILE", help="write the result here, or '-' for a last line on stdout")
    args = parser.parse_args()
    threads = f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}"
    result = {
        "command": f"{threads} python bench/verifier.py {shlex.join(sys.argv[1:])}",
        "seed": args.seed,
        "per_tag": args.per_tag,
        "sizes": {size: measure(size, args.per_tag, args.seed) for size in args.sizes},
    }
    if args.json == "-":
        print(json.dumps(result))
    elif args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


def measure(size: int, per_tag: int, seed: int) -> dict:
    """Everything at one size, printed as it comes."""
    few = max(10, per_tag // 5)
    shown = {tag: exhibits("train", tag, per_tag, size, seed) for tag in TAGS}
    other = {
        split: {tag: exhibits(split, tag, few, size, seed) for tag in TAGS if (split, tag) != ("ood", TAGS[0])}
        for split in ("test", "ood")
    }
    shapes = [pair for tag in TAGS if tag != "text" for pair in shown[tag][: max(4, few // 5)]]
    signs = shown["text"][: max(4, 2 * few // 5)]
    return {
        "clean_train": section(f"{size} px, clean, train", {tag: judged(shown[tag]) for tag in TAGS}),
        **{
            f"clean_{split}": section(f"{size} px, clean, {split}", {tag: judged(p) for tag, p in pairs.items()})
            for split, pairs in other.items()
        },
        "hard_negatives": section(
            f"{size} px, hard negatives", {tag: judged(edited(shown[tag], seed)) for tag in TAGS}
        ),
        "wrong_prompts": section(
            f"{size} px, wrong prompts", {tag: judged(mismatched(shown[tag], seed)) for tag in TAGS}
        ),
        "attacks": section(f"{size} px, attacks", attacks(shown, few, size, seed)),
        "corruptions": section(f"{size} px, corruptions", corruption_curves(shapes, signs, seed)),
        "population": section(f"{size} px, population", {"six tags": population(shown, size, seed)}),
        "milliseconds": section(f"{size} px, CPU ms per picture (median)", timings(shown, size, seed)),
    }


def exhibits(split: str, tag: str, count: int, size: int, seed: int) -> list[Shown]:
    """Random records of a split and tag, each with a true picture."""
    rng = np.random.default_rng([seed, size, TAGS.index(tag), len(split)])
    records = [draw(split, tag, rng, size) for _ in range(count)]
    return [(record, render_image(record, size, rng)) for record in records]


def judged(pairs: Iterable[Shown]) -> Rates:
    """Mean of every verdict and of Q over some pictures."""
    verdicts = [verify(record, image) | {"q": fidelity(image)} for record, image in pairs]
    if not verdicts:
        return {"count": 0}
    return {"count": len(verdicts)} | {key: float(np.mean([v[key] for v in verdicts])) for key in verdicts[0]}


def section(title: str, rows: dict[str, Rates]) -> dict[str, Rates]:
    """Print rows as a table and hand them on."""
    print(f"\n{title}")
    for name, rates in rows.items():
        cells = (f"{key} {value:.0f}" if key == "count" else f"{key} {value:.3f}" for key, value in rates.items())
        print(f"  {name:34s}", *cells, flush=True)
    return rows


def edited(pairs: Sequence[Shown], seed: int) -> list[Shown]:
    rng = np.random.default_rng([seed, 1])
    return [(hard_negative(record, rng), image) for record, image in pairs]


def mismatched(pairs: Sequence[Shown], seed: int) -> list[Shown]:
    order = np.random.default_rng([seed, 2]).permutation(len(pairs))
    swapped = [(pairs[j][0], pairs[i]) for i, j in enumerate(order)]
    return [(record, image) for record, (true, image) in swapped if meaning(record) != meaning(true)]


def attacks(shown: dict[str, list[Shown]], count: int, size: int, seed: int) -> dict[str, Rates]:
    """Pictures that a reward must not be fooled by; edits that leave the prompt true are left out."""
    rng = np.random.default_rng([seed, 3])
    shapes = [pair for tag in TAGS if tag != "text" for pair in shown[tag][:count]]
    signs = shown["text"][:count]
    blind: dict[str, Callable[[], ImageArray]] = {
        "uniform noise": lambda: rng.integers(0, 256, (size, size, 3)).astype(np.uint8),
        "smooth noise": lambda: smooth_noise(size, rng),
        "blank": lambda: develop(background(size, rng), rng),
        "all eight shapes": lambda: shotgun(size, rng),
    }
    rows = {
        f"{name} ({kind})": judged((record, make()) for record, _ in pairs)
        for name, make in blind.items()
        for kind, pairs in (("shapes", shapes), ("signs", signs))
    }
    rows["foreign object (shapes)"] = judged((r, render_image(with_foreigner(r, rng), size, rng)) for r, _ in shapes)
    rows["one object too many (shapes)"] = judged((r, render_image(with_twin(r), size, rng)) for r, _ in shapes)
    rows["foreign object (signs)"] = judged((r, beside_sign(image, rng)) for r, image in signs)
    longest = 5 if size == 32 else 9
    rows["surplus characters (signs)"] = judged(
        (r, render_image(r | {"text": (r["text"] + "XQ")[:longest]}, size, rng)) for r, _ in signs
    )
    rows["truncated (signs)"] = judged((r, render_image(r | {"text": r["text"][:-1]}, size, rng)) for r, _ in signs)
    return rows


def smooth_noise(size: int, rng: np.random.Generator) -> ImageArray:
    blobs = ndimage.gaussian_filter(rng.normal(size=(size, size, 3)), (3, 3, 0))
    return np.clip(128 + 500 * blobs, 0, 255).astype(np.uint8)


def shotgun(size: int, rng: np.random.Generator) -> ImageArray:
    """Every shape once."""
    cell, canvas = size / 3, background(size, rng)
    draw_objects(
        canvas,
        [
            PlacedObject(shape, COLORS[rng.integers(10)], cell * (i % 3 + 0.5), cell * (i // 3 + 0.5), cell * 0.36, 0.0)
            for i, shape in enumerate(SHAPES)
        ],
    )
    return develop(canvas, rng)


def with_foreigner(record: Record, rng: np.random.Generator) -> Record:
    absent = [shape for shape in SHAPES if shape not in {clause["class"] for clause in record["include"]}]
    return record | {"include": [*record["include"], {"class": absent[rng.integers(len(absent))], "count": 1}]}


def with_twin(record: Record) -> Record:
    return record | {"include": [*record["include"], {"class": record["include"][0]["class"], "count": 1}]}


def beside_sign(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """The sign with an object on the free side of it."""
    size, (_, top, _, bottom) = len(image), read_sign(image).box
    r = min(4.0 * size / 32, (max(top, size - bottom) - 5) / 2.3)
    cy = r + 1.5 if top > size - bottom else size - r - 2
    cx = rng.uniform(r + 1.5, size - r - 2.5)
    canvas = image.astype(np.float32)
    draw_objects(canvas, [PlacedObject(SHAPES[rng.integers(8)], COLORS[rng.integers(10)], cx, cy, r, 0.0)])
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def corruption_curves(shapes: Sequence[Shown], signs: Sequence[Shown], seed: int) -> dict[str, Rates]:
    rows = {}
    for kind, levels in CORRUPTIONS.items():
        for level in levels:
            for name, pairs in (("shapes", shapes), ("signs", signs)):
                rng = np.random.default_rng([seed, 4])
                rates = judged((record, corrupt(image, kind, level, rng)) for record, image in pairs)
                columns = ("strict", "closed", "partial", "q")
                rows[f"{kind} {level} ({name})"] = {key: rates[key] for key in columns}
    return rows


def corrupt(image: ImageArray, kind: str, level: float, rng: np.random.Generator) -> ImageArray:
    pixels, size = image.astype(np.float64), len(image)
    match kind:
        case "noise":
            pixels += rng.normal(0, level, pixels.shape)
        case "blur":
            pixels = ndimage.gaussian_filter(pixels, (level, level, 0))
        case "jpeg":
            file = io.BytesIO()
            Picture.fromarray(image).save(file, "JPEG", quality=int(level))
            return np.array(Picture.open(file))
        case "down":
            small = Picture.fromarray(image).resize((int(size / level), int(size / level)), Picture.Resampling.BOX)
            return np.array(small.resize((size, size), Picture.Resampling.BILINEAR))
        case "contrast":
            mean = pixels.mean((0, 1))
            pixels = mean + (pixels - mean) * level
        case "grid":
            y, x = np.mgrid[:size, :size]
            pixels += level * ((x + y) % 2 * 2 - 1)[..., None]
        case "hue":
            pixels += np.array([level, -level, level / 2])
        case "flatbg":
            pixels[segment(image).background] = level
        case "mottle":
            pixels += level * 9 * ndimage.gaussian_filter(rng.normal(size=pixels.shape), (2.5, 2.5, 0))
        case "mix":
            pixels = pixels * (1 - level) + rng.uniform(0, 255, pixels.shape) * level
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def population(shown: dict[str, list[Shown]], size: int, seed: int) -> Rates:
    """Fréchet distances to a reference of equal size, and the diversity of 16 pictures of a prompt."""
    per_tag = min(100, *(len(pairs) for pairs in shown.values()))
    pairs = [pair for tag in TAGS if tag != "text" for pair in shown[tag][:per_tag]]
    fresh = [exhibits("train", tag, per_tag, size, seed + 1) for tag in TAGS if tag != "text"]
    reference = texture_features(np.stack([image for group in fresh for _, image in group]))
    rng = np.random.default_rng([seed, 5])
    distance = lambda images: frechet_distance(texture_features(np.stack(list(images))), reference)
    one_layout = [render_image(record, size, np.random.default_rng(seed)) for record, _ in pairs]
    groups = [
        np.stack([render_image(record, size, rng) for _ in range(16)]) for record, _ in pairs[:: max(1, per_tag // 5)]
    ]
    return {
        "fresh": distance(image for _, image in pairs),
        "background 160": distance(corrupt(image, "flatbg", 160, rng) for _, image in pairs),
        "one layout": distance(one_layout),
        "blur 0.6": distance(corrupt(image, "blur", 0.6, rng) for _, image in pairs),
        "noise 5": distance(corrupt(image, "noise", 5, rng) for _, image in pairs),
        "diversity": float(np.mean([diversity(group) for group in groups])),
    }


def timings(shown: dict[str, list[Shown]], size: int, seed: int) -> dict[str, Rates]:
    rng = np.random.default_rng([seed, 6])
    shapes = [pair for tag in TAGS if tag != "text" for pair in shown[tag][:50]]
    signs = shown["text"][:100]
    return {
        "shapes": {
            "render": median_ms(lambda record, _: render_image(record, size, rng), shapes),
            "detect": median_ms(lambda _, image: detect(image), shapes),
            "verify": median_ms(verify, shapes),
            "fidelity": median_ms(lambda _, image: fidelity(image), shapes),
        },
        "signs": {
            "render": median_ms(lambda record, _: render_image(record, size, rng), signs),
            "verify": median_ms(verify, signs),
        },
    }


def median_ms(act: Callable[[Record, ImageArray], object], pairs: Sequence[Shown]) -> float:
    spent = []
    for record, image in pairs:
        start = time.process_time()
        act(record, image)
        spent.append(time.process_time() - start)
    return 1e3 * float(np.median(spent))


if __name__ == "__main__":
    main()
