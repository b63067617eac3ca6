"""Do the leaves of trees look like images of independent rollouts?  MMD² of one policy's two ways of sampling.

    python bench/diversity.py --json bench/results/diversity.json

BranchGRPO reports MMD² of .0067 (Inception) and .0149 (CLIP) between tree and chain samples, and calls it nearly
unchanged.  Here features are the shapes world's (fixed random filters and colour statistics), standardised by those of
the chains; the kernel is Gaussian with the median distance as its width, and the estimate is unbiased, so it may be
below 0.  `floor` is the same between two samples of chains; `diversity` the mean distance of two images of a prompt.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--eta", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="-", help="file, or - for standard output")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    no_progress_bars()
    model = SD3(options.model).load()
    cond = encode_records(model, ShapesPrompts(count=options.prompts).records(0))
    velocity = in_chunks(model.velocity(model.module), 64)

    def images(algorithm: BranchGRPO, plan: Plan, name: str) -> np.ndarray:
        """uint8 (P, G, H, W, 3)."""
        sources = [generator(0, name, p) for p in range(len(cond))]
        noise = prompt_noise(sources, plan.widths[0], torch.empty(len(cond), 1, *model.latent_shape))
        leaves = sample(velocity, algorithm.step_kernel, plan, cond, noise, sources).leaves
        return model.decode(leaves.flatten(0, 1)).reshape(*leaves.shape[:2], 32, 32, 3)

    first = replace(TREES["dense"], eta=options.eta)
    tree_plan = first.plan(0, generator())
    chains = replace(tree_plan, widths=(first.group,) * (first.steps + 1), split_noise=None)
    one, other = images(first, chains, "one"), images(first, chains, "other")
    reference = features(one)
    scale, centre = reference.std(0) + 1e-6, reference.mean(0)
    standard = lambda pictures: (features(pictures) - centre) / scale
    width = median_distance(standard(one))
    found = {
        "floor": {"mmd2": mmd2(standard(one), standard(other), width), "diversity": mean_diversity(other)},
        **{name: {} for name in TREES},
    }
    for name, algorithm in TREES.items():
        algorithm = replace(algorithm, eta=options.eta)
        pictures = images(algorithm, algorithm.plan(0, generator()), name)
        found[name] = {"mmd2": mmd2(standard(one), standard(pictures), width), "diversity": mean_diversity(pictures)}
    result = {
        "command": " ".join(["python", *sys.argv]),
        "images": one.shape[0] * one.shape[1],
        "eta": options.eta,
        "found": found,
    }
    line = json.dumps(result)
    if options.json != "-":
        Path(options.json).write_text(line + "\n")
    print(line)


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
