"""Folders of images as users have them: what is found, what is left out, and what is said about both."""

import csv
import datetime
import io
import json
import tarfile
from functools import partial

import numpy as np
import pytest
from PIL import Image

from afterflow.data.images import HubImages, ImageFolder, LeftOut, bucket_sizes, nearest_size
from afterflow.data.pairs import HubPairs
from afterflow.data.prompts import bucket_rows
from afterflow.system.errors import ConfigError, InputError
from afterflow.system.input_pictures import input_names

NAMES = ("blue", "green", "red")


def encoded(colour, size=(40, 40), kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def in_jsonl(path):
    lines = [json.dumps({"file_name": f"{name}.png", "text": f"all {name}"}) for name in NAMES]
    (path / "metadata.jsonl").write_text("\n".join(lines))


def in_csv(path):
    with (path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "caption"], *([f"{name}.png", f"all {name}"] for name in NAMES)])


def beside(ending):
    def write(path):
        for name in NAMES:
            (path / f"{name}{ending}").write_text(f"\ufeffall\n{name}\n", encoding="utf-8")

    return write


def in_tar(ending):
    def write(path):
        with tarfile.open(path / "a.tar", "w") as tar:
            for name in NAMES:
                caption = json.dumps({"caption": f"all {name}"}) if ending == "json" else f"all {name}"
                for member, data in (("png", (path / f"{name}.png").read_bytes()), (ending, caption.encode())):
                    info = tarfile.TarInfo(f"set/{name}.1.{member}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                (path / f"{name}.png").unlink()

    return write


def in_parquet(plain):
    def write(path):
        parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        files = [(path / f"{name}.png") for name in NAMES]
        cells = [file.read_bytes() if plain else {"bytes": file.read_bytes(), "path": file.name} for file in files]
        table = pyarrow.table({"n": [1, 2, 3], "image": cells, "prompt": [f"all {name}" for name in NAMES]})
        parquet.write_table(table, path / "train-00000.parquet", row_group_size=2)
        for file in files:
            file.unlink()

    return write


LAYOUTS = {
    "metadata.jsonl": in_jsonl,
    "metadata.csv": in_csv,
    ".txt files": beside(".txt"),
    ".caption files": beside(".caption"),
    "1 webdataset tar": in_tar("txt"),
    "webdataset tar": in_tar("json"),
    "1 parquet": in_parquet(True),
    "parquet": in_parquet(False),
}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    for name in NAMES:
        (path / f"{name}.png").write_bytes(encoded(name))
    (path / ".DS_Store").write_bytes(b"\0")
    (path / "__MACOSX").mkdir()
    (path / "__MACOSX" / "red.png").write_bytes(b"\0")
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_images_and_captions(layout, folder, caplog):
    caplog.set_level("INFO", "afterflow")
    LAYOUTS[layout](folder)
    images = list(ImageFolder(str(folder)).images(0, (32, 32)))
    assert [image.record["prompt"] for image in images] == [f"all {name}" for name in NAMES]
    for name, image in zip(NAMES, images):
        assert (image.pixels() == np.asarray(Image.new("RGB", (32, 32), name))).all()
    [said] = [record.message for record in caplog.records]
    assert said.startswith("3 of 3 images are used, from ") and layout in said and "left out" not in said


def test_a_single_file_is_a_source(folder):
    in_tar("txt")(folder)
    assert len(list(ImageFolder(str(folder / "a.tar")).images(0, (32, 32)))) == 3
    with pytest.raises(InputError, match=r"of files only \.parquet and \.tar are read"):
        list(ImageFolder(str(folder / ".DS_Store")).images(0, (32, 32)))


def used(source, **options):
    images = list(ImageFolder(str(source), **options).images(0, (32, 32)))
    left_out = [image.reason for image in images if isinstance(image, LeftOut)]
    return [image for image in images if not isinstance(image, LeftOut)], left_out


def test_targets_of_another_shape_than_their_input_are_counted(tmp_path, caplog):
    caplog.set_level("INFO", "afterflow")
    lines = []
    for i, (before, after) in enumerate((((64, 64), (96, 96)), ((96, 64), (64, 64)), ((64, 96), (96, 64)))):
        (tmp_path / f"in{i}.png").write_bytes(encoded("red", before))
        (tmp_path / f"out{i}.png").write_bytes(encoded("lime", after))
        lines.append({"input": f"in{i}.png", "target": f"out{i}.png", "text": "make it green"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    images, _ = used(tmp_path)
    assert len(images) == 3 and "of another shape than their input: 2" in caplog.records[-1].message


def test_what_is_left_out_or_remarkable_is_counted(folder, caplog):
    caplog.set_level("INFO", "afterflow")
    beside(".txt")(folder)
    more = {
        "tiny": encoded("red", (20, 90)),
        "between": encoded("lime", (36, 30)),
        "long": encoded("red", (400, 40)),
        "twin": encoded("red"),
        "broken": b"no picture",
        "empty": encoded("red"),
        "bare": encoded("red"),
    }
    for name, data in more.items():
        (folder / f"{name}.jpg").write_bytes(data)
        if name != "bare":
            (folder / f"{name}.TXT").write_text("" if name == "empty" else name)
    images, left_out = used(folder, min_size=24, unreadable="skip")
    assert len(images) == 6 and all(image.pixels().shape == (32, 32, 3) for image in images)
    reasons = ["smaller than 24 px", "that cannot be read", "without a caption", "without a caption"]
    assert sorted(left_out) == sorted(reasons)
    said = caplog.records[-1].message
    for part in ("6 of 10", "2 without a caption", "cropped by more than half: 1", "duplicates: 1", "enlarged: 1"):
        assert part in said, part
    with pytest.raises(InputError, match=r"broken\.jpg: not a readable image .*--data.unreadable skip"):
        used(folder)
    (folder / "broken.jpg").unlink()
    with pytest.raises(InputError, match=r"36 x 30 px, smaller than the 32 x 32 px .*, as are 2 of 7"):
        used(folder)


def test_pictures_that_a_list_does_not_name_are_counted(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "red.png", "text": "all red"}\n')
    assert used(folder)[1] == ["not named in metadata.jsonl"] * 2


def test_transparency_and_names_are_the_user_s(folder):
    Image.new("RGBA", (40, 40), (1, 2, 3, 0)).save(folder / "café.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "cafe\\u0301.png", "text": "x"}\n')
    for background, colour in (("white", 255), ("#000000", 0)):
        assert (used(folder, background=background)[0][0].pixels() == colour).all()
    with pytest.raises(ConfigError, match=r"data\.background = whitish: no colour"):
        ImageFolder(str(folder), background="whitish")
    with pytest.raises(ConfigError, match=r"data\.min_size = 0"):
        ImageFolder(str(folder), min_size=0)
    (folder / "metadata.jsonl").write_text('{"file_name": "caff.png", "text": "x"}\n')
    with pytest.raises(InputError, match=r"jsonl:1: .*caff.png is not there; the nearest name is caf"):
        used(folder)


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("a.tar", b"no tar", "no tar that can be read, or a compressed one"),
        ("a.tar", 3000, r"no tar that can be read, .*unexpected end"),
        ("a.tar", 2048, r"it is cut after set/blue\.1\.txt; copy it again"),
        ("a.parquet", b"PAR1 no parquet", "no parquet file that can be read"),
        ("red.txt", b"\xff", r"red\.txt:1: not UTF-8"),
        ("metadata.csv", b"file_name,text\nred.png,a, b\n", r"metadata\.csv:2: 3 cells"),
        ("metadata.jsonl", b"[1]", 'needs a "file_name"'),
    ],
)
def test_a_damaged_source_is_named(folder, name, content, sentence):
    if isinstance(content, int):
        in_tar("txt")(folder)
        content = (folder / "a.tar").read_bytes()[:content]
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        used(folder)


@pytest.mark.parametrize("size, unit", [((32, 32), 8), ((1024, 1024), 16), ((512, 768), 16), ((240, 416), 16)])
def test_buckets_have_the_model_s_units_and_no_more_pixels(size, unit):
    sizes = bucket_sizes(size, unit)
    assert sizes[0] == size and 3 <= len(sizes) <= 16 and len(set(sizes)) == len(sizes)
    for height, width in sizes[1:]:
        assert height % unit == width % unit == 0 and 0.5 <= height / width <= 2
        assert 0.7 * size[0] * size[1] < height * width <= size[0] * size[1]
    assert nearest_size(size[0] / size[1], sizes) == size
    tall = nearest_size(3.0, sizes)
    assert tall[0] / tall[1] == max(h / w for h, w in sizes)


def test_batches_of_buckets_leave_nothing_out_and_depend_on_step_and_seed_alone():
    bucket_of = torch_long([0] * 12 + [1] * 5 + [2])
    rows = [bucket_rows(bucket_of, step, 4, 7) for step in range(18 * 18)]
    for batch in rows:
        assert len(batch) == 4 and len(set(bucket_of[batch].tolist())) == 1
    counts = np.bincount(np.concatenate([batch.numpy() for batch in rows]), minlength=18)
    assert counts.sum() == 4 * 18 * 18 and abs(counts - 4 * 18).max() <= 4
    assert all((rows[step] == bucket_rows(bucket_of, step, 4, 7)).all() for step in (0, 5, 77))
    assert any((rows[step] != bucket_rows(bucket_of, step, 4, 8)).any() for step in range(9))


def torch_long(values):
    import torch

    return torch.tensor(values)


RED, BLUE = [255, 0, 0], [0, 0, 255]


def colours_of(images):
    return [image.pixels()[0, 0].tolist() for image in images]


def in_json(folder, tar, **rows):
    """Pictures with a .txt, and for those that are named a .json, beside them or in a tar."""
    beside(".txt")(folder)
    for name, row in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(row))
    if tar:
        with tarfile.open(folder / "a.tar", "w") as archive:
            for file in sorted(folder.iterdir()):
                if file.suffix in (".png", ".txt", ".json"):
                    archive.add(file, f"set/{file.name}")
                    file.unlink()


@pytest.mark.parametrize("tar", [False, True])
def test_a_named_caption_is_read_from_the_json_and_no_text_stands_in_for_it(folder, tar):
    in_json(folder, tar, red={"long": "a red square", "n": 1}, blue={"other": "x"})
    assert [image.record["prompt"] for image in used(folder)[0]] == [f"all {name}" for name in NAMES]
    images, left_out = used(folder, caption="long")
    assert [image.record for image in images] == [{"prompt": "a red square", "n": 1}]
    assert colours_of(images) == [RED] and left_out == ["without a caption"] * 2
    with pytest.raises(InputError, match=r"json.* with 'short', which data\.caption names"):
        used(folder, caption="short")


@pytest.mark.parametrize("name", ["", ".", "/", "./"])
def test_a_member_of_a_tar_without_a_name_is_said_with_the_file(folder, name):
    with tarfile.open(folder / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(InputError, match=r"a\.tar: a file in it is called '.*', which is no name"):
        used(folder)


def test_inputs_and_masks_are_named_in_a_list_too(folder):
    Image.new("L", (40, 40)).save(folder / "mask.png")
    Image.new("L", (40, 40)).save(folder / "nobody.png")
    line = {"target": "red.png", "text": "x", "input": ["blue.png", "green.png"], "mask": "mask.png"}
    (folder / "metadata.jsonl").write_text(json.dumps(line))
    assert used(folder)[1] == ["not named in metadata.jsonl"]


def table_of(folder, **columns):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table(columns), folder / "a.parquet")
    return folder / "a.parquet"


STRUCT = lambda name: [{"bytes": encoded(name), "path": "x.png"}]
TWO_COLUMNS = {
    "before and after": {"before": [encoded("red")], "after": [encoded("blue")]},
    "source and target": {"source": STRUCT("red"), "target": STRUCT("blue")},
    "jpg_0 and jpg_1": {"jpg_0": [encoded("red")], "jpg_1": STRUCT("blue")},
}


@pytest.mark.parametrize("columns", TWO_COLUMNS.values(), ids=list(TWO_COLUMNS))
def test_of_several_columns_of_pictures_one_must_be_named(columns, tmp_path, caplog):
    caplog.set_level("INFO", "afterflow")
    first, last = columns
    file = table_of(tmp_path, **columns, text=["x"])
    for source in (file, tmp_path):
        with pytest.raises(InputError, match=rf"columns {first}, {last} can all hold.*--data\.image {first}"):
            used(source)
    with pytest.raises(InputError, match=f"no column 'photo' holds pictures, only {first}, {last}"):
        used(file, image="photo")
    assert colours_of(used(file, image=last)[0]) == [BLUE]
    assert caplog.records[-1].message.endswith(f"1 parquet, column {last}")


def test_a_column_called_image_is_taken_before_others_and_can_be_passed_over(tmp_path):
    file = table_of(tmp_path, thumbnail=[encoded("red")], image=[encoded("blue")], text=["x"])
    assert colours_of(used(file)[0]) == [BLUE] and colours_of(used(file, image="thumbnail")[0]) == [RED]


@pytest.mark.parametrize("layout", ["metadata.jsonl", "metadata.csv", ".txt files", "1 webdataset tar"])
def test_a_column_of_pictures_is_refused_where_there_are_no_columns(layout, folder):
    LAYOUTS[layout](folder)
    with pytest.raises(InputError, match=r"data\.image = photo names a column, which parquet files alone have"):
        used(folder, image="photo")


def test_a_row_keeps_what_json_holds_and_no_other_picture(tmp_path):
    noise = bytes(1 << 16)
    columns = {"thumbnail": [noise], "deep": [{"a": [noise]}], "day": [datetime.date(2026, 1, 1)]}
    plain = {"n": [1], "share": [0.5], "tag": ["x"], "words": [["a", "b"]], "box": [{"x": 1}], "nothing": [None]}
    file = table_of(tmp_path, image=[encoded("red")], text=["red"], **columns, **plain)
    [image], _ = used(file)
    assert image.record == {"prompt": "red"} | {name: value for name, [value] in plain.items()}
    json.dumps(image.record)


@pytest.mark.parametrize("key", ["input", "mask"])
@pytest.mark.parametrize("cell", [encoded("red", (400, 400)), {"bytes": encoded("red", (400, 400)), "path": "x.png"}])
def test_pictures_in_the_column_of_inputs_are_refused_without_repeating_them(key, cell, tmp_path):
    file = table_of(tmp_path, image=[encoded("blue")], text=["x"], **({"input": ["a.png"]} | {key: [cell]}))
    with pytest.raises(InputError, match=f"its column {key} holds pictures, which are read from files alone") as error:
        used(file)
    assert len(str(error.value)) < 300


def test_a_mask_without_an_input_is_a_column_as_others(tmp_path):
    file = table_of(tmp_path, image=[encoded("blue")], text=["x"], mask=[encoded("red")])
    [image], _ = used(file)
    assert image.record == {"prompt": "x"}


@pytest.mark.parametrize("value", [b"x" * 10_000, {"bytes": b"x" * 10_000}, ["x", b"y" * 10_000], 7])
def test_an_input_that_names_no_picture_is_said_in_a_short_line(value):
    with pytest.raises(InputError, match="it names a picture, or a list of them") as error:
        input_names({"prompt": "a", "input": value})
    assert len(str(error.value)) < 300


def hub(folder, text, **pictures):
    """A folder that `datasets` reads as a data set of the hub, with pictures in a list and bytes beside them."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    sequence = getattr(datasets, "List", datasets.Sequence)
    kinds = {"n": datasets.Value("int64"), "text": datasets.Value("string"), "code": datasets.Value("binary")}
    kinds |= {"views": sequence(datasets.Image())} | {name: datasets.Image() for name in pictures}
    cells = {name: [{"bytes": data, "path": None} for data in values] for name, values in pictures.items()}
    count = len(text)
    rows = {"n": list(range(count)), "text": text, "code": [b"x"] * count, **cells}
    rows["views"] = [[{"bytes": encoded("red"), "path": None}] * 2] * count
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(folder / "train.parquet")
    return str(folder)


def test_a_row_of_a_data_set_without_a_caption_is_counted_and_others_keep_no_picture(tmp_path):
    pictures = [encoded(name) for name in ("red", "blue", "green", "white")]
    source = HubImages(hub(tmp_path, image=pictures, other=pictures, text=["a", None, " ", "d"]))
    listing = source.listing()
    assert [entry.record for entry in listing.entries] == [{"prompt": "a", "n": 0}, {"prompt": "d", "n": 3}]
    assert dict(listing.left_out) == {"without a caption": 2}
    images = [image for image in source.images(0, (32, 32)) if not isinstance(image, LeftOut)]
    assert colours_of(images) == [RED, [255, 255, 255]]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no row has a caption under 'text'"):
        HubImages(hub(tmp_path / "none", image=pictures, text=[None] * 4)).listing()


def test_a_pair_of_a_data_set_without_a_caption_is_counted(tmp_path):
    red, blue = encoded("red"), encoded("blue")
    columns = {"one": [red] * 3, "two": [blue] * 3, "third": [blue] * 3}
    source = partial(HubPairs, hub(tmp_path, **columns, text=["a", None, "c"]), first="one", second="two", label=None)
    listing = source().pair_listing()
    assert [winner.record for winner, _ in listing.pairs] == [{"prompt": "a", "n": 0}, {"prompt": "c", "n": 2}]
    assert dict(listing.left_out) == {"without a caption": 1}
    with pytest.raises(InputError, match="it has no column 'words'"):
        source(caption="words").pair_listing()
    (tmp_path / "none").mkdir()
    empty = hub(tmp_path / "none", **columns, text=[None] * 3)
    with pytest.raises(InputError, match="no row has a caption under 'text'"):
        HubPairs(empty, first="one", second="two", label=None).pair_listing()
