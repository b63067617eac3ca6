"""LoRAs, pipelines and picture folders of strangers: one sentence that names the file, and nothing else."""

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from afterflow.data.image_folders import list_images
from afterflow.data.images import encoded_bytes
from afterflow.models.families import pretrained
from afterflow.models.lora.factors import LoRAFactors
from afterflow.models.lora.files import NAMES, read_lora, write_lora
from afterflow.models.pipeline import TINY
from afterflow.system.errors import InputError

LAYER = "transformer_blocks.0.attn.to_q"
KEYS = f"transformer.{LAYER}.lora_A.weight", f"transformer.{LAYER}.lora_B.weight"


def tensors(rank=2, A=None, B=None, **more):
    pair = (torch.ones(rank, 4) if A is None else A), (torch.ones(4, rank) if B is None else B)
    return dict(zip(KEYS, pair)) | more


def stored(content, metadata=None):
    return lambda file: save_file(content, file, metadata=metadata)


def raw(content):
    return lambda file: file.write_bytes(content)


def header(text, body=b""):
    return raw(struct.pack("<Q", len(text)) + text + body)


def about(name, value):
    return stored(tensors(), {name: value if isinstance(value, str) else json.dumps(value)})


def peft(**config):
    return about("lora_adapter_metadata", {f"transformer.{name}": value for name, value in config.items()})


NAN, INF = float("nan"), float("inf")
LORAS = {
    "empty": raw(b""),
    "text": raw(b"hello"),
    "pickle": raw(b"\x80\x04cos\nsystem\n(S'touch mark'\ntR."),
    "zip": raw(b"PK\x03\x04" + b"\0" * 100),
    "header beyond the file": raw(struct.pack("<Q", 2**62)),
    "header no JSON": header(b"{"),
    "header a list": header(b"[]"),
    "header nested": header(b'{"a":' * 2000 + b"1" + b"}" * 2000),
    "offsets beyond the file": header(b'{"a":{"dtype":"F32","shape":[9999],"data_offsets":[0,39996]}}'),
    "offsets that overlap": header(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\0" * 4,
    ),
    "shape beyond 64 bits": header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
    "no tensors": stored({}),
    "NaN in A": stored(tensors(A=torch.full((2, 4), NAN))),
    "infinity in B": stored(tensors(B=torch.full((4, 2), INF))),
    "NaN in half precision": stored(tensors(B=torch.full((4, 2), NAN).half())),
    "NaN in alpha": stored(tensors(**{f"transformer.{LAYER}.alpha": torch.tensor(NAN)})),
    "complex alpha": stored(tensors(**{f"transformer.{LAYER}.alpha": torch.tensor(1j)})),
    "alpha too large": stored(tensors(**{f"transformer.{LAYER}.alpha": torch.tensor(3e38)}, B=torch.full((4, 2), 1e3))),
    "alpha of two numbers": stored(tensors(**{f"transformer.{LAYER}.alpha": torch.ones(2)})),
    "rank 0": stored(tensors(0)),
    "no inputs": stored(tensors(A=torch.ones(2, 0))),
    "ranks that differ": stored(tensors(B=torch.ones(4, 3))),
    "rank of a million": stored(tensors(A=torch.ones(10**6, 1).half(), B=torch.ones(1, 10**6).half())),
    "whole numbers": stored(tensors(A=torch.ones(2, 4, dtype=torch.int32))),
    "truth values": stored(tensors(B=torch.ones(4, 2, dtype=torch.bool))),
    "complex numbers": stored(tensors(A=torch.ones(2, 4, dtype=torch.complex64))),
    "a vector": stored(tensors(A=torch.ones(4))),
    "a layer of nobody": stored({"transformer.os.system.lora_A.weight": torch.ones(2, 4)}),
    "about is no JSON": about("afterflow", "{"),
    "about is a list": about("afterflow", []),
    "about is nested": about("afterflow", "[" * 100_000),
    "about has a long number": about("afterflow", '{"alpha": ' + "9" * 5000 + "}"),
    "alpha of about is true": about("afterflow", {"alpha": True}),
    "alpha of about is a list": about("afterflow", {"alpha": [1]}),
    "alpha of about is below 0": about("afterflow", {"alpha": -1}),
    "alpha of about is NaN": about("afterflow", '{"alpha": NaN}'),
    "family is a list": about("afterflow", {"family": ["SD3"]}),
    "family of nobody": about("afterflow", {"family": "__import__"}),
    "peft alpha is a text": peft(lora_alpha="16"),
    "peft alpha is infinite": about("lora_adapter_metadata", '{"transformer.lora_alpha": Infinity}'),
    "patterns are a list": peft(lora_alpha=1, alpha_pattern=["a"]),
    "patterns take for ever": peft(lora_alpha=1, alpha_pattern={"(a|a|\\w)+)+$": 1.0}),
    "patterns are broken": peft(lora_alpha=1, alpha_pattern={"[": 1.0}),
    "ranks are a text": peft(lora_alpha=1, rank_pattern="x"),
}


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


