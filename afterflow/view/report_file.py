"""One run as a file that holds the page, its answers and its pictures: it needs no server and no network."""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ..experiment.run_folder import PICTURE_SETS, PICTURE_SUFFIXES
from ..system.atomic_files import make_folder, write_text_atomically
from ..system.own_folders import check_own_file
from ..system.page_style import policy_digest, with_palette
from ..system.smaller_pictures import smaller_picture
from .answers import Answers
from .picture_sets import PictureSet
from .run_reader import RunReader

LARGEST_REPORT = 3_000_000
"""Bytes of a report, at most."""
TITLE = "afterflow: runs"
PAGE_FOLDER = Path(__file__).parent / "web"
FITS = tuple((steps, side) for steps in (24, 12, 8, 5, 3, 2) for side in (None, 192, 96))
"""Stages and longest side in pixels of the pictures, from the best to the smallest; None: as they are stored."""


def write_report_file(run: Path, file: Path) -> None:
    """Write the page of a run to one file of at most 3 MB; where pictures are too many, stages are left out.

    OutputError where the file is not one that afterflow wrote, or the disk does not take it.
    """
    check_own_file(file, is_own_report)
    make_folder(file.parent)
    write_text_atomically(file, report_text(run))


def is_own_report(file: Path) -> bool:
    """Return whether a file begins as a report does."""
    with file.open("rb") as stream:
        return TITLE.encode() in stream.read(4096)


def report_text(run: Path) -> str:
    """Return the page of a run as one text, with its best pictures that fit."""
    answers = Answers([run])
    for stages, side in FITS:
        content = stored_answers(answers, run, stages, side)
        if content is not None and len((text := page_with(content)).encode()) <= LARGEST_REPORT:
            return text
    return page_with({"answers": answers_without_pictures(answers), "pictures": {}})


def answers_without_pictures(answers: Answers) -> dict[str, Any]:
    """Return what the page is told about the run itself."""
    details = answers.answer("run/0")
    assert isinstance(details, dict)
    return {
        "runs": answers.answer("runs"),
        "run/0": {**details, "sets": {}},
        "curves/0": answers.answer("curves/0", details["names"]),
    }


def stored_answers(answers: Answers, run: Path, stages: int, side: int | None) -> dict[str, Any] | None:
    """Return every answer that the page may ask for, with pictures of at most `stages` stages and `side` pixels.

    None as soon as the pictures alone are too large.
    """
    content, pictures, reader = answers_without_pictures(answers), {}, RunReader(run)
    size = 0
    for name in PICTURE_SETS:
        stored = reader.sets[name].content()
        if not stored["steps"]:
            continue
        stored["steps"] = spread(stored["steps"], stages)
        content["run/0"]["sets"][name] = len(stored["steps"])
        content[f"set/0/{name}"] = stored
        for step in stored["steps"]:
            content[f"seen/0/{name}/{step['name']}"] = reader.seen(name, step["name"])
        for address, file in picture_files(reader.sets[name], stored):
            pictures[f"0/{name}/{address}"] = data_address(file, side)
            size += len(pictures[f"0/{name}/{address}"])
            if size > LARGEST_REPORT:
                return None
    return {"answers": content, "pictures": pictures}


def spread(steps: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return at most `most` stages, spread over all, with the first and the last."""
    if len(steps) <= most:
        return steps
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def picture_files(pictures: PictureSet, stored: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Yield the address below the set and the file of each picture of these stages, and of each input."""
    names = [(step["name"], name) for step in stored["steps"] for name in step["pictures"]]
    names += [("inputs", name) for prompt in stored["prompts"] for name in prompt["inputs"]]
    for step, name in names:
        file = pictures.picture(step, name)
        if file is not None:
            yield f"{step}/{name}", file


def data_address(file: Path, side: int | None) -> str:
    """Return a picture as an address that holds it, scaled down to `side` pixels where it is larger."""
    content, kind = file.read_bytes(), PICTURE_SUFFIXES[file.suffix][1]
    if side is not None:
        with Image.open(io.BytesIO(content)) as image:
            larger = max(image.size) > side
        if larger or file.suffix == ".gif":
            content, kind = smaller_picture(content, side), "image/jpeg"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def page_with(stored: Mapping[str, Any]) -> str:
    """Return the page with style, script and data in it; its policy lets in nothing else, by their digests."""
    style = "\n" + with_palette(PAGE_FOLDER / "page.css")
    script = "\n" + (PAGE_FOLDER / "page.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src '{policy_digest(script)}'; style-src '{policy_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    # No text of a run can end the block that it stands in.
    data = json.dumps(stored, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = (PAGE_FOLDER / "page.html").read_text(encoding="utf-8")
    page = page.replace(
        "<meta charset", f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<meta charset'
    )
    page = page.replace('<link rel="stylesheet" href="page.css">', f"<style>{style}</style>")
    icon = base64.b64encode((PAGE_FOLDER / "icon.svg").read_bytes()).decode()
    page = page.replace('href="icon.svg"', f'href="data:image/svg+xml;base64,{icon}"')
    page = page.replace('<script src="page.js" defer></script>\n', "")
    block = f'<script type="application/json" id="stored">{data}</script>\n<script>{script}</script>\n</body>'
    return page.replace("</body>", block)
