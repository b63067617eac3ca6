"""What is known of a GPU: the peak that its maker states, and the peak of its memory."""

import torch

PEAK = {
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
}
"""Whole name of a card as CUDA gives it → FLOP/s of its dense bf16 matrix products, as its maker states them.

Cards of another name have another peak, although a name may begin alike: a slice of a card, or a notebook's.
"""


def peak_flops(device: torch.device) -> float | None:
    """Return the FLOP/s of dense bf16 matrix products of a card, as its maker states them; None where unknown."""
    return PEAK.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def reset_peak_memory() -> None:
    """Count the peak of a GPU's memory anew: a process may examine several recipes."""
    if torch.cuda.is_available():
        torch.cuda.init()  # else there is no counter yet
        torch.cuda.reset_peak_memory_stats()
