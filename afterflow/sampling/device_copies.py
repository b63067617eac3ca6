"""Copies from the CPU's memory to an accelerator that the host does not wait for."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device.

    From the CPU's memory an accelerator copies it by way of pinned memory.  A plain copy would keep the host waiting
    until all that was queued before is computed.
    """
    if x.device.type != "cpu" or torch.device(device).type in ("cpu", "meta"):
        return x.to(device)
    # Rows that are one in memory, as those of `expand`, cannot be pinned.
    return x.contiguous().pin_memory().to(device, non_blocking=True)
