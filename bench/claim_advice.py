"""The five findings that docs/claims.md opens with: each a piece of advice, with figures of at least three seeds."""

from collections.abc import Callable
from statistics import fmean
from typing import NamedTuple

from claim_findings import METHODS, averages, changes_of_signs, gain, lead, method, over_seeds, spread, stored


class Advice(NamedTuple):
    do: str
    """What to do."""
    because: Callable[[], str]
    """What was measured."""


def forward_learns_faster() -> str:
    apart = lead(METHODS, "shapes_nft", "shapes_flow_grpo", "strict")
    nft, flow = (gain(method(METHODS, name)["report"]).value for name in ("shapes_nft", "shapes_flow_grpo"))
    gained = f"In the same seconds DiffusionNFT gained {nft:+.3f} of strict and Flow-GRPO {flow:+.3f}"
    return f"{gained}. It is ahead by {apart}, three seeds each"


def constant_rate_collapses() -> str:
    runs = stored("forward_collapse.json")["runs"]
    lost = spread([run["strict"][-1] - max(run["strict"]) for run in runs])
    under = sum(run["strict"][-1] <= run["strict"][0] for run in runs)
    fell = f"all {len(runs)} runs of DiffusionNFT, V-GRPO and FlowAWR fell from their peak, by {lost}"
    return f"At a constant rate of {runs[0]['learning_rate']:g} {fell}, and {under} ended no better than they began"


def narrow_rewards_are_hacked() -> str:
    nft, flow = (spread(changes_of_signs(name, "shapes_fidelity")) for name in ("DiffusionNFT", "Flow-GRPO"))
    fell = f"DiffusionNFT changed fidelity by {nft} in three seeds, and Flow-GRPO by {flow}"
    return f"With letters as the only reward, which was near its ceiling, {fell}"


def kl_is_cheap() -> str:
    measured = []
    for name in ("", "_no_kl"):
        gains, fidelity, _ = over_seeds(f"shapes_flow_grpo{name}.json")
        measured.append(
            f"gained {fmean(one.value for one in gains):+.3f} and changed fidelity by {fmean(fidelity):+.3f}"
        )
    return f"Flow-GRPO with a KL {measured[0]}. Without one it {measured[1]}, three seeds each"


def mixing_beats_distilling() -> str:
    mixed, distilled = averages("shapes_mixed_grpo"), averages("shapes_generalist")
    apart = spread([one - other for one, other in zip(mixed, distilled)])
    return f"On six tasks, one run on all was {apart} above Flow-OPD of specialists, in three seeds"


FINDINGS = (
    Advice("Begin with a forward-process method, such as DiffusionNFT", forward_learns_faster),
    Advice("Let its learning rate fall to the end", constant_rate_collapses),
    Advice("Never train on one narrow reward without measuring another", narrow_rewards_are_hacked),
    Advice("Keep the KL: it holds the quality of pictures and costs little", kl_is_cheap),
    Advice("Train tasks that do not compete in one run, and do not distil specialists", mixing_beats_distilling),
)


def advice() -> str:
    """Return the findings as a numbered list."""
    return "\n".join(f"{i}. **{one.do}.** {one.because()}." for i, one in enumerate(FINDINGS, 1))
