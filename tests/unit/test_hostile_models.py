"""LoRAs, pipelines and picture folders of strangers: one sentence that names the file, and nothing else."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from afterflow.data.hub_datasets import encoded_bytes
from afterflow.data.image_folders import list_images
from afterflow.models.families import pretrained
from afterflow.models.lora.factors import LoRAFactors
from afterflow.models.lora.files import NAMES, read_lora, write_lora
from afterflow.models.pipeline_files import TINY
from afterflow.system.errors import InputError
from hostile_models import LAYER, LORAS, PIPELINES


@pytest.mark.parametrize("case", LORAS)
def test_a_hostile_lora_gets_one_sentence_that_names_it(case, tmp_path):
    file = tmp_path / "stranger.safetensors"
    LORAS[case](file)
    with pytest.raises(InputError) as told:
        read_lora(file, "SD3")
    assert str(file) in str(told.value) and "\n" not in str(told.value)


def test_a_lora_of_one_huge_rank_does_not_swell_the_others(tmp_path):
    layers = {f"transformer.transformer_blocks.{i}.attn.to_q": 1 for i in range(200)}
    content = {f"{layer}.lora_A.weight": torch.ones(rank, 64) for layer, rank in layers.items()}
    content |= {f"{layer}.lora_B.weight": torch.ones(64, rank) for layer, rank in layers.items()}
    first = next(iter(layers))
    content |= {f"{first}.lora_A.weight": torch.ones(9000, 1), f"{first}.lora_B.weight": torch.ones(1, 9000)}
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="one layer has rank 9000"):
        read_lora(tmp_path / "x.safetensors", "SD3")


@pytest.mark.parametrize("case", PIPELINES)
def test_a_hostile_pipeline_gets_one_sentence_that_names_it(case, tmp_path, monkeypatch):
    folder = tmp_path / "stranger_model"
    shutil.copytree(TINY, folder)
    (tmp_path / "stranger.py").write_text("from pathlib import Path\nPath('mark').touch()\nclass Evil: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    PIPELINES[case](folder)
    with pytest.raises(InputError) as told:
        pretrained(str(folder), "float32", {}).load()
    assert "stranger_model" in str(told.value) and "\n" not in str(told.value)
    assert not Path("mark").exists()


def picture_link(folder, secret):
    (folder / "a.png").symlink_to(secret)
    (folder / "a.txt").write_text("a caption")


def picture_by_name(name):
    return lambda folder, secret: (folder / "metadata.jsonl").write_text(
        json.dumps({"file_name": name.format(secret=secret), "text": "x"}) + "\n"
    )


OUTSIDE = {
    "a link": picture_link,
    "a folder that is a link": lambda folder, secret: (folder / "more").symlink_to(secret.parent),
    "a caption that is a link": lambda folder, secret: (folder / "a.txt").symlink_to(secret),
    "a list that is a link": lambda folder, secret: (folder / "metadata.jsonl").symlink_to(secret),
    "a name with ..": picture_by_name("../secret/secret.png"),
    "a whole path": picture_by_name("{secret}"),
    "a name with backslashes": picture_by_name("..\\secret\\secret.png"),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_no_picture_outside_the_folder_is_read(case, tmp_path):
    secret, folder = tmp_path / "secret" / "secret.png", tmp_path / "pictures"
    secret.parent.mkdir()
    folder.mkdir()
    secret.write_bytes(b"secret")
    OUTSIDE[case](folder, secret)
    with pytest.raises(InputError, match="leads out of"):
        list_images(folder, "text")


def test_a_path_in_a_data_set_of_the_hub_leads_nowhere_else(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    with pytest.raises(InputError, match="leads out of the data set"):
        encoded_bytes({"bytes": None, "path": str(tmp_path / "secret.png")}, "owner/name")


def test_equal_loras_are_equal_files_in_every_process(tmp_path):
    code = (
        "import sys, torch\nfrom afterflow.models.lora.factors import LoRAFactors\n"
        "from afterflow.models.lora.files import write_lora\n"
        f"write_lora(sys.argv[1], {{{LAYER!r}: LoRAFactors(torch.ones(2, 64), torch.ones(64, 2))}}, 'SD3', 4.0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other")], check=True)
    digests = []
    for i in range(8):
        layers = {LAYER: LoRAFactors(torch.ones(2, 64), torch.ones(64, 2))}
        write_lora(tmp_path / str(i), layers, "SD3", 4.0)
    for folder in tmp_path.iterdir():
        files = sorted(folder.iterdir())
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
        assert read_lora(folder / NAMES[0]).alpha == 4.0
    assert len(digests) == 9 and all(one == digests[0] for one in digests)
