"""What trackers get besides curves: sheets, clips, held-out tables and the way to the local page."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image
from tensorboard import plugin_util
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.data.prompts import ShapesPrompts
from afterflow.experiment import monitor, tracker_pictures
from afterflow.experiment.config import Logging, Run
from afterflow.experiment.execute import execute
from afterflow.experiment.image_grid import save_pictures
from afterflow.experiment.picture_store import encode_picture
from afterflow.experiment.tracker_pictures import OUTLETS, HeldOutMeasurement, TrackerPictures, markdown_table
from afterflow.models.adapters import LoRA
from afterflow.models.sd3 import SD3
from afterflow.system.errors import MissingDependencyError
from afterflow.system.side_outputs import SideOutputs

PROMPT = "a | b <script>alert(1)</script> *c* [x](javascript:1) _d_ \x1b[31m\n" + "long " * 100
CALLS = []


def counted(images, records):
    """A reward that counts the images it is asked about; every second prompt has no score."""
    CALLS.append(len(images))
    return np.array(
        [np.nan if len(record["prompt"]) % 2 else image.mean() / 255 for image, record in zip(images, records)]
    )


def small(pipeline, name, **options):
    algorithm = FlowGRPO({"jpeg_compressibility": 1.0}, steps=4, group=2, window=2, beta=0.0)
    held_out = {
        "held_out": ShapesPrompts("test", count=3),
        "eval_every": 2,
        "eval_images": 1,
        "eval_rewards": (counted,),
    }
    run = Run(algorithm, ShapesPrompts(count=4), SD3(pipeline, max_sequence_length=0), LoRA(rank=4, alpha=8), name=name)
    usual = {"iterations": 3, "batch": 2, "chunk": 8, "learning_rate": 1e-3, "inference_steps": 1, "sample_every": 2}
    return run.with_options(**usual, **held_out, **options)


def events(folder):
    sizes = dict.fromkeys(("images", "tensors", "scalars"), 0)
    read = EventAccumulator(str(folder), size_guidance=sizes)
    read.Reload()
    return read


def pictures_in(read, tag):
    return {image.step: image.encoded_image_string for image in read.Images(tag)}


def texts_in(read, tag):
    return {text.step: text.tensor_proto.string_val[0].decode() for text in read.Tensors(f"{tag}/text_summary")}


@pytest.fixture(scope="module")
def runs(pipeline, tmp_path_factory):
    """The folder of a run with tensorboard, and what it and the same run without one asked of a reward."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        asked, progress = {}, monitor.Progress
        patch.setattr(
            monitor, "Progress", lambda *options: asked.setdefault("progress", options) and progress(*options)
        )
        for tracker in ("none", "tensorboard"):
            CALLS.clear()
            execute(small(pipeline, tracker, tracker=tracker))
            asked[tracker] = list(CALLS)
        yield Path("runs").resolve(), asked


def test_tensorboard_gets_the_sheets_as_they_are_stored_at_their_iterations(runs):
    folder = runs[0] / "tensorboard"
    sheets = pictures_in(events(folder / "afterflow"), "samples/sheet")
    assert sheets == {step: (folder / "samples" / f"step_{step:06d}.png").read_bytes() for step in (0, 2)}


def test_tensorboard_gets_every_held_out_prompt_with_its_scores_and_its_stored_picture(runs):
    folder, read = runs[0] / "tensorboard", events(runs[0] / "tensorboard" / "afterflow")
    lines = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    prompts = len(lines[0]["jpeg_compressibility"])
    for row in range(prompts):
        stored = {step: folder / "pictures" / "held_out" / f"step_{step:06d}" / f"{row:03d}.png" for step in (0, 2)}
        assert pictures_in(read, f"held_out/{row:03d}") == {step: file.read_bytes() for step, file in stored.items()}
    table = texts_in(read, "held_out/scores")
    assert sorted(table) == [0, 2]
    rows = [line.strip("| ").split(" | ") for line in table[2].splitlines()]
    assert rows[0][:3] == ["row", "prompt", "tag"] and len(rows) == 2 + prompts
    column = rows[0].index("jpeg_compressibility before")
    for i, row in enumerate(rows[2:]):
        assert row[column : column + 2] == [f"{line['jpeg_compressibility'][i]:.4g}" for line in lines]
    assert rows[0][column + 1] == "jpeg_compressibility now"


