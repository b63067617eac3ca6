"""What the shipped tiny FLUX.2-klein does with requests: by our Euler steps, and by diffusers' plain call.

    python bench/tiny_klein.py --guidance 1 2 --json bench/results/tiny_klein.json

Both edit the same pictures, and what is asked of them was never asked in training.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import Flux2KleinPipeline
from harness import make_parser, provenance, write_json
from PIL import Image
from trainings import verdicts_by_tag

from afterflow.envs.shapes.edit_verifier import verify_edit
from afterflow.envs.shapes.edits import EDIT_TASKS, SIZE, edit_suite
from afterflow.models.flux2_klein import Flux2Klein
from afterflow.models.generate import draw_images
from afterflow.models.pipeline import no_progress_bars
from afterflow.models.pipeline_files import TINY_KLEIN
from afterflow.system.input_pictures import read_input

VERDICTS = ("strict", "done", "preserved", "partial")
TOKENS, STEPS = 16, 20


def verdicts_of(records: list[dict], pictures: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Verdicts (P, V) of these names on P requests, averaged over their pictures (P, K, 64, 64, 3)."""
    verdicts = [[verify_edit(record, picture) for picture in of_one] for record, of_one in zip(records, pictures)]
    return np.array([[np.mean([getattr(v, name) for v in row]) for name in names] for row in verdicts])


def figures(records: list[dict], pictures: np.ndarray) -> dict:
    """Every verdict by task, and over all with 95 % intervals, requests resampled within tasks."""
    columns = verdicts_of(records, pictures, VERDICTS)
    overall, by_tag = verdicts_by_tag(columns, records, EDIT_TASKS, VERDICTS)
    return {"overall": overall, "tasks": by_tag}


def stock_pictures(folder: str, records: list[dict], per_request: int, guidance: float) -> np.ndarray:
    """uint8 (P, K, 64, 64, 3) by diffusers' own pipeline."""
    pipe = Flux2KleinPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator, pictures = torch.Generator().manual_seed(0), []
    options = {"height": SIZE, "width": SIZE, "num_inference_steps": STEPS, "max_sequence_length": TOKENS}
    for record in records:
        given = {"image": Image.fromarray(read_input(record["input"])), "prompt": record["prompt"]}
        output = pipe(
            **given,
            **options,
            guidance_scale=guidance,
            num_images_per_prompt=per_request,
            generator=generator,
            output_type="np",
        )
        pictures.append((output.images * 255).round().astype(np.uint8))
    return np.stack(pictures)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=str(TINY_KLEIN))
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0])
    parser.add_argument("--requests", type=int, default=40, help="of each task")
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-stock", action="store_true", help="leave out the plain call, which draws one by one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    no_progress_bars()
    model = Flux2Klein(options.model, size=SIZE, max_sequence_length=TOKENS).load()
    records = edit_suite("test", options.requests, 0)
    result: dict = provenance() | {"requests": len(records), "pictures": options.pictures}
    for guidance in options.guidance:
        start = time.perf_counter()
        pictures = draw_images(model, records, options.pictures, STEPS, guidance, 0)
        result[f"guidance {guidance:g}"] = figures(records, pictures) | {"seconds": round(time.perf_counter() - start)}
        if not options.no_stock:
            stock = stock_pictures(options.model, records, options.pictures, guidance)
            result[f"plain call, guidance {guidance:g}"] = figures(records, stock)
    write_json(result, options.json, indent=1)


if __name__ == "__main__":
    main()
