"""Tiny pipelines of every family with random weights, built from their configurations."""

import json
import tempfile
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from shutil import copytree
from types import MappingProxyType

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import (
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    SwinConfig,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.mask2former import Mask2FormerImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from afterflow.envs.geneval_rules import OBJECTS
from afterflow.models.flux import Flux
from afterflow.models.flux2_klein import Flux2Klein
from afterflow.models.flux_kontext import FluxKontext
from afterflow.models.qwen_image import QwenImage
from afterflow.models.qwen_image_edit import QwenImageEdit
from afterflow.models.sd3 import SD3
from afterflow.models.tiny_parts.autoencoder import make_autoencoder
from afterflow.models.tiny_parts.build import assemble, transformer_config
from afterflow.models.tiny_parts.text import WIDTHS, make_text_encoder
from afterflow.models.tiny_parts.tokenizer import BOS_ID, EOS_ID, make_tokenizer, vocabulary
from afterflow.models.wan import Wan
from afterflow.models.wan_image import WanImage
from afterflow.models.wan_pair import WanPair
from afterflow.models.z_image import ZImage
from afterflow.rewards.clip import LINEAR_LAYERS

T5 = {"vocab_size": len(vocabulary()), "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
VIDEO_VAE = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}


def clip(folder, words=60):
    """CLIP's two towers and their tokenizer, not a pipeline."""
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID}
    text = {"vocab_size": len(vocabulary()), "max_position_embeddings": words, **tower, **ids}
    vision = {"image_size": 28, "patch_size": 7, **tower}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def image_reward(folder):
    """A checkpoint of ImageReward in BLIP's own names, with its tokenizer beside it; the file and the two towers."""
    torch.manual_seed(0)
    tower = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 1}
    eye = BlipVisionModel(BlipVisionConfig(image_size=28, patch_size=7, layer_norm_eps=1e-6, **tower)).eval()
    text = {"vocab_size": len(vocabulary()), "max_position_embeddings": 40, "hidden_act": "gelu"}
    reader = BlipTextModel(BlipTextConfig(encoder_hidden_size=64, **text, **tower), add_pooling_layer=False).eval()
    theirs = eye.state_dict()
    named = {
        "cls_token": "embeddings.class_embedding",
        "pos_embed": "embeddings.position_embedding",
        "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
        "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    }
    for kind in ("weight", "bias"):
        named[f"norm.{kind}"] = f"post_layernorm.{kind}"
        for i in range(2):
            ours, its = f"blocks.{i}", f"encoder.layers.{i}"
            named |= {f"{ours}.mlp.fc{n}.{kind}": f"{its}.mlp.fc{n}.{kind}" for n in (1, 2)}
            named |= {f"{ours}.norm{n}.{kind}": f"{its}.layer_norm{n}.{kind}" for n in (1, 2)}
            named[f"{ours}.attn.qkv.{kind}"] = f"{its}.self_attn.qkv.{kind}"
            named[f"{ours}.attn.proj.{kind}"] = f"{its}.self_attn.projection.{kind}"
    assert set(named.values()) == set(theirs)
    stored = {f"blip.visual_encoder.{ours}": theirs[its] for ours, its in named.items()}
    stored |= {f"blip.text_encoder.{name}": value for name, value in reader.state_dict().items()}
    stored["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    stored["blip.text_proj.weight"] = torch.zeros(1)  # of its pretraining
    layers = five_layers(64)
    stored |= {f"mlp.{name}": value for name, value in in_file(layers).items()}
    save_file({name: value.clone() for name, value in stored.items()}, folder / "ImageReward.safetensors")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    return folder / "ImageReward.safetensors", eye, reader, layers


def five_layers(width):
    return [torch.nn.Linear(*pair) for pair in pairwise((width, 12, 10, 8, 6, 1))]


def in_file(layers):
    """Their weights under the names of the aesthetic predictor and of ImageReward."""
    names = zip(LINEAR_LAYERS, layers)
    return {f"layers.{n}.{name}": value.detach() for n, layer in names for name, value in layer.named_parameters()}


def mask2former(folder, renamed=MappingProxyType({})):
    """A detector of COCO's objects, some of which its labels call by other names."""
    torch.manual_seed(0)
    stages = {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "out_features": [f"stage{i}" for i in range(1, 5)]}
    narrow = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim", "dim_feedforward"), 32)
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(image_size=64, embed_dim=16, window_size=4, **stages),
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        num_queries=10,
        id2label={i: renamed.get(name, name) for i, name in enumerate(OBJECTS)},
        **narrow,
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def aesthetic(file):
    """The aesthetic predictor for that CLIP, in a file; its layers."""
    torch.manual_seed(1)
    layers = five_layers(16)
    save_file(in_file(layers), file)
    return layers


QWEN2_VL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
QWEN2_VL += ("<|image_pad|>", "<|video_pad|>")


def qwen2_vl(folder, rewards):
    """Configuration and tokenizer of a Qwen2-VL as it is released, and one that also knows tokens of a reward."""
    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    tokenizer.add_tokens(list(QWEN2_VL), special_tokens=True)
    tokenizer.save_pretrained(folder)
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    ids |= {f"vision_{end}_token_id": tokenizer.convert_tokens_to_ids(f"<|vision_{end}|>") for end in ("start", "end")}
    ids |= {"bos_token_id": 256, "eos_token_id": 258}
    width = {"hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    eye = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "initializer_range": 0.3}
    more = {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "rope_theta": 1e4, "torch_dtype": "bfloat16"}
    told = {"model_type": "qwen2_vl", "num_hidden_layers": 2, "vocab_size": 280, "initializer_range": 0.3, **ids}
    (folder / "config.json").write_text(json.dumps(told | width | more | {"vision_config": eye}))  # flat, as released
    tokenizer.add_tokens(list(rewards), special_tokens=True)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_pretrained(folder)).float()
    model.resize_token_embeddings(len(tokenizer))
    return model.eval(), tokenizer


def as_released(weights):
    """Weights of a Qwen2-VL under the names they had when the rewards on it were released."""
    names = (("model.language_model.", "model."), ("model.visual.", "visual."))
    for theirs, ours in names:
        weights = {name.replace(theirs, ours): value.detach().clone() for name, value in weights.items()}
    return weights


def hpsv3(folder):
    """A checkpoint of HPSv3, with the file of its instruction; its tokenizer, its Qwen2-VL and its head."""
    model, tokenizer = qwen2_vl(folder, ["<|Reward|>"])
    linear, relu, none = torch.nn.Linear, torch.nn.ReLU(), torch.nn.Dropout(0.05)
    head = torch.nn.Sequential(linear(32, 12), relu, none, linear(12, 6), relu, linear(6, 2)).eval()
    stored = model.state_dict() | {f"rm_head.{name}": value for name, value in head.state_dict().items()}
    save_file(as_released(stored), folder / "HPSv3.safetensors")
    # What would be run if it were.
    text = 'raise SystemExit\nINSTRUCTION = """\nHow good is it?\nTextual prompt - {text_prompt}\n"""\n'
    text += 'prompt_with_special_token = """\nIts rating: <|Reward|>\nEND\n"""\n'
    (folder / "data_collator_qwen.py").write_text(text)
    return folder, tokenizer, model, head


def edit_reward(folder):
    """A checkpoint of EditReward, with the files of its texts; its tokenizer, its Qwen2.5-VL and its two heads."""
    torch.manual_seed(0)
    model, tokenizer = qwen_2_5_vl(QWEN2_VL)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokenizer.add_tokens(["<|Reward|>"], special_tokens=True)
    model = model.float()
    model.resize_token_embeddings(len(tokenizer))
    for parameter in model.parameters():  # or its states hardly differ
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    linear, relu, none = torch.nn.Linear, torch.nn.ReLU(), torch.nn.Dropout(0.05)
    head = lambda: torch.nn.Sequential(linear(32, 12), relu, none, linear(12, 6), relu, linear(6, 2)).eval()
    heads = torch.nn.ModuleDict({f"head_{i}": head() for i in range(2)})
    stored = model.state_dict() | {f"rm_heads.{name}": value for name, value in heads.state_dict().items()}
    save_file({name: value.detach().clone() for name, value in stored.items()}, folder / "model.safetensors")
    texts = (
        "INSTRUCTION_EDIT_FOLLOWING = 'Is it done? {text_prompt}'\nINSTRUCTION_EDIT_QUALITY = 'How good? {text_prompt}'"
    )
    (folder / "prompts.py").write_text(f"raise SystemExit\n{texts}\n")
    (folder / "data_collator_qwen_edit.py").write_text("prompt_with_special_token = '\\nRating: <|Reward|>\\nEND\\n'\n")
    return folder, tokenizer, model.eval(), heads


def video_reward(folder, outputs=1):
    """A checkpoint of VideoReward, with the file of its instruction; its tokenizer and its Qwen2-VL in peft's hands."""
    rewards = [f"<|{name}_reward|>" for name in ("VQ", "MQ", "TA")]
    model, tokenizer = qwen2_vl(folder, rewards)
    model.rm_head = torch.nn.Linear(32, outputs, bias=False)
    layers = r".*language_model\.layers.*(q|k|v|o|gate|up|down)_proj"
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=layers, init_lora_weights=False)).eval()
    (folder / "checkpoint-11352").mkdir()
    torch.save(as_released(tuned.state_dict()), folder / "checkpoint-11352" / "model.pth")
    data = {"fps": 2.0, "max_frame_pixels": 448 * 448, "prompt_template_type": "detailed_special", "num_frames": None}
    normal = {"VQ_mean": 3.7, "VQ_std": 2.2, "MQ_mean": 1.2, "MQ_std": 1.4, "TA_mean": 2.8, "TA_std": 2.5}
    told = {"data_config": data, "peft_lora_config": {"lora_r": 4, "lora_alpha": 8}, "inference_config": normal}
    (folder / "model_config.json").write_text(json.dumps(told))
    lines = [f"Rating: {token}" for token in rewards]
    text = "\n".join([*lines[:2], "Textual prompt - {text_prompt}", *lines[2:], "END", ""])
    (folder / "prompt_template.py").write_text(f"DETAILED_PROMPT_WITH_SPECIAL_TOKEN = {text!r}\n")
    return folder, tokenizer, tuned


