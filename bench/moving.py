"""BranchGRPO and DanceGRPO on the tiny Wan: seconds of an iteration, and what becomes of clips.

    python bench/moving.py --seconds 420 --json bench/results/moving.json

Both recipes train on the same prompts for as many seconds, one after the other on the same core.  Measured on held-out
prompts, without guidance, before and after: the verifier's strict and partial, and smoothness of motion, which is not
trained.  Seconds of an iteration are medians of rollout, decoding, rewards and update; the paper has 8 minutes against
20 on Wan 2.1 1.3B.
"""

import json
from statistics import median

import numpy as np
from harness import make_parser, provenance, write_json

from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.intervals import estimates
from afterflow.experiment.run_folder import REPEATED, RunFolder, rewards_of
from afterflow.models.pipeline import no_progress_bars
from afterflow.recipes import RECIPES
from afterflow.train.repeated_prompts import prompts_of_rows

METHODS = ("moving_dance_grpo", "moving_branch_grpo")
STAGES = ("rollout", "decode", "reward", "credit", "update")


def trained(name: str, seconds: float) -> dict:
    run = RECIPES[name]()
    assert isinstance(run, Run)
    run = run.with_options(
        iterations=10_000, budget_seconds=seconds, name=f"bench_{name}", sample_every=10_000, threads=1
    )
    folder = execute(run, name).folder
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    whole = [sum(line.get(f"seconds/{stage}", 0.0) for stage in STAGES) for line in lines]
    held_out = RunFolder(folder).held_out()
    first, last = held_out[0], held_out[-1]
    held_out_scores = {}
    for reward in rewards_of(last):
        columns = np.stack([first[reward], last[reward], np.subtract(last[reward], first[reward])], 1)
        every, prompts = [np.arange(len(columns))], prompts_of_rows(len(columns), last.get(REPEATED, {}))
        intervals = estimates(columns, every, 2000, np.random.default_rng(0), prompts)
        held_out_scores[reward] = {
            key: [round(x, 3) for x in (interval.value, interval.low, interval.high) if x is not None]
            for key, interval in zip(("before", "after", "difference"), intervals)
        }
    return {
        "iterations": len(lines),
        "seconds_of_an_iteration": median(whole),
        "seconds_by_stage": {stage: median(line.get(f"seconds/{stage}", 0.0) for line in lines) for stage in STAGES},
        "evaluations_of_an_image": {kind: lines[0][f"nfe/{kind}"] for kind in ("rollout", "update")},
        "held_out": held_out_scores,
        "curve": [
            {k: line[k] for k in line if k.startswith("eval/") or k == "step"}
            for line in lines
            if "seconds/eval" in line
        ],
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=420.0, help="of training, for each")
    options = parser.parse_args()
    no_progress_bars()
    results = {name: trained(name, options.seconds) for name in METHODS}
    dance, branch = (results[name]["seconds_of_an_iteration"] for name in METHODS)
    summary = {"methods": results, "branch_over_dance": branch / dance, "paper": 8 / 20}
    write_json(summary | provenance(), options.json, indent=1)


if __name__ == "__main__":
    main()
