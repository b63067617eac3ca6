"""A run: everything that decides what it does, in groups that --help shows, and nothing else.

A field of a group is an option of its own name: `Optimization.learning_rate` is --learning-rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from tyro.conf import Suppress, arg

from ..algorithms.awm import AWM
from ..algorithms.branch_grpo import BranchGRPO
from ..algorithms.crd import CRD
from ..algorithms.dance_grpo import DanceGRPO
from ..algorithms.ddpo import DDPO
from ..algorithms.dgpo import DGPO
from ..algorithms.diffusion_nft import DiffusionNFT
from ..algorithms.dpo import DPO
from ..algorithms.flow_awr import FlowAWR
from ..algorithms.flow_grpo import FlowGRPO
from ..algorithms.flow_opd import FlowOPD
from ..algorithms.mix_grpo import MixGRPO
from ..algorithms.online_dpo import OnlineDPO
from ..algorithms.pref_grpo import PrefGRPO
from ..algorithms.sft import SFT
from ..algorithms.soar import SOAR
from ..algorithms.v_grpo import VGRPO
from ..data.clips import MovingClips
from ..data.edits import EditImages
from ..data.images import HubImages, ImageFolder, ShapesImages
from ..data.pairs import HubPairs, PairFolder, SampledPairs
from ..data.prompt_sources import Prompts
from ..models.adapters import Full, LoRA, Teacher
from ..models.families import AnyPretrained
from ..models.sd3 import SD3
from ..rewards.base import RewardModels
from ..rewards.shapes_judge import ShapesJudge
from ..rewards.vlm.judge import VLMJudge
from ..rewards.votes.judge import Votes
from ..sampling.schedules import Schedule
from ..system.checks import check_at_least_one, check_not_negative, check_positive
from ..system.errors import ConfigError
from ..system.names import unknown_name
from ..system.optional_dependencies import check_extra
from ..train.sharding import Sharding
from .config_checks import check_run
from .evaluation_fit import TRAINED, fit_evaluation, rewards_of_data
from .function_rewards import name_functions

AnyAlgorithm = (
    SFT
    | SOAR
    | DPO
    | DDPO
    | FlowGRPO
    | DanceGRPO
    | MixGRPO
    | BranchGRPO
    | PrefGRPO
    | FlowOPD
    | DiffusionNFT
    | AWM
    | VGRPO
    | FlowAWR
    | DGPO
    | CRD
    | OnlineDPO
)


F = TypeVar("F")
Option = Annotated[F, arg(prefix_name=False)]
"""A field of a group that is an option without the group's name before it."""


