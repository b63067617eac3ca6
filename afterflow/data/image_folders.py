"""Where pictures and their captions lie: lists beside pictures, a text beside each, parquet files, webdataset tars."""

import filecmp
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from ..system.errors import InputError
from ..system.input_pictures import input_names, locate_inputs
from ..system.json_text import json_columns
from ..system.optional_dependencies import check_extra
from ..system.own_folders import check_inside, check_links
from ..system.pictures import is_picture_file, named_picture, picture_endings
from ..system.text_files import check_text, decode_text, parse_json, read_json, read_text, read_text_lines
from .prompt_lists import check_tag, csv_rows, prompt_column

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

DEFAULT_CAPTION = "text"
"""Key of captions that users need not name; where it is missing, other usual names are tried."""
DEFAULT_IMAGE = "image"
"""Column of pictures that users need not name."""
LISTS = ("metadata.jsonl", "metadata.csv")
"""Names of the list of pictures in their folder; the first that exists is read."""
SIDECARS = (".txt", ".caption")
"""Endings of the file with a picture's caption, beside it; the first that exists is read."""
NO_CAPTION = "without a caption"


class Entry(NamedTuple):
    """A picture with its record, not yet read."""

    location: str
    """What messages call it: a file, or FILE:NAME inside a file."""
    record: dict
    """Record {"prompt": caption, ...}."""
    read: Callable[[], bytes]
    """Function that returns the encoded picture."""


class Listing(NamedTuple):
    """The pictures of a source, and those that it has without a caption."""

    origin: str
    """Where pictures and captions come from, as a message says it."""
    entries: Sequence[Entry]
    """The pictures, in an order that never changes."""
    left_out: Mapping[str, int]
    """Reason → number of pictures that are left out for it."""


def list_images(path: Path, caption: str, image: str | None = None) -> Listing:
    """List the pictures of a folder or file, by the first of these that it holds.

    They are metadata.jsonl, metadata.csv, .parquet files, .tar files of webdataset, and .txt or .caption files beside
    pictures.  InputError where it holds none of them, or what cannot be used.

    Args:
        path: The folder or file.
        caption: Key or column of captions.
        image: Column of pictures of parquet files.  None: the only one, or `image`.
    """
    check_inside(path)
    if path.is_file() and path.suffix.lower() not in (".parquet", ".tar"):
        raise InputError(f"images {path}: no folder, and of files only .parquet and .tar are read")
    if not path.is_file():
        check_links(path)
    file = listed_in(path)
    tables = [] if file else files_of_kind(path, ".parquet")
    if tables:
        return list_parquet(tables, caption, image)
    if image is not None:
        raise InputError(f"images {path}: data.image = {image} names a column, which parquet files alone have")
    if file:
        return list_metadata(file, {".jsonl": json_rows, ".csv": csv_rows}[file.suffix](file), caption)
    if tars := files_of_kind(path, ".tar"):
        return list_tars(tars, caption)
    return list_sidecars(path, caption)


def listed_in(path: Path) -> Path | None:
    """Return the list of pictures in a folder; None where there is none."""
    return next((file for name in LISTS if (file := path / name).is_file()), None)


def files_of_kind(path: Path, ending: str) -> list[Path]:
    """Return a file that has an ending, or the files below a folder that have it, in order."""
    files = [path] if path.is_file() else visible_files(path)
    return sorted(file for file in files if file.suffix.lower() == ending)


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and those below it, but for hidden ones and what macOS puts into archives."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def json_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the location and the value of every line of a .jsonl file."""
    for location, line in read_text_lines(file):
        yield location, parse_json(line, location)