def test_a_tracker_knows_the_folder_and_the_command_that_shows_the_run(runs):
    (file,) = (runs[0] / "tensorboard" / "afterflow").rglob("hparams.yml")
    about = yaml.safe_load(file.read_text())
    assert about["folder"] == "runs/tensorboard" and about["page"] == "afterflow view runs/tensorboard"


def test_nothing_is_drawn_scored_or_trained_differently_for_a_tracker(runs):
    folder, asked = runs
    assert asked["tensorboard"] == asked["none"] and len(asked["none"]) == 2  # after the first iteration and the last
    lora = "lora/pytorch_lora_weights.safetensors"
    assert (folder / "tensorboard" / lora).read_bytes() == (folder / "none" / lora).read_bytes()


def test_pictures_can_be_kept_from_a_tracker(pipeline, own_folder):
    folder = execute(small(pipeline, "it", tracker="tensorboard", tracker_pictures=False)).folder
    read = events(folder / "afterflow")
    assert read.Tags()["images"] == [] and read.Tags()["tensors"] == []
    assert "reward" in read.Tags()["scalars"] and len(list((folder / "samples").iterdir())) == 2


def test_the_first_process_shows_the_progress_of_all_images(runs):
    name, budget, _, items, earlier, shows = runs[1]["progress"]
    assert (name, budget.iterations, items, earlier, shows) == ("none", 3, (2 * 2, "images"), [], True)


# Each tracker in its own terms


def measurement(tmp_path, **changes):
    first = encode_picture(np.full((8, 8, 3), 200, np.uint8))
    (tmp_path / "000.png").write_bytes(first)
    records = [{"prompt": PROMPT, "tag": "two|tags"}, {"prompt": "plain"}]
    before, now = {"strict": [0.0, float("nan")]}, {"strict": [1.0, 0.5], "new": [0.25, 2.0]}
    usual = {"step": 7, "records": records, "before": before, "now": now, "pictures": {0: tmp_path / "000.png"}}
    return HeldOutMeasurement(**{**usual, **changes})


def test_a_table_has_what_is_measured_and_nothing_where_nothing_is(tmp_path):
    columns, rows = measurement(tmp_path).table()
    assert columns[:4] == ["row", "picture", "prompt", "tag"]
    assert columns[4:] == ["strict before", "strict now", "new before", "new now"]
    assert rows[0][:2] == [0, tmp_path / "000.png"] and rows[0][4:] == [0.0, 1.0, None, 0.25]
    assert rows[1][:2] == [1, None] and rows[1][2:] == ["plain", "", None, 0.5, None, 2.0]


def test_a_table_of_many_prompts_has_rows_spread_over_all_and_those_with_a_picture(tmp_path):
    scores = {"strict": [float(i) for i in range(5000)]}
    many = measurement(tmp_path, records=[{"prompt": str(i)} for i in range(5000)], before=scores, now=scores)
    many = many.table()[1]
    assert len(many) == tracker_pictures.TABLE_ROWS and many[0][0] == 0 and many[-1][0] == 4999
    shown = measurement(
        tmp_path, records=[{"prompt": str(i)} for i in range(5000)], now=scores, pictures={1: Path("x")}
    )
    assert [row[:2] for row in shown.table()[1]][1] == [1, Path("x")]


def test_tensorboard_shows_markup_of_prompts_as_text(tmp_path):
    columns, rows = measurement(tmp_path).table()
    page = plugin_util.markdown_to_safe_html(markdown_table([columns, *rows]))
    assert page.count("<tr>") == 3 and page.count("<td>") == 2 * len(columns)
    assert not any(f"<{tag}" in page for tag in ("script", "a ", "em", "strong")) and "\x1b" not in page
    assert "_d_" in page and "two|tags" in page and "&lt;script&gt;" in page


