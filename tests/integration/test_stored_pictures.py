"""Pictures that a run stores: which, with which scores, after a failure or a resume, and that no number moves."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.prompts import PromptFile, ShapesPrompts
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.picture_store import PictureStore, encode_picture, picture_suffix
from afterflow.experiment.run_folder import BASE_STEP, RunFolder
from afterflow.experiment.shown_pictures import HeldOutPictures
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3
from afterflow.rewards.grouped import GroupScores
from afterflow.system.errors import InputError
from afterflow.system.input_pictures import png_address
from afterflow.system.side_outputs import SideOutputs
from afterflow.train.distributed import Processes

pytestmark = pytest.mark.usefixtures("own_folder")


def drawn(images, records):
    """A reward that draws from the global generator, as a user's may."""
    return np.random.random(len(images))


def small(pipeline, algorithm=None, **options):
    algorithm = algorithm or FlowGRPO({"jpeg_compressibility": 1.0}, steps=4, group=4, window=2, beta=0.0)
    run = Run(
        algorithm, ShapesPrompts(count=10), SD3(pipeline, max_sequence_length=0), LoRA(rank=4, alpha=8), name="it"
    )
    usual = {"iterations": 3, "batch": 2, "chunk": 8, "learning_rate": 1e-3, "inference_steps": 2, "sample_every": 2}
    return run.with_options(**{**usual, **options})


def held_out(pipeline, **options):
    share = {"held_out_share": 0.5, "eval_every": 2, "eval_rewards": (drawn,)}
    return small(pipeline, **{**share, **options})


def about(name, step):
    return json.loads((Path("runs/it/pictures") / name / f"{step}.json").read_text())


def numbers(folder="runs/it"):
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("seconds")} for line in lines]


def test_a_run_stores_the_same_prompts_at_every_stage_with_their_scores(pipeline):
    execute(held_out(pipeline))
    folder = Path("runs/it/pictures")
    records = json.loads((folder / "samples" / "records.json").read_text())
    assert len(records["records"]) == 5 and records["per_prompt"] == 4
    for step, number in (("base", BASE_STEP), ("step_000000", 0), ("step_000002", 2)):
        stored = about("samples", step)
        assert stored["step"] == number and len(stored["pictures"]) == 20
        assert sorted(stored["pictures"]) == sorted(file.name for file in (folder / "samples" / step).iterdir())
        assert set(stored["scores"]) == {"jpeg_compressibility"}
        assert all(len(values) == 20 for values in stored["scores"].values())
        assert len(about("held_out", step)["pictures"]) == 5, "the first of each prompt"
    lines = [json.loads(line) for line in Path("runs/it/held_out.jsonl").read_text().splitlines()]
    means = lines[-1]["drawn"]
    assert len(means) == 5 and about("held_out", "step_000002")["scores"]["drawn"] != means, "one image, and two"
    assert not list(folder.rglob("*.partial"))


