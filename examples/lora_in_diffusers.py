"""Draw with a LoRA in diffusers, without afterflow's own sampler: `python examples/lora_in_diffusers.py FOLDER`."""

import sys

import torch
from diffusers import StableDiffusion3Pipeline

from afterflow.models.pipeline_files import TINY


def main(lora: str) -> None:
    """Draw one prompt before and after the LoRA is loaded; a user of your LoRA writes these lines."""
    pipe = StableDiffusion3Pipeline.from_pretrained(TINY, text_encoder_3=None, tokenizer_3=None)
    for name in ("before.png", "after.png"):
        if name == "after.png":
            pipe.load_lora_weights(lora)
        generator = torch.Generator().manual_seed(0)
        images = pipe(
            "a picture of a red heart and a blue circle",
            num_inference_steps=20,
            guidance_scale=1.0,
            max_sequence_length=0,
            generator=generator,
        ).images
        images[0].save(name)


if __name__ == "__main__":
    main(sys.argv[1])
