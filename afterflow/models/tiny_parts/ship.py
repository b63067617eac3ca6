"""Make of a pretraining run the folder that is shipped: half the bytes, and loadable without any argument.

python -m afterflow.models.tiny_parts.ship runs/tiny_sd3_pretrain/model afterflow/models/assets/tiny_sd3
python -m afterflow.models.tiny_parts.ship runs/tiny_wan_pretrain/model afterflow/models/assets/tiny_wan
python -m afterflow.models.tiny_parts.ship runs/tiny_klein_pretrain/model afterflow/models/assets/tiny_klein
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline, StableDiffusion3Pipeline, WanPipeline
from transformers import T5Config, T5EncoderModel


def silent_t5(width: int, vocabulary: int) -> T5EncoderModel:
    """Return a third encoder whose every output is zero.

    Stable Diffusion 3 works without its T5, and then sees zeros.  But diffusers refuses to load a folder that has
    none unless the caller passes text_encoder_3=None, so the folder has one that says nothing.
    """
    encoder = T5EncoderModel(
        T5Config(vocab_size=vocabulary, d_model=width, d_ff=8, d_kv=8, num_heads=1, num_layers=1)
    ).eval()
    torch.nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder


def ship(source: Path, target: Path) -> None:
    """Store the transformer and the autoencoder in half precision; the encoders are small and stay as they are.

    That of klein is as large as its autoencoder, and is stored in half precision too, as weights to compute with in 32
    bits.
    """
    kind = json.loads((source / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    changes: dict[str, dict[str, str]] = {}
    if kind == "WanPipeline":
        pipe = WanPipeline.from_pretrained(source)
    elif kind == "Flux2KleinPipeline":
        pipe = Flux2KleinPipeline.from_pretrained(source)
        pipe.text_encoder.half()
        # transformers computes in the precision that this names, and diffusers does not ask for another.
        changes["text_encoder"] = {"dtype": "float32"}
    else:
        pipe = StableDiffusion3Pipeline.from_pretrained(source, text_encoder_3=None, tokenizer_3=None)
        t5 = silent_t5(pipe.transformer.config.joint_attention_dim, len(pipe.tokenizer))
        pipe.register_modules(text_encoder_3=t5, tokenizer_3=pipe.tokenizer)
    pipe.transformer.half()
    pipe.vae.half()
    pipe.save_pretrained(target)
    for file in target.rglob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            # Where it lay on the machine that made it is nobody's business.
            named = content.pop("_name_or_path", None) is not None
            change = changes.get(file.parent.name, {}) if file.name == "config.json" else {}
            if named or change:
                text = json.dumps(content | change, indent=2) + "\n"
                file.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="model/ of a pretraining run")
    parser.add_argument("target", type=Path, help="the folder to write")
    options = parser.parse_args()
    ship(options.source, options.target)
