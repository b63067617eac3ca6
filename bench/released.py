"""Released models as their configuration files have them, for what is counted or tried without a hub.

    python bench/released.py "SD3.5 medium" FOLDER     # writes them, so that --base FOLDER --plan needs no account

Widths, heads and layers are those of diffusers' classes and conversion scripts and of the models' cards.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from afterflow.models.flux import Flux
from afterflow.models.flux2_klein import Flux2Klein
from afterflow.models.flux_kontext import FluxKontext
from afterflow.models.pipeline import Pretrained
from afterflow.models.qwen_image import QwenImage
from afterflow.models.qwen_image_edit import QwenImageEdit
from afterflow.models.sd3 import SD3
from afterflow.models.wan import Wan
from afterflow.models.wan_image import WanImage
from afterflow.models.wan_pair import WanPair
from afterflow.models.z_image import ZImage

Files = Mapping[str, dict]
"""Name of a configuration file → what it holds."""
SD35_MEDIUM = {
    "model_index.json": {
        "_class_name": "StableDiffusion3Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "text_encoder/config.json": {"max_position_embeddings": 77},
    "text_encoder_3/config.json": {},
    "transformer/config.json": {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "dual_attention_layers": list(range(13)),
        "qk_norm": "rms_norm",
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 16,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}
"""Stable Diffusion 3.5 medium as its configuration files have it."""


_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
SD35_LARGE = SD35_MEDIUM | {
    "transformer/config.json": {
        **SD35_MEDIUM["transformer/config.json"],
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
        "pos_embed_max_size": 192,
        "dual_attention_layers": [],
    }
}
"""Stable Diffusion 3.5 large: wider, without second attention."""
FLUX_DEV = {
    "model_index.json": {
        "_class_name": "FluxPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "scheduler/scheduler_config.json": _SCHEDULER
    | {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
    "transformer/config.json": {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True},
    "vae/config.json": SD35_MEDIUM["vae/config.json"] | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
}
"""FLUX.1-dev: the defaults of diffusers' class, and an input for the guidance scale."""
FLUX_KONTEXT = FLUX_DEV | {"model_index.json": FLUX_DEV["model_index.json"] | {"_class_name": "FluxKontextPipeline"}}
"""FLUX.1-Kontext-dev: the parts of FLUX.1-dev in another pipeline."""
WAN_1_3B = {
    "model_index.json": {
        "_class_name": "WanPipeline",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    },
    "scheduler/scheduler_config.json": {
        "_class_name": "UniPCMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
    },
    "transformer/config.json": {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": 12,
        "num_layers": 30,
        "ffn_dim": 8960,
    },
    "vae/config.json": {"_class_name": "AutoencoderKLWan"},
}
"""Wan 2.1 1.3B, from diffusers' scripts/convert_wan_to_diffusers.py."""
_DYNAMIC = _SCHEDULER | {"shift": 3.0, "use_dynamic_shifting": True}


def _index(stock: str, vae: str, network: str, text: Mapping[str, str]) -> dict:
    """model_index.json of a pipeline with Euler's scheduler."""
    parts = {name: ["transformers", kind] for name, kind in text.items()}
    ours = {"scheduler": "FlowMatchEulerDiscreteScheduler", "transformer": network, "vae": vae}
    return {"_class_name": stock, **parts, **{name: ["diffusers", kind] for name, kind in ours.items()}}


_QWEN3 = {"text_encoder": "Qwen3ForCausalLM", "tokenizer": "Qwen2TokenizerFast"}
_QWEN_VL = {"text_encoder": "Qwen2_5_VLForConditionalGeneration", "tokenizer": "Qwen2Tokenizer"}


def _klein(double: int, single: int, heads: int, text: int) -> Files:
    return {
        "model_index.json": _index("Flux2KleinPipeline", "AutoencoderKLFlux2", "Flux2Transformer2DModel", _QWEN3),
        "scheduler/scheduler_config.json": _DYNAMIC,
        "transformer/config.json": {
            "_class_name": "Flux2Transformer2DModel",
            "num_layers": double,
            "num_single_layers": single,
            "num_attention_heads": heads,
            "joint_attention_dim": 3 * text,
            "guidance_embeds": False,
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKLFlux2",
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        },
    }


KLEIN_4B, KLEIN_9B = _klein(5, 20, 24, 2560), _klein(8, 24, 32, 4096)
Z_IMAGE = {
    "model_index.json": _index(
        "ZImagePipeline", "AutoencoderKL", "ZImageTransformer2DModel", _QWEN3 | {"text_encoder": "Qwen3Model"}
    ),
    "scheduler/scheduler_config.json": _SCHEDULER | {"shift": 6.0},
    "transformer/config.json": {"_class_name": "ZImageTransformer2DModel"},
    "vae/config.json": FLUX_DEV["vae/config.json"],
}
"""Z-Image: the defaults of diffusers' class, and FLUX.1's autoencoder."""


