"""Records and options of earlier versions: old records are read, old options are refused with their new names."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..system.errors import ConfigError
from ..system.names import unknown_name
from .config import GROUP_OF

RENAMED = {
    "turns": "tag_schedule",
    "invalid": "max_missing",
    "decay": "lr_schedule",
    "betas": "adam_betas",
    "ema": "ema_decay",
    "best": "best_by",
    "keep": "keep_checkpoints",
    "grace": "grace_seconds",
    "lanes": "grad_partitions",
    "track": "tracker",
    "algorithm.draws": "algorithm.num_noises",
    "algorithm.least": "algorithm.min_count",
    "algorithm.least_time": "algorithm.min_time",
    "algorithm.least_consistency": "algorithm.min_consistency",
}
"""Option of version 0.1 → its name now."""
BUILT_MODELS: dict[str, dict[str, Any]] = {
    "TinyParts": {"type": "SD3"},
    "TinyVideoParts": {"type": "Wan", "height": 32, "width": 32, "frames": 9, "max_sequence_length": 16},
}
"""Models of version 0.1 that built their pipeline in a folder when first loaded → the options that load that folder.

The stage `BuildParts` builds such pipelines now."""


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's configuration as this version records it; in version 0.1 all options stood side by side.

    ConfigError names a field that does not exist.
    """
    upgraded: dict[str, Any] = {}
    for name, value in config.items():
        current = RENAMED.get(name, name)
        if current not in GROUP_OF:
            raise unknown_name("field of Run", name, GROUP_OF)
        if name == "algorithm" and isinstance(value, Mapping):
            prefix = "algorithm."
            names = {key: RENAMED.get(prefix + key) or prefix + key for key in value}
            value = {names[key].removeprefix(prefix): item for key, item in value.items()}
        if name == "model" and isinstance(value, Mapping) and value.get("type") in BUILT_MODELS:
            value = BUILT_MODELS[value["type"]] | {"path": value.get("folder")}
        group = GROUP_OF[current]
        if group is None:
            upgraded[current] = value
        else:
            upgraded.setdefault(group, {})[current] = value
    return upgraded


def refuse_renamed(options: Sequence[str]) -> None:
    """Refuse options that version 0.1 had under another name.  ConfigError names the new one."""
    for option in options:
        name = option.removeprefix("--").split("=", 1)[0].replace("-", "_")
        if option.startswith("--") and name in RENAMED:
            new = RENAMED[name].replace("_", "-")
            raise ConfigError(f"--{name.replace('_', '-')} is called --{new} since version 0.2")
