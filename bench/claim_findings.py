"""How each claim of claims.py is found: what was measured, the verdict and the command, from bench/results alone.

A comparison of two methods holds when the 95 % interval of their difference is above 0.  Where the trainings' figures
of every prompt are stored, that is the interval for other prompts and seeds; else the two gains are taken as
independent though they share prompts.  A claim about time holds when the measured ratio is at most a twentieth above
the published one.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from math import hypot
from pathlib import Path
from typing import NamedTuple

from sequential import MARGIN

RESULTS = Path(__file__).parent / "results"
METHODS = "methods.json"
SOAR_SECONDS, SOAR_IMAGES = "soar_seconds/comparison.json", "soar_images/comparison.json"
FAMILY = "family/comparison.json"
SEESAW = "seesaw.json"


class Missing(Exception):
    """A result that a claim needs is not stored."""


class Estimate(NamedTuple):
    value: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Standard error, from the 95 % interval."""
        return (self.high - self.low) / (2 * 1.96)

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


class Finding(NamedTuple):
    measured: str
    verdict: str
    command: str


@cache
def stored(name: str) -> dict:
    """A result by its path under bench/results; Missing when it is not there."""
    file = RESULTS / name
    if not file.is_file():
        raise Missing(name)
    return json.loads(file.read_text())


def gain(report: dict, figure: str = "strict") -> Estimate:
    return Estimate(**report["overall"][figure]["delta"])


def method(result: str, name: str) -> dict:
    """One method of a stored comparison."""
    methods = {entry["name"]: entry for entry in stored(result)["methods"]}
    if name not in methods:
        raise Missing(f"{name} in {result}")
    return methods[name]


def beyond(a: Estimate, b: Estimate) -> str:
    """Whether a is above b."""
    difference, error = a.value - b.value, hypot(a.error, b.error)
    return "held" if difference > 1.96 * error else "not held" if difference < -1.96 * error else "undecided"


def better(
    result: str, first: str, second: str, figure: str = "strict", of_second: str | None = None
) -> Callable[[], Finding]:
    """The claim that `first` gains more than `second`, which may be of another result."""

    def find() -> Finding:
        if (pair := decided_pair(result, first, second)) is not None:
            says = {"ahead": "held", "behind": "not held", "alike": "not held, they are alike"}
            return Finding(apart_text(pair), says.get(pair["verdict"], "undecided"), stored(result)["command"])
        a = gain(method(result, first)["report"], figure)
        b = gain(method(of_second or result, second)["report"], figure)
        commands = dict.fromkeys(stored(name)["command"] for name in (result, of_second or result))
        apart = None if of_second else lead(result, first, second, figure)
        verdict = beyond(a, b) if apart is None else beyond_or_alike(apart)
        measured = f"{first} {a}, {second} {b}" + ("" if apart is None else f": ahead by {apart}")
        return Finding(measured, verdict, ", then ".join(commands))

    return find


def decided_pair(result: str, first: str, second: str) -> dict | None:
    """What sequential.py decides of two variants of an ablation; None where it was made before there was a rule."""
    pairs = stored(result).get("pairs", ())
    return next((pair for pair in pairs if (pair["first"], pair["second"]) == (first, second)), None)


def apart_text(pair: dict) -> str:
    return f"{pair['first']} ahead of {pair['second']} by {Estimate(**pair['strict'])}, {pair['seeds']} seeds each"


def lead(result: str, first: str, second: str, figure: str) -> Estimate | None:
    """By how much `first` is above `second` on the same prompts; None where no interval over seeds is stored."""
    for entry in stored(result).get("differences", ()):
        if {entry["first"], entry["second"]} == {first, second} and entry["of_seeds"]:
            apart = Estimate(**entry[figure])
            return apart if entry["first"] == first else Estimate(-apart.value, -apart.high, -apart.low)
    return None


def above_zero(apart: Estimate) -> str:
    return "held" if apart.low > 0 else "not held" if apart.high < 0 else "undecided"


