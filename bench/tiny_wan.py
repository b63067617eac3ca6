"""What the shipped tiny Wan draws: by our Euler steps, and by diffusers' plain call with its UniPC.

    python bench/tiny_wan.py --guidance 1 2.5 --json bench/results/tiny_wan.json

Both draw the same test prompts, whose directions no training prompt had of those classes.
"""

import time

import numpy as np
import torch
from diffusers import WanPipeline
from harness import make_parser, provenance, write_json
from trainings import verdicts_by_tag

from afterflow.envs.shapes.motion import verify_clip
from afterflow.envs.shapes.moving import MOVING_TAGS, moving_suite
from afterflow.models.generate import draw_images
from afterflow.models.pipeline import no_progress_bars
from afterflow.models.pipeline_files import TINY_WAN
from afterflow.models.wan import Wan

VERDICTS = ("strict", "partial", "smoothness")
STEPS = 20


def figures(records: list[dict], clips: np.ndarray) -> dict:
    """Every verdict by tag, and over all with 95 % intervals, prompts resampled within tags."""
    verdicts = [[verify_clip(record, clip) for clip in of_prompt] for record, of_prompt in zip(records, clips)]
    columns = np.array([[np.mean([v[name] for v in row]) for name in VERDICTS] for row in verdicts])
    overall, by_tag = verdicts_by_tag(columns, records, MOVING_TAGS, VERDICTS)
    return {"overall": overall, "tags": by_tag}


def stock_clips(folder: str, records: list[dict], per_prompt: int, guidance: float) -> np.ndarray:
    """uint8 (P, K, F, H, W, 3) by diffusers' own pipeline."""
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    texts = [record["prompt"] for record in records for _ in range(per_prompt)]
    generator, clips = torch.Generator().manual_seed(0), []
    for i in range(0, len(texts), 16):
        options = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": STEPS, "max_sequence_length": 16}
        output = pipe(texts[i : i + 16], guidance_scale=guidance, generator=generator, output_type="np", **options)
        clips.append((np.asarray(output.frames) * 255).round().astype(np.uint8))
    return np.concatenate(clips).reshape(len(records), per_prompt, *clips[0].shape[1:])


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=str(TINY_WAN))
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0])
    parser.add_argument("--prompts", type=int, default=40, help="of each tag")
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    no_progress_bars()
    model = Wan(options.model, height=32, width=32, frames=9, max_sequence_length=16).load()
    records = moving_suite("test", options.prompts, 0, MOVING_TAGS)
    result: dict = provenance() | {"prompts": len(records), "clips": options.clips}
    for guidance in options.guidance:
        start = time.perf_counter()
        clips = draw_images(model, records, options.clips, STEPS, guidance, 0)
        result[f"guidance {guidance:g}"] = figures(records, clips) | {"seconds": round(time.perf_counter() - start)}
        stock = stock_clips(options.model, records, options.clips, guidance)
        result[f"plain call, guidance {guidance:g}"] = figures(records, stock)
    write_json(result, options.json, indent=1)


if __name__ == "__main__":
    main()