def list_metadata(file: Path, rows: Iterable[tuple[str, Any]], caption: str) -> Listing:
    """List the pictures that a list in their folder names, in its order."""
    folder, entries, named = file.parent, [], set()
    for location, line in rows:
        key = "target" if isinstance(line, dict) and "file_name" not in line else "file_name"
        if not isinstance(line, dict) or not isinstance(line.get(key), str):
            raise InputError(f'{location}: a line needs a "file_name" that is a text, or a "target" beside an "input"')
        check_one_target(line, location)
        record = caption_record(line, caption, folder, location)
        picture = named_picture(folder, line[key], key, location)
        check_differs(picture, input_names(record), location)
        beside = [
            name for name in (*input_names(record), record.get("mask"), record.get("image")) if isinstance(name, str)
        ]
        named |= {picture.resolve(), *(Path(name).resolve() for name in beside if not name.startswith("data:"))}
        entries.append(Entry(str(picture), record, picture.read_bytes))
    if not entries:
        raise InputError(f"images {folder}: {file.name} is empty; write a line for each image")
    others = sum(picture.resolve() not in named for picture in visible_files(folder) if is_picture_file(picture))
    return Listing(str(file), entries, {f"not named in {file.name}": others})


def check_one_target(line: Mapping[str, Any], location: str) -> None:
    """Raise InputError for a line that names the picture to learn from twice; a target may be a label, too."""
    target = line.get("target")
    names_picture = isinstance(target, str) and Path(target).suffix.lower() in picture_endings()
    if "file_name" in line and names_picture:
        raise InputError(f'{location}: "file_name" and "target" both name the picture to learn from; leave one out')


def check_differs(target: Path | bytes, inputs: Sequence[str], location: str) -> None:
    """Raise InputError for an input picture that is the same as the picture to be made of it, a file or its content."""
    for name in inputs:
        if name.startswith("data:"):
            continue
        same = name_has(name, target) if isinstance(target, bytes) else filecmp.cmp(target, name, shallow=False)
        if same:
            raise InputError(f"{location}: the input {name} is the same picture as its target; correct one of them")


def name_has(name: str, content: bytes) -> bool:
    """Return whether a file has this content."""
    return Path(name).stat().st_size == len(content) and Path(name).read_bytes() == content


def list_sidecars(folder: Path, caption: str) -> Listing:
    """List the pictures of a folder that have a file with their caption beside them; its lines are joined.

    A caption that is named is a key of the .json beside a picture.
    """
    files = list(visible_files(folder))
    kinds = SIDECARS if caption == DEFAULT_CAPTION else (".json",)
    texts = {file.with_suffix(file.suffix.lower()): file for file in files if file.suffix.lower() in kinds}
    entries, left_out, endings = [], Counter(), Counter()
    for picture in filter(is_picture_file, files):
        sidecar = next((texts[key] for ending in kinds if (key := picture.with_suffix(ending)) in texts), None)
        record = None if sidecar is None else sidecar_record(sidecar, caption)
        if sidecar is None or record is None:
            left_out[NO_CAPTION] += 1
            continue
        check_differs(picture, input_names(record), str(sidecar))
        endings[sidecar.suffix.lower()] += 1
        entries.append(Entry(str(picture), record, picture.read_bytes))
    if not entries and caption != DEFAULT_CAPTION:
        raise InputError(
            f"images {folder}: no picture has a .json beside it with {caption!r}, which data.caption names; leave it "
            "out to read .txt and .caption files"
        )
    if not entries:
        raise InputError(
            f"images {folder}: no metadata.jsonl in it, nor metadata.csv, .parquet or .tar files, nor a picture with a "
            f".txt or .caption beside it; write a line with file_name and {caption} per image"
        )
    return Listing(f"{folder}, captions from {' and '.join(endings)} files beside them", entries, left_out)


def sidecar_record(sidecar: Path, caption: str) -> dict | None:
    """Return the record of the file beside a picture; None where it has no caption."""
    if sidecar.suffix.lower() == ".json":
        return record_of_row(read_json(sidecar), caption, sidecar.parent, str(sidecar))
    text = joined_lines(read_text(sidecar))
    return {"prompt": text} if text else None


def joined_lines(text: str) -> str:
    """Join the lines of a caption by spaces."""
    return " ".join(filter(None, (line.strip() for line in text.split("\n"))))