def untrained_sd3(layers):
    """The tiny SD3 with random weights and so many layers."""
    encoders = [make_text_encoder(width) for width in WIDTHS]
    return assemble(make_autoencoder(), encoders, SD3Transformer2DModel(**transformer_config(layers)))


def sd3(folder):
    """Two layers are enough for plumbing: one that all have, and the last, which drops the text."""
    untrained_sd3(2).save_pretrained(folder)
    return SD3(str(folder), max_sequence_length=0)


def deep_sd3(folder):
    """As deep as the shipped pipeline, for what depends on its layers or on how well it learns."""
    untrained_sd3(6).save_pretrained(folder)
    return SD3(str(folder), max_sequence_length=0)


def small_vae(kind, **options):
    """An autoencoder that halves a picture once, of 2 channels."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return kind(block_out_channels=(4, 4), norm_num_groups=2, latent_channels=2, **blocks, **options)


def flux_pipeline(kind):
    clip = CLIPTextConfig(
        vocab_size=len(vocabulary()),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    return kind(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=small_vae(AutoencoderKL, scaling_factor=0.36, shift_factor=0.12),
        text_encoder=CLIPTextModel(clip),
        tokenizer=make_tokenizer(),
        text_encoder_2=T5EncoderModel(T5Config(**T5)),
        tokenizer_2=make_tokenizer(),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=8,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
    )


def flux(folder):
    flux_pipeline(FluxPipeline).save_pretrained(folder)
    return Flux(str(folder), size=32, max_sequence_length=16)


def flux_kontext(folder):
    flux_pipeline(FluxKontextPipeline).save_pretrained(folder)
    return FluxKontext(str(folder), size=32, max_sequence_length=16)


def qwen_tokens():
    """A language model's tokens, one for each byte, and its configuration."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: i for i, token in enumerate([*letters, "<|endoftext|>", "<|im_start|>", "<|im_end|>"])}
    language = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    language |= {"bos_token_id": tokens["<|endoftext|>"], "eos_token_id": tokens["<|im_end|>"]}
    return tokens, language | {"vocab_size": len(tokens)}


