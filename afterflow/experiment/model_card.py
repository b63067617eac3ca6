"""The model card of a run: what was trained, how, and its scores on held-out prompts."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCardData

from .. import __version__
from ..models.adapters import LoRA
from ..models.families import FAMILIES
from ..models.lora.files import COMFYUI
from ..models.lora.pair_files import noise_files
from ..models.pipeline_files import SHIPPED
from ..models.wan import Wan
from ..system.atomic_files import write_text_atomically, writing
from ..system.escapes import code_span, markdown_text, python_text
from ..train.repeated_prompts import prompts_of_rows
from .config import Run
from .intervals import Estimate, estimate_text, estimates
from .run_folder import REPEATED, RunFolder, rewards_of

CARD_RESAMPLES = 2000
"""Number of bootstrap resamples."""


def write_card(run: Run, result: Path) -> None:
    """Write README.md beside the weights in `result`, with the first and the last of the run's sample pictures."""
    lines = [
        "---",
        card_metadata(run).to_yaml(),
        "---",
        "",
        f"# {run.name}",
        "",
        *summary_table(run),
        "",
        *usage(run, result),
        "",
    ]
    folder = RunFolder(run.folder)
    sheets, measurements = folder.sample_sheets(), folder.measurements_of_now()
    if measurements:
        lines += [*score_table(run, measurements), ""]
    if len(sheets) > 1:
        lines += ["## Pictures", "", "From the same noise, at the first iteration and at the last.", ""]
        for name, file in (("first", sheets[0]), ("last", sheets[-1])):
            with writing(result / f"{name}{file.suffix}"):
                shutil.copyfile(file, result / f"{name}{file.suffix}")
            lines += [f"![{name} iteration]({name}{file.suffix})", ""]
    lines += ["## Licence", "", licence(run)]
    write_text_atomically(result / "run.json", folder.record_file.read_text(encoding="utf-8"))
    write_text_atomically(result / "README.md", "\n".join(lines) + "\n")


def card_metadata(run: Run) -> ModelCardData:
    """Return the metadata that the hub sorts by."""
    begins = "image" if RunFolder(run.folder).data().get("input_pictures") else "text"
    kind = f"{begins}-to-{'video' if isinstance(run.model, Wan) else 'image'}"
    tags = [kind, "diffusers", "afterflow", *(["lora"] if isinstance(run.tune, LoRA) else [])]
    return ModelCardData(base_model=on_hub(run), library_name="diffusers", pipeline_tag=kind, tags=tags)


def on_hub(run: Run) -> str | None:
    """Return the base's id on the hub, if it comes from there."""
    path = run.model.path
    return path if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path) and not Path(path).exists() else None


def summary_table(run: Run) -> list[str]:
    """Return a sentence about the result and a table of the run's main options."""
    tuned = f"A LoRA of rank {run.tune.rank}" if isinstance(run.tune, LoRA) else "All weights of the transformer"
    algorithm = run.algorithm
    weights: Mapping[str, float] = getattr(algorithm, "weights", {})
    ranked_by: Mapping[str, float] = getattr(run.data, "weights", {})
    rewards = ", ".join(f"{name} × {weight:g}" for name, weight in (weights or ranked_by).items())
    rows = {
        "method": type(algorithm).__name__,
        "data": type(run.data).__name__,
        "images": image_counts(RunFolder(run.folder).data()),
        "prompts cut": cut_counts(RunFolder(run.folder).data()),
        "rewards": rewards,
        "iterations": f"{steps_done(run)} of {run.batches.batch} " + ("prompts" if weights else "examples"),
        "learning rate": f"{run.optimization.learning_rate:g}",
        "guidance scale": f"{run.batches.guidance_scale:g}",
        "seed": str(run.seed),
    }
    base = f"| base model | {base_in_words(run)} |"
    table = [
        "| | |",
        "|---|---|",
        base,
        *(f"| {name} | {markdown_text(value)} |" for name, value in rows.items() if value),
    ]
    sentence = f"{tuned}, trained with afterflow {__version__}; run.json beside it repeats it."
    return [sentence, "", *table]


def image_counts(data: Mapping[str, Any]) -> str:
    """Write how many images the run learnt from, and how many were left out and why; nothing where it drew its own."""
    if "images" not in data:
        return ""
    left_out = ", ".join(f"{count} {reason}" for reason, count in data["left_out"].items())
    return f"{data['images']}" + (f"; left out: {left_out}" if left_out else "")


def cut_counts(data: Mapping[str, Any]) -> str:
    """Write how many prompts were longer than an encoder reads; nothing where all were read whole."""
    return ", ".join(f"{count} by {encoder}" for encoder, count in data.get("cut_prompts", {}).items())


