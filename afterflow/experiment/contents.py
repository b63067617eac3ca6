"""What a run is made from, by content: digests of prompts, pictures, LoRAs, weights, rewards and the judge.

run.json names paths, whose contents may change; these digests say whether they did.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.hub_datasets import load_hub_dataset
from ..data.images import HubImages, ImageFolder
from ..data.pairs import HubPairs, PairFolder
from ..models.adapters import LoRA
from ..models.lora.files import lora_files
from ..models.pipeline_files import fingerprint
from ..rewards.base import RewardModels
from ..rewards.functions import GIVEN, is_given
from ..rewards.named_code import module_file
from ..rewards.registry import find_reward, weights_read_here
from ..rewards.vlm.judge import VLMJudge, connect
from ..system.errors import CheckpointError, ConfigError
from ..system.input_pictures import input_names, with_digests
from .config import Run
from .prompt_checks import caption_records


def run_contents(run: Run, records: Sequence[dict], held_out: Sequence[dict], model: Path) -> dict[str, str]:
    """Return name → digest of everything that the run is made from and that is no option of it.

    Args:
        run: The run.
        records: Its prompts.
        held_out: Its held-out prompts.
        model: The folder of its pipeline.
    """
    contents = {"model": pipeline_contents(model)}
    for name, prompts in (("prompts", records), ("held-out prompts", held_out)):
        if prompts:
            contents[name] = digest(json.dumps([with_digests(prompt) for prompt in prompts], sort_keys=True))
    if isinstance(run.data, ImageFolder | PairFolder):
        contents["pictures"] = folder_contents(Path(run.data.path), whole=True)
        if Path(run.data.path).is_file():
            contents |= pictures_beside(run.data)
    if isinstance(run.data, HubImages | HubPairs):
        contents["pictures"] = hub_contents(run.data)
    if isinstance(run.tune, LoRA) and run.tune.start is not None:
        contents["start LoRA"] = lora_contents(run.tune.start)
    for teacher in run.teachers:
        if teacher.lora is not None:
            contents[f"teacher {teacher.name}"] = lora_contents(teacher.lora)
    # Functions that were given in Python are compared by the record of the run (`check_same_functions`).
    named = [name for name in run.rewards if not is_given(name)]
    contents |= {f"reward {name}": reward_contents(name, run.reward_models) for name in named}
    if isinstance(run.judge, VLMJudge):
        contents["judge"] = served_model(run.judge)
    return contents


def pictures_beside(data: ImageFolder | PairFolder) -> dict[str, str]:
    """Return digests of the pictures that a list names and that lie beside it, by what they are there for."""
    contents = {}
    pairs = data.pair_listing().pairs if isinstance(data, PairFolder) else ()
    captions = [winner.record for winner, _ in pairs] or caption_records(data)
    if edits := [record for record in captions if input_names(record)]:
        contents["records of edits"] = digest(json.dumps([with_digests(record) for record in edits], sort_keys=True))
    if pairs:
        contents["pictures of pairs"] = digest(json.dumps([[digest(one.read()) for one in pair] for pair in pairs]))
    return contents


def check_contents(folder: Path, begun: Mapping[str, Any], now: Mapping[str, str], accept: bool) -> list[str]:
    """Return a sentence for everything that has changed since the run began, where that is accepted.

    CheckpointError where something has and it is not.

    Args:
        folder: The folder of the run.
        begun: The record of the run; what it does not know, of an earlier version, is not compared.
        now: The digests today.
        accept: Whether the run goes on with what has changed.
    """
    then = [begun.get("contents", {}), *(entry.get("contents", {}) for entry in begun.get("resumed", ()))]
    known = {name: value for contents in then for name, value in contents.items()}
    changed = [name for name, value in known.items() if name in now and now[name] != value]
    if changed and not accept:
        raise CheckpointError(
            f"{folder}: {', '.join(changed)} changed since the run began; put back what it was made from, or go on "
            "with what is there now by --accept-changed-data"
        )
    return [f"{name} changed" for name in changed]


def digest(text: str | bytes) -> str:
    """Return the SHA-256 digest of a text, in hexadecimal."""
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()


def folder_contents(folder: Path, whole: bool = False) -> str:
    """Return a digest of the names, sizes and contents of the files in a folder, or of one file.

    Of weights, which are large, first and last megabyte stand for the contents where not `whole`.
    """
    content = hashlib.sha256()
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    for file in files:
        name = file.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in Path(name).parts):
            continue  # files of a file browser or a notebook are no data
        content.update(json.dumps([name, file.stat().st_size]).encode())
        if whole:
            with file.open("rb") as stream:
                content.update(hashlib.file_digest(stream, "sha256").digest())
        else:
            content.update(fingerprint(file))
    return content.hexdigest()


def pipeline_contents(folder: Path) -> str:
    """Return a digest of the parts of a pipeline; what lies beside them, as a model card, is none of it."""
    parts = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return digest(json.dumps([[part.name, folder_contents(part)] for part in parts]))


def hub_contents(images: HubImages | HubPairs) -> str:
    """Return a digest of a data set of the hub, or of the folder that it is."""
    if Path(images.dataset).is_dir():
        return folder_contents(Path(images.dataset), whole=True)
    return digest(load_hub_dataset(images.dataset, images.split, images.revision)._fingerprint)


def lora_contents(lora: str) -> str:
    """Return a digest of a LoRA's weights, and of peft's configuration beside them where there is one."""
    files = lora_files(lora)
    beside = [path for path in (*files, files[0].parent / "adapter_config.json") if path.is_file()]
    return digest("".join(folder_contents(path, whole=True) for path in beside))


def reward_contents(name: str, models: RewardModels) -> str:
    """Return the version of a reward, with a digest of the local weights that it reads and of a user's own function.

    Scores that are kept are those of another reward where this differs.
    """
    reward = find_reward(name)
    parts = [reward.version]
    for read in dict.fromkeys((name, *weights_read_here(name, models))):
        weights = models.weights.get(read)
        if weights is not None and Path(weights).exists():
            parts.append(folder_contents(Path(weights)))
    file = Path(module_file(name.split(":")[0]))
    if ":" in name and file.is_file():
        parts.append(folder_contents(file, whole=True))
    if is_given(name):
        parts.append(GIVEN[name][1])
    return " ".join(parts)


def served_model(judge: VLMJudge) -> str:
    """Return a digest of what the judge's server says about its model.  ConfigError where it says nothing."""
    import httpx

    chat = connect(judge)
    try:
        models = chat.client.get(f"{chat.url}/models", chat.timeout).json()["data"]
        model = next(item for item in models if item["id"] == judge.model)
    except (httpx.TransportError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ConfigError(f"the server {judge.url} does not say which model it has ({error}); start it anew") from error
    # When it was loaded and who may use it says nothing about its answers.
    description = {key: value for key, value in model.items() if key not in ("created", "permission")}
    return digest(json.dumps(description, sort_keys=True, default=str))
