"""Encoded pictures and clips of ours made smaller, to be looked at elsewhere."""

import io

from PIL import Image, ImageSequence

QUALITY = 80
"""Quality as JPEG."""


def smaller_picture(content: bytes, side: int) -> bytes:
    """Return a picture with at most `side` pixels a side, as JPEG; of a clip its first frame."""
    stream = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        if image.format != "JPEG":  # else fewer pixels are decoded
            image = image.convert("RGB")
        image.thumbnail((side, side))
        image.save(stream, format="JPEG", quality=QUALITY)
    return stream.getvalue()


def smaller_clip(content: bytes, side: int) -> bytes:
    """Return a clip with at most `side` pixels a side, as GIF."""
    stream = io.BytesIO()
    with Image.open(io.BytesIO(content)) as clip:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(clip)]
        milliseconds = clip.info.get("duration", 0)
    for frame in frames:
        frame.thumbnail((side, side))
    motion = {"save_all": True, "append_images": frames[1:], "duration": milliseconds, "loop": 0}
    frames[0].save(stream, format="GIF", **motion)
    return stream.getvalue()