def beyond_or_alike(apart: Estimate) -> str:
    """Whether the difference is above 0, where an interval within the margin says that there is none to speak of."""
    verdict = above_zero(apart)
    near = apart.low > -MARGIN and apart.high < MARGIN
    return "not held, they are alike" if verdict == "undecided" and near else verdict


def alike(result: str, first: str, second: str, margin: float) -> Callable[[], Finding]:
    """The claim that `first` loses no more than `margin` against `second`."""

    def find() -> Finding:
        if (pair := decided_pair(result, first, second)) is not None:
            low, high = pair["strict"]["low"], pair["strict"]["high"]
            verdict = "held" if low > -MARGIN else "not held" if high < -MARGIN else "undecided"
            return Finding(apart_text(pair), verdict, stored(result)["command"])
        a, b = (gain(method(result, name)["report"]) for name in (first, second))
        low, high = (a.value - b.value + sign * 1.96 * hypot(a.error, b.error) for sign in (-1, 1))
        verdict = "held" if low > -margin else "not held" if high < -margin else "undecided"
        return Finding(f"{first} {a}, {second} {b}", verdict, stored(result)["command"])

    return find


def best(result: str, name: str) -> Callable[[], Finding]:
    """The claim that `name` gains most of its ablation."""

    def find() -> Finding:
        if pairs := [pair for pair in stored(result).get("pairs", ()) if pair["first"] == name]:
            verdicts = {pair["verdict"] for pair in pairs}
            open_still = "undecided" in verdicts and verdicts <= {"undecided", "ahead"}
            verdict = "held" if verdicts == {"ahead"} else "undecided" if open_still else "not held"
            return Finding("; ".join(map(apart_text, pairs)), verdict, stored(result)["command"])
        gains = {entry["name"]: gain(entry["report"]) for entry in stored(result)["methods"]}
        verdicts = {beyond(gains[name], other) for key, other in gains.items() if key != name}
        verdict = "not held" if "not held" in verdicts else "undecided" if "undecided" in verdicts else "held"
        return Finding(listed(gains), verdict, stored(result)["command"])

    return find


def listed(gains: dict[str, Estimate]) -> str:
    return ", ".join(f"{name} {value}" for name, value in gains.items())


def time_of(name: str, published: float, against: str = "ratio") -> Callable[[], Finding]:
    """The claim that an iteration takes `published` of DanceGRPO's seconds."""

    def find() -> Finding:
        result = stored("iteration_time.json")
        entry = result["methods"][name]
        predicted = entry["predicted" if against == "ratio" else "predicted_vs_dance_60"]
        measured = f"{entry[against]:.3f}, {predicted:.3f} by counting forward and backward passes"
        reach = "" if predicted <= 1.05 * published else ", so the count alone is above the claim"
        verdict = "held" if entry[against] <= 1.05 * published else "not held"
        return Finding(measured + reach, verdict, result["command"])

    return find


def on_clips() -> Finding:
    result = stored("moving.json")
    dance, branch = (result["methods"][f"moving_{name}_grpo"] for name in ("dance", "branch"))
    ratio, evaluations = result["branch_over_dance"], "evaluations_of_an_image"
    costs = [f"{run[evaluations]['rollout']:.1f} and {run[evaluations]['update']:.1f}" for run in (branch, dance)]
    measured = f"{ratio:.3f} on the tiny Wan, all stages, evaluations a clip {costs[0]} against {costs[1]}"
    return Finding(measured, "held" if ratio <= 1.05 * 8 / 20 else "not held", result["command"])


def smooth_on_clips() -> Finding:
    result = stored("moving.json")
    held_out = [result["methods"][f"moving_{name}_grpo"]["held_out"] for name in ("dance", "branch")]
    dance, branch = (Estimate(*scores["moving_smoothness"]["difference"]) for scores in held_out)
    low, high = (branch.value - dance.value + sign * 1.96 * hypot(branch.error, dance.error) for sign in (-1, 1))
    verdict = "held" if low > -0.05 else "not held" if high < -0.05 else "undecided"
    return Finding(
        f"on the tiny Wan: BranchGRPO {branch}, DanceGRPO {dance} in as many seconds", verdict, result["command"]
    )