def test_tensorboard_gets_clips_in_motion(tmp_path):
    clips = np.random.default_rng(0).integers(0, 255, (2, 5, 8, 8, 3), dtype=np.uint8)
    files = save_pictures(tmp_path / "step_000003.png", clips, ["a", "b"], 2)
    writer = SummaryWriter(str(tmp_path / "events"))
    outlet = OUTLETS["tensorboard"](SimpleNamespace(tracker=writer))
    shown(outlet).show_samples(3, files)
    writer.close()
    read = events(tmp_path / "events")
    (gif,) = read.Images("samples/clips")
    assert gif.step == 3 and gif.encoded_image_string == files[1].read_bytes()
    with Image.open(files[1]) as clip:
        assert (gif.width, gif.height) == clip.size and clip.n_frames == 5
    assert pictures_in(read, "samples/sheet") == {3: files[0].read_bytes()}


def setup_of(main=True, trackers=(), **logging):
    options = SimpleNamespace(**{"tracker": "wandb", "tracker_pictures": True, **logging})
    processes = SimpleNamespace(main=main, accelerator=SimpleNamespace(trackers=list(trackers)))
    return SimpleNamespace(processes=processes, run=SimpleNamespace(logging=options))


def shown(outlet):
    """The pictures of a run whose tracker has this outlet."""
    pictures = TrackerPictures(setup_of(), SideOutputs())
    pictures.outlet = outlet
    return pictures


class Media:
    """A picture or a table of a library: what it was made from."""

    def __init__(self, **made):
        self.__dict__.update(made)


def library_of(name):
    """A module with the classes that wandb or trackio have, which take what those take."""

    def image(data_or_path, caption=None):
        with Image.open(data_or_path) as picture:
            assert isinstance(data_or_path, str) and picture.size
            return Media(kind="image", content=Path(data_or_path).read_bytes())

    def video(data_or_path, caption=None, fps=None, format=None):
        assert isinstance(data_or_path, str) and data_or_path.endswith(f".{format}")
        return Media(kind="video", content=Path(data_or_path).read_bytes())

    def table(columns=None, data=None):
        assert all(type(column) is str for column in columns) and all(len(row) == len(columns) for row in data)
        assert all(isinstance(value, str | int | float | Media | None) for row in data for value in row)
        return Media(kind="table", columns=columns, data=data)

    module = ModuleType(name)
    module.Image, module.Video, module.Table = image, video, table
    return module


class Tracker:
    """A tracker of accelerate: what was logged, by step."""

    def __init__(self, name):
        self.name, self.logged = name, []

    def log(self, values, step=None):
        self.logged += [(step, key, value) for key, value in values.items()]


@pytest.fixture(params=["wandb", "trackio"])
def library(request, monkeypatch):
    """A tracker of a library that stands for one that is not installed, and the outlet for it."""
    monkeypatch.setitem(sys.modules, request.param, library_of(request.param))
    tracker = Tracker(request.param)
    return tracker, TrackerPictures(setup_of(trackers=[tracker], tracker=request.param), SideOutputs())


def test_a_library_gets_sheets_and_clips_in_motion(library, tmp_path):
    tracker, pictures = library
    clips = np.random.default_rng(0).integers(0, 255, (2, 5, 8, 8, 3), dtype=np.uint8)
    files = save_pictures(tmp_path / "step_000003.png", clips, ["a", "b"], 2)
    pictures.show_samples(3, files)
    assert [(step, key) for step, key, _ in tracker.logged] == [(3, "samples/sheet"), (3, "samples/clips")]
    assert [media.content for _, _, media in tracker.logged] == [file.read_bytes() for file in files]
    # The browser plays a GIF as an image; trackio would put it into a player of videos, which does not.
    assert [media.kind for _, _, media in tracker.logged] == ["image", "video" if tracker.name == "wandb" else "image"]


def test_a_library_gets_a_table_with_pictures_and_escaped_texts(library, tmp_path):
    tracker, pictures = library
    pictures.tabulate(measurement(tmp_path))
    ((step, key, table),) = tracker.logged
    assert (step, key, table.kind) == (7, "held_out/scores", "table")
    row, picture, prompt, tag, *scores = table.data[0]
    assert row == 0 and picture.content == (tmp_path / "000.png").read_bytes() and scores == [0.0, 1.0, None, 0.25]
    assert table.data[1][1] is None and table.data[1][4:] == [None, 0.5, None, 2.0]
    assert "\x1b" not in prompt and "\n" not in prompt and len(prompt) < 400
    marked = tracker.name == "trackio"  # whose cells are Markdown
    assert ("<script>" in prompt) != marked and ("&lt;script&gt;" in prompt) == marked
    assert tag == ("two\\|tags" if marked else "two|tags")


