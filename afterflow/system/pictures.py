"""Pictures that users bring, read as a viewer shows them.

Upright by EXIF, in sRGB, transparency laid over a background, every integer depth scaled by its range.
"""

import hashlib
import io
import logging
import os
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps

from .errors import ConfigError, InputError
from .once import say_once

_log = logging.getLogger(__name__)

Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)
FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA", "ICO", "QOI"),
    *("PCX", "SGI", "PSD"),
)
"""Formats that are read.  Others are no pictures of pixels, or start programs, as EPS does."""
COLOR_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""Mode of Pillow → the colour space of ICC profiles that describe it."""


@cache
def readable_formats() -> tuple[str, ...]:
    """Return those of FORMATS that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def picture_endings() -> frozenset[str]:
    """Return the endings of the files of pictures, in lower case."""
    formats = readable_formats()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


def is_picture_file(file: Path) -> bool:
    """Whether a path is a file that its name calls a picture: no folder, not hidden, and with a picture's ending."""
    return file.suffix.lower() in picture_endings() and not file.name.startswith(".") and file.is_file()


def read_picture(
    source: Path | bytes,
    name: str,
    background: Color = WHITE,
    formats: tuple[str, ...] | None = None,
    max_pixels: int | None = None,
) -> np.ndarray:
    """Read a picture as uint8 (H, W, 3), as a viewer shows it.  InputError, with the name, where it cannot be read.

    Args:
        source: File, or its bytes.
        name: What messages call it.
        background: Colour under what is transparent, (R, G, B).
        formats: Pillow's names of the formats that are read; None: all of FORMATS.
        max_pixels: Largest number of pixels, which a file says before it is decoded; None: Pillow's own limit.
    """
    formats = formats or readable_formats()
    try:
        stream = as_stream(source, name)
        with warnings.catch_warnings(record=True, action="ignore") as caught:
            # Warnings of others are raised here too: of files that are collected, and of other threads.
            warnings.filterwarnings("always", category=UserWarning, module=r"PIL\.")
            with Image.open(stream, formats=formats) as image:
                if max_pixels is not None and image.width * image.height > max_pixels:
                    raise Image.DecompressionBombError
                pixels = shown_pixels(image, name, background)
    except InputError:
        raise
    except Exception as error:  # Pillow's readers of formats raise errors without a common type
        if max_pixels is not None and isinstance(error, Image.DecompressionBombError):
            raise InputError(f"{name}: an image has at most {max_pixels} pixels here") from None
        raise unreadable(name, error, formats) from None
    for warning in caught:
        say_once(_log, str(warning.message), f"{name}: {warning.message}")
    return pixels