def change_index(**parts):
    def change(folder):
        index = json.loads((folder / "model_index.json").read_text()) | parts
        (folder / "model_index.json").write_text(json.dumps(index))

    return change


def change_config(part, **values):
    def change(folder):
        file = next(folder.joinpath(part).glob("*config.json"))
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def replaced(name, text):
    return lambda folder: (folder / name).write_text(text)


PIPELINES = {
    "a class of os": change_index(vae=["os", "system"]),
    "a class of a module beside it": change_index(vae=["stranger", "Evil"]),
    "another class of diffusers": change_index(transformer=["diffusers", "ModelMixin"]),
    "a function of diffusers": change_index(scheduler=["diffusers", "logging"]),
    "another class of transformers": change_index(text_encoder=["transformers", "AutoModel"]),
    "a part outside": change_index(**{"../vae": ["diffusers", "AutoencoderKL"]}),
    "a list of one": change_index(vae=["diffusers"]),
    "a list of numbers": change_index(vae=[1, 2]),
    "a list of lists": change_index(vae=[["diffusers"], ["AutoencoderKL"]]),
    "a pipeline of nobody": change_index(_class_name="EvilPipeline"),
    "a pipeline that is a list": change_index(_class_name=["stranger", "Evil"]),
    "an index that is a list": replaced("model_index.json", "[]"),
    "an index that is none": replaced("model_index.json", "{"),
    "an index without end": replaced("model_index.json", "[" * 100_000),
    "an unknown part": change_index(extra=["diffusers", "AutoencoderKL"]),
    "a network without end": change_config("transformer", num_layers=10**6),
    "a network beyond memory": change_config("transformer", joint_attention_dim=10**12),
    "heads that are a text": change_config("transformer", num_attention_heads="8"),
    "no heads": change_config("transformer", num_attention_heads=0),
    "a patch of nothing": change_config("transformer", patch_size=0),
    "a size that is a list": change_config("transformer", sample_size=[1, [2]]),
    "blocks that are a number": change_config("vae", block_out_channels=3),
    "a shift that is a text": change_config("scheduler", shift="fast"),
    "a configuration that is a list": replaced("transformer/config.json", "[]"),
    "a configuration that is none": replaced("vae/config.json", "\0"),
    "a configuration that is absent": lambda folder: (folder / "transformer" / "config.json").unlink(),
    "weights that are none": lambda folder: next((folder / "vae").glob("*.safetensors")).write_bytes(b"x" * 100),
    "weights that are absent": lambda folder: next((folder / "vae").glob("*.safetensors")).unlink(),
    "weights of another network": lambda folder: save_file(
        {"a": torch.ones(1)}, next((folder / "vae").glob("*.safetensors"))
    ),
    "an encoder without a length": change_config("text_encoder", max_position_embeddings=None),
}


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
