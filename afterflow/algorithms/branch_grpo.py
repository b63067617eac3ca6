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

from dataclasses import dataclass

import torch
from torch import Tensor

from ..objectives.advantages import Normalize, advantages, combine, gated
from ..objectives.tree_credit import fuse, path_log_prob, widths
from ..sampling.kernels import KernelName
from ..sampling.rollout import Levels, Plan, Transitions
from ..sampling.schedules import LinearShift, ScheduleOption, grid
from .base import Metrics, Models, Requirements, Scores, require
from .policy_gradient import PolicyGradient, compares_prompts
from .pruning import Pruning
from .ratios import density_loss, step
from .windows import SlidingWindow


@dataclass(frozen=True)
class BranchGRPO(PolicyGradient):
    """BranchGRPO (arXiv:2509.06040).  The released clip of 1e-3 makes room for states stored in bf16."""

    steps: int = 20
    schedule: ScheduleOption = LinearShift()
    kernel: KernelName = "dance_sde"
    eta: float = 0.3
    splits: tuple[int, ...] = (0, 3, 6, 9)
    """Steps at which states branch: dense as here, mixed (0, 4, 8, 12) or sparse (0, 5, 10, 15)."""
    children: int = 2
    """K, the number of children of a state at a split; a prompt has K ** len(splits) images."""
    split_noise: float | None = 4.0
    """λ of the correlation 1 / (1 + λ²) of siblings' noises; None draws them independently."""
    path_weight: float = 1.0
    """β, by which a leaf counts more the likelier its path is; 0 weighs leaves alike."""
    prune: Pruning = Pruning()
    """Edges that are not trained."""
    mix: SlidingWindow | None = None
    """BranchGRPO-Mix: only the splits and this window are stochastic and trained."""
    normalize: Normalize = Normalize(ddof=1, eps=1e-8)
    """How rewards become advantages, over the nodes of a depth."""

    def __post_init__(self) -> None:
        self.check_policy_gradient()
        last, noise = self.steps - 2, self.split_noise
        rising = list(self.splits) == sorted(set(self.splits)) and set(self.splits) <= set(range(last + 1))
        require(bool(self.splits) and rising, f"splits = {self.splits}: rising steps from 0 to {last}, before the last")
        require(self.children >= 2, f"children = {self.children}: a split needs at least 2")
        require(noise is None or noise > 0, f"split_noise = {noise}: positive, or None")
        require(self.path_weight >= 0, f"path_weight = {self.path_weight}: 0 or more")
        self.prune.check(self.steps, self.splits, self.group)
        if self.mix is not None:
            self.mix.check(self.steps)
            require(self.prune.depth == 0, "prune.depth and mix both choose the steps to train: take one of them")

    def unused(self) -> dict[str, tuple[str, ...]]:
        """Add the options of ways to prune, or of a window, that are not taken."""
        idle = super().unused()
        idle |= {} if self.prune.width == "extreme" else {f"with prune.width = {self.prune.width}": ("prune.extreme",)}
        return idle | ({} if self.prune.depth else {"with prune.depth = 0": ("prune.every", "prune.towards")})

    @property
    def group(self) -> int:
        """Return the number of images per prompt."""
        return self.children ** len(self.splits)

    @property
    def requirements(self) -> Requirements:
        """Return the rewards."""
        whole_batch = compares_prompts(self.normalize, self.blend)
        pruned = self.prune.share(self.steps, self.splits, self.children)
        return Requirements(self.weights, self.blend, whole_batch=whole_batch, pruned=pruned)

    def plan(self, step: int, generator: torch.Generator) -> Plan:
        """Return the tree of the splits."""
        noisy = set(range(self.steps - 1))
        if self.mix is not None:
            noisy = {*self.splits, *self.mix.covered(step, self.steps, generator)}
        trained = noisy - set(self.prune.steps(step, self.steps, self.splits))
        stochastic, train = (torch.tensor([k in chosen for k in range(self.steps)]) for chosen in (noisy, trained))
        return Plan(
            grid(self.schedule, self.steps),
            self.eta * stochastic,
            widths(self.steps, self.splits, self.children),
            train[:, None].expand(self.steps, self.group),
            split_noise=self.split_noise,
        )

    def credit(self, plan: Plan, log_prob: Levels, scores: Scores) -> Levels:
        """Return the advantage of each edge among those of its depth, NaN where width pruning takes it out."""
        leaves, levels = gated(scores.rewards, self.blend.gate), []
        trained = self.prune.trained(combine(leaves, self.weights), self.children)[..., None]
        for k, width in enumerate(plan.widths[1:]):
            path = path_log_prob(log_prob, k + 1, self.group).cpu()  # where scores are
            nodes = {name: fuse(reward, path, width, self.path_weight) for name, reward in leaves.items()}
            level = advantages(nodes, self.weights, self.normalize, self.blend, self.max_advantage)
            levels.append(level.where(trained, torch.nan) if k > self.splits[-1] else level)
        return levels

    def loss(self, models: Models, batch: Transitions) -> tuple[Tensor, Metrics]:
        """Return the clipped loss."""
        return density_loss(step(models.policy, self.step_kernel, batch), batch, self.clip, self.divergence)
