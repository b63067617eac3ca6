"""A tree of BranchGRPO to look at: how one noise becomes many images, and which steps get the credit."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from ..algorithms.branch_grpo import BranchGRPO
from ..experiment.config import Run, on_model_schedule
from ..experiment.scoring import score_latents
from ..experiment.train_subprocess import check_ended
from ..models.generate import encode_records
from ..sampling.rollout import Rollout, prompt_noise, sample
from ..sampling.seeds import generator
from ..system.errors import ConfigError
from ..system.escapes import plot_text
from ..train.clock import Clock
from .comparison import tuned_model


def tree_of(run: Run, folder: Path, record: dict, seed: int) -> Figure:
    """Draw the tree that the trained policy of a run grows from a prompt; ConfigError for another algorithm."""
    algorithm = run.algorithm
    if not isinstance(algorithm, BranchGRPO):
        raise ConfigError(f"{folder} was trained by {type(algorithm).__name__}; only BranchGRPO grows trees")
    check_ended(folder, run)
    model = tuned_model(run, folder)
    algorithm = on_model_schedule(algorithm, model.schedule)
    assert isinstance(algorithm, BranchGRPO)
    cond, noise_of = encode_records(model, [record]), [generator(seed, "tree")]
    velocity = model.guided_velocity(run.batches.guidance_scale, run.batches.chunk)
    noise = prompt_noise(noise_of, 1, torch.empty(1, 1, *model.latent_shape, device=cond.device))
    plan = algorithm.plan(0, generator(seed, "plan"))
    rollout = sample(velocity, algorithm.step_kernel, plan, cond, noise, noise_of)
    scores = score_latents(
        model, algorithm.requirements, None, run.reward_models, rollout.leaves, [record], [generator(seed)], Clock()
    )
    levels = [level[0].sum(-1).numpy() for level in algorithm.credit(plan, rollout.log_prob, scores)]
    states = [model.decode(x[0]) for x in rollout.x]
    rewards = sum(weight * scores.rewards[name] for name, weight in algorithm.weights.items())
    return plot_tree(rollout, states, levels, np.asarray(rewards)[0], plot_text(record["prompt"]))


def plot_tree(
    rollout: Rollout, states: list[np.ndarray], advantages: list[np.ndarray], rewards: np.ndarray, title: str
) -> Figure:
    """Plot a tree: the states of every level, and the edges between them in the colour of their advantage.

    Args:
        rollout: The rollout, for its plan.
        states: By level the decoded states, uint8 (W_k, H, W, 3).
        advantages: By level the advantages (W_{k+1},) of the edges, NaN where an edge is not trained.
        rewards: Rewards (G,) of the leaves.
        title: Title of the plot.
    """
    plan, G = rollout.plan, len(rewards)
    steps = plan.steps
    figure = Figure(figsize=(0.62 * (steps + 2), 0.56 * G + 0.9), layout="constrained")
    axis = figure.subplots()

    def height(level: int, i: int) -> float:
        """Return the middle of a node's leaves."""
        return (i + 0.5) * G / level

    shade = matplotlib.colormaps["RdBu"]
    for k in range(steps):
        W, W_next = plan.widths[k], plan.widths[k + 1]
        for j in range(W_next):
            value = advantages[k][j] if plan.trained(k)[j] else np.nan
            color = "#c9c9d0" if np.isnan(value) else shade(0.5 + np.clip(value, -2, 2) / 4)
            ends = [height(W, j * W // W_next), height(W_next, j)]
            axis.plot([k, k + 1], ends, color=color, linewidth=3, zorder=1, solid_capstyle="butt")
    half = 0.36
    for k, level in enumerate(states):
        for i, image in enumerate(level):
            y = height(len(level), i)
            axis.imshow(image, extent=(k - half, k + half, y + half, y - half), zorder=2, interpolation="nearest")
    for i, reward in enumerate(rewards):
        axis.text(steps + 0.5, i + 0.5, f"{reward:.2f}", va="center", fontsize=8)
    axis.set(
        xlim=(-0.6, steps + 1.3), ylim=(G, 0), yticks=[], title=title, xlabel="denoising step; reward at the right"
    )
    axis.set_xticks(range(steps + 1))
    axis.set_aspect("equal")
    axis.spines[:].set_visible(False)
    return figure