@dataclass(frozen=True)
class Batches:
    """How long training lasts, and what one iteration of it holds."""

    iterations: Option[int] = 100
    """Number of iterations: a rollout with its updates, or a single update of supervised training."""
    budget_seconds: Option[float | None] = None
    """Seconds of training.  The run ends after the iteration that uses them up.  Evaluation, pictures and checkpoints
    do not count."""
    batch: Option[int] = 16
    """Prompts of one iteration, or images of one update of supervised training."""
    updates: Option[int] = 1
    """Optimizer updates of one iteration.  After the first, the rollout is no longer quite on-policy."""
    chunk: Option[int] = 64
    """Rows of one forward pass, the same in rollout and update, so that ratios are exactly 1 at first.  Guidance
    doubles them."""
    retained_rows: Option[int | None] = None
    """Rows whose graphs may wait for their rewards, so that an update need not compute the rollout again.  None: as
    many as fit into an accelerator, and into 2 GB on a CPU.  0: the update computes every row again."""
    guidance_scale: Option[float] = 1.0
    """Scale of classifier-free guidance in rollouts and sample pictures, and in updates where steps of the rollout are
    trained.  1 is no guidance, and half the work."""
    tag_schedule: Option[Mapping[str, int]] = field(default_factory=dict)
    """Number of consecutive iterations whose prompts all have one tag, tag by tag.  Empty mixes the tags."""
    long_prompts: Option[Literal["cut", "stop"]] = "cut"
    """What a prompt does that is longer than a text encoder reads: it is cut and counted, or it stops the run."""
    max_missing: Option[float] = 0.05
    """Largest share of an iteration's images that may lack a reward because it failed on them.  More stop the run.
    Images without a reward are not trained on."""
    offload: Option[bool] = False
    """Keep the states of a rollout in CPU memory until the update needs them.  Long clips have many."""
    overlap: Option[bool] = False
    """Score the images of the first prompts while those of the next are sampled.  Meant for rewards elsewhere."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "iterations", "batch", "updates", "chunk")
        check_positive(self, "budget_seconds")
        check_not_negative(self, "guidance_scale", "retained_rows")
        if any(count < 1 for count in self.tag_schedule.values()):
            raise ConfigError(
                f"tag_schedule = {dict(self.tag_schedule)}: give each tag at least one iteration or leave it out"
            )
        if not 0 <= self.max_missing < 1:
            raise ConfigError(f"max_missing = {self.max_missing}: it is a share of the images, so 0 <= max_missing < 1")


@dataclass(frozen=True)
class Optimization:
    """The optimizer, its learning rate and its precision."""

    optimizer: Option[Literal["adamw", "adamw_8bit"]] = "adamw"
    """adamw_8bit keeps AdamW's averages in 8 bits (bitsandbytes) and saves 6 bytes of each trained weight."""
    learning_rate: Option[float] = 3e-4
    """Learning rate after the warm-up."""
    lr_schedule: Option[Literal["constant", "cosine", "late"]] = "constant"
    """Schedule of the learning rate.  cosine falls to a tenth over the run.  late falls to it linearly over the last
    fifth."""
    warmup: Option[int] = 0
    """Iterations over which the learning rate rises from 0."""
    adam_betas: Option[tuple[float, float]] = (0.9, 0.999)
    """Decay rates of AdamW's averages of the gradient and of its square."""
    weight_decay: Option[float] = 1e-4
    """AdamW's weight decay, which is multiplied by the learning rate."""
    adam_eps: Option[float] = 1e-8
    """Number added to the root of AdamW's squared average."""
    max_grad_norm: Option[float] = 1.0
    """Largest norm of the gradient.  Longer gradients are scaled down to it."""
    ema_decay: Option[float | None] = 0.9
    """Decay per update of the average of the weights that is evaluated and saved.  None: the last weights are."""
    mixed_precision: Option[Literal["no", "fp16", "bf16"]] = "no"
    """Precision of forward passes.  Kernels, log-probabilities and trained weights stay fp32."""
    fp32_streams: Option[bool | None] = None
    """Whether residual streams and the last layer stay fp32 in mixed precision, so that ratios are less of rounding.
    None: where an iteration has several updates; after the first, ratios are not 1."""
    gradient_checkpointing: Option[bool] = False
    """Compute activations again in the backward pass.  It needs much less memory and about a third more time."""
    nonfinite: Option[Literal["stop", "skip"]] = "stop"
    """What a loss or gradient that is not finite does: stop the run, or leave that update out and count it."""

    def __post_init__(self) -> None:
        check_positive(self, "learning_rate", "max_grad_norm", "adam_eps")
        check_not_negative(self, "warmup", "weight_decay")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ConfigError(f"adam_betas = {self.adam_betas}: they are decays, so 0 <= beta < 1")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay = {self.ema_decay}: it is a decay, so 0 <= ema_decay < 1")
        if self.optimizer == "adamw_8bit":
            check_extra("optimizer = adamw_8bit", ["bitsandbytes"], "quantize")


