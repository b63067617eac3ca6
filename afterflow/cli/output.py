"""Where commands write what they make."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..system.atomic_files import make_folder, replacing
from ..system.errors import ConfigError
from ..system.escapes import printable

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console
    from rich.text import Text

PIPE_WIDTH = 10_000
"""Columns of a stdout that is no terminal."""


def check_png(option: str, file: str | None) -> None:
    """Raise ConfigError for a file that an option names and that is no .png."""
    if file is not None and Path(file).suffix.lower() != ".png":
        raise ConfigError(f"{option} {file}: it must end in .png")


def save_image(image: "Image", file: Path) -> None:
    """Save an image as .png, and make its folder where there is none."""
    from ..experiment.image_grid import save_sheet

    make_folder(file.parent)
    with replacing(file) as partial:
        save_sheet(image, partial)


def write_text(file: Path, text: str) -> None:
    """Write a text as UTF-8, and make its folder where there is none."""
    make_folder(file.parent)
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def result_console() -> "Console":
    """Return a console for results on stdout; in a pipe or a file it is as wide as they are, so that none is cut."""
    from rich.console import Console

    class PlainConsole(Console):
        """A console on which texts are no markup and hold no codes for the terminal."""

        def render_str(self, text: str, **options: Any) -> "Text":
            """Render a text as it is, whatever it holds."""
            return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})  # type: ignore[arg-type]

    return PlainConsole() if sys.stdout.isatty() else PlainConsole(width=PIPE_WIDTH)


def print_progress(line: str) -> None:
    """Print a line on stderr, so that stdout holds results alone."""
    print(printable(line), file=sys.stderr)
