"""What the shipped pipeline draws: by our short sequence, and by diffusers' plain call without any argument.

    python bench/tiny_sd3.py --json bench/results/tiny_sd3.json

Both draw the same test prompts.  The plain call is `StableDiffusion3Pipeline.from_pretrained(folder)(prompt)`: guidance
7, 28 steps and 256 tokens of a third encoder that says nothing.
"""

import sys
import time
from dataclasses import replace

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from harness import make_parser, write_json

from afterflow.evaluation.report import Report, ShapesSettings
from afterflow.evaluation.shapes_suite import compare_pictures, suite_pictures, suite_prompts
from afterflow.experiment.serialization import to_json
from afterflow.models.pipeline import no_progress_bars
from afterflow.models.pipeline_files import TINY
from afterflow.models.sd3 import SD3


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=str(TINY))
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0])
    parser.add_argument("--prompts", type=int, default=280)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    no_progress_bars()
    settings = ShapesSettings(prompts=options.prompts, images=options.images)
    records = suite_prompts(settings, (32, 32))
    judged = lambda pictures, settings: compare_pictures(settings, records, pictures, None, options.model, None)[0]
    result = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    model = SD3(options.model).load()
    for guidance in options.guidance:
        ours = replace(settings, guidance=guidance)
        start = time.perf_counter()
        pictures = suite_pictures(model, records, ours)
        result[f"short_guidance_{guidance:g}"] = brief(judged(pictures, ours), time.perf_counter() - start)
    start = time.perf_counter()
    plain = replace(settings, steps=28, guidance=7.0)
    result["plain_call"] = brief(
        judged(stock_pictures(options.model, records, plain), plain), time.perf_counter() - start
    )
    write_json(result, options.json)


def stock_pictures(folder: str, records: list[dict], settings: ShapesSettings) -> np.ndarray:
    """uint8 (P, K, H, W, 3) by the plain call."""
    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(settings.seed)
    texts = [record["prompt"] for record in records for _ in range(settings.images)]
    images = []
    for i in range(0, len(texts), 32):
        images += pipe(texts[i : i + 32], generator=generator).images
    pixels = np.stack([np.asarray(image) for image in images])
    return pixels.reshape(len(records), settings.images, *pixels.shape[1:])


def brief(report: Report, seconds: float) -> dict:
    """Overall scores with intervals, and strict by tag."""
    return {
        "seconds": round(seconds, 1),
        "overall": {name: to_json(comparison.tuned) for name, comparison in report.overall.items()},
        "strict": {tag: scores["strict"].tuned.value for tag, scores in report.tags.items()},
        "frechet": report.frechet.tuned.value,
    }


if __name__ == "__main__":
    main()
