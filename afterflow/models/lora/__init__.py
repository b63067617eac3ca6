"""LoRA files: read in any program's layout, written for diffusers and ComfyUI, and merged.

May import what `models` may.  Read `files.py` first: its `write_lora` is the only function that writes a LoRA.
"""