def _qwen_image(stock: str, text: Mapping[str, str], **network: object) -> Files:
    return {
        "model_index.json": _index(stock, "AutoencoderKLQwenImage", "QwenImageTransformer2DModel", text),
        "scheduler/scheduler_config.json": _DYNAMIC
        | {"max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02},
        "transformer/config.json": {"_class_name": "QwenImageTransformer2DModel", **network},
        "vae/config.json": {"_class_name": "AutoencoderKLQwenImage"},
    }


QWEN_IMAGE = _qwen_image("QwenImagePipeline", _QWEN_VL)
QWEN_IMAGE_EDIT = _qwen_image(
    "QwenImageEditPlusPipeline", _QWEN_VL | {"processor": "Qwen2VLProcessor"}, zero_cond_t=True
)
WAN_TI2V_5B = WAN_1_3B | {
    "model_index.json": WAN_1_3B["model_index.json"] | {"expand_timesteps": True},
    "scheduler/scheduler_config.json": WAN_1_3B["scheduler/scheduler_config.json"] | {"flow_shift": 5.0},
    "transformer/config.json": {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": 24,
        "num_layers": 30,
        "ffn_dim": 14336,
        "in_channels": 48,
        "out_channels": 48,
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKLWan",
        "base_dim": 160,
        "decoder_base_dim": 256,
        "z_dim": 48,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": [0.0] * 48,
        "latents_std": [1.0] * 48,
    },
}
"""Wan 2.2 TI2V-5B, but for the statistics of its latents."""
_WAN_14B = {"_class_name": "WanTransformer3DModel"}  # the defaults of diffusers' class
WAN_A14B = WAN_1_3B | {
    "model_index.json": WAN_1_3B["model_index.json"]
    | {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875},
    "transformer/config.json": _WAN_14B,
    "transformer_2/config.json": _WAN_14B,
}
"""Wan 2.2 T2V A14B: two networks of Wan 2.1 14B's shape, and the autoencoder of Wan 2.1."""


@dataclass(frozen=True)
class Released:
    """A released model."""

    files: Files
    """Its configuration files."""
    config: type[Pretrained]
    """Its family."""
    text_parameters: float
    """Parameters of its text encoders, in billions, from their cards."""
    edits: bool = False
    """Whether it is counted and tried with an input picture for every prompt."""


RELEASED = {
    "SD3.5 medium": Released(SD35_MEDIUM, SD3, 5.6),
    "SD3.5 large": Released(SD35_LARGE, SD3, 5.6),
    "FLUX.1-dev": Released(FLUX_DEV, Flux, 4.9),
    "FLUX.1-Kontext-dev": Released(FLUX_KONTEXT, FluxKontext, 4.9, edits=True),
    "FLUX.2-klein 4B": Released(KLEIN_4B, Flux2Klein, 4.0),
    "FLUX.2-klein 9B": Released(KLEIN_9B, Flux2Klein, 8.2),
    "Z-Image": Released(Z_IMAGE, ZImage, 4.0),
    "Qwen-Image": Released(QWEN_IMAGE, QwenImage, 8.3),
    "Qwen-Image-Edit 2511": Released(QWEN_IMAGE_EDIT, QwenImageEdit, 8.3, edits=True),
    "Wan 2.1 1.3B": Released(WAN_1_3B, Wan, 5.7),
    "Wan 2.2 TI2V-5B": Released(WAN_TI2V_5B, Wan, 5.7),
    "Wan 2.2 TI2V-5B from a picture": Released(WAN_TI2V_5B, WanImage, 5.7, edits=True),
    "Wan 2.2 T2V-A14B": Released(WAN_A14B, WanPair, 5.7),
}


def released(name: str, folder: Path, dtype: str = "bfloat16", **options: object) -> Pretrained:
    """Return the configuration of a released model whose files are written to a folder."""
    write_configurations(RELEASED[name].files, folder)
    return RELEASED[name].config(str(folder), dtype=dtype, **options)  # type: ignore[arg-type]


def write_configurations(files: dict[str, dict], folder: Path) -> None:
    """Write the configuration files of a pipeline, and folders without files for its other parts."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    for name, part in files["model_index.json"].items():
        if isinstance(part, list):
            (folder / name).mkdir(exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=RELEASED)
    parser.add_argument("folder", type=Path, help="folder for its configuration files; there are no weights in it")
    options = parser.parse_args()
    write_configurations(RELEASED[options.model].files, options.folder)
    print(f"{options.folder} has the configuration files of {options.model}, and no weights")


if __name__ == "__main__":
    main()