def counted(name: str, old: float, new: float | None = None) -> Callable[[], Finding]:
    """The claim that an image costs `old` evaluations in the rollout and `new` in the update."""

    def find() -> Finding:
        result = stored("iteration_time.json")
        entry = result["methods"][name]
        pairs = [(entry["nfe_old"], old), (entry["nfe_new"], new)]
        verdict = "held" if all(want is None or have <= 1.05 * want for have, want in pairs) else "not held"
        return Finding(f"{entry['nfe_old']:.2f} and {entry['nfe_new']:.2f}", verdict, result["command"])

    return find


def over_seeds(name: str) -> tuple[list[Estimate], list[float], str]:
    """A learning curve's gains of each seed, its changes in fidelity, and its command."""
    seeds = [result for _, result in sorted(stored(name)["seeds"].items())]
    gains, fidelity = ([gain(seed["report"], figure) for seed in seeds] for figure in ("strict", "fidelity"))
    recipe = Path(name).stem
    return gains, [change.value for change in fidelity], f"python bench/learning_curve.py {recipe} --seeds 0 1 2"


def reinforcement_helps() -> Finding:
    gains, _, command = over_seeds("shapes_flow_grpo.json")
    verdict = "held" if all(gain.low > 0 for gain in gains) else "not held"
    return Finding(f"{', '.join(map(str, gains))}, a seed each", verdict, command)


def kl_keeps_fidelity() -> Finding:
    with_kl, fidelity_with, command = over_seeds("shapes_flow_grpo.json")
    without, fidelity_without, _ = over_seeds("shapes_flow_grpo_no_kl.json")
    mean = lambda values: sum(values) / len(values)
    measured = (
        f"fidelity {mean(fidelity_with):+.3f} with a KL ({spread(fidelity_with)}) and "
        f"{mean(fidelity_without):+.3f} without ({spread(fidelity_without)}), "
        f"strict {mean([g.value for g in with_kl]):+.3f} and {mean([g.value for g in without]):+.3f}"
    )
    cheap = mean([g.value for g in with_kl]) > mean([g.value for g in without]) - 0.03
    apart = mean(fidelity_with) > mean(fidelity_without)
    held = min(fidelity_with) > max(fidelity_without) and cheap
    verdict = "held" if held else "undecided" if apart else "not held"
    return Finding(measured, verdict, f"{command}, and again with beta = 0 in the recipe")


def spread(values: Sequence[float]) -> str:
    return f"{min(values):+.3f} to {max(values):+.3f}"


def samples_stay() -> Finding:
    result = stored("diversity.json")
    tree, floor = (result["found"][name]["mmd2"] for name in ("dense", "floor"))
    measured = f"MMD² {tree:.4f} of trees, {floor:.4f} of other chains, in features of the shapes world"
    return Finding(measured, "held" if tree < 0.0149 else "not held", result["command"])


def groups_stay() -> Finding:
    result = stored("diversity.json")
    tree, chains = (result["found"][name]["diversity"] for name in ("dense", "floor"))
    lost = 1 - tree / chains
    measured = f"{tree:.1f} against {chains:.1f} between two images of a prompt, {lost:.0%} less"
    return Finding(measured, "held" if lost > 0.05 else "not held", result["command"])


def averages(name: str) -> list[float]:
    """Of a recipe over its seeds: the mean strict of the tasks that have teachers."""
    seeds = stored("generalist.json")["recipes"].get(name)
    if not seeds:
        raise Missing(name)
    return [result["taught"]["average"]["tuned"]["value"] for _, result in sorted(seeds.items())]


