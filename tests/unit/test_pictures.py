"""Pictures of every mode, depth and kind of damage, against what a viewer shows of them."""

import io
import struct
import unicodedata
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from afterflow.evaluation.image_store import read_prompt
from afterflow.rewards.clip import check_reference
from afterflow.rewards.png import decode_png
from afterflow.system import once, pictures
from afterflow.system.errors import InputError
from afterflow.system.pictures import find_file, is_picture_file, read_header, read_picture

RAMP = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
"""Every grey from black to nearly white, in 16 bits."""


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values, bits, sample_format=1, photometric=1, data=None):
    """A TIFF of one strip, written by hand, because Pillow does not write these depths."""
    data = values.tobytes() if data is None else data
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height}
    tags |= {279: len(data), 339: sample_format}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + data


def twelve_bits(values):
    pairs = [(int(a), int(b)) for a, b in zip(values.ravel()[::2], values.ravel()[1::2])]
    return bytes(byte for a, b in pairs for byte in (a >> 4, (a & 15) << 4 | b >> 8, b & 255))


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(RAMP)),
        encoded(Image.fromarray(RAMP), "TIFF"),
        encoded(Image.fromarray(RAMP), "PPM"),
        encoded(Image.fromarray(RAMP), "JPEG2000"),
        tiff(RAMP.byteswap().byteswap(), 16),
        tiff(65535 - RAMP, 16, photometric=0),
        tiff((RAMP // 2).astype(np.int16), 16, sample_format=2),
        tiff(RAMP.astype(np.uint32) * 65537, 32),
        tiff(RAMP.astype(np.int32) * 32768, 32, sample_format=2),
        tiff(RAMP >> 4, 12, data=twelve_bits(RAMP >> 4)),
        tiff((RAMP >> 8).astype(np.uint8), 8),
        tiff(255 - (RAMP >> 8).astype(np.uint8), 8, photometric=0),
    ],
)
def test_every_depth_of_grey_is_scaled_by_its_range(data):
    shown = read_picture(data, "ramp").astype(float)
    expected = np.repeat(RAMP[..., None] / 65535 * 255, 3, 2)
    assert np.abs(shown - expected).max() <= 1 and 126 < shown.mean() < 128.5


def clear_below(mode):
    """A picture whose upper half is (200, 0, 0) or its grey, and whose lower half is transparent over another colour"""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (200, 0, 0, 255)
    pixels[4:] = (9, 90, 190, 0)
    image = Image.fromarray(pixels)
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("mode, kind", [("RGBA", k) for k in ("PNG", "TIFF", "TGA", "GIF", "SGI", "JPEG2000")])
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 128, 7)])
def test_transparency_is_laid_over_the_background(mode, kind, background):
    shown = read_picture(encoded(clear_below(mode), kind), "x", background)
    assert shown[0, 0].tolist() == [200, 0, 0] and shown[-1, -1].tolist() == list(background)


def test_half_transparent_pixels_are_mixed():
    mixed = read_picture(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 51))), "x")
    assert mixed[0, 0].tolist() == [255, 204, 204]
    assert read_picture(encoded(Image.new("LA", (2, 2), (100, 0))), "x").mean() == 255


@pytest.mark.parametrize(
    "image, options",
    [
        (Image.new("L", (2, 2), 7), {"transparency": 7}),
        (Image.new("1", (2, 2), 0), {"transparency": 0}),
        (Image.new("RGB", (2, 2), (1, 2, 3)), {"transparency": (1, 2, 3)}),
        (Image.new("RGB", (2, 2), (1, 2, 3)).quantize(2), {"transparency": bytes(2)}),
        (Image.fromarray(np.full((2, 2), 40000, np.uint16)), {"transparency": 40000}),
    ],
)
def test_a_colour_that_stands_for_transparent_shows_the_background(image, options):
    assert read_picture(encoded(image, **options), "x").min() == 255


