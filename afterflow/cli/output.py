"""Where commands write what they make."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..system.atomic_files import make_folder, writing
from ..system.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image


def check_png(option: str, file: str | None) -> None:
    """Raise ConfigError for a file that an option names and that is no .png."""
    if file is not None and Path(file).suffix.lower() != ".png":
        raise ConfigError(f"{option} {file}: it must end in .png")


def save_image(image: "Image", file: Path) -> None:
    """Save an image, and make its folder where there is none."""
    make_folder(file.parent)
    with writing(file):
        image.save(file)


def write_text(file: Path, text: str) -> None:
    """Write a text as UTF-8, and make its folder where there is none."""
    make_folder(file.parent)
    with writing(file):
        file.write_text(text, encoding="utf-8", newline="\n")


def print_progress(line: str) -> None:
    """Print a line on stderr, so that stdout holds results alone."""
    print(line, file=sys.stderr)
