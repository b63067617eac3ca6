"""The run folder: what was asked for, what was measured, what it looked like."""

import importlib.metadata
import json
import platform
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

PASSED, FAILED = (40, 160, 65), (215, 35, 35)
LIBRARIES = ("afterflow", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy")


def write_record(folder: Path, config: Mapping[str, Any], recipe: str, seed: int) -> None:
    """run.json: the resolved configuration and what it ran on."""
    record = {
        "recipe": recipe,
        "config": config,
        "seed": seed,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
        "git_commit": git_commit(),
        "hardware": hardware(),
    }
    (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")


def git_commit() -> str | None:
    """The commit of the code in use, with + where it was changed; None outside a checkout."""
    here = Path(__file__).parent
    ask = lambda *words: subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)
    commit = ask("rev-parse", "HEAD")
    if commit.returncode != 0:
        return None
    changed = ask("status", "--porcelain", "--untracked-files=no").stdout.strip()
    return commit.stdout.strip() + ("+" if changed else "")


def hardware() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
    }


class MetricsFile:
    """metrics.jsonl: one line per iteration, readable while it grows."""

    def __init__(self, file: Path, first: int) -> None:
        kept = []
        if file.is_file():
            # A resumed run repeats the iterations after its checkpoint.
            kept = [line for line in file.read_text().splitlines() if json.loads(line)["step"] < first]
        file.write_text("".join(line + "\n" for line in kept))
        self.stream = file.open("a", buffering=1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.stream.write(json.dumps({"step": step, **metrics}) + "\n")

    def close(self) -> None:
        self.stream.close()


def grid(images: np.ndarray, captions: Sequence[str], columns: int, scale: int = 1) -> Image.Image:
    """uint8 (B, H, W, 3) and B captions → one picture, row by row; small images are enlarged `scale` times."""
    height, width = (side * scale for side in images.shape[1:3])
    strip, gap = 24, 6
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + strip + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions)):
        x, y = gap + i % columns * (width + gap), gap + i // columns * (height + strip + gap)
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (x, y))
        pen.multiline_text((x, y + height + 1), wrapped(caption, width // 6), "black", font_size=10, spacing=0)
    return sheet


def before_after(
    images: np.ndarray, captions: Sequence[str], passed: np.ndarray, columns: int, scale: int = 1
) -> Image.Image:
    """Pictures of B prompts by M models, uint8 (B, M, H, W, 3), each prompt's side by side over its caption.

    Under a picture is a green line where passed (B, M), else a red one.
    """
    B, M, height, width = images.shape[:4]
    edge = max(2, height * scale // 24)
    marked = np.full((B, M, height * scale + 2 * edge, width * scale + edge, 3), 255, np.uint8)
    marked[:, :, : height * scale, : width * scale] = images.repeat(scale, 2).repeat(scale, 3)
    marked[:, :, height * scale : -edge, : width * scale] = np.where(passed[..., None], PASSED, FAILED)[
        :, :, None, None
    ]
    return grid(np.concatenate(list(marked.swapaxes(0, 1)), 2), captions, columns)


def wrapped(text: str, width: int, lines: int = 2) -> str:
    """Text in at most `lines` lines of `width` characters, cut with an ellipsis."""
    return "\n".join(textwrap.wrap(text, max(width, 8), max_lines=lines, placeholder=" …"))
