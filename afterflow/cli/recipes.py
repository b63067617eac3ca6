"""Recipes by name.  Importing them takes seconds, so their list is read from the source."""

import ast
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..system.errors import ConfigError
from ..system.names import unknown_name
from .help_words import asks_for_help

if TYPE_CHECKING:
    from ..experiment.config import Run
    from ..experiment.stages import Chain


FOLDER = Path(__file__).parents[1] / "recipes"

RECIPE_GROUPS = {
    "Try it here: the shipped tiny models, minutes to half an hour on one CPU core": """
        demo shapes_flow_grpo shapes_flow_grpo_cps shapes_flow_grpo_guard shapes_ddpo shapes_dance_grpo shapes_mix_grpo
        shapes_branch_grpo shapes_pref_grpo shapes_nft shapes_awm shapes_v_grpo shapes_flow_awr shapes_dgpo shapes_crd
        shapes_online_dpo
        shapes_sft shapes_soar shapes_dpo shapes_curated_soar shapes_generalist shapes_generalist_nft jpeg_ddpo
        moving_flow_grpo moving_dance_grpo moving_branch_grpo
    """,
    "A paper on a real model: one GPU; the twin NAME_8gpu has the paper's batch for several": """
        sd35_flow_grpo_geneval sd35_flow_grpo_ocr sd35_flow_grpo_pickscore sd35_flow_dppo sd35_soar sd35_dpo
        sd35_flow_opd flux_dance_grpo_hps flux_mix_grpo flux_mix_grpo_flash flux_branch_grpo flux_branch_grpo_mix
        flux_pref_grpo wan_branch_grpo sd35_nft_geneval sd35_nft_ocr sd35_nft_pickscore sd35_awm_geneval
        sd35_awm_ocr sd35_v_grpo_pickscore sd35_flow_awr_pickscore sd35_dgpo_geneval
        sd35_crd_geneval sd35_generalist
    """,
    "Other real models, and editing: one GPU, settings of practice": """
        klein_nft klein_flow_grpo klein_distilled_nft klein_distilled_flow_grpo z_image_nft z_image_turbo_nft
        z_image_turbo_flow_grpo klein_edit_nft klein_edit_flow_grpo qwen_image_edit_nft
    """,
    "A step of a chain: what other recipes start from": """
        tiny_sd3_pretrain tiny_wan_pretrain shapes_teacher_counting shapes_teacher_relations shapes_teacher_binding
        shapes_teacher_text shapes_teacher_fidelity
    """,
}
"""Heading → names of the recipes that a user looks for.  Those in no group are controls, ablations and twins."""


RECIPES_USAGE = """\
usage: afterflow recipes [--all]     --all adds controls, ablations and twins for several GPUs

It lists recipes by what they are for: name, what is known of it (docs/recipes.md says what the labels mean), and what
it does. `afterflow train NAME` trains by one, and `afterflow train NAME --help` lists its options.
"""


def recipes_command(args: Sequence[str]) -> None:
    """List the recipes in groups; with --all also controls, ablations and twins for several GPUs."""
    if asks_for_help(args):
        print(RECIPES_USAGE)
        return
    if list(args) not in ([], ["--all"]):
        raise ConfigError(f"afterflow recipes takes no options but --all, so not {' '.join(args)}")
    print(recipe_lines(every="--all" in args))


def made_by(name: str) -> "Run | Chain":
    """Return what the recipe of that name makes; raise ConfigError where there is none."""
    if name.startswith("-"):
        raise ConfigError(f"the recipe comes first, then options such as {name}: afterflow train RECIPE {name} ...")
    if "/" in name or Path(name).exists():
        raise ConfigError(
            f"{name} is a path, and the first word is a recipe; --resume goes on with a run, --from repeats one, and "
            "--images or --prompts after a recipe's name takes your data"
        )
    if name not in recipe_summaries():
        raise unknown_name("recipe", name, recipe_summaries())
    from ..recipes import RECIPES

    return RECIPES[name]()


def recipe_summaries() -> dict[str, str]:
    """Return name and first line of every recipe."""
    summaries = {name: line for file in sorted(FOLDER.glob("*.py")) for name, line in function_summaries(file).items()}
    return summaries | dict(twin_summaries())


def twin_summaries() -> Iterator[tuple[str, str]]:
    """Yield name and summary of the twins for several processes, from their table in the source."""
    for node in ast.parse((FOLDER / "papers.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MULTI_GPU":
            for name, (*_, summary) in ast.literal_eval(node.value).items():
                yield f"{name}_8gpu", summary


def function_summaries(file: Path) -> dict[str, str]:
    """Return name and first line of every public function of a file, without importing it."""
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return {node.name: (ast.get_docstring(node) or "").partition("\n")[0] for node in functions}


def recipe_lines(every: bool = False) -> str:
    """List name, label and first line of recipes by group; `every` adds those that are in no group.

    docs/recipes.md says what the labels mean.
    """
    summaries, evidence = recipe_summaries(), json.loads((FOLDER / "evidence.json").read_text(encoding="utf-8"))
    groups = {heading: names.split() for heading, names in RECIPE_GROUPS.items()}
    rest = [name for name in summaries if not any(name in names for names in groups.values())]
    if every:
        groups["Controls, ablations and twins"] = rest
    width = max(len(name) for names in groups.values() for name in names)
    label_width = max(len(evidence[name]["label"]) for name in summaries)
    lines = []
    for heading, names in groups.items():
        lines += [heading]
        lines += [f"  {n:<{width}}  {evidence[n]['label']:<{label_width}}  {summaries[n]}" for n in names] + [""]
    more = [] if every else [f"{len(rest)} more, controls, ablations and twins: afterflow recipes --all"]
    return "\n".join([*lines, *more]).rstrip()
