"""Where commands put what they make."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def check_png(option: str, file: str | None) -> None:
    if file is not None and Path(file).suffix.lower() != ".png":
        raise ValueError(f"{option} {file}: it must end in .png")


def save(picture: "Image", file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)


def write_file(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
