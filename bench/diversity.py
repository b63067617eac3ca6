"""Do the leaves of trees look like images of independent rollouts?  MMD² of one policy's two ways of sampling.

    python bench/diversity.py --json bench/results/diversity.json

BranchGRPO reports MMD² of .0067 (Inception) and .0149 (CLIP) between tree and chain samples, and calls it nearly
unchanged.  Here features are the shapes world's (fixed random filters and colour statistics), standardised by those of
the chains; the kernel is Gaussian with the median distance as its width, and the estimate is unbiased, so it may be
below 0.  `floor` is the same between two samples of chains; `diversity` the mean distance of two images of a prompt.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from harness import make_parser, provenance, write_json

from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.data.prompts import ShapesPrompts
from afterflow.envs.shapes import population
from afterflow.models.generate import encode_records
from afterflow.models.pipeline import no_progress_bars
from afterflow.models.sd3 import SD3
from afterflow.models.wrappers import in_chunks
from afterflow.sampling.rollout import Plan, prompt_noise, sample
from afterflow.sampling.seeds import generator

TREES = {
    "dense": BranchGRPO({"reward": 1.0}, steps=20, splits=(0, 3, 6, 9)),
    "sparse": BranchGRPO({"reward": 1.0}, steps=20, splits=(0, 5, 10, 15)),
    "independent": BranchGRPO({"reward": 1.0}, steps=20, splits=(0, 3, 6, 9), split_noise=None),
    "lambda_1": BranchGRPO({"reward": 1.0}, steps=20, splits=(0, 3, 6, 9), split_noise=1.0),
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--eta", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    no_progress_bars()
    write_json(measure(SD3(options.model).load(), options.prompts, options.eta), options.json)


def measure(model, prompts: int, eta: float) -> dict:
    """Return MMD² to the chains and the diversity, of other chains and of every kind of tree."""
    cond = encode_records(model, ShapesPrompts(count=prompts).records(0))
    draw = partial(draw_images, model, in_chunks(model.velocity(model.module), 64), cond)
    trees = {name: replace(algorithm, eta=eta) for name, algorithm in TREES.items()}
    first = trees["dense"]
    chains = replace(first.plan(0, generator()), widths=(first.group,) * (first.steps + 1), split_noise=None)
    one, other = draw(first, chains, "one"), draw(first, chains, "other")
    reference = features(one)
    scale, centre = reference.std(0) + 1e-6, reference.mean(0)
    standard = lambda images: (features(images) - centre) / scale
    width = median_distance(standard(one))

    def compare(images: np.ndarray) -> dict[str, float]:
        return {"mmd2": mmd2(standard(one), standard(images), width), "diversity": mean_diversity(images)}

    results = {name: compare(draw(tree, tree.plan(0, generator()), name)) for name, tree in trees.items()}
    return {
        **provenance(),
        "images": one.shape[0] * one.shape[1],
        "eta": eta,
        "found": {"floor": compare(other), **results},
    }


def draw_images(model, velocity, cond, algorithm: BranchGRPO, plan: Plan, name: str) -> np.ndarray:
    """Draw the leaves of every prompt by a plan: uint8 (P, G, H, W, 3)."""
    sources = [generator(0, name, p) for p in range(len(cond))]
    noise = prompt_noise(sources, plan.widths[0], torch.empty(len(cond), 1, *model.latent_shape))
    leaves = sample(velocity, algorithm.step_kernel, plan, cond, noise, sources).leaves
    return model.decode(leaves.flatten(0, 1)).reshape(*leaves.shape[:2], 32, 32, 3)


def features(pictures: np.ndarray) -> np.ndarray:
    return population.texture_features(pictures.reshape(-1, *pictures.shape[2:]))


def mean_diversity(pictures: np.ndarray) -> float:
    return float(np.mean([population.diversity(group) for group in pictures]))


def median_distance(x: np.ndarray) -> float:
    return float(np.median(np.sqrt(squared_distances(x, x)[np.triu_indices(len(x), 1)])))


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, F), (M, F) → (N, M)."""
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)


def mmd2(x: np.ndarray, y: np.ndarray, width: float) -> float:
    """Unbiased MMD² of two samples under a Gaussian kernel (Gretton et al. 2012, eq. 3)."""
    kernel = lambda a, b: np.exp(-squared_distances(a, b) / (2 * width**2))
    within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    return float(within(kernel(x, x)) + within(kernel(y, y)) - 2 * kernel(x, y).mean())


if __name__ == "__main__":
    main()
