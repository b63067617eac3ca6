"""Environment variables that libraries read behind our back: those that would change a run are refused by name.

The values that change nothing, as launchers set them, pass.  So do variables that choose places, addresses, memory,
threads or messages.
"""

import os
from collections.abc import Mapping

from .errors import ConfigError

OFF = ("", "0", "false", "no", "off", "none", "n", "f")
"""Values that switch nothing on, in any case of letters."""
CHANGES_A_RUN: Mapping[str, tuple[tuple[str, ...], str]] = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        ("1",),
        "an iteration's gradient is summed over all of --batch already, --chunk rows at a time",
    ),
    "ACCELERATE_GRADIENT_CLIPPING": ((), "set --max-grad-norm"),
    "ACCELERATE_USE_DEEPSPEED": ((), "shard the weights with --shard zero2 or --shard full"),
    "ACCELERATE_USE_FSDP": ((), "shard the weights with --shard full or --shard zero2"),
    "ACCELERATE_USE_MEGATRON_LM": ((), "shard the weights with --shard full"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ((), "shard the weights with --shard full"),
    "ACCELERATE_USE_SAGEMAKER": ((), "start processes with torchrun"),
    "ACCELERATE_DYNAMO_BACKEND": ((), "set --compile"),
    "ACCELERATE_DYNAMO_MODE": (("default",), "set --compile"),
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": ((), "set --compile"),
    "ACCELERATE_DYNAMO_USE_DYNAMIC": ((), "set --compile"),
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": ((), "set --compile, which is regional"),
    "ACCELERATE_DOWNCAST_BF16": ((), "set --mixed-precision bf16"),
    "ACCELERATE_TORCH_DEVICE": ((), "choose devices with CUDA_VISIBLE_DEVICES"),
    "ACCELERATE_BYPASS_DEVICE_MAP": ((), "choose devices with CUDA_VISIBLE_DEVICES"),
    "XLA_USE_BF16": ((), "set --mixed-precision bf16"),
    "XLA_DOWNCAST_BF16": ((), "set --mixed-precision bf16"),
    "USE_TORCH_XLA": ((), "there is no training on XLA"),
    "USE_TORCH": (("1", "true", "yes", "on", "auto"), "transformers would be without torch"),
    "DIFFUSERS_ATTN_BACKEND": (("native",), "attention is torch's own, with its gradients"),
    "DIFFUSERS_SDNQ_TRANSFORMERS": ((), "set --model.quantize"),
    "TRANSFORMERS_SDPA_FORCE_GQA": ((), "attention is torch's own"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": ((), "fp32 would be rounded to 10 bits; set --mixed-precision bf16 instead"),
    "NVIDIA_TF32_OVERRIDE": ((), "fp32 would be rounded to 10 bits; set --mixed-precision bf16 instead"),
    "TORCHINDUCTOR_USE_FAST_MATH": ((), "ratios would be off"),
    "TORCHINDUCTOR_FREEZING": ((), "frozen weights would not be trained"),
    "TORCH_COMPILE_DISABLE": ((), "leave --compile out instead"),
    "TORCHDYNAMO_DISABLE": ((), "leave --compile out instead"),
    "TORCH_COMPILE_BACKEND": (("inductor",), "--compile takes inductor"),
}
"""Variable → the values that change nothing besides `OFF`, and what to do instead."""
PREFIXES: Mapping[str, str] = {
    "ACCELERATE_FP8_": "there is no training in fp8; set --mixed-precision bf16",
    "ACCELERATE_DEEPSPEED_": "shard the weights with --shard zero2 or --shard full",
}
"""Start of the names of further variables → what to do instead."""
PRECISION_VARIABLE = "ACCELERATE_MIXED_PRECISION"
"""The variable in which `accelerate launch` passes its --mixed_precision."""


def check_environment() -> None:
    """Raise ConfigError for a variable that would change what a run computes, with what to do instead."""
    for name, value in sorted(os.environ.items()):
        harmless, remedy = CHANGES_A_RUN.get(name, ((), ""))
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        remedy = remedy or PREFIXES.get(prefix or "", "")
        if remedy and value.strip().lower() not in (*OFF, *harmless):
            raise ConfigError(
                f"the environment has {name} = {value}, which is not an option of a run and would change it or be "
                f"ignored; unset it (also in the launcher's configuration): {remedy}"
            )


def check_precision(mixed_precision: str) -> None:
    """Raise ConfigError where a launcher was told another precision than the run's `mixed_precision`."""
    launched = os.environ.get(PRECISION_VARIABLE, "").strip().lower()
    if launched not in OFF and launched != mixed_precision:
        raise ConfigError(
            f"the launcher asks for {PRECISION_VARIABLE} = {launched}, and the run has mixed_precision = "
            f"{mixed_precision}; set --mixed-precision {launched}, or leave it out of the launcher's configuration"
        )


def check_cpu(accelerator: bool) -> None:
    """Raise ConfigError where accelerate is told to leave an accelerator of this machine alone."""
    name = "ACCELERATE_USE_CPU"
    if accelerator and os.environ.get(name, "").strip().lower() not in OFF:
        raise ConfigError(
            f"{name} is set, and rewards would still use the GPU; unset it, and hide GPUs with "
            "CUDA_VISIBLE_DEVICES='' instead"
        )
