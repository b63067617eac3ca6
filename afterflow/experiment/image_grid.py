"""Sheets of pictures with captions, and GIFs of clips."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from ..rewards.edited import pictures_before
from ..system.atomic_files import replacing
from ..system.own_folders import MAKER

PASSED, FAILED = (40, 160, 65), (215, 35, 35)


FRAMES_PER_SECOND = 8
"""Frame rate of a GIF."""


def save_pictures(file: Path, images: np.ndarray, captions: Sequence[str], columns: int) -> list[Path]:
    """Save one sheet of uint8 (B, H, W, 3) with B captions, and return the files.

    Of clips (B, F, H, W, 3) the sheet shows four frames side by side, and a GIF beside it all of them.
    """
    scale = max(1, 96 // images.shape[-3])  # tiny pictures are hard to see
    if images.ndim == 4:
        with replacing(file) as partial:
            save_sheet(image_sheet(images, captions, columns, scale), partial)
        return [file]
    shown = np.linspace(0, images.shape[1] - 1, min(4, images.shape[1])).round().astype(int)
    strips = np.concatenate([images[:, frame] for frame in shown], 2)
    sheet = image_sheet(strips, captions, max(1, columns // len(shown)), scale)
    first, *others = [image_sheet(images[:, frame], captions, columns, scale) for frame in range(images.shape[1])]
    milliseconds = 1000 // FRAMES_PER_SECOND
    with replacing(file) as partial:
        save_sheet(sheet, partial)
    animation = {"save_all": True, "append_images": others, "duration": milliseconds, "loop": 0}
    moving = file.with_suffix(".gif")
    with replacing(moving) as partial:
        first.save(partial, format="GIF", comment=MAKER, **animation)
    return [file, moving]


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
    records: Sequence[Mapping[str, Any]], sets: Sequence[tuple[np.ndarray, np.ndarray | None]]
) -> Image.Image:
    """Return one image of each prompt from several sets, side by side, over a green line where it passed.

    Left of them are the pictures that the prompt is about, where it has some.

    Args:
        records: R records with the prompts.
        sets: Images (R, H, W, 3) of each set, the base's first, and whether they passed, (R,); None: no line.
    """
    height, width = sets[0][0].shape[1:3]
    inputs = [(np.stack(of_all), None) for of_all in zip(*(pictures_before(r, height, width) for r in records))]
    scale = max(1, 96 // height)
    columns = [underlined(images, passed, scale) for images, passed in [*inputs, *sets]]
    captions = [record["prompt"] for record in records]
    return image_sheet(np.concatenate(columns, 2), captions, 12 // len(columns))


def spread_rows(prompts: int, shown: int = 48) -> np.ndarray:
    """Return the rows of at most `shown` prompts, spread over all of them."""
    return np.unique(np.linspace(0, prompts - 1, shown).astype(int))


def first_images(records: Sequence[Mapping[str, Any]], sets: Sequence[tuple[np.ndarray, np.ndarray]]) -> Image.Image:
    """Return the first image of some of P prompts from several sets, as `before_after` does.

    sets: Images (P, K, H, W, 3) of each set, the base's first, and whether they passed, (P, K).
    """
    rows = spread_rows(len(records))
    return before_after([records[row] for row in rows], [(images[rows, 0], passed[rows, 0]) for images, passed in sets])


def save_groups(file: Path, records: Sequence[Mapping[str, Any]], images: np.ndarray, in_a_row: int) -> list[Path]:
    """Save one sheet of the images of prompts, after the pictures that each is about, and return the files.

    Args:
        file: Where it goes.
        records: P records, all with as many inputs.
        images: Images (P, K, H, W, 3), or clips (P, K, F, H, W, 3).
        in_a_row: Number of prompts in a row.
    """
    before = [pictures_before(record, *images.shape[-3:-1]) for record in records]
    if before[0]:
        inputs = np.stack(before)
        if images.ndim == 6:
            inputs = inputs[:, :, None].repeat(images.shape[2], 2)
        images = np.concatenate([inputs, images], 1)
    cells, drawn = images.shape[1], images.shape[1] - len(before[0])
    captions = [c for r in records for c in ["before"] * (cells - drawn) + [r["prompt"]] * drawn]
    return save_pictures(file, images.reshape(-1, *images.shape[2:]), captions, in_a_row * cells)


def underlined(images: np.ndarray, passed: np.ndarray | None, scale: int) -> np.ndarray:
    """Return uint8 images (B, H, W, 3) enlarged, over a green line where passed (B,) is true, else a red one.

    Without `passed` the line is white.
    """
    large = images.repeat(scale, 1).repeat(scale, 2)
    if passed is None:
        return np.pad(large, ((0, 0), (0, 8), (0, 4), (0, 0)), constant_values=255)
    color = np.where(passed[:, None], PASSED, FAILED).astype(np.uint8)
    line = np.broadcast_to(color[:, None, None], (len(images), 4, *large.shape[2:]))
    return np.pad(np.concatenate([large, line], 1), ((0, 0), (0, 4), (0, 4), (0, 0)), constant_values=255)


def wrapped(text: str, width: int, lines: int = 2) -> str:
    """Return text in at most `lines` lines of `width` characters, cut with an ellipsis."""
    return "\n".join(textwrap.wrap(text, max(width, 8), max_lines=lines, placeholder=" …"))