def list_tars(files: Sequence[Path], caption: str) -> Listing:
    """List the pictures of webdataset tars: members of one name, of which .txt, .caption or .json has the caption.

    A caption that is named is a key of the .json.
    """
    entries, left_out = [], Counter()
    for file in files:
        for members in tar_samples(file).values():
            pictures = [ending for ending in members if ending in picture_endings()]
            record = tar_record(file, members, caption)
            for ending in pictures:
                member = members[ending]
                if record is None:
                    left_out[NO_CAPTION] += 1
                else:
                    read = partial(read_member, file, member.offset_data, member.size)
                    entries.append(Entry(f"{file}:{member.name}", record, read))
    if not entries:
        named = caption != DEFAULT_CAPTION
        what = (
            f".json with {caption!r}, which data.caption names" if named else ".txt, .caption or .json with its caption"
        )
        raise InputError(f"images {files[0]}: no picture in it has a {what}")
    return Listing(f"{files[0].parent if len(files) > 1 else files[0]}, {len(files)} webdataset tar", entries, left_out)


def tar_samples(file: Path) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Return the members of a tar by their name without its ending, and by the ending in lower case."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            members = [member for member in tar if member.isreg()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{file}: no tar that can be read, or a compressed one ({error})") from None
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512 if members else 0
    if len(read_member(file, end, 512)) < 512:  # blocks of zeros end a tar
        raise InputError(f"{file}: it is cut after {members[-1].name}; copy it again")
    for member in members:
        name = PurePosixPath(member.name)
        if not name.name:
            raise InputError(f"{file}: a file in it is called {member.name!r}, which is no name; write the tar again")
        if not name.name.startswith("."):
            samples.setdefault(str(name.with_suffix("")), {})[name.suffix.lower()] = member
    return samples


def tar_record(file: Path, members: Mapping[str, tarfile.TarInfo], caption: str) -> dict | None:
    """Return the record of a sample of a tar; None where it has no caption."""
    texts = {
        ending: decode_text(read_member(file, members[ending].offset_data, members[ending].size), location)
        for ending in (*SIDECARS, ".json")
        if ending in members and (location := f"{file}:{members[ending].name}")
    }
    row = parse_json(texts[".json"], f"{file}:{members['.json'].name}") if ".json" in texts else {}
    plain = next((joined_lines(texts[ending]) for ending in SIDECARS if ending in texts), None)
    if plain is None or caption != DEFAULT_CAPTION:
        return record_of_row(row, caption, file.parent, f"{file}:{members['.json'].name}") if row else None
    return {"prompt": plain} if plain else None


def read_member(file: Path, offset: int, size: int) -> bytes:
    """Read so many bytes of a file, from an offset on."""
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def list_parquet(files: Sequence[Path], caption: str, image: str | None) -> Listing:
    """List the rows of parquet files, whose pictures are in a column of bytes, alone or with a path as on the hub."""
    check_extra("a parquet file of images", ["pyarrow"], "data")
    entries, left_out, columns = [], Counter(), {}
    for file in files:
        table = open_parquet(file)
        names, binary = table.schema_arrow.names, picture_columns(table.schema_arrow)
        column = picture_column(binary, names, file, image)
        columns[column] = None
        others = [name for name in names if name not in binary]
        besides = [name for name in binary if name != column]
        check_no_pictures(besides, [*others, *besides], str(file))
        for group in range(table.num_row_groups):
            for i, row in enumerate(table.read_row_group(group, columns=others).to_pylist()):
                location = f"{file}: row {len(entries) + sum(left_out.values()) + 1}"
                record = record_of_row(row, caption, file.parent, location)
                if record is None:
                    left_out[NO_CAPTION] += 1
                    continue
                check_text(record["prompt"], location)
                entries.append(Entry(location, record, partial(read_cell, file, column, group, i)))
    if not entries:
        raise no_captions(f"images {files[0]}", caption)
    origin = f"{files[0].parent if len(files) > 1 else files[0]}, {len(files)} parquet, column {' or '.join(columns)}"
    return Listing(origin, entries, left_out)


def no_captions(source: str, caption: str) -> InputError:
    """Return the error for a table of pictures of which no row has a caption."""
    return InputError(f"{source}: no row has a caption under {caption!r}; name its column with --data.caption")


