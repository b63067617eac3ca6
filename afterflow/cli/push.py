"""afterflow push: the result of a run with its card, or a LoRA, on the Hugging Face hub."""

import glob
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ..experiment.run_folder import RunFolder
from ..system.errors import ConfigError, InputError
from ..system.escapes import last_part, local_paths, markdown_text, without_local_paths
from ..system.own_folders import check_inside, check_links
from ..system.text_files import read_json, read_text
from .parsing import parse_options


def push(args: Sequence[str]) -> None:
    """Put the result of a run, or a LoRA, on the Hugging Face hub."""
    parse_options(Push, args, "afterflow push")()


@dataclass(frozen=True)
class Push:
    """Upload a run's LoRA or pipeline with its model card; the token is HF_TOKEN or that of `hf auth login`.

    Of a LoRA's folder everything in it is uploaded, of a file that file alone.
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
        folder, pattern = self.files()
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HfHubHTTPError

        if get_token() is None:
            raise ConfigError("no token for the hub; set HF_TOKEN, or log in with: hf auth login")
        api = HfApi()
        try:
            url = api.create_repo(self.repo_id, private=not self.public, exist_ok=True)
            about = {"allow_patterns": pattern, "commit_message": "Upload from afterflow"}
            with without_paths(folder) as copy:
                api.upload_folder(repo_id=self.repo_id, folder_path=copy, **about)
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
        from ..models.lora.files import NAMES, lora_file

        file = lora_file(self.run)
        whole = Path(self.run).is_dir() and file.name in NAMES
        return file.parent, None if whole else glob.escape(file.name)


WITH_PATHS = ("run.json", "adapter_config.json", "model_index.json", "config.json")
"""Files of JSON that may name where something lies on this machine."""


@contextmanager
def without_paths(folder: Path) -> Iterator[Path]:
    """Make a folder with the files of another one, in whose texts no path of this machine is left."""
    with tempfile.TemporaryDirectory() as temporary:
        copy, paths = Path(temporary), []
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for file in files:
            target = copy / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.name in WITH_PATHS:
                content = read_json(file)
                paths += local_paths(content)
                text = json.dumps(without_local_paths(content), indent=2) + "\n"
                target.write_text(text, encoding="utf-8", newline="\n")
            elif file.suffix != ".md":
                target.symlink_to(file.resolve())
        for file in (file for file in files if file.suffix == ".md"):
            text = read_text(file)
            for path in sorted(paths, key=len, reverse=True):
                for written in (path, json.dumps(path)[1:-1], markdown_text(path)):
                    text = text.replace(written, last_part(path))
            target = copy / file.relative_to(folder)
            target.write_text(without_local_paths(text), encoding="utf-8", newline="\n")
        yield copy