def qwen3(layers):
    """A configuration of Qwen3 with so many layers, and its tokenizer, which writes a short chat around a prompt."""
    tokens, language = qwen_tokens()
    tokenizer = Qwen2Tokenizer(vocab=tokens, merges=[])
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    return Qwen3Config(num_hidden_layers=layers, head_dim=8, initializer_range=0.2, **language, **rope), tokenizer


def flux2_klein(folder, is_distilled=False):
    config, tokenizer = qwen3(28)  # the pipeline reads after layers 9, 18 and 27
    vae = small_vae(AutoencoderKLFlux2)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(config),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            in_channels=8,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        is_distilled=is_distilled,
    )
    pipe.save_pretrained(folder)
    return Flux2Klein(str(folder), size=32, max_sequence_length=64)


def z_image(folder):
    config, tokenizer = qwen3(2)
    pipe = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=small_vae(AutoencoderKL, scaling_factor=0.36, shift_factor=0.12),
        text_encoder=Qwen3Model(config),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            in_channels=2,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[4, 6, 6],
            axes_lens=[128, 32, 32],
        ),
    )
    for name, parameter in pipe.transformer.named_parameters():
        if "pad_token" in name:  # which the class leaves unset
            parameter.data.normal_()
    pipe.save_pretrained(folder)
    return ZImage(str(folder), size=32, max_sequence_length=64)


