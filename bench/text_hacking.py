"""One reward alone, of text, and what hidden evaluators say of it: DiffusionNFT beside Flow-GRPO.

    python bench/text_hacking.py --seeds 0 1 2

The tiny pipeline learns signs that are longer than any it was trained on, rewarded by how many letters are right
(shapes_partial) and by nothing else.  Hidden from it are the fidelity of those signs, and the suite of all other tasks.
Every method has the iterations that make the seconds of bench/methods.py.  What is stored is not repeated.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from counted import SUITE, shortened, trained_and_judged
from harness import provenance
from methods import TRAININGS

from afterflow.data.prompts import ShapesPrompts
from afterflow.evaluation.comparison import beside_base, judged_from_json, pooled
from afterflow.experiment.config import Run
from afterflow.experiment.serialization import to_json
from afterflow.models.pipeline import no_progress_bars
from afterflow.recipes import RECIPES

RESULT = Path(__file__).parent / "results" / "text_hacking.json"
METHODS = {
    "DiffusionNFT": ("shapes_nft", {}),
    "DiffusionNFT, published KL of 1e-4": ("shapes_nft", {"kl": 1e-4}),
    "Flow-GRPO": ("shapes_flow_grpo", {}),
}
"""Name → recipe, and options of its algorithm."""
HIDDEN = ("shapes_partial", "shapes_fidelity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    no_progress_bars()
    for seed in options.seeds:
        for name in METHODS:
            results = stored()
            if str(seed) not in results["runs"].get(name, {}):
                result = trained(name, seed)
                results = stored()  # another process may have added to it meanwhile
                results["runs"].setdefault(name, {})[str(seed)] = result
                RESULT.write_text(json.dumps(results) + "\n")
    results = stored()
    results["reports"] = {name: report(name, list(seeds.values())) for name, seeds in results["runs"].items()}
    RESULT.write_text(json.dumps(results) + "\n")
    print_table(results)


def stored() -> dict:
    """What the file holds so far."""
    empty = {"command": "python bench/text_hacking.py --seeds 0 1 2", "suite": to_json(SUITE), "runs": {}}
    return json.loads(RESULT.read_text()) if RESULT.is_file() else empty


def run_of(name: str, seed: int) -> Run:
    """The run of a method: signs of the split ood, the letters as the only reward, fidelity watched."""
    recipe, options = METHODS[name]
    run = RECIPES[recipe]()
    assert isinstance(run, Run)
    algorithm = replace(run.algorithm, weights={"shapes_partial": 1.0}, **options)  # type: ignore[call-arg]
    iterations = json.loads(TRAININGS.times.read_text())["iterations"][recipe]
    return replace(run, algorithm=algorithm).with_options(
        data=ShapesPrompts("ood", tags=("text",)),
        held_out=ShapesPrompts("ood", count=60, tags=("text",)),
        eval_every=max(1, iterations // 4),
        eval_rewards=HIDDEN,
        name=f"text_hacking/{recipe}{''.join(f'_{k}_{v:g}' for k, v in options.items())}_{seed}",
        seed=seed,
        iterations=iterations,
        sample_every=0,
        keep_checkpoints=1,
        mixed_precision="no",
    )


def trained(name: str, seed: int) -> dict:
    """Train one method with one seed; return its curve on signs, and its figures on the suite."""
    run = run_of(name, seed)
    finished = trained_and_judged(run, METHODS[name][0], name)
    evaluated = [{key: value for key, value in line.items() if key.startswith("eval/")} for line in finished.lines]
    curve = [line for line in evaluated if line]
    return {"iterations": run.batches.iterations, "signs": curve, "judged": shortened(finished.judged), **provenance()}


def report(name: str, runs: list[dict]) -> dict:
    """The suite's report over the seeds of a method."""
    judged = pooled([judged_from_json(run["judged"]) for run in runs])
    return to_json(beside_base(run_of(name, 0), SUITE, judged, name))


def print_table(results: dict) -> None:
    """Print what became of the signs, their fidelity, and of all other tasks."""
    print("| method | seeds | letters of signs | fidelity of signs | strict of other tasks | their fidelity |")
    print("|---|---|---|---|---|---|")
    for name, runs in results["runs"].items():
        ends = [(run["signs"][0], run["signs"][-1]) for run in runs.values()]
        change = lambda reward, ends=ends: sum(b[f"eval/{reward}"] - a[f"eval/{reward}"] for a, b in ends) / len(ends)
        overall = results["reports"][name]["overall"]
        deltas = (overall[figure]["delta"] for figure in ("strict", "fidelity"))
        cells = [f"{change(reward):+.3f}" for reward in HIDDEN]
        cells += [f"{d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]" for d in deltas]
        print("|", name, "|", len(runs), "|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
