"""afterflow serve-rewards: score images for runs elsewhere."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import tyro
from tyro.conf import Positional, PositionalMetavarFromFieldName

from ..system.optional_dependencies import check_extra

if TYPE_CHECKING:
    from fastapi import FastAPI


def serve_rewards(args: Sequence[str]) -> None:
    """Score images for runs elsewhere."""
    tyro.cli(Serve, args=args, prog="afterflow serve-rewards", config=[PositionalMetavarFromFieldName])()


@dataclass(frozen=True)
class Serve:
    """Serve rewards over HTTP; a run asks them with --reward-models.servers NAME URL."""

    rewards: Positional[tuple[str, ...]]
    """Their names."""
    port: int = 8100
    """Of the service."""
    host: str = "127.0.0.1"
    """Where it listens; any other than this machine needs a key in the environment variable AFTERFLOW_REWARDS_KEY."""
    images: int = 256
    """Of one request, at most."""
    pixels: int = 2048 * 2048
    """Of one image, or of a clip's frames together, at most."""
    megabytes: int = 512
    """Of one request, at most."""
    seconds: float = 300.0
    """For one request, at most."""
    batch: int = 64
    """Images of several clients that are scored together."""
    device: str | None = None
    """Where rewards that are networks run; None: the first accelerator, or the CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of their weights and passes."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Reward → hub id, folder or file of its weights, where they are not the published ones."""

    options: Mapping[str, float] = field(default_factory=dict)
    """Numbers that rewards read: geneval_threshold (.3), geneval_counting_threshold (.9)."""

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ValueError("name at least one reward to serve: afterflow serve-rewards NAME...")

    def app(self) -> "FastAPI":
        """The service; ValueError where a reward does not work here, or where anyone could reach it."""
        from ..rewards.base import RewardModels
        from ..rewards.registry import check_rewards, load_reward
        from ..rewards.remote.protocol import REWARDS_KEY
        from ..rewards.remote.server import ServiceLimits, build_service

        key = os.environ.get(REWARDS_KEY)
        if self.host not in ("127.0.0.1", "localhost", "::1") and not key:
            raise ValueError(
                f"--host {self.host}: others could reach it; set a key in the environment variable {REWARDS_KEY}"
            )
        limits = ServiceLimits(
            self.images, self.pixels, megabytes=self.megabytes, seconds=self.seconds, batch=self.batch
        )
        models = RewardModels(self.device, self.dtype, self.batch, self.weights, self.options)
        check_rewards(self.rewards, models)
        return build_service([load_reward(name, models) for name in self.rewards], limits, key)

    def __call__(self) -> None:
        check_extra("a service", ["fastapi", "uvicorn", "msgpack"], "serve")
        import uvicorn

        uvicorn.run(self.app(), host=self.host, port=self.port, log_level="warning")
