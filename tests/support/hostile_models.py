"""LoRAs and pipelines as strangers may make them: name of a case → what writes or changes the file or folder."""

import json
import struct

import torch
from safetensors.torch import save_file

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
