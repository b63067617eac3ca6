"""afterflow push: the result of a run with its card, or a LoRA, on the Hugging Face hub."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tyro.conf import Positional

from ..experiment.run_folder import RunFolder
from ..system.addresses import check_no_secrets
from ..system.errors import ConfigError, InputError
from ..system.escapes import last_part, local_paths, markdown_text, without_local_paths
from ..system.own_folders import check_inside, check_links, is_own_picture
from ..system.pictures import read_picture
from ..system.text_files import parse_json, read_json, read_text
from .output import print_progress
from .parsing import parse_options


def push(args: Sequence[str]) -> None:
    """Put the result of a run, or a LoRA, on the Hugging Face hub."""
    parse_options(Push, args, "afterflow push")()


@dataclass(frozen=True)
class Push:
    """Upload a run's LoRA or pipeline with its model card; the token is HF_TOKEN or that of `hf auth login`.

    Uploaded are weights, configurations, vocabularies, the card and its pictures; of a file that file alone.
    """

    repo_id: Positional[str]
    """owner/name; the repository is created where there is none."""
    run: Positional[str]
    """Folder of a run that has ended, folder of a LoRA, or its file."""
    public: bool = False
    """Whether a new repository can be seen by everybody."""

    def __call__(self) -> None:
        if self.repo_id.count("/") != 1 or not all(self.repo_id.split("/")):
            raise ConfigError(f"{self.repo_id!r}: a repository reads owner/name")
        folder, name = self.files()
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HfHubHTTPError

        if get_token() is None:
            raise ConfigError("no token for the hub; set HF_TOKEN, or log in with: hf auth login")
        api = HfApi()
        with without_paths(folder, name) as copy:
            try:
                url = api.create_repo(self.repo_id, private=not self.public, exist_ok=True)
                api.upload_folder(repo_id=self.repo_id, folder_path=copy, commit_message="Upload from afterflow")
            # Which library it asks with depends on its version; the errors of that library are the bases of this one.
            except HfHubHTTPError.__bases__ as error:  # type: ignore[misc]
                why = str(error).strip().partition("\n")[0]
                raise InputError(
                    f"{self.repo_id} could not be pushed: {why}; check the network, the token's rights and the name"
                ) from error
        print(url)

    def files(self) -> tuple[Path, str | None]:
        """Return a folder and the name of its one file to upload, or None for all.  InputError without a result."""
        check_inside(Path(self.run))
        check_links(Path(self.run))
        result = RunFolder(Path(self.run)).result()
        if result is not None:
            return result, None
        if (Path(self.run) / "model_index.json").is_file():
            return Path(self.run), None
        from ..models.lora.files import NAMES, lora_files

        file, *second = lora_files(self.run)
        whole = Path(self.run).is_dir() and (file.name in NAMES or bool(second))
        return file.parent, None if whole else file.name


CONFIGURATIONS = (
    *("run.json", "adapter_config.json", "model_index.json", "config.json", "scheduler_config.json"),
    *("generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "chat_template.json"),
    *("diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json"),
)
"""Files of JSON that may name where something lies on this machine; their paths lose all parts but the last."""
AS_THEY_ARE = (
    *("tokenizer.json", "vocab.json", "added_tokens.json", "vocab.txt", "merges.txt", "spiece.model"),
    *("tokenizer.model", "chat_template.jinja"),
)
"""Vocabularies and templates of text encoders, in which what looks like a path is a token."""
PICTURES = ("first.png", "last.png", "first.gif", "last.gif")
"""Pictures of a card.  PNG loses its texts, and GIF is afterflow's own."""
METADATA = ("format", "afterflow", "lora_adapter_metadata")
"""What the header of a file of weights may say beside its tensors."""
ACCESS_KEY = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|xox[abp]-|AKIA)[A-Za-z0-9_-]{16,}")
"""What looks like a key of the hub, of a judge or of a cloud."""


