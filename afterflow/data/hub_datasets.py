"""Data sets of the hub, with columns of pictures or without."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..system.errors import InputError
from .image_folders import DEFAULT_CAPTION, check_no_pictures

if TYPE_CHECKING:
    import datasets


def load_hub_dataset(dataset: str, split: str, revision: str | None) -> "datasets.Dataset":
    """Load a split of a data set of the hub, or of a folder; InputError where it cannot be loaded."""
    import datasets
    from datasets.exceptions import DatasetsError

    if not Path(dataset).is_dir() and len(Path(dataset).parts) != 2:
        raise InputError(f"{dataset}: no such folder, and an id of the hub reads owner/name")
    try:
        return datasets.load_dataset(dataset, split=split, revision=revision)
    except (OSError, ValueError, DatasetsError) as error:
        why = str(error).partition("\n")[0]
        raise InputError(f"{dataset}: split {split!r} could not be loaded; {why}") from None


def check_columns(rows: "datasets.Dataset", dataset: str, *columns: str | None) -> None:
    """Raise InputError where a data set lacks one of the columns that are named."""
    for column in filter(None, columns):
        if column not in rows.column_names:
            raise InputError(f"{dataset}: it has no column {column!r}, only {', '.join(rows.column_names)}")


def named_caption(caption: str) -> str | None:
    """Return the column of captions where a user names it; None where a usual one is looked for."""
    return None if caption == DEFAULT_CAPTION else caption


def without_pictures(rows: "datasets.Dataset", dataset: str) -> "datasets.Dataset":
    """Return a data set without the columns that hold pictures, sounds, clips or bytes, which no record keeps.

    InputError where they are those of input pictures.
    """
    binary = [name for name, feature in rows.features.items() if is_binary(feature)]
    check_no_pictures(binary, rows.column_names, dataset)
    return rows.remove_columns(binary)


def is_binary(feature: Any) -> bool:
    """Return whether a feature of a data set, or a part of it, holds bytes or what `datasets` decodes from bytes."""
    if isinstance(feature, Mapping):
        return any(map(is_binary, feature.values()))
    if isinstance(feature, list | tuple):
        return any(map(is_binary, feature))
    inside = getattr(feature, "feature", None)  # of a list
    return (
        hasattr(feature, "decode")
        or getattr(feature, "dtype", None) in ("binary", "large_binary")
        or (inside is not None and is_binary(inside))
    )


def encoded_bytes(image: Mapping | None, dataset: str) -> bytes:
    """Return the encoded bytes of an image that `datasets` has not decoded; empty where there is none.

    InputError for a path that leads out of the data set's folder and of the cache of `datasets`.
    """
    if image is None or (image["bytes"] is None and not Path(str(image["path"])).is_file()):
        return b""
    if image["bytes"] is not None:
        return image["bytes"]
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE

    file = Path(image["path"]).resolve()
    folders = [HF_DATASETS_CACHE, HF_HUB_CACHE, *([dataset] if Path(dataset).is_dir() else [])]
    if not any(file.is_relative_to(Path(folder).resolve()) for folder in folders):
        raise InputError(f"{dataset}: the path {image['path']!r} of an image leads out of the data set")
    return file.read_bytes()
