"""The verifier of the editing world on true edits, on hard negatives, and on what lazy editors return.

    python bench/edit_verifier.py --json bench/results/edit_verifier.json

True edits are the rendered results, the same with noise of 2 grey levels and light that is up to 2 levels off, and
added objects at other places.  A hard negative is one fact away from a right picture: another colour or shape, an
object that is gone or 6 px off, a wrong letter, a ground that is 12 grey levels lighter or darker.  The attacks are
lazy edits, and right pictures with a part that is not: what is left of an old object or of old letters, other light, an
object that was to stay and is 1 px off or of another size.  All are made in tests/support/wrong_edits.py.
"""

import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from harness import make_parser, provenance, write_json

from afterflow.envs.shapes.edit_verifier import verify_edit
from afterflow.envs.shapes.edits import EDIT_TASKS, EditScene, draw_edit, render_scene

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from wrong_edits import attacks, hard_negative, true_variants


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--count", type=int, default=2000, help="requests, as many of each task and of each split")
    options = parser.parse_args()
    rng, start = np.random.default_rng(0), time.perf_counter()
    passed, made, wrong, failed = Counter(), Counter(), [], []
    for i in range(options.count):
        record = draw_edit("test" if i % 2 else "train", EDIT_TASKS[i // 2 % len(EDIT_TASKS)], rng)
        negative, what = hard_negative(record, rng)
        true = render_scene(EditScene.from_record(record["result"]))
        wrong_pictures = [("hard negatives", negative), *attacks(record, rng)]
        pictures = [("true edits", true), *true_variants(record, rng), *wrong_pictures]
        for kind, picture in pictures:
            strict = verify_edit(record, picture).strict
            made[kind] += 1
            passed[kind] += strict == 1
            right = kind.startswith("true edits")
            if strict and not right:
                wrong.append([kind, record["tag"], record["prompt"], what if kind == "hard negatives" else ""])
            elif right and not strict:
                failed.append([kind, record["tag"], record["prompt"]])
    write_json(
        provenance()
        | {
            "pass": {kind: [passed[kind], count] for kind, count in made.items()},
            "wrong pictures that pass": wrong,
            "true edits that fail": failed,
            "milliseconds a picture": round(1e3 * (time.perf_counter() - start) / made.total(), 2),
        },
        options.json,
        indent=1,
    )


if __name__ == "__main__":
    main()
