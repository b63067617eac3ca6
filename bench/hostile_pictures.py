"""Pictures of every mode, depth, container and damage, with what a viewer shows of them."""

import io
import struct
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hostile import run
from PIL import Image, PngImagePlugin

import tinies
from afterflow.rewards.base import reward
from afterflow.rewards.registry import REWARDS

H, W = 32, 48
LOSSY = {"JPEG", "AVIF"}
TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}
"""EXIF's orientation → what a file holds of an upright picture."""


@dataclass(frozen=True)
class Case:
    """A file, and what a viewer shows of it; None: it must be refused."""

    name: str
    data: bytes
    shown: np.ndarray | None
    lenient: bool = False
    """Whether a damaged file may also be shown."""


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(rng: np.random.Generator) -> np.ndarray:
    """A smooth picture in [0, 1], (H, W, 3), which lossy formats keep."""
    y, x = np.mgrid[:H, :W] / W
    a, b, c = rng.uniform(0, 3, (3, 3))
    return 0.5 + 0.45 * np.sin(x[..., None] * a + y[..., None] * b + c)


def bytes_of(values: np.ndarray) -> np.ndarray:
    return np.rint(values * 255).astype(np.uint8)


def gray_case(rng: np.random.Generator) -> tuple[bytes, np.ndarray, str]:
    """Grey of 1, 8, 16 or 32 bits, perhaps with alpha."""
    gray = smooth(rng)[..., 0]
    bits, kind = [(1, "PNG"), (8, "PNG"), (8, "WEBP"), (16, "PNG"), (16, "TIFF"), (16, "PPM"), (31, "TIFF")][
        rng.integers(7)
    ]
    if bits == 1:
        return (
            encoded(Image.fromarray(gray > 0.5), kind),
            np.repeat((gray > 0.5)[..., None], 3, 2) * 1.0,
            f"1 bit {kind}",
        )
    kinds = {8: np.uint8, 16: np.uint16, 31: np.int32}
    levels = np.rint(gray * (2**bits - 1)).astype(kinds[bits])
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(Image.fromarray(levels), kind, **options), np.repeat(gray[..., None], 3, 2), f"{bits} bit {kind}"


def alpha_case(rng: np.random.Generator) -> tuple[bytes, np.ndarray, str]:
    """Colours or grey with alpha, over white."""
    colour, alpha = smooth(rng), smooth(rng)[..., :1]
    mode = ["RGBA", "LA"][rng.integers(2)]
    kind = ["PNG", "TIFF", "WEBP", "TGA"][rng.integers(4)]
    if mode == "LA":
        colour = np.repeat(colour[..., :1], 3, 2)
    channels = np.concatenate([colour, alpha] if mode == "RGBA" else [colour[..., :1], alpha], 2)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(bytes_of(channels)), kind, **options)
    stored = bytes_of(colour) / 255, bytes_of(alpha) / 255
    return data, stored[0] * stored[1] + 1 - stored[1], f"{mode} {kind}"


