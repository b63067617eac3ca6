"""Nothing is deleted or replaced that afterflow did not write, and no symbolic link is followed out of a folder."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from adapters import save_lora
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.cli.main import main
from afterflow.cli.output import write_text
from afterflow.data.image_folders import list_images
from afterflow.data.prompts import ShapesPrompts
from afterflow.evaluation.image_store import open_store
from afterflow.experiment.config import Run
from afterflow.experiment.execute import execute
from afterflow.experiment.image_grid import save_pictures
from afterflow.experiment.run_folder import RECORD_MARK, is_of_run
from afterflow.experiment.serialization import to_json
from afterflow.experiment.stages import BuildParts, Chain, Merge, Samples, execute_chain
from afterflow.models.adapters import LoRA
from afterflow.models.lora.files import lora_file
from afterflow.models.sd3 import SD3
from afterflow.system.atomic_files import write_text_atomically, writing
from afterflow.system.errors import AfterflowError, CheckpointError, InputError, OutputError
from afterflow.system.folder_lock import LOCK, locked_folder
from afterflow.system.own_folders import (
    MAKER,
    check_inside,
    check_links,
    check_own,
    check_own_file,
    is_own_picture,
    remove_own,
)
from afterflow.train.checkpoint import check_own_checkpoints, remove_unfinished

KEPT = "a neighbour's only copy"


@pytest.fixture
def neighbour(own_folder, tmp_path):
    """A folder beside runs/, with a file that must stay."""
    folder = tmp_path / "neighbour"
    folder.mkdir()
    (folder / "kept.txt").write_text(KEPT)
    yield folder
    assert [path.name for path in folder.iterdir()] == ["kept.txt"]
    assert (folder / "kept.txt").read_text() == KEPT


@pytest.fixture
def run(pipeline, own_folder):
    options = {"iterations": 1, "batch": 2, "chunk": 8, "sample_every": 0, "name": "mine"}
    algorithm = FlowGRPO({"jpeg_compressibility": 1.0}, steps=2, group=2, beta=0.0)
    return Run(algorithm, ShapesPrompts(count=4), SD3(pipeline, max_sequence_length=0), LoRA(2, 2)).with_options(
        **options
    )


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target, target_is_directory=target.is_dir())


def write(path, text=KEPT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


FOREIGN = {
    "lora is a link": lambda folder, other: link(folder / "lora", other),
    "model is a link": lambda folder, other: link(folder / "model", other),
    "lora.partial is a link": lambda folder, other: link(folder / "lora.partial", other),
    "checkpoints is a link": lambda folder, other: link(folder / "checkpoints", other),
    "a checkpoint is a link": lambda folder, other: link(folder / "checkpoints" / "step_000000", other),
    "samples is a link": lambda folder, other: link(folder / "samples", other),
    "metrics.jsonl is a link": lambda folder, other: link(folder / "metrics.jsonl", other / "kept.txt"),
    "the lock is a link": lambda folder, other: link(folder / LOCK, other / "kept.txt"),
    "a chain of links": lambda folder, other: (link(folder / "a", other), link(folder / "b", folder / "a")),
    "lora is somebody's": lambda folder, other: write(folder / "lora" / "thesis.tex"),
    "lora has a foreign run.json": lambda folder, other: write(folder / "lora" / "run.json", '{"laps": 3}'),
    "lora is a file": lambda folder, other: write(folder / "lora"),
    "lora.partial is somebody's": lambda folder, other: write(folder / "lora.partial" / "thesis.tex"),
    "a checkpoint is somebody's": lambda folder, other: write(folder / "checkpoints" / "step_000000" / "thesis.tex"),
    "an unfinished one too": lambda folder, other: write(folder / "checkpoints" / "step_9.partial" / "thesis.tex"),
    "the lock is somebody's": lambda folder, other: write(folder / LOCK),
    "a checkpoint without a state": lambda folder, other: write(folder / "checkpoints/step_1/manifest.json", "{}"),
    "run.json is somebody's": lambda folder, other: write(folder / "run.json", '{"laps": 3}'),
    "it lies in another run": lambda folder, other: write(folder.parent / "run.json", '{"config": {}}'),
}


def contents(folder):
    paths = sorted(Path(folder).rglob("*"))
    return {str(p): os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None for p in paths}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_folder_with_what_is_not_ours_is_refused_before_training_and_stays_as_it_is(case, run, neighbour):
    run = run.with_options(name="above/mine")
    FOREIGN[case](run.folder, neighbour)
    before = contents("runs")
    with pytest.raises(AfterflowError) as told:
        execute(run)
    assert "\n" not in str(told.value) and "runs/above" in str(told.value)
    assert {path: content for path, content in contents("runs").items() if path in before} == before


def test_a_run_that_has_left_a_result_is_not_trained_over_where_its_checkpoints_are_gone(run):
    folder = execute(run).folder
    assert is_of_run(folder / "lora") and not (folder / "lora.partial").exists()
    for path in (folder / "checkpoints").iterdir():
        remove_own(path, lambda _: True, "")
    with pytest.raises(CheckpointError, match=r"already holds a run; give this one another --name$"):
        execute(run)
    with pytest.raises(CheckpointError, match="its checkpoints are gone and lora/ is there, so it cannot go on"):
        execute(run, resume=True)
    (folder / "lora").rename(folder / "kept")
    assert is_of_run(execute(run).folder / "lora")


def test_runs_may_lie_on_another_disk(run, tmp_path):
    (tmp_path / "disk").mkdir()
    Path("runs").symlink_to(tmp_path / "disk", target_is_directory=True)
    folder = execute(run).folder
    assert is_of_run(tmp_path / "disk" / folder.name / "lora") and lora_file(folder).is_file()
    assert main(["export", str(folder)]) == 0


LINKED = {
    "push": "push owner/name runs/theirs",
    "report": "report runs/theirs",
    "resume": "train --resume runs/theirs",
    "export": "export runs/theirs",
    "eval": "eval tiny --lora runs/theirs",
    "merge": "merge runs/theirs runs/theirs --out runs/merged",
}


@pytest.mark.parametrize("command", LINKED)
def test_no_command_follows_a_link_out_of_a_run(command, run, neighbour, capsys):
    folder = Path("runs/theirs")
    write(folder / "run.json", json.dumps({"config": to_json(run.with_options(name="theirs"))}))
    write(folder / "metrics.jsonl", '{"step": 0, "seconds_trained": 1.0}\n')
    (folder / "checkpoints" / "step_000000").mkdir(parents=True)
    link(folder / "lora" / "pytorch_lora_weights.safetensors", neighbour / "kept.txt")
    assert main(LINKED[command].split()) in (1, 2)
    assert "symbolic link" in capsys.readouterr().err


CHAINED = {
    "export": "export runs/theirs/stage/lora",
    "export of the stage": "export runs/theirs/stage",
    "eval": "eval tiny --lora runs/theirs/stage/lora",
    "merge": "merge runs/theirs/stage/lora runs/theirs/stage/lora --out runs/merged",
    "push": "push owner/name runs/theirs/stage/lora",
    "sample a model": "sample runs/theirs/stage/model x",
    "eval a model": "eval runs/theirs/stage/model",
    "start from it": "train shapes_flow_grpo --tune.start runs/theirs/stage/lora --plan",
}
OUT = {
    "the folder": lambda stage, other: link(stage, other),
    "its file": lambda stage, other: link(stage / FILES.get(stage.name, "x.png"), other / "kept.txt"),
}
FILES = {"lora": "pytorch_lora_weights.safetensors", "model": "model_index.json"}


@pytest.mark.parametrize("mark", ["run.json", "stage.json", "inputs.json"])
@pytest.mark.parametrize("what", OUT)
@pytest.mark.parametrize("command", CHAINED)
def test_no_command_follows_a_link_out_of_a_stage(command, what, mark, neighbour, capsys):
    stage = Path("runs/theirs/stage")
    write(stage / mark, "{}")
    for name in ("lora", "model"):
        OUT[what](stage / name, neighbour)
    assert main(CHAINED[command].split()) in (1, 2)
    assert "symbolic link that leads out of runs/theirs/stage" in capsys.readouterr().err


@pytest.mark.parametrize("what", OUT)
def test_no_picture_outside_of_a_stage_is_learnt_from(what, neighbour):
    stage = Path("runs/theirs/stage")
    write(stage / "stage.json", "{}")
    OUT[what](stage / "images", neighbour)
    with pytest.raises(InputError, match="symbolic link that leads out of runs/theirs/stage"):
        list_images(stage / "images", "caption")


STAGES = {
    "a stage is a link": lambda stage, other: link(stage, other),
    "the folder above is": lambda stage, other: link(stage.parent, other),
    "its result is": lambda stage, other: link(stage / "lora", other),
    "its images are": lambda stage, other: link(stage / "images", other),
    "its pipeline is": lambda stage, other: link(stage / "model", other),
    "a file of it is": lambda stage, other: link(stage / "model" / "config.json", other / "kept.txt"),
    "its record is": lambda stage, other: link(stage / "stage.json", other / "kept.txt"),
    "what it is made from is": lambda stage, other: link(stage / "inputs.json", other / "kept.txt"),
    "its lock is": lambda stage, other: link(stage / LOCK, other / "kept.txt"),
    "its lora.partial is somebody's": lambda stage, other: write(stage / "lora.partial" / "thesis.tex"),
}


@pytest.mark.parametrize("case", STAGES)
@pytest.mark.parametrize("kind", ["run", "parts", "merge", "samples"])
def test_a_chain_writes_through_no_link_and_into_nobodys_folder(kind, case, run, neighbour):
    model, data = SD3(run.model.path), ShapesPrompts(count=4)
    stage = {
        "run": run.with_options(name="above/mine"),
        "parts": BuildParts("SD3", "above/mine"),
        "merge": Merge(("a", "b"), name="above/mine"),
        "samples": Samples(model, (), data, name="above/mine"),
    }[kind]
    STAGES[case](stage.folder, neighbour)
    before = contents("runs")
    with pytest.raises(AfterflowError, match=r"symbolic link|afterflow did not write it") as told:
        execute_chain(Chain("chain", (stage,)))
    assert "\n" not in str(told.value) and "runs/above" in str(told.value)
    assert contents("runs") == before


def test_what_is_named_outside_of_a_run_may_be_a_link(tmp_path):
    write(tmp_path / "blobs" / "1")
    link(tmp_path / "snapshot" / "pytorch_lora_weights.safetensors", tmp_path / "blobs" / "1")
    assert lora_file(tmp_path / "snapshot").is_file()
    check_inside(tmp_path / "snapshot")


WRITERS = {
    "write_text": lambda file: write_text(file, "x"),
    "write_text_atomically": lambda file: write_text_atomically(file, "x"),
    "check_own_file": lambda file: check_own_file(file, lambda _: True),
    "lock": lambda file: locked_folder(file.rename(file.with_name(LOCK)).parent).__enter__(),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_written_through_a_link(writer, neighbour, tmp_path):
    link(tmp_path / "out" / "file", neighbour / "kept.txt")
    with pytest.raises(OutputError, match="symbolic link"):
        WRITERS[writer](tmp_path / "out" / "file")


def test_devices_are_written_though_they_are_links():
    with writing(Path("/dev/stdout")):
        pass


def test_pictures_are_not_drawn_through_a_link(neighbour, tmp_path):
    link(tmp_path / "evals" / "00000", neighbour)
    with pytest.raises(InputError, match="symbolic link"):
        open_store(tmp_path / "evals", {})


def test_links_that_stay_inside_are_followed(tmp_path):
    (tmp_path / "wandb" / "run-1").mkdir(parents=True)
    link(tmp_path / "wandb" / "latest-run", tmp_path / "wandb" / "run-1")
    check_links(tmp_path)


SMALL = "--steps 1 --images 1 --max-sequence-length 0"
REPLACED = {
    "export": ("export mine/lora --out other.safetensors", "other.safetensors"),
    "export beside the LoRA": ("export mine/lora", "mine/lora/kohya.safetensors"),
    "export for diffusers": ("export mine/lora --to diffusers", "mine/lora/diffusers/comfyui.safetensors"),
    "merge": ("merge mine/lora mine/lora --out merged", "merged/pytorch_lora_weights.safetensors"),
    "sample": (f"sample MODEL x --out grid.png {SMALL}", "grid.png"),
    "eval --json": (f"eval MODEL --prompts 7 --json it.json {SMALL}", "it.json"),
    "eval --grid": (f"eval MODEL --prompts 7 --grid it.png {SMALL}", "it.png"),
    "eval --out": (
        f"eval MODEL --suite ocr --prompts 2 --rewards jpeg_compressibility --out drawn {SMALL}",
        "drawn/tuned/00000/samples/0000.png",
    ),
}
NOT_DONE = {
    "export": ("export mine/lora --out other.safetensors", "other.safetensors/thesis.tex"),
    "sample of clips": ("sample tiny x --out grid.png", "grid.gif"),
    "sample": ("sample tiny x --out grid.png", "grid.png/thesis.tex"),
    "report": ("report runs/mine --out page", "page/index.html"),
    "report's figures": ("report runs/mine --out page", "page/comparison.json"),
    "report into a file": ("report runs/mine --out page/thesis.tex", "page/thesis.tex"),
    "tree": ("tree runs/mine x --out tree.svg", "tree.svg"),
    "compare": ("compare shapes_flow_grpo --name mine", "runs/mine/comparison.png"),
    "merge into a file": ("merge mine/lora mine/lora --out thesis.tex", "thesis.tex"),
    "train": ("train shapes_flow_grpo --name mine", "runs/mine/metrics.jsonl"),
    "train, pictures": ("train shapes_flow_grpo --name mine", "runs/mine/samples/step_000000.png"),
    "eval --json": ("eval tiny --json it.json", "it.json/thesis.tex"),
}


def run_in_words(words, pipeline):
    return main([str(pipeline) if word == "MODEL" else word for word in words.split()])


@pytest.mark.parametrize("case", [*REPLACED, *(f"{name} " for name in NOT_DONE)])
def test_no_command_replaces_a_file_of_somebody_else(case, pipeline, own_folder, capsys):
    words, file = REPLACED[case] if case in REPLACED else NOT_DONE[case[:-1]]
    save_lora(pipeline, Path("mine/lora"), 2, 2)
    write(Path(file), '{"laps": 3}')
    before = contents(file)
    assert run_in_words(words, pipeline) in (1, 2)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("afterflow: ")]
    assert len(told) == 1 and file.split("/")[0] in told[0]
    assert contents(file) == before and Path(file).read_text() == '{"laps": 3}'


@pytest.mark.parametrize("case", REPLACED)
def test_a_command_replaces_what_it_wrote_itself(case, pipeline, own_folder):
    words, file = REPLACED[case]
    save_lora(pipeline, Path("mine/lora"), 2, 2)
    assert run_in_words(words, pipeline) == 0
    first = Path(file).read_bytes()
    assert run_in_words(words, pipeline) == 0
    assert Path(file).read_bytes() == first


def test_pictures_say_that_they_are_of_afterflow(tmp_path):
    save_pictures(tmp_path / "clips.png", np.zeros((2, 3, 8, 8, 3), np.uint8), ["a", "b"], 2)
    figure = Figure()
    figure.savefig(tmp_path / "tree.svg", metadata={"Title": MAKER})
    figure.savefig(tmp_path / "tree.png", metadata={"Software": MAKER})
    assert all(map(is_own_picture, tmp_path.iterdir())) and len(list(tmp_path.iterdir())) == 4
    figure.savefig(tmp_path / "theirs.png")
    assert not is_own_picture(tmp_path / "theirs.png")


def test_an_empty_folder_is_nobodys(tmp_path):
    remove_own(tmp_path / "absent", is_of_run, RECORD_MARK)
    (tmp_path / "empty").mkdir()
    remove_own(tmp_path / "empty", is_of_run, RECORD_MARK)
    assert not (tmp_path / "empty").exists()


def test_what_is_unfinished_and_not_ours_stays(tmp_path):
    write(tmp_path / "step_3.gone" / "thesis.tex")
    with pytest.raises(OutputError, match="afterflow did not write it"):
        remove_unfinished(tmp_path)
    with pytest.raises(OutputError, match="afterflow did not write it"):
        check_own_checkpoints(tmp_path)
    assert (tmp_path / "step_3.gone" / "thesis.tex").read_text() == KEPT


@pytest.mark.parametrize("text", ["[]", "{", "{}", '"config"', "[" * 100_000, "\xff"])
def test_a_folder_is_ours_only_by_a_record_of_ours(text, tmp_path):
    (tmp_path / RECORD_MARK).write_text(text, encoding="latin-1")
    with pytest.raises(OutputError, match=r"no run\.json"):
        check_own(tmp_path, is_of_run, RECORD_MARK)


def test_a_lora_of_a_run_is_found_where_no_link_leads_out(tmp_path):
    write(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert lora_file(tmp_path) == tmp_path / "lora" / "pytorch_lora_weights.safetensors"
