"""LoRA files: diffusers', peft's and kohya's layouts read and written, and LoRAs merged.

May import what `models` may.  Read `files.py` first.
"""