def ahead(first: str, second: str, points: float) -> Callable[[], Finding]:
    """The claim that the average of `first` is so much above that of `second`, seed by seed."""

    def find() -> Finding:
        a, b = averages(first), averages(second)
        lead = [x - y for x, y in zip(a, b)]
        verdict = "held" if min(lead) >= points else "not held" if max(lead) < points else "undecided"
        written = lambda values: ", ".join(f"{value:.3f}" for value in values)
        measured = f"{first} {written(a)}, {second} {written(b)}: ahead by {spread(lead)}"
        return Finding(measured, verdict, stored("generalist.json")["command"])

    return find


def beside_teachers(name: str) -> dict[str, dict[str, float]]:
    """Seed → task → strict of a recipe over that of the task's teacher."""
    seeds = stored("generalist.json")["recipes"].get(name)
    if not seeds:
        raise Missing(name)
    of = lambda taught: {tag: scores["delta"]["value"] for tag, scores in taught.items() if tag != "average"}
    return {seed: of(result["taught"]) for seed, result in sorted(seeds.items())}


def near_teachers() -> Finding:
    by_seed = beside_teachers("shapes_generalist")
    behind = {f"{tag}, seed {seed}": value for seed, tags in by_seed.items() for tag, value in tags.items()}
    worst = min(behind, key=lambda name: behind[name])
    verdict = "held" if behind[worst] >= -0.02 else "not held"
    command = stored("generalist.json")["command"]
    return Finding(f"{spread(list(behind.values()))}, the lowest is {worst}", verdict, command)


def seesaw() -> Finding:
    worst = [min(tags.values()) for tags in beside_teachers("shapes_mixed_grpo").values()]
    best = [max(tags.values()) for tags in beside_teachers("shapes_mixed_grpo").values()]
    verdict = "held" if max(worst) < -0.03 else "not held"
    measured = f"Flow-GRPO on all tasks beside their specialists: worst task {spread(worst)}, best {spread(best)}"
    return Finding(measured, verdict, stored("generalist.json")["command"])


def changes_of_signs(name: str, figure: str) -> list[float]:
    """By how much a figure of signs changed while a method was trained on letters alone, seed by seed."""
    runs = [run["signs"] for run in stored("text_hacking.json")["runs"][name].values()]
    return [signs[-1][f"eval/{figure}"] - signs[0][f"eval/{figure}"] for signs in runs]


def hacked_on_text() -> Finding:
    result, change = stored("text_hacking.json"), changes_of_signs
    nft, flow = (change(name, "shapes_fidelity") for name in ("DiffusionNFT", "Flow-GRPO"))
    measured = "; ".join(
        f"{name}: fidelity {spread(change(name, 'shapes_fidelity'))}, letters {spread(change(name, 'shapes_partial'))}"
        for name in result["runs"]
    )
    verdict = "held" if max(nft) < min(0.0, *flow) else "not held" if min(nft) >= max(flow) else "undecided"
    return Finding(measured, verdict, result["command"])


def in_conflict(first: str, second: str, task: str) -> Estimate:
    """By how much `first` is above `second` in the seesaw; Missing where neither has a second seed."""
    apart = lead(SEESAW, first, second, task)
    if apart is None:
        raise Missing(f"{first} and {second} in {SEESAW}")
    return apart


def ahead_in_conflict(first: str, others: Sequence[str]) -> Callable[[], Finding]:
    """The claim that `first` stands nearer to both specialists, in the mean over tasks, than each of the others."""

    def find() -> Finding:
        apart = {name: in_conflict(first, name, "both") for name in others}
        verdicts = {above_zero(value) for value in apart.values()}
        verdict = "not held" if "not held" in verdicts else "undecided" if "undecided" in verdicts else "held"
        measured = ", ".join(f"{value} of {name}" for name, value in apart.items())
        return Finding(f"{first} is ahead by {measured}", verdict, stored(SEESAW)["command"])

    return find


