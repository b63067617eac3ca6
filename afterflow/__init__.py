"""Post-training of flow-matching image and video models: SFT, Flow-GRPO and their kin, one short file each.

The names in `__all__` are the public interface.  They are imported at first use, because torch takes seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .algorithms.awm import AWM
    from .algorithms.branch_grpo import BranchGRPO
    from .algorithms.crd import CRD
    from .algorithms.dance_grpo import DanceGRPO
    from .algorithms.ddpo import DDPO
    from .algorithms.dgpo import DGPO
    from .algorithms.diffusion_nft import DiffusionNFT
    from .algorithms.dpo import DPO
    from .algorithms.flow_awr import FlowAWR
    from .algorithms.flow_grpo import FlowGRPO
    from .algorithms.flow_opd import FlowOPD
    from .algorithms.mix_grpo import MixGRPO
    from .algorithms.online_dpo import OnlineDPO
    from .algorithms.pref_grpo import PrefGRPO
    from .algorithms.sft import SFT
    from .algorithms.soar import SOAR
    from .algorithms.v_grpo import VGRPO
    from .experiment.config import Run
    from .experiment.execute import execute
    from .experiment.result import Result
    from .experiment.run_folder import read_run
    from .recipes import RECIPES
    from .rewards.base import Judge, Scored, reward
    from .system.errors import AfterflowError

__version__ = "0.2.0.dev0"

__all__ = [
    "AWM",
    "CRD",
    "DDPO",
    "DGPO",
    "DPO",
    "RECIPES",
    "SFT",
    "SOAR",
    "VGRPO",
    "AfterflowError",
    "BranchGRPO",
    "DanceGRPO",
    "DiffusionNFT",
    "FlowAWR",
    "FlowGRPO",
    "FlowOPD",
    "Judge",
    "MixGRPO",
    "OnlineDPO",
    "PrefGRPO",
    "Result",
    "Run",
    "Scored",
    "execute",
    "read_run",
    "reward",
]

_NAMES = {
    "algorithms.branch_grpo": ("BranchGRPO",),
    "algorithms.dance_grpo": ("DanceGRPO",),
    "algorithms.ddpo": ("DDPO",),
    "algorithms.dpo": ("DPO",),
    "algorithms.flow_grpo": ("FlowGRPO",),
    "algorithms.flow_opd": ("FlowOPD",),
    "algorithms.mix_grpo": ("MixGRPO",),
    "algorithms.online_dpo": ("OnlineDPO",),
    "algorithms.pref_grpo": ("PrefGRPO",),
    "algorithms.sft": ("SFT",),
    "algorithms.soar": ("SOAR",),
    "algorithms.awm": ("AWM",),
    "algorithms.crd": ("CRD",),
    "algorithms.dgpo": ("DGPO",),
    "algorithms.diffusion_nft": ("DiffusionNFT",),
    "algorithms.flow_awr": ("FlowAWR",),
    "algorithms.v_grpo": ("VGRPO",),
    "experiment.config": ("Run",),
    "experiment.execute": ("execute",),
    "experiment.result": ("Result",),
    "experiment.run_folder": ("read_run",),
    "recipes": ("RECIPES",),
    "rewards.base": ("Judge", "Scored", "reward"),
    "system.errors": ("AfterflowError",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