def colour_case(rng: np.random.Generator) -> tuple[bytes, np.ndarray, str]:
    """Colours, turned as cameras do, perhaps in ink, in a palette or as the first of several."""
    colour = smooth(rng)
    kind = ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "AVIF", "PCX", "QOI"][rng.integers(10)]
    image, options = Image.fromarray(bytes_of(colour)), {}
    if kind == "WEBP":
        options = {"lossless": True}
    if kind in LOSSY:
        options = {"quality": 100}
    what = kind
    if kind in ("PNG", "JPEG", "TIFF", "WEBP") and rng.random() < 0.6:
        turn = int(rng.integers(1, 9))
        exif = Image.Exif()
        exif[0x0112] = turn
        image, what = Image.fromarray(np.ascontiguousarray(TURNS[turn](bytes_of(colour)))), f"{kind} turned by {turn}"
        options |= {"exif": exif}
    elif kind in ("JPEG", "TIFF") and rng.random() < 0.5:
        ink = Image.fromarray(np.concatenate([bytes_of(1 - colour), np.zeros((H, W, 1), np.uint8)], 2), "CMYK")
        image, what = ink, f"CMYK {kind}"
    elif kind in ("PNG", "GIF") and rng.random() < 0.5:
        image, what = image.quantize(16, dither=Image.Dither.NONE), f"palette {kind}"
        colour = np.asarray(image.getpalette(), np.uint8).reshape(-1, 3)[np.asarray(image)] / 255
    elif kind in ("PNG", "WEBP", "TIFF"):
        options |= {"save_all": True, "append_images": [Image.new("RGB", (W, H), "red")]}
        what = f"animated {kind}"
    if what == "GIF":  # Pillow picks a palette, so what the file holds is read by its bytes' palette
        image = image.quantize(64, dither=Image.Dither.NONE)
        colour = np.asarray(image.getpalette(), np.uint8).reshape(-1, 3)[np.asarray(image)] / 255
    return encoded(image, kind, **options), colour, what


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks: bytes, width: int = W, height: int = H) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((1 + 3 * W) * H)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def damaged_case(rng: np.random.Generator) -> Case:
    """A file that no viewer shows whole, or whose numbers have no meaning that all viewers share."""
    noise = Image.fromarray(rng.integers(0, 256, (H, W, 3), np.uint8))
    kind = ["PNG", "JPEG", "TIFF", "WEBP", "BMP"][rng.integers(5)]
    whole = encoded(noise, kind)
    cases = {
        "empty": b"",
        "text": b"\xef\xbb\xbfnot a picture\n" * int(rng.integers(1, 50)),
        "page": b"<!doctype html><title>404</title>",
        "random": rng.bytes(int(rng.integers(1, 4000))),
        f"cut {kind}": whole[: int(len(whole) * rng.uniform(0.05, 0.7))],
        "zeros": whole[:12] + bytes(len(whole) - 12),
        "large text": png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1)))),
        "bomb": png(width=int(rng.integers(30_000, 60_000)), height=60_000),
        "float": encoded(Image.fromarray(rng.random((H, W), np.float32)), "TIFF"),
        "LAB": encoded(Image.new("LAB", (W, H), (50, 0, 0)), "TIFF"),
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
        "broken EXIF": png(chunk(b"eXIf", b"MM\0*" + rng.bytes(40))),
    }
    name = list(cases)[rng.integers(len(cases))]
    return Case(name, cases[name], None, name in ("broken EXIF", "random", "zeros"))