def base_in_words(run: Run) -> str:
    """Write the base and in what its frozen weights were kept while a LoRA was trained beside them."""
    model = run.model
    base = code_span(model.path) + (f" at {code_span(model.revision)}" if model.revision else "")
    if model.quantize is None:
        return f"{base}, in {model.dtype}"
    return f"{base}, its weights quantised to {model.quantize}, computed in {model.dtype}"


def steps_done(run: Run) -> int:
    """Return the number of iterations that the run did."""
    return RunFolder(run.folder).metrics()[-1]["step"] + 1


def base_in_code(run: Run) -> str:
    """Return the base as a user names it in code."""
    if run.model.path in SHIPPED:
        return run.model.path.upper()
    revision = f", revision={python_text(run.model.revision)}" if run.model.revision else ""
    return f"{python_text(run.model.path)}{revision}"


def stock_of(run: Run) -> str:
    """Return the name of the pipeline's class in diffusers."""
    return FAMILIES[type(run.model)].stock


def usage(run: Run, result: Path) -> list[str]:
    """Return the lines that load the result in diffusers."""
    stock = stock_of(run)
    shipped = [f"from afterflow.models.pipeline_files import {base_in_code(run)}"] if run.model.path in SHIPPED else []
    start = f"pipe = {stock}.from_pretrained({base_in_code(run)})"
    code = [start, *load_calls(run, result)] if isinstance(run.tune, LoRA) else []
    code = code or [f"pipe = {stock}.from_pretrained({python_text(str(result))})"]
    lines = ["## Use", "", "```python", *shipped, f"from diffusers import {stock}", "", *code, "```"]
    files = [file.name for file in (result / COMFYUI, *noise_files(result / COMFYUI)) if file.is_file()]
    if files:
        names = "` and `".join(files)
        lines += [
            "",
            f"For ComfyUI and kohya's trainers, copy `{names}` to `models/loras` there. It is the same LoRA with "
            "their names of layers. In both files alpha is the rank, so a strength of 1 is the strength of training.",
        ]
    return lines


def load_calls(run: Run, result: Path) -> list[str]:
    """Return the lines that load a LoRA in diffusers: one, or one for each of two networks."""
    lines = []
    for options in FAMILIES[type(run.model)].lora_calls:
        options_text = "".join(
            f", {name}={python_text(value) if isinstance(value, str) else value}" for name, value in options.items()
        )
        lines.append(f"pipe.load_lora_weights({python_text(str(result))}{options_text})")
    return [f"{lines[0]}  # or the id of this repository", *lines[1:]]


def score_table(run: Run, measurements: list[dict[str, Any]]) -> list[str]:
    """Return a table of the rewards on held-out prompts, first and last, with intervals over prompts."""
    first, last = measurements[0], measurements[-1]
    before, after, repeated = rewards_of(first), rewards_of(last), last.get(REPEATED, {})
    rows = {name: gains(np.array(before[name]), np.array(values), repeated) for name, values in after.items()}
    cells = lambda before, after, gain: f"{estimate_text(before)} | {estimate_text(after)} | {estimate_text(gain, '+')}"
    lines = [f"| {markdown_text(name)} | {cells(*gain)} |" for name, gain in rows.items()]
    prompts = len(next(iter(after.values())))
    different = f" ({prompts - len(repeated)} different ones)" if repeated else ""
    about = (
        f"Means over {prompts} held-out prompts{different} of {run.evaluation.eval_images} images each, "
        f"{run.evaluation.inference_steps} steps, "
        f"guidance {run.batches.guidance_scale:g}; 95 % intervals over prompts. First: after iteration {first['step']}."
    )
    head = ["| reward | first | last | difference |", "|---|---|---|---|"]
    return ["## Held-out prompts", "", about, "", *head, *lines]


def gains(before: np.ndarray, after: np.ndarray, repeated: Mapping[str, int]) -> list[Estimate | None]:
    """Return the mean before, after, and of the difference, of prompts' rewards (P,); None where no prompt has both.

    repeated: the rows that repeat a prompt, as `repeated_rows` returns them.
    """
    columns = np.stack([before, after, after - before], 1)
    known = np.isfinite(columns).all(1)
    if not known.any():
        return [None] * 3
    prompts = prompts_of_rows(len(before), repeated)[known]
    every = [np.arange(len(prompts))]
    return [*estimates(columns[known], every, CARD_RESAMPLES, np.random.default_rng(0), prompts)]


def licence(run: Run) -> str:
    """Return the sentence about the licence of the base's weights."""
    where = f"[{on_hub(run)}](https://huggingface.co/{on_hub(run)})" if on_hub(run) else code_span(run.model.path)
    return f"These weights are derived from {where}, whose licence applies to them."
