"""Sheets of pictures with captions, and GIFs of clips."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from ..system.atomic_files import replacing
from ..system.own_folders import MAKER

PASSED, FAILED = (40, 160, 65), (215, 35, 35)


FRAMES_PER_SECOND = 8
"""Frame rate of a GIF."""


def save_pictures(file: Path, images: np.ndarray, captions: Sequence[str], columns: int) -> None:
    """Save one sheet of uint8 (B, H, W, 3) with B captions.

    Of clips (B, F, H, W, 3) the sheet shows four frames side by side, and a GIF beside it all of them.
    """
    scale = max(1, 96 // images.shape[-3])  # tiny pictures are hard to see
    if images.ndim == 4:
        with replacing(file) as partial:
            save_sheet(image_sheet(images, captions, columns, scale), partial)
        return
    shown = np.linspace(0, images.shape[1] - 1, min(4, images.shape[1])).round().astype(int)
    strips = np.concatenate([images[:, frame] for frame in shown], 2)
    sheet = image_sheet(strips, captions, max(1, columns // len(shown)), scale)
    first, *others = [image_sheet(images[:, frame], captions, columns, scale) for frame in range(images.shape[1])]
    milliseconds = 1000 // FRAMES_PER_SECOND
    with replacing(file) as partial:
        save_sheet(sheet, partial)
    animation = {"save_all": True, "append_images": others, "duration": milliseconds, "loop": 0}
    with replacing(file.with_suffix(".gif")) as partial:
        first.save(partial, format="GIF", comment=MAKER, **animation)


def save_sheet(image: Image.Image, file: Path) -> None:
    """Save a picture as .png, which says that afterflow made it."""
    about = PngInfo()
    about.add_text("Software", MAKER)
    image.save(file, format="PNG", pnginfo=about)


def image_sheet(images: np.ndarray, captions: Sequence[str], columns: int, scale: int = 1) -> Image.Image:
    """Return one picture of uint8 images (B, H, W, 3) with B captions, row by row, each enlarged `scale` times."""
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
    """Return the first image of some prompts, base left and tuned right, with a green line where it passed.

    Args:
        records: P records with the prompts.
        base: Images (P, K, H, W, 3) of the base, if there are any.
        tuned: Images (P, K, H, W, 3) of the tuned model.
        base_strict: Whether each image of the base passed strict, (P, K).
        strict: Whether each tuned image passed, (P, K).
        shown: Largest number of prompts, spread over the records.
    """
    rows = np.unique(np.linspace(0, len(records) - 1, shown).astype(int))
    scale = max(1, 96 // tuned.shape[2])
    pairs = (
        [(base, base_strict), (tuned, strict)] if base is not None and base_strict is not None else [(tuned, strict)]
    )
    columns = [underlined(images[rows, 0], passed[rows, 0], scale) for images, passed in pairs]
    captions = [records[row]["prompt"] for row in rows]
    return image_sheet(np.concatenate(columns, 2), captions, 12 // len(columns))


def underlined(images: np.ndarray, passed: np.ndarray, scale: int) -> np.ndarray:
    """Return uint8 images (B, H, W, 3) enlarged, over a green line where passed (B,) is true, else a red one."""
    large = images.repeat(scale, 1).repeat(scale, 2)
    color = np.where(passed[:, None], PASSED, FAILED).astype(np.uint8)
    line = np.broadcast_to(color[:, None, None], (len(images), 4, *large.shape[2:]))
    return np.pad(np.concatenate([large, line], 1), ((0, 0), (0, 4), (0, 4), (0, 0)), constant_values=255)


def wrapped(text: str, width: int, lines: int = 2) -> str:
    """Return text in at most `lines` lines of `width` characters, cut with an ellipsis."""
    return "\n".join(textwrap.wrap(text, max(width, 8), max_lines=lines, placeholder=" …"))