@pytest.mark.parametrize("what", ["show_samples", "tabulate"])
def test_a_tracker_that_fails_is_said_once_and_ends_nothing(library, tmp_path, caplog, what):
    tracker, pictures = library
    tracker.log = lambda values, step=None: (_ for _ in ()).throw(SystemExit("no network"))
    arguments = {"show_samples": (2, [tmp_path / "000.png"]), "tabulate": (measurement(tmp_path, step=2),)}
    for _ in range(2):
        getattr(pictures, what)(*arguments[what])
    assert (
        caplog.text.count("failed") == 1
        and f"iteration 2: pictures of {tracker.name} failed: SystemExit" in caplog.text
    )


def test_a_library_that_is_broken_costs_the_pictures_alone(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    pictures = TrackerPictures(setup_of(trackers=[Tracker("wandb")]), SideOutputs())
    pictures.show_samples(0, [Path("nowhere.png")])
    assert "pictures of wandb failed" in caplog.text and "nowhere" not in caplog.text


@pytest.mark.parametrize("why", ["not the first process", "switched off", "no tracker"])
def test_who_gives_no_pictures_opens_no_file(library, why, tmp_path):
    tracker, _ = library
    options = {"main": why != "not the first process", "tracker_pictures": why != "switched off"}
    trackers = [tracker] if why != "no tracker" else []
    pictures = TrackerPictures(setup_of(trackers=trackers, tracker=tracker.name, **options), SideOutputs())
    pictures.show_samples(0, [tmp_path / "nowhere.png"])
    pictures.tabulate(measurement(tmp_path))
    assert tracker.logged == [] and pictures.side.missing == {}


def test_large_files_are_made_smaller_for_a_tracker_and_stay_as_they_are(library, tmp_path, monkeypatch):
    tracker, pictures = library
    for name, value in {"AS_STORED": 1000, "SHEET_SIDE": 80, "PICTURE_SIDE": 40}.items():
        monkeypatch.setattr(tracker_pictures, name, value)
    noise = np.random.default_rng(0).integers(0, 255, (3, 50, 100, 3), dtype=np.uint8)
    sheet, clip = tmp_path / "step_000000.png", tmp_path / "step_000000.gif"
    Image.fromarray(noise[0]).save(sheet)
    clip.write_bytes(encode_picture(noise))
    stored = [sheet.read_bytes(), clip.read_bytes()]
    pictures.show_samples(0, [sheet, clip])
    for file, given in zip(("sheet.jpg", "clip.gif"), (media for _, _, media in tracker.logged)):
        (tmp_path / file).write_bytes(given.content)
        with Image.open(tmp_path / file) as picture:
            assert picture.size == (80, 40) and getattr(picture, "n_frames", 1) == (3 if "gif" in file else 1)
    pictures.tabulate(measurement(tmp_path, pictures={0: sheet}))
    (tmp_path / "cell.jpg").write_bytes(tracker.logged[-1][2].data[0][1].content)
    with Image.open(tmp_path / "cell.jpg") as picture:
        assert picture.size == (40, 20)
    assert [sheet.read_bytes(), clip.read_bytes()] == stored


# The libraries themselves, where they are installed


def files_of(pipeline, tracker):
    """The names of the pictures and tables below the folder, after a run with a tracker that is installed."""
    try:
        Logging(tracker=tracker)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    execute(small(pipeline, "it", tracker=tracker))
    return [str(file) for file in Path().rglob("*") if file.is_file()]


def test_wandb_keeps_pictures_and_tables_offline(pipeline, own_folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    files = files_of(pipeline, "wandb")
    assert sum("media/images/samples/sheet_" in file for file in files) == 2
    assert any("media/table/held_out/scores_" in file for file in files)


def test_trackio_keeps_pictures_and_tables_in_its_folder(pipeline, own_folder, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(Path("trackio").resolve()))
    files = [file for file in files_of(pipeline, "trackio") if file.startswith("trackio/")]
    prompts = len(json.loads(Path("runs/it/held_out.jsonl").read_text().splitlines()[0])["jpeg_compressibility"])
    assert sum(file.endswith(".png") for file in files) == 2 + 2 * prompts