def qwen_2_5_vl(more=()):
    """A Qwen2.5-VL, and its tokenizer, with further special tokens."""
    tokens, language = qwen_tokens()
    tokenizer = Qwen2Tokenizer(vocab=tokens, merges=[])
    tokenizer.add_tokens(list(more), special_tokens=True)
    language |= {"num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    rope = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}
    eye = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    ids = {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()} if more else {}
    config = Qwen2_5_VLConfig(text_config=language | rope, vision_config=eye, **ids)
    return Qwen2_5_VLForConditionalGeneration(config), tokenizer


def qwen_parts(encoder, tokenizer, **network):
    """The parts of a Qwen-Image pipeline; its scheduler is of the released one."""
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        "vae": AutoencoderKLQwenImage(**VIDEO_VAE, temperal_downsample=[False, True, True]),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "transformer": QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=64,
            out_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(8, 4, 4),
            **network,
        ),
    }


def qwen_image_edit(folder):
    parts = qwen_parts(*qwen_2_5_vl(QWEN2_VL), zero_cond_t=True)  # as 2511
    QwenImageEditPlusPipeline(processor=None, **parts).save_pretrained(folder)
    # transformers saves and loads the processor with torchvision alone.
    Qwen2VLImageProcessorPil().save_pretrained(folder / "processor")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"processor": ["transformers", "Qwen2VLProcessor"]}))
    return QwenImageEdit(str(folder), size=32, picture_size=64)


def qwen_image(folder):
    QwenImagePipeline(**qwen_parts(*qwen_2_5_vl())).save_pretrained(folder)
    return QwenImage(str(folder), size=32)


def wan_pipeline(vae, channels, kind=WanPipeline, **options):
    return kind(
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
        ),
        vae=AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **vae),
        text_encoder=UMT5EncoderModel(UMT5Config(**T5)),
        tokenizer=make_tokenizer(),
        transformer=wan_network(channels),
        **options,
    )


def wan_network(channels, width=12):
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=width,
        in_channels=channels,
        out_channels=channels,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


WAN_VAE = {"z_dim": 16, "temperal_downsample": [False, True, True]}


def wan(folder):
    wan_pipeline(WAN_VAE, 16).save_pretrained(folder)
    return Wan(str(folder), height=32, width=32, frames=5, max_sequence_length=16)


def wan_pair(folder):
    """As Wan 2.2 A14B: one network for high noise, where half of four steps are, and one for low noise."""
    wan_pipeline(WAN_VAE, 16, transformer_2=wan_network(16), boundary_ratio=0.875).save_pretrained(folder)
    return WanPair(str(folder), height=32, width=32, frames=5, max_sequence_length=16)


def wan_ti2v(folder):
    """As Wan 2.2 TI2V-5B: an autoencoder of patches with statistics of its own, and a time for every token."""
    wan_5b(folder, WanPipeline)
    return Wan(str(folder), height=32, width=32, frames=5, max_sequence_length=16)


def wan_image(folder):
    wan_5b(folder, WanImageToVideoPipeline)
    return WanImage(str(folder), height=32, width=32, frames=5, max_sequence_length=16)


def wan_5b(folder, kind):
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0, 0.5, -0.6], "latents_std": [1.2, 0.8, 1.0, 0.9, 1.1, 0.7]}
    shape = {"z_dim": 6, "in_channels": 12, "out_channels": 12, "patch_size": 2, "is_residual": True}
    shape |= {"temperal_downsample": [False, True, True], "scale_factor_spatial": 16}
    wan_pipeline(statistics | shape, 6, kind, expand_timesteps=True).save_pretrained(folder)


FAMILIES = {build.__name__: build for build in (sd3, flux, flux2_klein, qwen_image, z_image, wan, wan_pair)}
BUILDERS = FAMILIES | {
    "deep_sd3": deep_sd3,
    "flux_kontext": flux_kontext,
    "wan_ti2v": wan_ti2v,
    "qwen_image_edit": qwen_image_edit,
    "wan_image": wan_image,
}


SAVED = tempfile.TemporaryDirectory(prefix="tinies")


@cache
def saved(name):
    """The configuration of a tiny pipeline that this process has built once."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BUILDERS[name](Path(SAVED.name) / name)


def built(name, folder):
    """The configuration of a tiny pipeline in `folder`, the same for every call."""
    copytree(saved(name).path, folder, dirs_exist_ok=True)
    return replace(saved(name), path=str(folder))


def keep_blocks(folder: Path, part: str = "transformer", **blocks: int) -> None:
    """Leave a network's configuration with so many blocks of each kind: a plan of whole depth takes seconds."""
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | blocks))