@dataclass(frozen=True)
class Evaluation:
    """What is measured on held-out prompts while training goes on."""

    held_out: Option[Prompts | None] = None
    """Prompts that are not trained on and whose rewards are measured, with images by the ODE."""
    held_out_share: Option[float] = 0.0
    """Share of the run's own prompts that is held out in place of others.  It is the same for every seed."""
    eval_every: Option[int] = 0
    """Iterations between those measurements.  0: never."""
    eval_images: Option[int] = 2
    """Images of each held-out prompt."""
    eval_rewards: Option[tuple[str, ...]] = ()
    """Rewards measured on held-out prompts besides the trained ones."""
    best_by: Option[str | None] = None
    """Reward whose highest value on held-out prompts decides which weights best/ holds.  trained: the trained reward
    that counts most.  None: the first of eval_rewards that is not trained, if there is one."""
    inference_steps: Option[int] = 20
    """ODE steps of held-out and sample pictures."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "eval_images", "inference_steps")
        check_not_negative(self, "eval_every")
        if not 0 <= self.held_out_share < 1:
            raise ConfigError(
                f"held_out_share = {self.held_out_share}: it is a share of the prompts, so 0 <= share < 1"
            )
        if self.held_out is not None and self.held_out_share:
            raise ConfigError("held_out and held_out_share are two sources of held-out prompts; set one of them")
        measures = self.held_out is not None or self.held_out_share > 0
        if (self.eval_every > 0) != measures:
            raise ConfigError("held_out and eval_every go together: which prompts to evaluate on, and how often")
        for name in ("eval_rewards", "best_by"):
            if getattr(self, name) and not measures:
                raise ConfigError(f"{name} is measured on held-out prompts; set held_out and eval_every as well")


@dataclass(frozen=True)
class Checkpoints:
    """When the state of a run is saved."""

    save_every: Option[int] = 50
    """Iterations between checkpoints.  The last iteration is always saved."""
    keep_checkpoints: Option[int] = 2
    """Number of checkpoints that stay on the disk, the newest ones."""
    grace_seconds: Option[float] = 20.0
    """Seconds that the current iteration may go on after SIGTERM, as spot machines send it.  Then the last whole
    iteration is saved."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "save_every", "keep_checkpoints")
        check_not_negative(self, "grace_seconds")


