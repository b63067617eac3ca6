"""BranchGRPO (arXiv:2509.06040): a group is the leaves of a tree, which share their ancestors' forward passes.

plan    one noise per prompt; at the split steps each state gets K children by the SDE, whose noises are
        (ξ + λη) / √(1 + λ²) with ξ shared among siblings.   Mix: elsewhere the SDE only in a sliding window
credit  r(node) = Σ_leaves w r, w = softmax(β Σ_path log p);   A = (r - mean r) / std r over the nodes of its depth
        width pruning trains, after the last split, the best child of each parent or the b best and b worst leaves;
        depth pruning leaves out a few depths, a window that moves on every 30 iterations
loss    -min(ρA, clip(ρ) A) over edges; an edge has its child's advantage

The released code scales the splits' noise by 4 and takes log-probabilities as if it had not, weighs leaves by the
children's edges alone, and trains the last step although the image does not depend on its noise; we follow the paper.
Pruning four depths, as the paper says, leaves 9.6 trained edges a leaf; its table's 8.6 needs five.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..objectives.advantages import Blend, Normalize, advantages, combine, gated
from ..objectives.tree_credit import fuse, path_log_prob, widths
from ..sampling.kernels import KernelName
from ..sampling.rollout import Plan, Rollout, Transitions, transitions
from ..sampling.schedules import DynamicShift, LinearShift, SD3Grid, grid
from .base import Metrics, Models, OnPolicy, Requirements, Scores, pointwise
from .checks import check_policy_gradient, require
from .policy_gradient import log_ratio, policy_loss, step, untied
from .pruning import Pruning
from .windows import SlidingWindow


@dataclass(frozen=True)
class BranchGRPO(OnPolicy[Transitions]):
    weights: Mapping[str, float] = field(default_factory=dict)
    """Rewards and how much each counts in the sum whose advantage is trained on."""
    steps: int = 20
    """Denoising steps of a rollout."""
    schedule: SD3Grid | LinearShift | DynamicShift | None = LinearShift()
    """Where the steps stop between noise and image. None: the grid of the model's own pipeline."""
    splits: tuple[int, ...] = (0, 3, 6, 9)
    """Steps at which states branch: dense as here, mixed (0, 4, 8, 12) or sparse (0, 5, 10, 15)."""
    children: int = 2
    """K: children of a state at a split; a prompt has K ** len(splits) images."""
    split_noise: float | None = 4.0
    """λ: siblings' noises have the correlation 1 / (1 + λ²); None: independent."""
    kernel: KernelName = "dance_sde"
    """What draws a step."""
    eta: float = 0.3
    """Noise level of the stochastic steps."""
    path_weight: float = 1.0
    """β: how much more a leaf counts whose path was likelier; 0: all alike."""
    prune: Pruning = Pruning()
    """Which edges are not trained."""
    mix: SlidingWindow | None = None
    """BranchGRPO-Mix: only the splits and this window are stochastic and trained."""
    normalize: Normalize = Normalize(ddof=1, eps=1e-8)
    """How rewards become advantages, over the nodes of a depth."""
    blend: Blend = Blend()
    """How several rewards become one advantage."""
    max_advantage: float = 5.0
    """Advantages are clamped to ± this."""
    clip: float = 1e-4
    """ε of the clipped ratio (the released 1e-3 makes room for states stored in bf16)."""

    def __post_init__(self) -> None:
        check_policy_gradient(self.steps, self.kernel, self.eta, self.clip, self.max_advantage)
        ordered = self.splits and list(self.splits) == sorted(set(self.splits))
        inside = ordered and self.splits[0] >= 0 and self.splits[-1] <= self.steps - 2
        require(bool(inside), f"splits = {self.splits}: rising steps from 0 to {self.steps - 2}, before the last")
        require(self.children >= 2, f"children = {self.children}: a split needs at least 2")
        require(
            self.split_noise is None or self.split_noise > 0, f"split_noise = {self.split_noise}: positive, or None"
        )
        require(self.path_weight >= 0, f"path_weight = {self.path_weight}: 0 or more")
        self.prune.check(self.steps, self.splits, self.group)
        if self.mix is not None:
            self.mix.check(self.steps)
            require(self.prune.depth == 0, "prune.depth and mix both choose the steps to train: take one of them")

    @property
    def group(self) -> int:
        """Images per prompt."""
        return self.children ** len(self.splits)

    @property
    def requirements(self) -> Requirements:
        return Requirements(pointwise(self.weights, self.blend), self.blend)

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        noisy = set(range(self.steps - 1))
        if self.mix is not None:
            start = self.mix.start(step, self.steps, generator)
            noisy = {*self.splits, *range(start, start + self.mix.width)}
        trained = noisy - set(self.prune.steps(step, self.steps, self.splits))
        among = lambda steps: torch.tensor([k in steps for k in range(self.steps)])
        return Plan(
            grid(self.schedule, self.steps),
            self.eta * among(noisy),
            widths(self.steps, self.splits, self.children),
            among(trained)[:, None].expand(self.steps, self.group),
            split_noise=self.split_noise,
        )

    def credit(self, models: Models, rollout: Rollout, scores: Scores, generator: torch.Generator) -> Transitions:
        return transitions(rollout, [untied(level) for level in self.levels(rollout, scores)])

    def levels(self, rollout: Rollout, scores: Scores) -> list[Tensor]:
        """The advantage of each edge, by depth: N of (P, W_{k+1}, R), NaN where width pruning leaves it out."""
        leaves, found = gated(scores.rewards, self.blend.gate), []
        kept = self.prune.kept(combine(leaves, self.weights), self.children)[..., None]
        for k, width in enumerate(rollout.plan.widths[1:]):
            path = path_log_prob(rollout.log_prob, k + 1, self.group).cpu()  # where scores are
            nodes = {name: fuse(reward, path, width, self.path_weight) for name, reward in leaves.items()}
            found.append(advantages(nodes, self.weights, self.normalize, self.blend, self.max_advantage))
            if k > self.splits[-1]:
                found[-1] = found[-1].where(kept, torch.nan)
        return found

    def loss(self, models: Models, batch: Transitions) -> tuple[Tensor, Metrics]:
        return policy_loss(log_ratio(step(models.policy, self.step_kernel, batch), batch), batch, self.clip)