def test_palettes_inks_and_bits_are_colours():
    assert read_picture(encoded(Image.new("RGB", (2, 2), "red").quantize(2)), "x")[0, 0].tolist() == [255, 0, 0]
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 128))
    assert np.abs(read_picture(encoded(inks, "JPEG"), "x").astype(int) - [0, 127, 127]).max() <= 2
    assert read_picture(encoded(inks, "TIFF"), "x")[0, 0].tolist() == [0, 127, 127]
    assert read_picture(encoded(Image.new("1", (2, 2), 1)), "x").min() == 255


def test_the_colours_of_a_profile_are_those_a_viewer_shows():
    rgb = ImageCms.createProfile("sRGB")
    lab = ImageCms.createProfile("LAB")
    pixels = Image.new("RGB", (2, 2), (180, 90, 20))
    same = encoded(pixels, icc_profile=ImageCms.ImageCmsProfile(rgb).tobytes())
    unfit = encoded(pixels, icc_profile=ImageCms.ImageCmsProfile(lab).tobytes())
    broken = encoded(pixels, icc_profile=b"no profile")
    for data in (same, unfit, broken):
        assert read_picture(data, "x")[0, 0].tolist() == [180, 90, 20]
    swapped = bytearray(ImageCms.ImageCmsProfile(rgb).tobytes())  # red and blue change places: another space
    for n in range(struct.unpack(">I", swapped[128:132])[0]):
        tag = bytes(swapped[132 + 12 * n : 136 + 12 * n])
        new = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ", b"desc": b"tech"}.get(tag, tag)
        swapped[132 + 12 * n : 136 + 12 * n] = new
    shown = read_picture(encoded(pixels, icc_profile=bytes(swapped)), "x")[0, 0].astype(int)
    assert np.abs(shown - [20, 90, 180]).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photo_is_upright(kind, turn):
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:12, :20] = 255  # the corner at the upper left
    exif = Image.Exif()
    exif[0x0112] = turn
    shown = read_picture(encoded(Image.fromarray(pixels), kind, exif=exif), "x")
    corners = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert shown[corners[turn]].min() > 200 and shown.mean() < 100
    assert shown.shape[:2] == ((24, 40) if turn < 5 else (40, 24))
    assert read_header(encoded(Image.fromarray(pixels), kind, exif=exif), "x")[1:] == shown.shape[:2]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_picture_is_read_and_that_is_said_once(kind, caplog, monkeypatch):
    monkeypatch.setattr(once, "_SAID", set())
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    for name in ("first", "second"):
        assert np.abs(read_picture(data, name)[0, 0].astype(int) - [255, 0, 0]).max() <= 1
    assert caplog.text.count("holds several pictures") == 1 and "first" in caplog.text


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks, width=8, height=8):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((1 + 3 * 8) * 8)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