def test_a_run_says_which_held_out_prompts_repeat_another(pipeline, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cube\na blue ball\na red cube\n")
    execute(held_out(pipeline, held_out=PromptFile(str(prompts)), held_out_share=0.0))
    lines = [json.loads(line) for line in Path("runs/it/held_out.jsonl").read_text().splitlines()]
    assert [line["repeated_prompts"] for line in lines] == [{"2": 0}] * len(lines) and len(lines) > 1
    assert "3 held-out prompts (2 different ones)" in Path("runs/it/lora/README.md").read_text()


def test_a_reward_of_a_user_is_called_for_training_and_measuring_alone(pipeline):
    images = []

    def counted(pictures, records):
        images.append(len(pictures))
        return np.zeros(len(pictures))

    algorithm = FlowGRPO({counted: 0.5, "jpeg_compressibility": 0.5}, steps=4, group=4, window=2, beta=0.0)
    for name, sample_every in (("without", 0), ("it", 1)):
        images.clear()
        execute(small(pipeline, algorithm, name=name, sample_every=sample_every, held_out_share=0.5, eval_every=2))
        # Three rollouts of 2 x 4, and two measurements of 5 x 2; the base and the samples of each iteration are not.
        assert sum(images) == 3 * 8 + 2 * 10, name
    assert set(about("samples", "base")["scores"]) == {"jpeg_compressibility"}
    assert set(about("held_out", "base")["scores"]) == {"jpeg_compressibility"}
    assert set(about("held_out", "step_000002")["scores"]) == {"jpeg_compressibility", "counted"}


def test_base_and_later_pictures_begin_from_the_same_noise(pipeline):
    execute(held_out(pipeline, learning_rate=1e-12))
    for name in ("samples", "held_out"):
        read = lambda step, name=name: np.asarray(Image.open(f"runs/it/pictures/{name}/{step}/003.png")).astype(int)
        assert abs(read("base") - read("step_000002")).max() <= 1, "a policy that hardly moved draws what the base drew"


def rank_of_two(rank):
    processes = Processes()
    processes.rank, processes.count, processes.main = rank, 2, rank == 0
    return processes


def test_two_processes_store_the_held_out_pictures_that_one_does():
    records = [{"prompt": f"prompt {row}"} for row in range(5)]
    images = np.random.default_rng(0).integers(0, 255, (5, 2, 16, 16, 3), np.uint8)
    values = torch.arange(10.0).view(5, 2)
    values[3, 0] = torch.nan
    run, parts, stored = SimpleNamespace(folder=Path("runs/it")), {}, []
    for count, ranks in ((1, [Processes()]), (2, [rank_of_two(0), rank_of_two(1)])):
        shown = [HeldOutPictures(SimpleNamespace(run=run, processes=p, first=0), records, SideOutputs()) for p in ranks]
        for pictures, processes in zip(shown, ranks):
            rows = processes.evaluation_rows(5)
            scores = {"x": GroupScores(values[rows], {"part": -values[rows]}, ())}
            entries = pictures.of_process(images[rows.numpy()], rows.tolist(), scores, 4)
            parts.setdefault(count, []).extend(json.loads(json.dumps(entries)))  # as they travel
        shown[0].save(4, parts[count])
        folder = Path("runs/it/pictures/held_out/step_000004")
        stored.append((about("held_out", "step_000004"), [file.read_bytes() for file in sorted(folder.iterdir())]))
    assert len(parts[1]) == 5 and len(parts[2]) == 6, "the last row is drawn by both"
    assert stored[0] == stored[1] and stored[0][0]["scores"] == {"x": [0.0, 2.0, 4.0, None, 8.0]}
    assert stored[0][0]["parts"] == {"x/part": [-0.0, -2.0, -4.0, None, -8.0]} and len(stored[0][1]) == 5


def test_groups_have_all_rewards_and_the_best_and_worst_picture(pipeline):
    execute(small(pipeline))
    stored = about("groups", "step_000002")
    assert len(stored["groups"]) == 2 and len(stored["pictures"]) == 4
    group = stored["groups"][0]
    assert len(group["total"]) == 4 and group["total"] == group["rewards"]["jpeg_compressibility"]
    assert group["total"][group["best"]] == max(group["total"]) and group["total"][group["worst"]] == min(
        group["total"]
    )
    assert group["tree"] == [] and group["record"]["prompt"]
    assert not (Path("runs/it/pictures/groups") / "step_000001.json").exists(), "it is not due"


def test_a_tree_has_the_parents_and_mean_rewards_of_its_nodes(pipeline):
    execute(small(pipeline, BranchGRPO({"jpeg_compressibility": 1.0}, steps=4, splits=(0, 2)), iterations=1))
    group = about("groups", "step_000000")["groups"][0]
    root, middle, leaves = group["tree"]
    assert [level["step"] for level in group["tree"]] == [0, 1, 3]
    assert (root["parents"], middle["parents"], leaves["parents"]) == ([0], [0, 0], [0, 0, 1, 1])
    assert leaves["rewards"] == pytest.approx(group["total"])
    assert middle["rewards"] == pytest.approx(np.reshape(group["total"], (2, 2)).mean(1).tolist())
    assert root["rewards"] == pytest.approx([np.mean(group["total"])])


def test_no_number_of_training_moves_by_a_bit(pipeline):
    np.random.seed(0)
    execute(held_out(pipeline, sample_every=0))
    without = numbers()
    Path("runs/it").rename("runs/without")
    np.random.seed(0)
    execute(held_out(pipeline, sample_every=1))
    assert numbers() == without and "eval/drawn" in without[0]


def test_what_cannot_be_stored_ends_nothing_and_is_said(pipeline, caplog):
    execute(small(pipeline, sample_every=0, iterations=1, name="without"))
    Path("runs/it").mkdir()
    Path("runs/it/pictures").write_text("a file where a folder should be")
    (Path("runs/it") / "run.json").write_text(Path("runs/without/run.json").read_text())
    execute(small(pipeline, iterations=1))
    assert "not there: stored pictures" in caplog.text and Path("runs/it/lora").is_dir()


def test_a_resumed_run_writes_later_steps_again_and_leaves_the_base(pipeline):
    execute(small(pipeline, save_every=1, iterations=3, sample_every=1))
    base = {file: file.stat().st_mtime_ns for file in Path("runs/it/pictures/samples/base").iterdir()}
    before = about("samples", "step_000002")
    store = PictureStore(Path("runs/it"), "samples")
    store.write(9, [b"\x89PNG of a later step"], {})
    run = small(pipeline, save_every=1, iterations=5, sample_every=1)
    execute(run, resume=True)
    assert {file: file.stat().st_mtime_ns for file in Path("runs/it/pictures/samples/base").iterdir()} == base
    assert about("samples", "step_000002") == before
    assert not list(Path("runs/it/pictures/samples").glob("step_000009*"))
    for name in ("samples", "groups"):
        for file in (Path("runs/it/pictures") / name).glob("step_*.json"):
            pictures = json.loads(file.read_text())["pictures"]
            assert pictures and all((file.with_suffix("") / picture).is_file() for picture in pictures)
    assert (Path("runs/it/pictures/samples/step_000004.json")).is_file()


def test_a_step_that_is_broken_off_is_not_there(monkeypatch):
    store, pictures = PictureStore(Path("runs/it"), "samples"), [b"\x89PNG one", b"\x89PNG two"]
    store.begin(0, [{"prompt": "a cat"}], 2)
    store.write(7, pictures, {"scores": {"x": [1.0, math.nan]}})
    assert about("samples", "step_000007") == {
        "step": 7,
        "pictures": ["000.png", "001.png"],
        "scores": {"x": [1.0, None]},
    }

    def full(file, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("afterflow.experiment.picture_store.write_bytes", full)
    with pytest.raises(OSError):
        store.write(7, pictures, {})
    assert not (store.folder / "step_000007.json").exists(), "no file names pictures that are not there"


def test_a_set_of_other_prompts_is_begun_anew():
    store = PictureStore(Path("runs/it"), "samples")
    for first, prompt, steps in ((0, "a cat", []), (5, "a cat", [BASE_STEP, 4]), (5, "a dog", [])):
        store.begin(first, [{"prompt": prompt}], 1)
        assert sorted(json.loads(file.read_text())["step"] for file in store.folder.glob("[bs]*.json")) == steps
        for step in (BASE_STEP, 4, 6):
            store.write(step, [b"\x89PNG"], {})


def test_input_pictures_are_those_of_the_prompts_that_the_set_has():
    store = PictureStore(Path("runs/it"), "samples")
    for first, grey in ((0, 10), (0, 20), (5, 20), (5, 30)):
        address = png_address(np.full((8, 8, 3), grey, np.uint8))
        record = {"prompt": "it", "input": address}
        store.begin(first, [record], 1)
        store.write_inputs([record], 8, 8)
        assert np.asarray(Image.open(store.folder / "inputs" / "000_0.png")).max() == grey
    store.begin(0, [{"prompt": "it"}], 1)
    assert not (store.folder / "inputs").exists()


def test_a_folder_of_pictures_without_a_record_is_somebody_elses():
    Path("runs/it/pictures/samples").mkdir(parents=True)
    RunFolder(Path("runs/it")).check_safe()
    Path("runs/it/pictures/samples/holiday.png").write_bytes(b"\x89PNG")
    with pytest.raises(OSError, match=r"holiday\.png was not written by afterflow"):
        RunFolder(Path("runs/it")).check_safe()
    Path("runs/it/pictures/samples/holiday.png").unlink()
    Path("runs/it/pictures/elsewhere").symlink_to("/etc")
    with pytest.raises(InputError, match="leads out of"):
        RunFolder(Path("runs/it")).check_safe()


@pytest.mark.parametrize(
    "shape, suffix",
    [((64, 128, 3), ".png"), ((64, 129, 3), ".jpg"), ((3, 32, 32, 3), ".gif"), ((3, 200, 200, 3), ".gif")],
)
def test_pictures_are_stored_without_loss_up_to_128_px(shape, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    content = encode_picture(pixels)
    assert picture_suffix(content) == suffix
    if suffix == ".png":
        import io

        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)
