"""Pictures by which a network shows that it sees: photographs and noise whose order no working network gets wrong.

Weights that were not loaded, a wrong build of a library or broken preprocessing give scores too, which look like any
others.  The order of these pictures is known for every reward, whatever its scale and whoever trained it.
"""

from functools import cache, partial
from pathlib import Path

import numpy as np

from ..system.input_pictures import png_address
from ..system.pictures import read_picture
from .base import CanaryCase, OrderCanary

PHOTOS = Path(__file__).parent / "photos"
CAPTIONS = {"cat": "a photo of a cat", "cup": "a photo of a cup of coffee", "astronaut": "a photo of an astronaut"}
"""What each photograph shows."""
FRAMES = 16
"""Number of frames in a clip."""


@cache
def photo(name: str) -> np.ndarray:
    """Return a photograph, uint8 (224, 224, 3)."""
    return read_picture(PHOTOS / f"{name}.jpg", name)


def noise(*shape: int) -> np.ndarray:
    """Return noise, uint8 of this shape."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def pan(name: str) -> np.ndarray:
    """Return a clip that passes over a photograph, uint8 (F, 192, 192, 3)."""
    return np.stack([photo(name)[i : i + 192, i : i + 192] for i in range(FRAMES)])


def captioned_cases() -> list[CanaryCase]:
    """Return each photograph before every other one, for its own caption: neither text nor picture decides alone."""
    pairs = [(name, other) for name in CAPTIONS for other in CAPTIONS if name != other]
    return [CanaryCase(photo(name), photo(other), {"prompt": CAPTIONS[name]}) for name, other in pairs]


def beautiful() -> list[CanaryCase]:
    """Return photographs before noise."""
    return [CanaryCase(photo(name), noise(224, 224, 3), {"prompt": CAPTIONS[name]}) for name in CAPTIONS]


def similar() -> list[CanaryCase]:
    """Return photographs before others, where they are to be like themselves."""
    pairs = [("cat", "cup"), ("cup", "cat")]
    files = {name: str(PHOTOS / f"{name}.jpg") for name in CAPTIONS}
    return [CanaryCase(photo(a), photo(b), {"prompt": "", "image": files[a]}) for a, b in pairs]


def detected() -> list[CanaryCase]:
    """Return photographs of an object before others, with GenEval's record of the object."""
    record = lambda name: {
        "tag": "single_object",
        "include": [{"class": name, "count": 1}],
        "prompt": f"a photo of a {name}",
    }
    return [CanaryCase(photo(a), photo(b), record(a)) for a, b in (("cat", "cup"), ("cup", "cat"))]


def pointed() -> list[CanaryCase]:
    """Return the captioned photographs with a test point of UniGenBench's form."""
    point = lambda prompt: {"prompt": prompt, "points": [["Entity", f"It is {prompt}."]]}
    return [CanaryCase(case.better, case.worse, point(case.record["prompt"])) for case in captioned_cases()]


def questioned() -> list[CanaryCase]:
    """Return the captioned photographs with a question of GenEval 2's form."""
    ask = lambda prompt: {"prompt": prompt, "vqa_list": [[f"Is this {prompt}?", "Yes"]], "skills": ["object"]}
    return [CanaryCase(case.better, case.worse, ask(case.record["prompt"])) for case in captioned_cases()]


def moving() -> list[CanaryCase]:
    """Return clips that pass over a photograph before clips of noise."""
    static = partial(noise, FRAMES, 192, 192, 3)
    return [CanaryCase(pan(name), static(), {"prompt": CAPTIONS[name]}) for name in ("cat", "astronaut")]


def edited() -> list[CanaryCase]:
    """Return photographs that were edited as asked before others that were edited otherwise."""
    grey = lambda name: np.broadcast_to(photo(name).mean(2, keepdims=True).astype(np.uint8), (224, 224, 3)).copy()
    turned = lambda name: photo(name)[::-1].copy()
    ask = lambda name, prompt: {"prompt": prompt, "input": str(PHOTOS / f"{name}.jpg")}
    colourless, upside_down = "make the picture black and white", "turn the picture upside down"
    return [
        CanaryCase(grey("cat"), turned("cup"), ask("cat", colourless)),
        CanaryCase(turned("cup"), grey("astronaut"), ask("cup", upside_down)),
        CanaryCase(grey("astronaut"), turned("cat"), ask("astronaut", colourless)),
    ]


def masked() -> list[CanaryCase]:
    """Return photographs whose left half alone has changed before others, where the mask is white on the left."""
    mask = np.zeros((224, 224, 3), np.uint8)
    mask[:, :112] = 255
    changed = lambda name: np.where(mask > 0, noise(224, 224, 3), photo(name))
    about = lambda name: {"prompt": "", "input": str(PHOTOS / f"{name}.jpg"), "mask": png_address(mask)}
    pairs = [("cat", "cup"), ("cup", "cat"), ("astronaut", "cup")]
    # Most pixels differ, so the other one is upside down too.
    return [CanaryCase(changed(a), changed(b)[:, ::-1].copy(), about(a)) for a, b in pairs]


CAPTIONED, BEAUTIFUL, DETECTED = OrderCanary(captioned_cases), OrderCanary(beautiful), OrderCanary(detected)
POINTED, QUESTIONED, MOVING = OrderCanary(pointed), OrderCanary(questioned), OrderCanary(moving)
SIMILAR, EDITED, MASKED = (OrderCanary(cases, local=True) for cases in (similar, edited, masked))