def gives_up(mixes: Sequence[str]) -> Callable[[], Finding]:
    """The claim that no mix reaches both specialists of the same cost: each is below one of them."""

    def find() -> Finding:
        below = {name: [in_conflict(name, task, task) for task in ("composition", "style")] for name in mixes}
        reached = [name for name, of_task in below.items() if all(value.low > -0.03 for value in of_task)]
        trades = all(any(value.high < 0 for value in of_task) for of_task in below.values())
        written = (f"{name} {composition} and {style}" for name, (composition, style) in below.items())
        measured = f"against the specialists of composition and of style: {', '.join(written)}"
        return Finding(
            measured, "not held" if reached else "held" if trades else "undecided", stored(SEESAW)["command"]
        )

    return find


def near_teachers_in_conflict() -> Finding:
    apart = {task: in_conflict("opd", f"teacher_{task}", task) for task in ("composition", "style")}
    near, far = (
        all(test(value) for value in apart.values()) for test in (lambda v: v.low > -0.02, lambda v: v.high >= -0.02)
    )
    verdict = "held" if near else "undecided" if far else "not held"
    measured = ", ".join(f"{task} {value}" for task, value in apart.items())
    return Finding(f"beside the teacher of each: {measured}", verdict, stored(SEESAW)["command"])


def anchor_keeps_fidelity() -> Finding:
    recipes, change = stored("generalist.json")["recipes"], {}
    for name in ("shapes_generalist", "shapes_generalist_no_anchor"):
        if not recipes.get(name):
            raise Missing(name)
        change[name] = [gain(result["report"], "fidelity").value for result in recipes[name].values()]
    anchored, free = change.values()
    verdict = "held" if min(anchored) > max(free) else "not held" if max(anchored) < min(free) else "undecided"
    measured = f"fidelity {spread(anchored)} with the anchor, {spread(free)} without"
    return Finding(measured, verdict, stored("generalist.json")["command"])


def costs(name: str) -> Callable[[], Finding]:
    """That a step takes what its passes take, within a tenth."""

    def find() -> Finding:
        result = stored("teaching_cost.json")
        entry = result["methods"][name]
        measured = (
            f"{entry['rows']:g} evaluations an image, {entry['ratio']:.3f} of the time predicted by counting them"
        )
        return Finding(measured, "held" if abs(entry["ratio"] - 1) <= 0.1 else "not held", result["command"])

    return find


def sooner(fast: str, slow: str, factor: float) -> Callable[[], Finding]:
    """The claim that `fast` reaches the final score of `slow` in 1 / factor of the seconds that are counted."""

    def find() -> Finding:
        runs = {name: {run["seed"]: run["curve"] for run in method(METHODS, name)["runs"]} for name in (fast, slow)}
        seeds = sorted(runs[fast].keys() & runs[slow].keys())
        ratios = [1 / share_until(runs[fast][seed], final_score(runs[slow][seed])) for seed in seeds]
        verdict = "held" if min(ratios) >= factor else "not held" if max(ratios) < factor else "undecided"
        measured = f"{spread(ratios)} times as fast over seeds {', '.join(map(str, seeds))}, on {CURVE}"
        return Finding(measured, verdict, stored(METHODS)["command"])

    return find


CURVE = "the held-out prompts of the runs' curves"


def final_score(curve: Sequence[dict]) -> float:
    """The last strict score of a curve."""
    return curve[-1]["eval/shapes_strict"]


def share_until(curve: Sequence[dict], score: float) -> float:
    """The share of a run, in images drawn, until its curve first reaches a score; infinite where it never does."""
    first, last = curve[0]["evaluations"], curve[-1]["evaluations"]
    for before, after in pairwise(curve):
        low, high = (point["eval/shapes_strict"] for point in (before, after))
        if high >= score:
            part = 0.0 if low >= score else (score - low) / (high - low)
            reached = before["evaluations"] + part * (after["evaluations"] - before["evaluations"])
            return max(reached - first, 1) / (last - first)
    return float("inf")
