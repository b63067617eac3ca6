"""Runs worth repeating, by name: functions that return a Run.  Vary one by `dataclasses.replace`, or with options."""

from collections.abc import Callable

from ..chain import Chain
from ..run import Run
from . import family, generalist, images, moving
from .shapes import demo, shapes_flow_grpo
from .tiny import tiny_sd3_pretrain

RECIPES: dict[str, Callable[[], Run | Chain]] = {
    recipe.__name__: recipe
    for recipe in (
        demo,
        shapes_flow_grpo,
        family.shapes_flow_grpo_full,
        family.shapes_flow_grpo_cps,
        family.shapes_flow_grpo_guard,
        family.shapes_ddpo,
        family.shapes_ddpo_history,
        family.jpeg_ddpo,
        family.shapes_dance_grpo,
        family.shapes_mix_grpo,
        family.shapes_mix_grpo_flash,
        family.shapes_mix_grpo_flash_star,
        family.shapes_branch_grpo,
        family.shapes_branch_grpo_width,
        family.shapes_branch_grpo_depth,
        family.shapes_branch_grpo_mix,
        family.shapes_pref_grpo,
        images.shapes_sft,
        images.shapes_sft_matched,
        images.shapes_soar,
        images.shapes_soar_paper,
        images.shapes_curated_sft,
        images.shapes_curated_sft_matched,
        images.shapes_curated_soar,
        images.shapes_curated_soar_paper,
        generalist.shapes_teacher_counting,
        generalist.shapes_teacher_relations,
        generalist.shapes_teacher_binding,
        generalist.shapes_teacher_text,
        generalist.shapes_teacher_fidelity,
        generalist.shapes_generalist,
        generalist.shapes_generalist_no_anchor,
        generalist.shapes_generalist_quality_anchor,
        generalist.shapes_generalist_from_base,
        generalist.shapes_merge_only,
        generalist.shapes_sft_teachers,
        generalist.shapes_cascade,
        generalist.shapes_mixed_grpo,
        generalist.shapes_mixed_grpo_turns,
        tiny_sd3_pretrain,
        moving.tiny_wan_pretrain,
        moving.moving_flow_grpo,
        moving.moving_dance_grpo,
        moving.moving_branch_grpo,
    )
}
