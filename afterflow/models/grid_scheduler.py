"""A scheduler of diffusers on a grid of ours, for a stock pipeline whose own takes several steps together."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor


class GridScheduler(FlowMatchEulerDiscreteScheduler):
    """Euler's steps on a grid that is given."""

    def __init__(self, times: Tensor) -> None:
        super().__init__()
        self.grid = times[:-1].tolist()

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Take the grid's times, whatever number of steps is named."""
        super().set_timesteps(sigmas=self.grid, device=device)