def check_no_pictures(binary: Sequence[str], columns: Sequence[str], source: str) -> None:
    """Raise InputError where columns of pictures, or of bytes, are those under which a record names its pictures.

    A mask is one beside an input alone.
    """
    for key in ("input", "mask"):
        if key in binary and "input" in columns:
            raise InputError(
                f"{source}: its column {key} holds pictures, which are read from files alone; save them beside a "
                ".jsonl that names them"
            )


def open_parquet(file: Path) -> "ParquetFile":
    """Open a parquet file; InputError where it is none."""
    from pyarrow import ArrowException, parquet

    try:
        return parquet.ParquetFile(file)
    except (OSError, ValueError, ArrowException) as error:
        why = str(error).partition("\n")[0]
        raise InputError(f"{file}: no parquet file that can be read ({why})") from None


def picture_column(holds: Sequence[str], names: Sequence[str], file: Path, image: str | None) -> str:
    """Return the name of the column of encoded pictures: the one that is named, the only one, or `image`.

    InputError where it is not there, and where several can hold pictures and none is named.

    Args:
        holds: Names of the columns that can hold pictures.
        names: Names of all columns.
        file: The file, for messages.
        image: The name that the user gave, if any.
    """
    if image is not None and image not in holds:
        raise InputError(f"{file}: no column {image!r} holds pictures, only {', '.join(holds) or 'none does'}")
    if not holds:
        raise InputError(f"{file}: no column holds pictures, only {', '.join(names)}")
    if image is None and len(holds) > 1 and DEFAULT_IMAGE not in holds:
        raise InputError(
            f"{file}: the columns {', '.join(holds)} can all hold pictures; name the one to learn from with "
            f"--data.image {holds[0]}"
        )
    return image or (DEFAULT_IMAGE if DEFAULT_IMAGE in holds else holds[0])


def picture_columns(schema: "pyarrow.Schema") -> list[str]:
    """Return the names of the columns that can hold encoded pictures."""
    import pyarrow.types as types

    return [
        field.name
        for field in schema
        if types.is_binary(field.type)
        or types.is_large_binary(field.type)
        or (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]


@lru_cache(maxsize=1)
def read_column(file: Path, column: str, group: int) -> list[Any]:
    """Return a column of a row group of a parquet file."""
    return open_parquet(file).read_row_group(group, columns=[column])[column].to_pylist()


def read_cell(file: Path, column: str, group: int, row: int) -> bytes:
    """Return the encoded picture of a row; empty where it has none."""
    cell = read_column(file, column, group)[row]
    return (cell.get("bytes") if isinstance(cell, dict) else cell) or b""


def caption_key(row: Mapping[str, Any], caption: str) -> str | None:
    """Return the key of a row's caption: `caption`, or another usual one where that is the default and missing."""
    key = prompt_column(row) if caption == DEFAULT_CAPTION and caption not in row else caption
    text = None if key is None else row.get(key)
    return key if isinstance(text, str) and text.strip() else None


def record_of_row(row: Any, caption: str, folder: Path | None, location: str) -> dict | None:
    """Make the record of a row, whose caption is its prompt, even where another key is called prompt.

    None where it has no caption.  Columns that JSON cannot hold, such as other pictures, are left out, so that no row
    keeps them in memory.  Pictures that the caption is about are found in `folder`, as `locate_inputs` says.
    """
    key = caption_key(row, caption) if isinstance(row, dict) else None
    if key is None:
        return None
    check_tag(row, location)
    plain = json_columns(row)
    record = {k: v for k, v in plain.items() if k not in ("file_name", "target", key)} | {"prompt": row[key]}
    return locate_inputs(record, folder, location)


def caption_record(row: Mapping[str, Any], caption: str, folder: Path | None, location: str) -> dict:
    """Make the record of a row; InputError where it has no caption."""
    record = record_of_row(row, caption, folder, location)
    if record is None:
        raise InputError(f"{location}: no caption under {caption!r}; write one, or set --data.caption to another key")
    return record
