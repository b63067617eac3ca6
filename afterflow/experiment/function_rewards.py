"""Python functions where a run names rewards: each becomes its name, and the run keeps a digest of its source."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..algorithms.base import WIN_RATE
from ..data.images import ImageSource
from ..data.pairs import SampledPairs
from ..rewards.base import Reward
from ..rewards.functions import expect_function, function_name, give_function
from ..rewards.named_code import named_in_process
from ..rewards.registry import REWARDS, is_taken
from ..system.errors import ConfigError, InputError
from .evaluation_fit import TRAINED, rewards_of_data
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .config import Run


def name_functions(run: "Run") -> dict[str, Any]:
    """Return the fields of a run in which functions stood as rewards, with their names instead; and the digests.

    ConfigError where a function cannot be a reward, or where two have one name.
    """
    names = FunctionNames()
    changes: dict[str, Any] = {}
    algorithm = run.algorithm
    for part in ("weights", "blend"):
        value = getattr(algorithm, part, None)
        named = names.in_mapping(value) if part == "weights" else names.in_field(value, "gate")
        algorithm = algorithm if named is value else replace(algorithm, **{part: named})
    evaluation = run.evaluation
    rewards = tuple(names.of(reward) for reward in evaluation.eval_rewards)
    best_by = None if evaluation.best_by is None else names.of(evaluation.best_by)
    data = names.in_field(run.data, "min_reward") if isinstance(run.data, ImageSource) else run.data
    data = names.in_field(data, "weights") if isinstance(data, SampledPairs) else data
    if names.replaced:
        evaluation = replace(evaluation, eval_rewards=rewards, best_by=best_by)
        changes = {"algorithm": algorithm, "evaluation": evaluation, "data": data}
    functions = {**run.functions, **names.digests}
    used = {*algorithm.requirements.rewards, *evaluation.eval_rewards, *rewards_of_data(data)}
    named_in_process(used)
    used_functions = {name: digest for name, digest in functions.items() if name in used}
    for name in used_functions:
        if not is_taken(name):
            expect_function(name)
    return changes if used_functions == run.functions else changes | {"functions": used_functions}


class FunctionNames:
    """Puts names in place of functions, and remembers the digest of each."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        self.replaced = False

    def of(self, reward: Any) -> str:
        """Return the name of a reward that is a name, a function or a `Reward`."""
        if isinstance(reward, str):
            return reward
        self.replaced = True
        if isinstance(reward, Reward) and REWARDS.get(reward.name) is reward:
            return reward.name
        name = function_name(reward)
        if is_taken(name) or name in (WIN_RATE, TRAINED):
            raise ConfigError(f"a reward of afterflow is called {name}; give the function another name")
        digest = give_function(name, reward)
        if self.digests.setdefault(name, digest) != digest:
            raise ConfigError(f"two functions are called {name}; give each a name of its own")
        return name

    def in_mapping(self, values: Mapping[Any, Any] | None) -> Mapping[str, Any] | None:
        """Return a mapping with names as keys; the same one where its keys are names."""
        if values is None or all(isinstance(key, str) for key in values):
            return values
        pairs = [(self.of(key), value) for key, value in values.items()]
        if len(dict(pairs)) < len(pairs):
            raise ConfigError(f"a reward is named twice in {', '.join(name for name, _ in pairs)}")
        return dict(pairs)

    def in_field(self, owner: Any, name: str) -> Any:
        """Return a dataclass whose mapping of that name has names as keys; the same one where it has."""
        if owner is None:
            return owner
        named = self.in_mapping(getattr(owner, name))
        return owner if named is getattr(owner, name) else replace(owner, **{name: named})


def check_same_functions(run: "Run") -> None:
    """Raise InputError where a run is resumed with another function than it was trained with so far."""
    folder = RunFolder(run.folder)
    recorded = folder.run().functions if folder.record_file.is_file() else run.functions
    for name in {**recorded, **run.functions}:
        if recorded.get(name) != run.functions.get(name):
            raise InputError(f"{run.folder} was trained by another {name}; give the same function, or another name")
