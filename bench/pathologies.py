"""Runs that go wrong, each by one option, beside one that goes well: the pictures of docs/tutorial/reading_a_run.md.

    python bench/pathologies.py --json bench/results/pathologies.json

The tiny pipeline trains for minutes, and every run is a command of that page.  What is in runs/ already is not trained
again.  NAME.png shows the metrics by which the run is known, the healthy run in grey.  The result holds the curves, and
`rows` makes the lines of the page's tables from them.
"""

import math
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from harness import make_parser, provenance, read_json, write_json

from afterflow import Result
from afterflow.cli.main import main as afterflow
from afterflow.experiment.curves import Curves
from afterflow.experiment.run_folder import RunFolder

HEALTHY = "healthy"
BLUE, FIDELITY = "small_rewards:blue", "eval/shapes_fidelity"
SMALL = (
    "--algorithm.weights small_rewards:blue 1.0 --algorithm.beta 0.03 --batch 4 --chunk 32 --algorithm.group 8 "
    "--algorithm.steps 6 --algorithm.window 3 --algorithm.window-range 0 3 --held-out.count 20 --inference-steps 10 "
    "--eval-every 8 --eval-rewards shapes_fidelity --sample-every 0"
)
"""Options that make a run of Flow-GRPO small: a second an iteration."""


@dataclass(frozen=True)
class Pathology:
    """A run that goes wrong."""

    options: str
    """What differs from the healthy run, as options of the command line."""
    metrics: tuple[str, ...]
    """The metrics by which it is known."""
    recipe: str | None = None
    """The recipe that it is made of.  None: the healthy run, with which it is compared."""

    def command(self, name: str) -> str:
        """Return the command line of the run of this name."""
        source = f"--from runs/{HEALTHY}/run.json --trust-code" if self.recipe is None else self.recipe
        return f"afterflow train {source} --name {name} {self.options}"


PATHOLOGIES = {
    HEALTHY: Pathology(
        f"--iterations 24 {SMALL}",
        ("reward", "kl", f"eval/{BLUE}", FIDELITY),
        "shapes_flow_grpo",
    ),
    "too_slow": Pathology("--learning-rate 1e-6 --iterations 16", ("reward", "kl")),
    "collapse": Pathology("--learning-rate 3e-2 --iterations 16", ("reward", "kl", FIDELITY)),
    "hacking": Pathology("--learning-rate 2e-3 --algorithm.beta 0.01", (f"eval/{BLUE}", FIDELITY)),
    "dead_groups": Pathology(
        "--iterations 12 --eval-every 0 --algorithm.weights small_rewards:never 1.0", ("zero_std_groups", "grad_norm")
    ),
    "little_noise": Pathology(
        "--iterations 8 --eval-every 0 --algorithm.shared-noise --algorithm.eta 0.02",
        (f"reward_std/{BLUE}", "kl"),
    ),
    "runaway": Pathology("--learning-rate 5e-3 --algorithm.beta 1e-6", ("kl", FIDELITY)),
    "clipped": Pathology(
        "--iterations 10 --eval-every 0 --learning-rate 3e-3 --updates 4 --algorithm.clip 1e-5",
        ("clip_fraction", "kl"),
    ),
    "failing": Pathology(
        "--iterations 8 --eval-every 0 --algorithm.weights small_rewards:fragile 1.0 --max-missing 0.9",
        ("invalid/small_rewards:fragile", "reward"),
    ),
    "not_finite": Pathology(
        "--iterations 8 --eval-every 0 --learning-rate 1e20 --nonfinite skip", ("skipped", "grad_norm")
    ),
    "few_pictures": Pathology(
        "--data.count 4 --iterations 40 --batch 16 --learning-rate 3e-3 --guidance-scale 1 --held-out.count 20 "
        "--eval-images 2 --inference-steps 10 --eval-every 10 --sample-every 0",
        ("flow_matching", "eval/shapes_strict", "eval/diversity"),
        "shapes_sft",
    ),
}
"""Name of a run → how it goes wrong.  The first is the healthy one."""


def curve(name: str, metric: str) -> list[list[float]]:
    """Return the iterations and values of a metric where it was measured."""
    table = Result(Path("runs") / name).metrics
    if metric not in table:
        return []
    points = zip(table["step"].tolist(), table[metric].tolist())
    return [[int(step), float(f"{value:.4g}")] for step, value in points if math.isfinite(value)]


def draw(name: str, folder: Path) -> None:
    """Draw the metrics of a run, and those of the healthy run in grey."""
    metrics = PATHOLOGIES[name].metrics
    figure = Curves(Result(Path("runs") / name).metrics, metrics)
    for panel, metric in zip(figure.axes, metrics):
        points = curve(HEALTHY, metric) if PATHOLOGIES[name].recipe is None else []
        if points:
            panel.plot(*zip(*points), color="0.7", zorder=0, label=HEALTHY)
            panel.legend(fontsize=8, frameon=False)
    figure.savefig(folder / f"{name}.png", dpi=60)


def rows(result: dict, name: str) -> list[str]:
    """Return the lines of the page's table about a run: its metrics from first to last, and the healthy run's."""
    lines, healthy = [], result["runs"].get(HEALTHY, {"curves": {}})
    for metric in PATHOLOGIES[name].metrics:
        cells = [first_to_last(result["runs"][name]["curves"].get(metric, []))]
        if PATHOLOGIES[name].recipe is None:
            cells.append(first_to_last(healthy["curves"].get(metric, [])))
        lines.append(f"| `{metric}` | {' | '.join(cells)} |")
    return lines


def first_to_last(points: list[list[float]]) -> str:
    """Return the first and the last value of a curve."""
    return f"{points[0][1]:.3g} → {points[-1][1]:.3g}" if points else "not measured"


def train(name: str) -> float | None:
    """Train a run and return the seconds of the CPU that it took; None for one that is there already.

    SystemExit where its command does not end well.
    """
    if RunFolder(Path("runs") / name).result() is not None:
        return None
    command, start = PATHOLOGIES[name].command(name), time.process_time()
    print(command, flush=True)
    code = afterflow(shlex.split(command)[1:])
    if code:
        raise SystemExit(code)
    return round(time.process_time() - start, 1)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--pictures", default=".", help="folder of the pictures")
    parser.add_argument("--only", nargs="+", choices=PATHOLOGIES, help="names of runs; the others of the result stay")
    options = parser.parse_args()
    results = read_json(options.json).get("runs", {})
    for name in options.only or PATHOLOGIES:
        seconds = train(name) or results.get(name, {}).get("cpu_seconds")
        draw(name, Path(options.pictures))
        curves = {metric: curve(name, metric) for metric in shown(name)}
        about = {"command": PATHOLOGIES[name].command(name), "cpu_seconds": seconds}
        results[name] = about | {"curves": {metric: points for metric, points in curves.items() if points}}
    results = {name: results[name] for name in PATHOLOGIES if name in results}
    write_json({"runs": results, **provenance()}, options.json, show=False)
    for name in results:
        print("\n".join([f"\n{name}", *rows({"runs": results}, name)]))


def shown(name: str) -> tuple[str, ...]:
    """Return the metrics of a run that are stored: its own, and of the healthy run those of all others."""
    if name != HEALTHY:
        return PATHOLOGIES[name].metrics
    compared = [pathology for pathology in PATHOLOGIES.values() if pathology.recipe is None]
    return tuple(dict.fromkeys(metric for of in [PATHOLOGIES[HEALTHY], *compared] for metric in of.metrics))


if __name__ == "__main__":
    main()
