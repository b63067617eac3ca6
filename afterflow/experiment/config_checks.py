"""Whether the parts of a run fit together: one function for each subject, a sentence for each misfit."""

from typing import TYPE_CHECKING

from ..algorithms.base import WIN_RATE, OnPolicy, Requirements, explores
from ..algorithms.ddpo import DDPO
from ..algorithms.forward_process import learns_from_finished
from ..algorithms.policy_gradient import PolicyGradient
from ..data.images import ImageSource
from ..data.pairs import SampledPairs
from ..models.adapters import Full, LoRA
from ..models.wan import Wan
from ..objectives.advantages import Blend
from ..rewards.registry import find_reward
from ..rewards.votes.judge import Votes
from ..system.addresses import check_no_secrets
from ..system.checks import check_finite
from ..system.errors import ConfigError
from ..system.names import check_folder_name, unknown_name
from .evaluation_fit import TRAINED

if TYPE_CHECKING:
    from .config import Run


def check_run(run: "Run") -> None:
    """Check what no group can check alone.  ConfigError names the options that do not fit and what to change."""
    check_finite(run)
    check_no_secrets(run)
    check_folder_name("name", run.name)
    if run.seed < 0:
        raise ConfigError(f"seed = {run.seed}: 0 or more")
    check_model(run)
    check_distribution(run)
    check_evaluation(run)
    algorithm = run.algorithm
    if explores(algorithm) == isinstance(run.data, ImageSource):
        need = "prompts" if explores(algorithm) else "images with prompts"
        raise ConfigError(f"{type(algorithm).__name__} learns from {need}, not from {type(run.data).__name__}")
    pairs = isinstance(run.data, ImageSource) and run.data.pairs
    if algorithm.requirements.pairs != pairs:
        need = "pairs of images" if algorithm.requirements.pairs else "single images"
        raise ConfigError(f"{type(algorithm).__name__} learns from {need}, not from {type(run.data).__name__}")
    if explores(algorithm):
        check_rewards_of(run, algorithm)
        check_divergence(run, algorithm)
        check_lag(run, algorithm)
        check_compared(run, algorithm)
    else:
        check_supervised(run)
    check_teachers(run, algorithm.requirements)


def check_model(run: "Run") -> None:
    """Check the model's precision against what is trained, and that rewards of clips get clips."""
    model = run.model
    if model.dtype == "float16" and run.optimization.mixed_precision != "fp16":
        raise ConfigError("model.dtype = float16 loses small gradients; take bfloat16, or mixed_precision = fp16")
    if model.quantize is not None and isinstance(run.tune, Full):
        raise ConfigError("model.quantize keeps frozen weights in fewer bits, and Full trains them; take a LoRA")
    for name in run.rewards:
        if find_reward(name).clips and not isinstance(model, Wan):
            raise ConfigError(f"{name} judges clips, and {type(model).__name__} draws images; take Wan")
    if isinstance(run.judge, Votes) and isinstance(model, Wan):
        raise ConfigError("judge = Votes shows pictures, and Wan draws clips; take another judge")


def check_distribution(run: "Run") -> None:
    """Check shards and gradient partitions against the batch, the optimizer and what is trained."""
    shard, partitions = run.distribution.shard, run.distribution.grad_partitions
    if partitions > run.batches.batch:
        raise ConfigError(
            f"grad_partitions = {partitions}: each needs at least one prompt or image of batch = {run.batches.batch}"
        )
    if shard == "none":
        return
    if isinstance(run.tune, LoRA):
        raise ConfigError("shard is of trained weights, and a LoRA has few; leave it out, or take --adapt full")
    if run.batches.overlap:
        raise ConfigError(
            "overlap: one process that fails would leave the others waiting in a pass; leave out shard or it"
        )
    if run.optimization.optimizer != "adamw":
        raise ConfigError(f"optimizer = {run.optimization.optimizer} has never been tried with shard; take adamw")


def check_evaluation(run: "Run") -> None:
    """Check that the best weights are chosen by a reward that is measured."""
    best_by = run.evaluation.best_by
    known = (*run.watched, TRAINED) if run.algorithm.requirements.rewards else run.watched
    if best_by is not None and best_by not in known:
        raise unknown_name("reward on held-out prompts (best_by)", best_by, known)


