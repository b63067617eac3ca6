"""The OCR rewards on rendered signs, clean and attacked, and how many images a second one core reads.

python bench/ocr.py --json bench/results/ocr.json
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from harness import make_parser, provenance, write_json
from PIL import Image, ImageDraw, ImageFont

from afterflow.rewards.ocr import ocr_flowgrpo_reward, ocr_reward

SIGNS = (
    "Library Bakery Museum Welcome Station Harbour Garden Kitchen Theatre Holiday Market Sunrise Coffee Winter Airport "
    "Closed Tickets Exhibit Forest Laundry Orchestra Pottery Quarry Rooftop Saturday Umbrella Village Workshop Zebra"
)


def scene(rng: np.random.Generator, size: int) -> Image.Image:
    """A sky over a ground, each a gradient, with some blobs."""
    y, x = np.mgrid[:size, :size] / size
    top, bottom = rng.uniform(60, 240, (2, 3))
    pixels = np.where((y < 0.6)[..., None], top - 40 * y[..., None], bottom - 50 * x[..., None])
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        (cx, cy), r = rng.uniform(0, size, 2), rng.uniform(0.04, 0.1) * size
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), tuple(rng.integers(40, 230, 3).tolist()))
    return image


def font(text: str, width: float) -> ImageFont.FreeTypeFont:
    """The largest in which the text is no wider."""
    drawn = ImageFont.load_default(100)
    return ImageFont.load_default(max(10, int(100 * width / drawn.getlength(text))))


def sign(text: str, rng: np.random.Generator, size: int) -> Image.Image:
    """The text on a plate in a scene."""
    image = scene(rng, size)
    letters = font(text, 0.6 * size)
    left, top, right, bottom = letters.getbbox(text, anchor="mm")
    centre = size * rng.uniform(0.47, 0.53), size * rng.uniform(0.3, 0.7)
    draw, edge = ImageDraw.Draw(image), 0.06 * size
    box = (left - edge, top - edge, right + edge, bottom + edge)
    draw.rectangle([side + centre[i % 2] for i, side in enumerate(box)], (246, 244, 235), (60, 60, 60))
    draw.text(centre, text, (25, 25, 30), letters, anchor="mm")
    return image


def copies(text: str, rng: np.random.Generator, size: int) -> Image.Image:
    image = scene(rng, size)
    for row in range(10):
        centre = (size / 2, size * (0.06 + 0.098 * row))
        ImageDraw.Draw(image).text(centre, text, (10, 10, 10), font(text, 0.45 * size), anchor="mm")
    return image


def black(text: str, rng: np.random.Generator, size: int) -> Image.Image:
    image = Image.new("RGB", (size, size))
    ImageDraw.Draw(image).text((size / 2, size / 2), text, (255, 255, 255), font(text, 0.6 * size), anchor="mm")
    return image


def surplus(text: str, rng: np.random.Generator, size: int) -> Image.Image:
    image = sign(text, rng, size)
    more = "and much more"
    ImageDraw.Draw(image).text((size / 2, 0.88 * size), more, (10, 10, 10), font(more, 0.6 * size), anchor="mm")
    return image


KINDS: dict[str, Callable[[str, np.random.Generator, int], Image.Image]] = {
    "clean": sign,
    "ten copies": copies,
    "black canvas": black,
    "surplus text": surplus,
}


def drawn(kind: str, count: int, size: int, seed: int) -> tuple[np.ndarray, list[dict]]:
    """uint8 (count, size, size, 3) and records; signs of one or two words, the same texts for every kind."""
    rng, pictures, records = np.random.default_rng(seed), [], []
    for i in range(count):
        text = " ".join(np.random.default_rng((seed, i)).choice(SIGNS.split(), 1 + i % 2, replace=False))
        pictures.append(np.asarray(KINDS[kind](text, rng, size)))
        records.append({"prompt": f'a photo of a sign that says "{text}"'})
    return np.stack(pictures), records


def measure(count: int, size: int, seed: int) -> dict:
    torch.set_num_threads(1)
    results = {}
    for kind in KINDS:
        images, records = drawn(kind, count if kind == "clean" else count // 4, size, seed)
        start = time.perf_counter()
        scored = ocr_reward(images, records)
        seconds = time.perf_counter() - start
        results[kind] = {
            "images": len(images),
            "ocr": float(scored.values.mean()),
            "exact": float(scored.parts["exact"].mean()),
            "ocr_flowgrpo": float(ocr_flowgrpo_reward(images, records).values.mean()),
            "images_per_second": len(images) / seconds,
        }
        print(kind, results[kind], file=sys.stderr)
    return {"found": results, "size": size, "seed": seed, **provenance()}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_json(measure(options.count, options.size, options.seed), options.json)


if __name__ == "__main__":
    main()
