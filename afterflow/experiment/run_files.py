"""The run folder: what was asked for, what was measured, what it looked like."""

import importlib.metadata
import json
import platform
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..system.atomic_files import replace_text
from .serialization import differences

PASSED, FAILED = (40, 160, 65), (215, 35, 35)
FRAMES_PER_SECOND = 8
"""Of a GIF."""
LIBRARIES = ("afterflow", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy")


def write_record(
    folder: Path, config: Mapping[str, Any], recipe: str, seed: int, first: int = 0, processes: int = 1
) -> list[str]:
    """run.json: the resolved configuration and what it ran on, and where it was resumed.

    What is not as it was when the run began.
    """
    file = folder / "run.json"
    begun = json.loads(file.read_text()) if first and file.is_file() else None
    record = {
        "recipe": recipe,
        "config": config,
        "seed": seed,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
        "git_commit": git_commit(),
        "hardware": hardware(),
        "processes": processes,
    }
    if begun is None:
        replace_text(file, json.dumps(record, indent=2) + "\n")
        return []
    about = ("versions", "git_commit", "hardware", "processes")
    then, now = ({name: told[name] for name in about if name in begun} for told in (begun, record))
    begun.setdefault("resumed", []).append({"iteration": first} | {name: record[name] for name in about})
    replace_text(file, json.dumps(begun, indent=2) + "\n")
    return differences(then, now)


def tracker_options(folder: Path, name: str) -> dict[str, dict[str, str]]:
    """What makes a tracker go on with the curves of a resumed run, instead of beginning others."""
    file = folder / "tracker.json"
    if not file.is_file():
        replace_text(file, json.dumps({"id": uuid4().hex}) + "\n")
    known = json.loads(file.read_text())["id"]
    return {
        "wandb": {"name": name, "id": known, "resume": "allow"},
        "trackio": {"name": f"{name}-{known[:8]}", "resume": "allow"},
    }


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
    """metrics.jsonl and its like: one line for an iteration, readable while it grows."""

    def __init__(self, file: Path, first: int) -> None:
        lines = file.read_text().splitlines() if file.is_file() else []
        # A resumed run repeats the iterations after its checkpoint; the last of them may be half a line.
        kept = list(takewhile(lambda line: line.endswith("}") and json.loads(line)["step"] < first, lines))
        replace_text(file, "".join(line + "\n" for line in kept))
        self.before: dict[str, float] = json.loads(kept[-1]) if kept else {}
        """What the iteration before the first one measured."""
        self.earliest: dict[str, Any] = json.loads(kept[0]) if kept else {}
        """The first line, if there is one."""
        self.stream = file.open("a", buffering=1)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.stream.write(json.dumps({"step": step, **metrics}) + "\n")

    def close(self) -> None:
        self.stream.close()


def save_pictures(file: Path, images: np.ndarray, captions: Sequence[str], columns: int) -> None:
    """One sheet of uint8 (B, H, W, 3) with B captions.

    Of clips (B, F, H, W, 3) the sheet shows four frames side by side, and a GIF beside it all of them.
    """
    scale = max(1, 96 // images.shape[-3])  # tiny pictures are hard to see
    if images.ndim == 4:
        grid(images, captions, columns, scale).save(file)
        return
    shown = np.linspace(0, images.shape[1] - 1, min(4, images.shape[1])).round().astype(int)
    strips = np.concatenate([images[:, frame] for frame in shown], 2)
    grid(strips, captions, max(1, columns // len(shown)), scale).save(file)
    first, *others = [grid(images[:, frame], captions, columns, scale) for frame in range(images.shape[1])]
    milliseconds = 1000 // FRAMES_PER_SECOND
    first.save(file.with_suffix(".gif"), save_all=True, append_images=others, duration=milliseconds, loop=0)


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
    records: Sequence[Mapping[str, Any]],
    base: np.ndarray | None,
    tuned: np.ndarray,
    base_strict: np.ndarray | None,
    strict: np.ndarray,
    shown: int = 48,
) -> Image.Image:
    """The first picture, of (P, K, H, W, 3), of up to `shown` prompts spread over P records: base left, tuned right.

    A green line under a picture says that strict (P, K) passed it, a red one that it did not.
    """
    places = np.unique(np.linspace(0, len(records) - 1, shown).astype(int))
    scale = max(1, 96 // tuned.shape[2])
    pairs = (
        [(base, base_strict), (tuned, strict)] if base is not None and base_strict is not None else [(tuned, strict)]
    )
    columns = [underlined(images[places, 0], passed[places, 0], scale) for images, passed in pairs]
    captions = [records[place]["prompt"] for place in places]
    return grid(np.concatenate(columns, 2), captions, 12 // len(columns))


def underlined(images: np.ndarray, passed: np.ndarray, scale: int) -> np.ndarray:
    """uint8 (B, H, W, 3), enlarged, over a green line where passed (B,), else a red one."""
    large = images.repeat(scale, 1).repeat(scale, 2)
    color = np.where(passed[:, None], PASSED, FAILED).astype(np.uint8)
    line = np.broadcast_to(color[:, None, None], (len(images), 4, *large.shape[2:]))
    return np.pad(np.concatenate([large, line], 1), ((0, 0), (0, 4), (0, 4), (0, 0)), constant_values=255)


def wrapped(text: str, width: int, lines: int = 2) -> str:
    """Text in at most `lines` lines of `width` characters, cut with an ellipsis."""
    return "\n".join(textwrap.wrap(text, max(width, 8), max_lines=lines, placeholder=" …"))