def fit_picture(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale a picture, uint8 (H, W, 3), and crop its middle to a height and width; one that has them stays as it is."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (width, height), Image.Resampling.LANCZOS))


def picture_digest(pixels: np.ndarray) -> str:
    """Return the SHA-256 digest of the pixels of a picture and of its shape, in hexadecimal."""
    return hashlib.sha256(pixels.tobytes() + str(pixels.shape).encode()).hexdigest()


class Header(NamedTuple):
    """What a file of a picture says before it is decoded."""

    format: str
    """Pillow's name of the format, by content."""
    height: int
    """Height in pixels of the picture upright."""
    width: int
    """Width in pixels of the picture upright."""


def read_header(source: Path | bytes, name: str) -> Header:
    """Read the header of a picture; InputError, with the name, where there is none, or pixels have no meaning."""
    try:
        stream = as_stream(source, name)
        with warnings.catch_warnings(action="ignore"), Image.open(stream, formats=readable_formats()) as image:
            tags = tiff_tags(image)  # Pillow turns the size of a TIFF when it opens one, or when it loads it
            width, height = (tags[256], tags[257]) if tags else image.size
            check_numbers(image, name)
            sides = (width, height) if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else (height, width)
            return Header(str(image.format), *sides)
    except InputError:
        raise
    except Exception as error:  # as above; read_picture passes warnings on
        raise unreadable(name, error, readable_formats()) from None


def as_stream(source: Path | bytes, name: str) -> Path | io.BytesIO:
    """Return what Pillow opens; InputError for a path that is no file of data, such as a pipe, which may never end."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if source.exists() and not source.is_file():
        raise InputError(f"{name}: not a readable image (it is no file)")
    return source


def unreadable(name: str, error: Exception, formats: Sequence[str]) -> InputError:
    """Return the error for a picture that Pillow cannot read, in one line."""
    why = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        why = f"it is none of {', '.join(formats)}"
    elif isinstance(error, MemoryError):
        why = "it does not fit into memory"
    return InputError(f"{name}: not a readable {'image' if len(formats) > 1 else formats[0]} ({why})")


def shown_pixels(image: Image.Image, name: str, background: Color) -> np.ndarray:
    """Return what a viewer shows of an opened picture, uint8 (H, W, 3); InputError for modes without a meaning."""
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a photo's second view is no animation
        say_once(_log, "animated", f"{name} holds several pictures; of such files the first is read")
    image.load()
    check_numbers(image, name)
    upright = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        gray, alpha = scaled_gray(np.asarray(upright), *full_scale(image), upright.info.get("transparency"))
        rgb = np.repeat(gray[..., None], 3, 2)
    else:
        rgb, alpha = split_alpha(upright)
    return rgb if alpha is None else over(rgb, alpha, background)


def check_numbers(image: Image.Image, name: str) -> None:
    """Raise InputError where pixels are numbers that no viewer shows alike."""
    tags = tiff_tags(image)
    bits, sample_format = max(tags.get(258, (8,))), max(tags.get(339, (1,)))
    kinds = {"F": "floating-point numbers", "LAB": "LAB", "HSV": "HSV"}
    kind = "signed bytes" if (bits, sample_format) == (8, 2) else kinds.get(image.mode)
    if kind is not None:
        raise InputError(f"{name}: its pixels are {kind}, which viewers show differently; save it as 8-bit RGB")
    if isinstance(image.info.get("transparency"), tuple) and max(image.info["transparency"]) > 255:
        raise InputError(f"{name}: a colour of 16 bits stands for transparent; save it with an alpha channel")


def tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    """Return the tags of a TIFF; empty for other formats."""
    return getattr(image, "tag_v2", {})


def full_scale(image: Image.Image) -> tuple[int, bool, bool]:
    """Return the largest value of deep grey pixels, whether it is beyond int32, and whether it means black."""
    tags = tiff_tags(image)
    bits, signed = max(tags.get(258, (16,))), max(tags.get(339, (1,))) == 2
    return 2 ** (bits - signed) - 1, bits == 32 and not signed, tags.get(262, 1) == 0


def scaled_gray(
    values: np.ndarray, top: int, beyond_int32: bool, top_is_black: bool, clear: object
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scale deep grey pixels (H, W) to uint8, and return their alpha where one value is transparent.

    Args:
        values: Integers as Pillow stores them.
        top: The largest value that the format allows; negative values are black.
        beyond_int32: Whether the values are unsigned numbers that Pillow stores as int32.
        top_is_black: Whether the largest value is black.
        clear: The value that is transparent; anything but an int: there is none.
    """
    values = (values.view(np.uint32) if beyond_int32 else values).astype(np.int64)
    gray = np.rint(values.clip(0, top) * (255 / top)).astype(np.uint8)
    alpha = np.where(values == clear, 0, 255).astype(np.uint8) if isinstance(clear, int) else None
    return 255 - gray if top_is_black else gray, alpha


def split_alpha(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the colours of a picture in sRGB, uint8 (H, W, 3), and its alpha, uint8 (H, W), where it has one."""
    profile, alpha = image.info.get("icc_profile"), None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
    if image.mode not in COLOR_SPACES:
        image = image.convert("RGB")
    if profile:
        image = in_srgb(image, profile)
    return np.asarray(image.convert("RGB")), alpha


def in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert a picture from the colours of its ICC profile; a profile that does not fit is ignored, as viewers do."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        about: Any = source.profile
        space, description = about.xcolor_space.strip(), about.profile_description or ""
        if space != COLOR_SPACES[image.mode] or "sRGB" in description:
            return image
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, srgb, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ImportError):  # broken, or this Pillow has no colour management
        return image


def over(rgb: np.ndarray, alpha: np.ndarray, background: Color) -> np.ndarray:
    """Lay colours (H, W, 3) with alpha (H, W) over a background, all uint8 and rounded to the nearest."""
    shown, under = np.empty_like(rgb), np.array(background, np.uint32)
    for start in range(0, len(rgb), 64):  # rows, because 32 bits for each colour of all would be large
        rows = slice(start, start + 64)
        weight = alpha[rows, :, None].astype(np.uint32)
        shown[rows] = (rgb[rows] * weight + under * (255 - weight) + 127) // 255
    return shown


def check_color(option: str, name: str) -> Color:
    """Return the colour of a name such as white or #ffffff; ConfigError, with the option, where there is none."""
    try:
        color = ImageColor.getrgb(name)
    except ValueError:
        raise ConfigError(f"{option} = {name}: no colour; write a name such as white, or #rrggbb") from None
    return color[:3]


def find_file(folder: Path, name: str) -> Path:
    """Return the file that a list calls `name`, in whatever Unicode normal form and with / or a backslash.

    InputError, with the nearest name that is there, where there is none.
    """
    if os.path.isfile(folder / name):
        return folder / name
    path = folder
    for part in Path(name.replace("\\", "/")).parts:
        if not os.path.exists(path / part):
            names = names_by_form(path)
            form = unicodedata.normalize("NFC", part)
            if form not in names:
                folded = {name.casefold(): name for name in names}
                near = [folded[name] for name in get_close_matches(form.casefold(), folded, 1)]
                raise InputError(f"{path / part} is not there" + "".join(f"; the nearest name is {n}" for n in near))
            part = names[form]
        path = path / part
    if not path.is_file():
        raise InputError(f"{path} is no file")
    return path


def named_picture(folder: Path, name: str, key: str, location: str) -> Path:
    """Return the picture in a folder that a list names under `key`; InputError where it is not there, or not in it."""
    try:
        picture = find_file(folder, name)
        if not picture.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{name!r} leads out of {folder}")
    except InputError as error:
        raise InputError(f"{location}: {error}; correct {key}") from None
    return picture


def names_by_form(folder: Path) -> dict[str, str]:
    """Return the names in a folder by their Unicode normal form C; empty where there is no folder."""
    return _names_by_form(folder, folder.stat().st_mtime_ns) if folder.is_dir() else {}


@lru_cache(maxsize=8)
def _names_by_form(folder: Path, changed: int) -> dict[str, str]:
    return {unicodedata.normalize("NFC", name): name for name in os.listdir(folder)}