def check_supervised(run: "Run") -> None:
    """Check that no option of rollouts is set where images teach."""
    for name in ("tag_schedule", "offload", "overlap"):
        if getattr(run.batches, name):
            raise ConfigError(f"{name} is of rollouts; leave it out where images teach")
    if run.evaluation.held_out_share:
        raise ConfigError("held_out_share is of prompts to explore; where images teach, name held_out")
    if isinstance(run.data, SampledPairs):
        if WIN_RATE in run.data.weights and run.judge is None:
            raise ConfigError(f"judge: {WIN_RATE} of data.weights needs a judge; name one, or another reward")
        if run.distribution.shard != "none":
            raise ConfigError("shard: pairs are drawn by one process after another; leave out shard, or bring pairs")
    if run.batches.updates > 1:
        raise ConfigError(f"updates = {run.batches.updates}: images are learnt from once; leave it at 1")


def check_teachers(run: "Run", requirements: Requirements) -> None:
    """Check that every task has one teacher, every teacher a task, and the anchor a name that exists."""
    names = [teacher.name for teacher in run.teachers]
    tasks = [task for teacher in run.teachers for task in teacher.tasks]
    if (requirements.route is not None) != bool(tasks):
        need = "needs teachers with tasks" if requirements.route else "needs no teachers; leave them out"
        raise ConfigError(f"teachers: {type(run.algorithm).__name__} {need}")
    for teacher in run.teachers:
        if not teacher.name.replace("_", "").replace("-", "").isalnum() or teacher.name == "base":
            raise ConfigError(f"teachers: {teacher.name!r} cannot be a name; take letters, digits, - and _, not base")
        if not teacher.tasks and teacher.name != requirements.anchor:
            raise ConfigError(f"teachers: {teacher.name} has no task and is no anchor; leave it out")
    for repeated in [name for group in (names, tasks) for name in group if group.count(name) > 1]:
        raise ConfigError(f"teachers: {repeated!r} is there twice; a task has one teacher, and a teacher one name")
    if requirements.anchor is not None and requirements.anchor not in ("base", *names):
        raise unknown_name("anchor", requirements.anchor, ("base", *names))


def check_divergence(run: "Run", algorithm: OnPolicy) -> None:
    """Check that the policy can have left the one that sampled, where steps that leave it too far are masked."""
    if isinstance(algorithm, PolicyGradient) and algorithm.divergence is not None and run.batches.updates == 1:
        raise ConfigError(
            f"algorithm.divergence = {algorithm.divergence}: with updates = 1 the policy is the one that sampled, and "
            "no step is ever masked; take --updates 2 or more, or leave it out"
        )


def check_lag(run: "Run", algorithm: OnPolicy) -> None:
    """Check that the old policy, where it is compared with, is not the policy itself after the first update."""
    compares = learns_from_finished(algorithm) and algorithm.uses_old and algorithm.lag.follows_at_once
    if compares and run.batches.updates > 1:
        raise ConfigError(
            f"algorithm.lag: d is always 0, so with updates = {run.batches.updates} the old policy would follow every "
            "update; take --updates 1, or a small lag.slope such as 1e-9"
        )


def check_compared(run: "Run", algorithm: OnPolicy) -> None:
    """Check that an image is compared with another one, or with earlier ones."""
    if isinstance(algorithm, DDPO) and not algorithm.history and run.batches.batch * algorithm.group < 2:
        raise ConfigError("batch = 1 with algorithm.group = 1: an image is compared with nothing; take more of one")


def check_rewards_of(run: "Run", algorithm: OnPolicy) -> None:
    """Check that the algorithm has rewards to learn from, and a judge just where it compares images."""
    requirements = algorithm.requirements
    if not algorithm.weights and requirements.route is None:
        raise ConfigError("algorithm.weights is empty: name at least one reward and its weight")
    if algorithm.weights and not any(algorithm.weights.values()):
        raise ConfigError(f"algorithm.weights = {dict(algorithm.weights)}: no reward counts; give one a weight but 0")
    compares = requirements.comparisons is not None
    blend = requirements.blend or Blend()
    if WIN_RATE in {*algorithm.weights, *blend.gate} and not compares:
        raise ConfigError(
            f"{WIN_RATE} is a reward of PrefGRPO and OnlineDPO; {type(algorithm).__name__} compares no images"
        )
    if compares != (run.judge is not None):
        need = "needs a judge" if compares else "needs no judge; leave it out"
        raise ConfigError(f"judge = {run.judge}: {type(algorithm).__name__} {need}")
    if blend.how == "z_sum" and sum(algorithm.weights.values()) <= 0:
        raise ConfigError("algorithm.weights: their sum must be positive for blend.how = z_sum, a weighted mean")