@contextmanager
def without_paths(folder: Path, only: str | None = None) -> Iterator[Path]:
    """Make a folder with those files of another one that are uploaded, in which no path of this machine is left.

    What is not on the lists above stays at home, and that is said.  ConfigError for what looks like a key, InputError
    where the one file that is asked for would stay.

    Args:
        folder: The folder.
        only: Name of the one file to upload; None uploads all.
    """
    with tempfile.TemporaryDirectory() as temporary:
        copy, paths = Path(temporary), []
        files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        files = files if only is None else [Path(only)]
        # The texts of cards last, because they repeat what configurations name.
        for name in sorted(files, key=is_prose):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            if not copied(folder / name, copy / name, paths):
                if only is not None:
                    raise InputError(f"{folder / name} is not uploaded, because it is no .safetensors file")
                print_progress(f"{folder / name} is not uploaded, because it is no part of a model")
        yield copy


def copied(file: Path, target: Path, paths: list[str]) -> bool:
    """Put a file into the folder that is uploaded; return False for one that stays.

    Local paths that are met are added to `paths`, and those are taken out of cards.
    """
    if file.name.startswith("."):
        return False
    if file.name in CONFIGURATIONS:
        content = read_json(file)
        check_addresses(content, file)
        paths += local_paths(content)
        inside = file.name in ("run.json", "adapter_config.json")
        write_checked(target, json.dumps(without_local_paths(content, inside), indent=2) + "\n", file)
    elif is_prose(file):
        text = read_text(file)
        for path in sorted(paths, key=len, reverse=True):
            for written in (path, json.dumps(path)[1:-1], markdown_text(path)):
                text = text.replace(written, last_part(path))
        write_checked(target, without_local_paths(text), file)
    elif file.suffix == ".safetensors":
        copy_weights(file, target)
    elif file.name in AS_THEY_ARE or (file.name in PICTURES and file.suffix == ".gif" and is_own_picture(file)):
        target.symlink_to(file.resolve())
    elif file.name in PICTURES and file.suffix == ".png":
        Image.fromarray(read_picture(file, str(file))).save(target)
    else:
        return False
    return True


def is_prose(file: Path) -> bool:
    """Return whether a file is a card or a licence."""
    return file.suffix == ".md" or file.name in ("LICENSE", "LICENSE.txt")


def check_addresses(content: Any, file: Path) -> None:
    """Raise ConfigError for an address with a secret in a configuration, or in the record of a run."""
    parts = content.items() if isinstance(content, dict) else [("", content)]
    try:
        for name, part in parts:
            check_no_secrets(part, "" if name == "config" else name)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def write_checked(target: Path, text: str, file: Path) -> None:
    """Write a text that is uploaded in place of a file.  ConfigError where it holds what looks like a key."""
    if ACCESS_KEY.search(text):
        raise ConfigError(f"{file} holds what looks like a key; take it out, and nobody else will read it")
    target.write_text(text, encoding="utf-8", newline="\n")


def copy_weights(file: Path, target: Path) -> None:
    """Put weights into the folder that is uploaded, as they are or with a header without paths.

    kohya's trainers, for instance, write there the folders that they learnt from.  InputError for what has no header.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = parse_json(stream.read(length).decode("utf-8", "replace"), str(file)) if length < HEADER else None
        if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
            raise InputError(f"{file} is no whole .safetensors file; other formats are not uploaded")
        before = header.get("__metadata__", {})
        after = {name: metadata_without_paths(str(before[name])) for name in METADATA if name in before}
        if after == before:
            target.symlink_to(file.resolve())
            return
        text = json.dumps(header | {"__metadata__": after}, separators=(",", ":")).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        with target.open("wb") as copy:
            copy.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(stream, copy)


HEADER = 100_000_000
"""Bytes of the largest header that safetensors reads."""


def metadata_without_paths(text: str) -> str:
    """Return a text of a header without local paths, also where it is JSON."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return without_local_paths(text)
    changed = without_local_paths(content)
    return text if changed == content else json.dumps(changed)