def make_cases(count: int, seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(count):
        kind = rng.integers(4)
        if kind == 3:
            cases.append(damaged_case(rng))
        else:
            data, shown, name = (gray_case, alpha_case, colour_case)[kind](rng)
            cases.append(Case(name, data, np.rint(shown * 255)))
    return cases


SEEN: dict[str, np.ndarray] = {}
"""Prompt → the picture that the command gave to its reward."""


@reward("seen", 0, 1)
def seen(images: np.ndarray, records: list[dict]) -> np.ndarray:
    SEEN.update({record["prompt"]: image for record, image in zip(records, images)})
    return np.ones(len(images))


def is_right(case: Case, prompt: str, tolerance: int) -> bool:
    if prompt not in SEEN or case.shown is None:
        return prompt in SEEN and case.lenient
    lossy = any(kind in case.name for kind in (*LOSSY, "JPEG2000"))
    return bool(np.abs(SEEN[prompt] - case.shown).max() <= (24 if lossy else tolerance))


def pictures(count: int, seed: int) -> tuple[dict[str, Counter], list[str]]:
    """Every picture in a suite, as a reference to be like, and in a folder to learn from."""
    REWARDS["seen"] = seen
    tinies.clip(Path("clip"))
    cases = make_cases(count, seed)
    outcomes, wrong = together(cases)
    table = {"train --images, all with --data.unreadable skip": outcomes}
    damaged = {i: case for i, case in enumerate(cases) if case.shown is None}
    for command, ask, tried in (
        ("eval", in_suite, dict(enumerate(cases))),
        ("eval, image_similarity", as_reference, dict(enumerate(cases))),
        ("train --images", in_folder, damaged),
    ):
        table[command] = Counter()
        for i, case in tried.items():
            SEEN.clear()
            answer, name = ask(i, case)
            if answer.code == 0 and not answer.traceback and ("similarity" in command or is_right(case, "x", 1)):
                outcome = "as a viewer shows it" if case.shown is not None or case.lenient else "wrong"
            else:
                outcome = "refused by name" if answer.refuses(name) and case.shown is None else "wrong"
            table[command][outcome] += 1
            if outcome == "wrong":
                wrong.append(f"{command}, {answer.problem(case.name)}")
    return table, wrong


def put(folder: Path, i: int, case: Case) -> Path:
    """Write the file of a case under an ending that does not tell its format."""
    folder.mkdir(parents=True)
    file = folder / f"p{i}.{['png', 'JPG', 'webp'][i % 3]}"
    file.write_bytes(case.data)
    return file


def in_suite(i: int, case: Case):
    file = put(Path(f"suite{i}/00000/samples"), i, case)
    Path(f"suite{i}/00000/metadata.jsonl").write_text('{"prompt": "x"}\n')
    return run("eval", f"suite{i}", "--suite", "drawbench", "--rewards", "seen", "--draws", 2), file.name


def as_reference(i: int, case: Case):
    file = put(Path(f"reference{i}/00000/samples"), i, Case("", png(), None))
    reference = put(Path(f"asked{i}"), i, case)
    Path(f"reference{i}/00000/metadata.jsonl").write_text(f'{{"prompt": "x", "image": "{reference}"}}\n')
    words = ["--suite", "drawbench", "--rewards", "image_similarity", "--draws", 2]
    return run("eval", file.parents[2], *words, "--reward-models.weights", "clipscore", "clip"), reference.name


def in_folder(i: int, case: Case):
    file = put(Path(f"folder{i}"), i, case)
    file.with_suffix(".txt").write_text("x")
    return learn_from(f"folder{i}"), file.name


def learn_from(folder: str, *options: object):
    """Train an iteration on a folder, whose pictures are given to the reward as they are learnt from."""
    words = ["--images", folder, "--name", folder, "--data.min-reward", "seen", "0", "--data.min-size", "1"]
    return run("train", "shapes_sft", *words, *ONE, *options)


ONE = [
    *("--iterations", "1", "--batch", "1", "--chunk", "1", "--sample-every", "0", "--inference-steps", "1"),
    *("--held-out.count", "1", "--eval-images", "1"),
]
"""Options of the shortest training."""


def together(cases: list[Case]) -> tuple[Counter, list[str]]:
    """Learn from all pictures in one folder: those that cannot be read are left out and counted."""
    Path("all").mkdir()
    for i, case in enumerate(cases):
        (Path("all") / f"p{i}.png").write_bytes(case.data)
        (Path("all") / f"p{i}.txt").write_text(f"x{i}")
    SEEN.clear()
    answer = learn_from("all", "--data.unreadable", "skip")
    wrong = [] if answer.code == 0 and not answer.traceback else [answer.problem("train on all")]
    if f"{len(SEEN)} of {len(cases)} images" not in answer.out:
        wrong.append(f"train on all: {len(SEEN)} of {len(cases)} were seen, which is not what it says")
    outcomes = Counter()
    for i, case in enumerate(cases):
        if f"x{i}" in SEEN and case.shown is not None:  # the middle square is what is learnt from
            SEEN[f"x{i}"] = np.concatenate([case.shown[:, :8], SEEN[f"x{i}"], case.shown[:, -8:]], 1)
        left_out = f"x{i}" not in SEEN and case.shown is None
        right = left_out or is_right(case, f"x{i}", 1)
        outcomes[("left out" if left_out else "as a viewer shows it") if right else "wrong"] += 1
        wrong += [] if right else [f"train on all, {case.name}: wrong pixels"]
    return outcomes, wrong
