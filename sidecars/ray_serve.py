"""Reward services on a Ray cluster, as many as the load asks for.

    pip install "ray[serve]" 'afterflow[serve]'
    serve run ray_serve:services rewards=hpsv2,pickscore gpus=0.5 max_replicas=8

Every replica is what `afterflow serve-rewards` starts, behind Ray's proxy at http://HOST:8000: clients name that one
address.  The key comes from AFTERFLOW_REWARDS_KEY, on every node and at the clients, and without one the proxy must
stay on 127.0.0.1, Ray's own default.
"""

import os

from fastapi import FastAPI
from pydantic import AliasChoices, BaseModel, Field
from ray import serve


class Options(BaseModel):
    """The options that `serve run` reads as name=value."""

    rewards: str
    """The names of the rewards, with commas between."""
    gpus: float = 0.0
    """Number of GPUs of a replica; a fraction where several replicas share one."""
    cpus: float = 1.0
    """Number of CPU cores of a replica."""
    min_replicas: int = Field(1, validation_alias=AliasChoices("min_replicas", "least"))
    """Number of replicas at rest."""
    max_replicas: int = Field(4, validation_alias=AliasChoices("max_replicas", "most"))
    """Number of replicas under load."""
    waiting: int = 4
    """Number of requests at a replica from which another replica is started."""
    weights: dict[str, str] = {}
    """Weights by reward, as --reward-models.weights takes them; they can stand in a configuration file of Serve's."""


def services(options: Options) -> serve.Application:
    """Return the service as a Ray Serve application."""
    key = os.environ.get("AFTERFLOW_REWARDS_KEY")

    def build() -> FastAPI:  # on the replica: networks are loaded where they run
        from afterflow.rewards.base import RewardModels
        from afterflow.rewards.named_code import named_in_process
        from afterflow.rewards.registry import check_rewards, load_reward
        from afterflow.rewards.remote.server import build_service

        names, models = options.rewards.split(","), RewardModels(weights=options.weights)
        named_in_process(names)
        check_rewards(names, models)
        return build_service([load_reward(name, models) for name in names], key=key)

    scaling = {
        "min_replicas": options.min_replicas,
        "max_replicas": options.max_replicas,
        "target_ongoing_requests": options.waiting,
    }
    return serve.deployment(
        serve.ingress(build)(),
        name="rewards",
        autoscaling_config=scaling,
        max_ongoing_requests=4 * options.waiting,
        ray_actor_options={"num_gpus": options.gpus, "num_cpus": options.cpus},
    ).bind()