WHOLE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)), "JPEG")
DAMAGED = {
    "empty": b"",
    "text": b"no picture",
    "page": b"<html><body>404</body></html>",
    "cut": WHOLE[: len(WHOLE) // 2],
    "cut PNG": encoded(Image.fromarray(RAMP))[:-300],
    "header": WHOLE[:20],
    "large text": png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1)))),
    "bomb": png(width=60_000, height=60_000),
    "broken EXIF": png(chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff\0\0\xff\xf0")),
    "checksum": png().replace(chunk(b"IHDR", b"")[-4:], b"abcd").replace(b"IDAT", b"IDAX"),
    "float": encoded(Image.new("F", (8, 8), 0.5), "TIFF"),
    "LAB": encoded(Image.new("LAB", (8, 8)), "TIFF"),
    "signed": tiff(np.zeros((8, 8), np.uint8), 8, sample_format=2),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_what_cannot_be_read_is_one_sentence_with_the_file(damage, tmp_path):
    file = tmp_path / "000.png"
    file.write_bytes(DAMAGED[damage])
    for read in (lambda: read_picture(file, str(file)), lambda: check_reference(str(file))):
        try:
            pixels = read()
        except InputError as error:
            assert str(file) in str(error) and "\n" not in str(error)
        else:  # what a viewer shows, too
            assert damage == "broken EXIF" and (pixels is None or pixels.shape == (8, 8, 3))


def test_a_service_reads_only_png_and_only_so_many_pixels():
    assert decode_png(encoded(clear_below("RGBA")), 64)[-1, -1].tolist() == [255, 255, 255]
    with pytest.raises(InputError, match="not a readable PNG"):
        decode_png(encoded(clear_below("RGBA"), "GIF"), 64)
    with pytest.raises(InputError, match="at most 63 pixels"):
        decode_png(encoded(clear_below("RGBA")), 63)


def test_a_folder_of_samples_is_read_whatever_lies_in_it(tmp_path):
    samples = tmp_path / "00000" / "samples"
    for folder in (samples / ".ipynb_checkpoints", samples / "older"):
        folder.mkdir(parents=True)
        (folder / "0000-checkpoint.png").write_bytes(encoded(Image.new("RGB", (4, 4))))
    (samples / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (samples / "notes.txt").write_text("mine")
    for i, ending in enumerate(("PNG", "webp", "Tiff", "jpeg")):
        kind = {"PNG": "PNG", "webp": "WEBP", "Tiff": "TIFF", "jpeg": "JPEG"}[ending]
        (samples / f"{i:04}.{ending}").write_bytes(encoded(Image.new("RGB", (8, 6), (i, i, i)), kind))
    assert read_prompt(samples.parent)[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert not is_picture_file(samples / ".DS_Store")
    for file in samples.glob("0*"):
        file.unlink()
    clip = samples / "0000"
    clip.mkdir()
    (clip / ".DS_Store").touch()
    (clip / "0000.png").write_bytes(encoded(Image.new("RGB", (8, 6))))
    (samples / "older" / "0000-checkpoint.png").unlink()
    assert read_prompt(samples.parent).shape == (1, 1, 6, 8, 3)
    (clip / "0000.png").unlink()
    with pytest.raises(InputError, match="00000: it has no pictures in samples"):
        read_prompt(samples.parent)


@pytest.mark.parametrize("category", [ResourceWarning, UserWarning, DeprecationWarning])
def test_of_warnings_pillow_alone_warns_of_a_picture(category, caplog, monkeypatch):
    def shown_pixels(*arguments, shown=pictures.shown_pixels):
        warnings.warn("of another file, which was collected meanwhile", category, stacklevel=2)
        return shown(*arguments)

    monkeypatch.setattr(pictures, "shown_pixels", shown_pixels)
    monkeypatch.setattr(once, "_SAID", set())
    without_frames = PngImagePlugin.PngInfo()
    without_frames.add(b"acTL", struct.pack(">II", 0, 0))
    read_picture(encoded(Image.new("RGB", (8, 8)), pnginfo=without_frames), "broken.png")
    assert [record.message for record in caplog.records] == [
        "broken.png: Invalid APNG, will use default PNG image if possible"
    ]


def test_names_are_found_in_any_form_or_the_nearest_is_told(tmp_path):
    (tmp_path / "sub").mkdir()
    for form in ("NFC", "NFD"):
        written = tmp_path / "sub" / unicodedata.normalize(form, f"café-{form}.png")
        written.touch()
        for asked in ("NFC", "NFD"):
            name = unicodedata.normalize(asked, f"café-{form}.png")
            assert find_file(tmp_path, f"sub/{name}") == find_file(tmp_path, f"sub\\{name}") == written
    (tmp_path / "Red.PNG").touch()
    with pytest.raises(InputError, match=r"Red.png is not there; the nearest name is Red\.PNG"):
        find_file(tmp_path, "Red.png")
    for name in ("", "sub", "nul\0.png", "x" * 300, "../nowhere/x.png"):
        with pytest.raises(InputError):
            find_file(tmp_path, name)
