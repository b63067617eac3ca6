"""Post-training of flow-matching image models: SFT, Flow-GRPO and their kin, one short file each."""

__version__ = "0.1.0"
