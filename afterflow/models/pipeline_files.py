"""The files of a pipeline: where they are, which classes they may name, and what stops them from being read.

Nothing that a file names is imported before its name is found in PARTS.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..system.atomic_files import make_folder
from ..system.errors import AfterflowError, InputError
from ..system.once import say_once
from ..system.own_folders import check_inside
from ..system.text_files import read_json

_log = logging.getLogger(__name__)

ASSETS = Path(__file__).parent / "assets"
TINY, TINY_WAN, TINY_KLEIN = ASSETS / "tiny_sd3", ASSETS / "tiny_wan", ASSETS / "tiny_klein"
SHIPPED = {"tiny": TINY, "tiny_wan": TINY_WAN, "tiny_klein": TINY_KLEIN}
"""Names that a model's path may have instead of a folder."""
SHIPPED_OPTIONS: dict[str, dict[str, Any]] = {
    "tiny": {"size": None, "width": None, "max_sequence_length": None},
    "tiny_wan": {"height": 32, "width": 32, "frames": 9, "max_sequence_length": 16},
    "tiny_klein": {"size": 64, "width": None, "max_sequence_length": 16},
}
"""What these pipelines were trained to draw.  None: what their own files say."""
PARTS = {
    "diffusers": {
        *("SD3Transformer2DModel", "FluxTransformer2DModel", "QwenImageTransformer2DModel", "WanTransformer3DModel"),
        *("Flux2Transformer2DModel", "ZImageTransformer2DModel"),
        *("AutoencoderKL", "AutoencoderKLQwenImage", "AutoencoderKLWan", "AutoencoderKLFlux2"),
        *("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"),
    },
    "transformers": {
        *("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "UMT5EncoderModel"),
        *("Qwen3Model", "Qwen3ForCausalLM", "Qwen2VLProcessor", "Qwen2_5_VLProcessor"),
        *("Qwen2_5_VLForConditionalGeneration", "CLIPVisionModel", "CLIPVisionModelWithProjection"),
        *("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast", "Qwen2Tokenizer"),
        *("Qwen2TokenizerFast", "CLIPImageProcessor", "CLIPImageProcessorFast", "SiglipVisionModel"),
        *("SiglipImageProcessor", "PreTrainedTokenizerFast", "TokenizersBackend"),
    },
}
"""Library → the classes that a part of a pipeline may have; a class of any other name is never imported."""
OTHER_WEIGHTS = (".bin", ".pt", ".ckpt", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb")
"""Endings of weights in formats that diffusers reads only where there is no .safetensors file, or not at all."""
MOST_LAYERS, LARGEST_SIZE = 1000, 10**8
"""Largest number of layers, and of anything else, in the configuration of a part."""


def locate(path: str, revision: str | None, weights: bool = True) -> Path:
    """Return the local folder of a pipeline, downloaded when `path` is a hub id.

    Without weights, its configurations alone are downloaded.  Raises InputError where there is no such pipeline.
    """
    folder = SHIPPED.get(path, Path(path))
    if not folder.is_dir():
        check_hub_id(path)
        folder = fetch(path, revision, weights)
    check_inside(folder)
    if not (folder / "model_index.json").is_file():
        raise InputError(f"model {path!r}: {folder} holds no model_index.json, so it is not a diffusers pipeline")
    check_parts(path, folder)
    return folder


def check_hub_id(path: str) -> None:
    """Raise InputError for a path that is no folder and cannot be the id of a pipeline on the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if Path(path).is_file():
        raise InputError(
            f"model {path!r} is a single file; a model is a folder as diffusers saves it, with model_index.json in it, "
            "or an id of the hub: name one of them, or write the folder by from_single_file and save_pretrained of the "
            "pipeline's class in diffusers"
        )
    no_id = InputError(f"model {path!r}: no such folder, and a hub id reads owner/name")
    if len(Path(path).parts) != 2 or path.startswith(".") or Path(path).anchor:
        raise no_id
    try:
        validate_repo_id(path)
    except HFValidationError:
        raise no_id from None


def fetch(path: str, revision: str | None, weights: bool) -> Path:
    """Return the folder of a pipeline of the hub, from this machine's cache where the hub cannot be reached.

    InputError where it is in neither, or where the hub has no such pipeline for this user.
    """
    from huggingface_hub.errors import HfHubHTTPError

    # Which library asks the hub depends on versions; the errors of that library are the bases of this one.
    unreachable = HfHubHTTPError.__bases__
    try:
        return Path(download(path, revision, weights))
    except unreachable as error:  # type: ignore[misc]
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        folder = None if isinstance(error, HfHubHTTPError) else cached(path, revision, weights, unreachable)
        if folder is None:
            raise InputError(
                f"model {path!r} is not on this machine and could not be fetched from the hub ({why}); check the id, "
                "the network and, for a gated model, your token"
            ) from error
    say_once(_log, f"hub {path}", f"model {path!r} is taken from this machine's cache; the hub is out of reach ({why})")
    return folder


def cached(path: str, revision: str | None, weights: bool, absent: tuple[type[Exception], ...]) -> Path | None:
    """Return the folder of a pipeline in this machine's cache; None where one of the errors `absent` says it is not."""
    try:
        return Path(download(path, revision, weights, from_cache=True))
    except absent:
        return None


def download(path: str, revision: str | None, weights: bool, from_cache: bool = False) -> str:
    """Download a pipeline from the hub, or its configurations alone, and return its folder.

    from_cache: Whether only the files that were downloaded before are looked for.
    """
    if weights:
        from diffusers import DiffusionPipeline

        return str(DiffusionPipeline.download(path, revision=revision, local_files_only=from_cache))
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt"]
    return snapshot_download(path, allow_patterns=patterns, revision=revision, local_files_only=from_cache)


def weights_digest(path: str, revision: str | None = None) -> str:
    """Digest of the transformers' and the autoencoder's weights, 32 hexadecimal digits.

    Of a part without .safetensors files those in .bin count, which diffusers then reads.
    """
    folder, digest = locate(path, revision), hashlib.sha256()
    parts = [folder / name for name in ("transformer", "transformer_2", "vae")]
    for file in sorted(file for part in parts for file in [*part.glob("*.safetensors")] or part.glob("*.bin")):
        digest.update(fingerprint(file))
    return digest.hexdigest()[:32]


def copy_part(folder: Path, target: Path) -> None:
    """Copy the files of a part of a pipeline, without weights in other formats where there is a .safetensors file."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    if any(file.suffix == ".safetensors" for file in files):
        files = [file for file in files if file.suffix not in OTHER_WEIGHTS]
    make_folder(target)
    for file in files:
        shutil.copyfile(file, target / file.name)  # the contents of what is a link in the hub's cache


def read_index(folder: Path) -> dict[str, Any]:
    """Return what a pipeline's model_index.json holds.  InputError where it names no class of a pipeline."""
    file = folder / "model_index.json"
    index = read_json(file)
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise InputError(f"{file}: it names no class of a pipeline, so diffusers did not write it")
    return index


def check_parts(path: str, folder: Path) -> None:
    """Raise InputError for a pipeline with a part of a class that is not known, which is then never imported.

    Also for a part whose configuration is none, or has numbers beyond all networks.
    """
    for name, value in read_index(folder).items():
        if name.startswith("_") or not isinstance(value, list):
            continue
        if value == [None, None]:
            continue
        if len(value) != 2 or str(value[1]) not in PARTS.get(str(value[0]), ()):
            raise InputError(f"model {path!r}: its part {name} is a {value!r}, which afterflow does not know or import")
        if Path(name).name != name or name == "..":
            raise InputError(f"model {path!r}: its part {name!r} is no folder in it")
        if not (folder / name).is_dir():
            raise InputError(f"model {path!r}: {folder / name} is absent; download the pipeline again")
        for file in (folder / name / "config.json", folder / name / "scheduler_config.json"):
            if file.is_file():
                check_part(file)


def check_part(file: Path) -> None:
    """Raise InputError for the configuration of a part that is none, or has numbers beyond all networks."""
    config = read_json(file)
    values = [("", config)]
    while values:
        name, value = values.pop()
        if isinstance(value, dict | list):
            inside = value.items() if isinstance(value, dict) else ((name, item) for item in value)
            values += inside
        most = MOST_LAYERS if "layers" in name else LARGEST_SIZE
        if isinstance(value, int | float) and abs(value) > most:
            raise InputError(f"{file}: {name} = {value}, and no network has more than {most}; the file is damaged")
    if not isinstance(config, dict):
        raise InputError(f"{file}: it is no configuration of a network; the file is damaged")


@contextmanager
def reading_parts(path: str) -> Iterator[None]:
    """Raise InputError, which names the pipeline, where diffusers or transformers cannot make a part of its files."""
    try:
        yield
    except (AfterflowError, torch.OutOfMemoryError):
        raise
    except (
        *(ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, RuntimeError, ArithmeticError),
        *(AssertionError, ImportError, SafetensorError),
    ) as error:
        why = " ".join(str(error).split())[:300]
        remedy = "install what it asks for" if isinstance(error, ImportError) else "download it again"
        raise InputError(f"model {path!r} cannot be read ({type(error).__name__}: {why}); {remedy}") from error


def pipeline_class(folder: Path) -> str:
    """Return the name of the pipeline's class in diffusers."""
    return read_index(folder)["_class_name"]


def is_distilled(folder: Path) -> bool:
    """Return whether a pipeline says that its model draws without guidance."""
    return bool(read_index(folder).get("is_distilled"))


def check_family(path: str, folder: Path, *families: str) -> None:
    """Raise InputError where the pipeline is of none of these classes in diffusers."""
    actual = pipeline_class(folder)
    if actual not in families:
        raise InputError(f"model {path!r} is a {actual}; this model needs a {' or '.join(families)}")


def fingerprint(file: Path, head: int = 1 << 20) -> bytes:
    """Digest of a file's name, size, first and last megabyte, which differs without reading gigabytes."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(head)
        stream.seek(max(0, size - head))
        return hashlib.sha256(f"{file.parent.name}/{file.name} {size}".encode() + start + stream.read()).digest()
