"""Pipelines of diffusers as velocity fields: families, adapters, LoRA files, and pictures of prompts.

The only room that imports diffusers and peft; may import `sampling`, `envs` and `system`.  Read `pipeline.py` first,
then `sd3.py`.
"""