@dataclass(frozen=True)
class Distribution:
    """How the work is spread over processes, compilers and threads."""

    shard: Option[Sharding] = "none"
    """What processes share of a full fine-tune (FSDP2).  zero2: gradients and optimizer.  full: the weights too.
    none: each process has all."""
    grad_partitions: Option[int] = 1
    """Number of fixed parts of the batch whose gradients are summed apart and then in fp64.  Results are bit-identical
    for any number of processes that divides it, if rewards are deterministic.  There are never fewer parts than
    processes."""
    compile: Option[bool] = False
    """Compile the network with torch.compile, for rollout and update alike.  The first iteration takes a minute
    or two more.  Ratios stay 1 in fp32, and in bf16 within 1e-5 where it was measured."""
    threads: Option[int | None] = None
    """CPU threads of torch.  None leaves torch's own choice."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "grad_partitions", "threads")
        if self.shard != "none" and self.grad_partitions > 1:
            raise ConfigError("grad_partitions: shards are summed as they come; leave it at 1 with shard")


@dataclass(frozen=True)
class Logging:
    """What a run shows while it trains."""

    tracker: Option[Literal["none", "tensorboard", "wandb", "trackio"]] = "none"
    """Tracker that gets the metrics besides metrics.jsonl."""
    tracker_pictures: Option[bool] = True
    """Give the tracker sample pictures, and held-out prompts with their scores and pictures.  A tracker on the network
    then gets your prompts."""
    sample_every: Option[int] = 20
    """Iterations between sample pictures.  0: never."""

    def __post_init__(self) -> None:
        check_not_negative(self, "sample_every")
        if self.tracker != "none":
            check_extra(f"tracker = {self.tracker}", [self.tracker], self.tracker)


LearningImages = (
    ShapesImages | MovingClips | EditImages | ImageFolder | HubImages | PairFolder | HubPairs | SampledPairs
)
"""Images, clips or pairs of images with prompts to learn from."""


@dataclass(frozen=True)
class Run:
    """A training run.  ConfigError where its parts do not fit together."""

    algorithm: AnyAlgorithm
    """Training method."""
    data: Prompts | LearningImages
    """Prompts to explore, or images, clips or pairs of images with prompts to learn from."""
    model: AnyPretrained = SD3()
    """Pipeline that is trained."""
    tune: LoRA | Full = LoRA()
    """Weights that are trained: a LoRA, or all."""
    teachers: tuple[Teacher, ...] = ()
    """Teachers and their tasks, where the algorithm needs teachers."""
    judge: ShapesJudge | VLMJudge | Votes | None = None
    """Judge that compares images, where the algorithm needs a win rate."""
    reward_models: RewardModels = RewardModels()
    """Where rewards that are networks run, and on which weights."""
    name: str = "run"
    """Name of the run, which is kept in runs/NAME."""
    seed: int = 0
    """Seed of prompts, noise and shuffling."""
    batches: Batches = Batches()
    """Length of training and content of an iteration."""
    optimization: Optimization = Optimization()
    """Optimizer, learning rate and precision."""
    evaluation: Evaluation = Evaluation()
    """Measurements on held-out prompts during training."""
    checkpoints: Checkpoints = Checkpoints()
    """Saved states."""
    distribution: Distribution = Distribution()
    """Processes, compiler and threads."""
    logging: Logging = Logging()
    """Tracker and sample pictures."""
    functions: Suppress[Mapping[str, str]] = field(default_factory=dict)
    """Rewards that are Python functions, by name, each with a digest of its source.  Written by the run itself."""

    def __post_init__(self) -> None:
        for name, value in name_functions(self).items():
            object.__setattr__(self, name, value)
        check_run(self)

    def with_options(self, **options: Any) -> "Run":
        """Return the run with options replaced, named as on the command line: `run.with_options(iterations=50)`.

        Where data or rewards are replaced, held-out prompts and evaluators that are not replaced with them are made to
        fit (`fit_evaluation`).  ConfigError for an option that does not exist.
        """
        changes: dict[str, Any] = {}
        grouped: dict[str, dict[str, Any]] = {}
        for name, value in options.items():
            if name not in GROUP_OF:
                raise unknown_name("option of a run", name, GROUP_OF)
            group = GROUP_OF[name]
            if group is None:
                changes[name] = value
            else:
                grouped.setdefault(group, {})[name] = value
        for group, values in grouped.items():
            changes[group] = replace(changes.get(group, getattr(self, group)), **values)
        return fit_evaluation(self, replace(self, **changes), options)

    @property
    def held_out_judge(self) -> ShapesJudge | VLMJudge | None:
        """The judge that compares held-out images with the base's; people are shown pairs to train on alone."""
        return None if isinstance(self.judge, Votes) else self.judge

    @property
    def watched(self) -> tuple[str, ...]:
        """The rewards measured on held-out prompts."""
        trained = self.algorithm.requirements.rewards
        return tuple(dict.fromkeys([*trained, *self.evaluation.eval_rewards]))

    @property
    def hidden(self) -> tuple[str, ...]:
        """The watched rewards that are not trained."""
        trained = self.algorithm.requirements.rewards
        return tuple(name for name in self.watched if name not in trained)

    @property
    def best_reward(self) -> str | None:
        """The reward that decides which weights best/ holds; None where nothing does."""
        if self.evaluation.best_by != TRAINED:
            return self.evaluation.best_by or next(iter(self.hidden), None)
        requirements = self.algorithm.requirements
        return max(requirements.rewards, key=lambda name: requirements.weights.get(name, 0.0))

    @property
    def rewards(self) -> tuple[str, ...]:
        """All rewards the run needs: the watched ones, and those that images to learn from must reach or win by."""
        return tuple(dict.fromkeys([*self.watched, *rewards_of_data(self.data)]))

    @property
    def folder(self) -> Path:
        """The folder that holds the run, relative to the working folder."""
        return Path("runs") / self.name


GROUPS = {
    "batches": Batches,
    "optimization": Optimization,
    "evaluation": Evaluation,
    "checkpoints": Checkpoints,
    "distribution": Distribution,
    "logging": Logging,
}
GROUP_OF: dict[str, str | None] = {option.name: None for option in fields(Run)} | {
    option.name: group for group, kind in GROUPS.items() for option in fields(kind)
}
"""Option → the group that has it; None: Run itself."""


def on_model_schedule(algorithm: AnyAlgorithm, schedule: Schedule) -> AnyAlgorithm:
    """Return the algorithm with the model's own schedule, or its shift, where it names none."""
    defaults = {"schedule": schedule, "shift": schedule.warp}
    missing = {name: value for name, value in defaults.items() if getattr(algorithm, name, value) is None}
    return replace(algorithm, **missing) if missing else algorithm  # type: ignore[arg-type]
