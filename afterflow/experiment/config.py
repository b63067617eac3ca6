"""A run: everything that decides what it does, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..algorithms.base import WIN_RATE, OnPolicy, Requirements, Supervised
from ..algorithms.branch_grpo import BranchGRPO
from ..algorithms.dance_grpo import DanceGRPO
from ..algorithms.ddpo import DDPO
from ..algorithms.flow_grpo import FlowGRPO
from ..algorithms.flow_opd import FlowOPD
from ..algorithms.mix_grpo import MixGRPO
from ..algorithms.pref_grpo import PrefGRPO
from ..algorithms.sft import SFT
from ..algorithms.soar import SOAR
from ..data.clips import MovingClips, MovingPrompts
from ..data.geneval_prompts import MixedPrompts, ObjectPrompts, SignPrompts
from ..data.images import HubImages, ImageFolder, ImageSource, ShapesImages
from ..data.prompts import PromptFile, ShapesPrompts
from ..models.adapters import Full, LoRA
from ..models.flux import Flux
from ..models.pipeline import Pretrained
from ..models.qwen_image import QwenImage
from ..models.sd3 import SD3
from ..models.teacher import Teacher
from ..models.tiny_parts.config import TinyParts, TinyVideoParts
from ..models.wan import Wan
from ..objectives.advantages import Blend
from ..rewards.base import RewardModels
from ..rewards.registry import find_reward
from ..rewards.shapes_judge import ShapesJudge
from ..rewards.vlm.judge import VLMJudge
from ..system.names import unknown_name
from ..system.optional_dependencies import check_extra
from ..train.sharding import Sharding

Prompts = ShapesPrompts | MovingPrompts | ObjectPrompts | SignPrompts | MixedPrompts | PromptFile
Algorithm = SFT | SOAR | DDPO | FlowGRPO | DanceGRPO | MixGRPO | BranchGRPO | PrefGRPO | FlowOPD


@dataclass(frozen=True)
class Run:
    algorithm: Algorithm
    """What is descended."""
    data: (
        ShapesPrompts
        | MovingPrompts
        | ObjectPrompts
        | SignPrompts
        | MixedPrompts
        | PromptFile
        | ShapesImages
        | MovingClips
        | ImageFolder
        | HubImages
    )
    """Prompts to explore, or images or clips with prompts to learn from."""
    model: SD3 | Flux | QwenImage | Wan | TinyParts | TinyVideoParts = SD3()
    """What is trained."""
    tune: LoRA | Full = LoRA()
    """Which of its weights."""
    turns: Mapping[str, int] = field(default_factory=dict)
    """Tag → iterations in a row whose prompts are all of it, before the next has its turn; empty: tags are mixed."""
    teachers: tuple[Teacher, ...] = ()
    """Who teaches which task, where the algorithm asks for teachers."""
    judge: ShapesJudge | VLMJudge | None = None
    """Who compares images, where the algorithm asks for a win rate."""
    name: str = "run"
    """The run is kept in runs/NAME."""
    iterations: int = 100
    """Rollouts with their updates, or single updates of supervised training."""
    budget_seconds: float | None = None
    """Training ends after the iteration that uses this up; evaluation, pictures and checkpoints do not count."""
    batch: int = 16
    """Prompts per iteration, or images per update of supervised training."""
    updates: int = 1
    """Optimizer updates per iteration; after the first the rollout is no longer quite on-policy."""
    chunk: int = 64
    """Rows of one forward pass, the same in rollout and update (ratios are then exactly 1 at first); guidance
    doubles them."""
    guidance_scale: float = 1.0
    """Classifier-free guidance: in rollout, update and pictures of exploration, in pictures alone where images
    teach.  1 is without, and half the work."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit keeps AdamW's averages in 8 bits (bitsandbytes), which spares 6 bytes of each trained weight."""
    learning_rate: float = 3e-4
    """Of AdamW, after the warm-up."""
    decay: Literal["constant", "cosine", "late"] = "constant"
    """cosine: the learning rate falls to a tenth over the run; late: over its last fifth, in a straight line."""
    warmup: int = 0
    """Iterations over which the learning rate rises from 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's averages of the gradient and of its square."""
    weight_decay: float = 1e-4
    """Of AdamW, times the learning rate."""
    adam_eps: float = 1e-8
    """Added to the root of the squared gradient's average."""
    max_grad_norm: float = 1.0
    """Longer gradients are shortened to this."""
    ema: float | None = 0.9
    """Decay per update of the average that is evaluated and saved; None: the last weights are."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Of forward passes; kernels, log-probabilities and what is trained stay fp32."""
    reward_models: RewardModels = RewardModels()
    """Where rewards that are networks run, and on whose weights."""
    invalid: float = 0.05
    """Share of an iteration's images that may lack a reward, because it failed on them; more stop the run.  They are
    not trained on."""
    seed: int = 0
    """Of prompts, noise and shuffling."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: much less memory, about a third more time."""
    offload: bool = False
    """Keep the states of a rollout in the CPU's memory until the update needs them: long clips have many."""
    overlap: bool = False
    """Score the images of the first prompts while those of the next are drawn: for rewards that run elsewhere."""
    shard: Sharding = "none"
    """Of several processes, where all weights are trained: each keeps a part of gradients and optimizer (zero2) and of
    the weights too (full); none: each keeps all."""
    lanes: int = 1
    """Parts of a batch whose gradients are summed apart and then in fp64: what one process does with 8 lanes, 2, 4 and
    8 processes do too, to the last bit, given equal rewards.  There are never fewer lanes than processes."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What to do about a loss or gradient that is no number: stop the run, or leave that update out and count it."""
    compile: bool = False
    """Compile the network's blocks (torch.compile), for rollout and update alike; the first iteration takes a minute
    or two more.  Ratios stay 1 in fp32; in bf16 they are off by 1e-5 at most where it was measured."""
    threads: int | None = None
    """CPU threads of torch; None leaves its own choice."""
    inference_steps: int = 20
    """ODE steps of the sample pictures."""
    sample_every: int = 20
    """Iterations between sample pictures; 0: never."""
    held_out: Prompts | None = None
    """Prompts whose rewards are measured while training goes on, by the ODE and without training on them."""
    eval_every: int = 0
    """Iterations between those measurements; 0: never."""
    eval_images: int = 2
    """Images of each held-out prompt."""
    eval_rewards: tuple[str, ...] = ()
    """Rewards measured there besides those that are trained."""
    best: str | None = None
    """Reward whose best value on held-out prompts keeps weights in best/; None: the first of eval_rewards that is not
    trained, if there is one."""
    save_every: int = 50
    """Iterations between checkpoints; the last is always saved."""
    keep: int = 2
    """Checkpoints kept."""
    grace: float = 20.0
    """Seconds that SIGTERM, as spot machines send it, leaves the iteration under way; then what was before it is
    saved."""
    track: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Where metrics go besides metrics.jsonl."""

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.optimizer == "adamw_8bit":
            check_extra("optimizer = adamw_8bit", ["bitsandbytes"], "quantize")
        if self.track != "none":
            check_extra(f"track = {self.track}", [self.track], "track")
        self._check_model()
        self._check_held_out()
        algorithm = self.algorithm
        if isinstance(algorithm, Supervised) != isinstance(self.data, ImageSource):
            need = "images with prompts" if isinstance(algorithm, Supervised) else "prompts"
            raise ValueError(f"{type(algorithm).__name__} learns from {need}, not from {type(self.data).__name__}")
        if isinstance(algorithm, Supervised):
            self._check_supervised()
        else:
            self._check_rewards(algorithm)
        self._check_teachers(algorithm.requirements if isinstance(algorithm, OnPolicy) else Requirements(()))

    def _check_numbers(self) -> None:
        for name in (
            "iterations",
            "batch",
            "updates",
            "chunk",
            "lanes",
            "save_every",
            "keep",
            "inference_steps",
            "eval_images",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads = {self.threads}: at least 1")
        for name in ("learning_rate", "max_grad_norm", "budget_seconds", "adam_eps"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: it must be positive")
        for name in ("warmup", "eval_every", "sample_every", "weight_decay", "grace", "guidance_scale", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: 0 or more")
        if any(turns < 1 for turns in self.turns.values()):
            raise ValueError(
                f"turns = {dict(self.turns)}: each tag has at least one iteration; leave out those without"
            )
        if not 0 <= self.invalid < 1:
            raise ValueError(f"invalid = {self.invalid}: a share of the images, so 0 <= invalid < 1")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema = {self.ema}: a decay, so 0 <= ema < 1")

    def _check_model(self) -> None:
        if isinstance(self.model, Pretrained) and self.model.dtype == "float16" and self.mixed_precision != "fp16":
            raise ValueError("model.dtype = float16 loses small gradients; take bfloat16, or mixed_precision = fp16")
        if isinstance(self.model, Pretrained) and self.model.quantize is not None and isinstance(self.tune, Full):
            raise ValueError("model.quantize keeps frozen weights in fewer bits, and Full trains them; take a LoRA")
        if self.shard != "none" and isinstance(self.tune, LoRA):
            raise ValueError("shard is of trained weights, and a LoRA has few; leave it out, or take --adapt full")
        if self.shard != "none" and self.overlap:
            raise ValueError(
                "overlap: one process that fails would leave the others waiting in a pass; leave out shard or it"
            )
        if self.shard != "none" and self.lanes > 1:
            raise ValueError("lanes: shards are summed as they come; leave it at 1 with shard")
        if self.lanes > self.batch:
            raise ValueError(f"lanes = {self.lanes}: each needs at least one prompt or image of batch = {self.batch}")
        if self.shard != "none" and self.optimizer != "adamw":
            raise ValueError(f"optimizer = {self.optimizer} has never been tried with shard; take adamw")
        for name in self.rewards:
            if find_reward(name).clips and not isinstance(self.model, Wan | TinyVideoParts):
                raise ValueError(f"{name} judges clips, and {type(self.model).__name__} draws images; take Wan")

    def _check_held_out(self) -> None:
        if (self.eval_every > 0) != (self.held_out is not None):
            raise ValueError("held_out and eval_every go together: which prompts to evaluate on, and how often")
        for name in ("eval_rewards", "best"):
            if getattr(self, name) and self.held_out is None:
                raise ValueError(f"{name} is measured on held-out prompts; set held_out and eval_every as well")
        if self.best is not None and self.best not in self.watched:
            raise unknown_name("reward on held-out prompts (best)", self.best, self.watched)

    def _check_supervised(self) -> None:
        for name in ("turns", "offload", "overlap"):
            if getattr(self, name):
                raise ValueError(f"{name} is of rollouts; leave it out where images teach")
        if self.updates > 1:
            raise ValueError(f"updates = {self.updates}: images are learnt from once; leave it at 1")

    def _check_teachers(self, asks: Requirements) -> None:
        names, tasks = [t.name for t in self.teachers], [task for t in self.teachers for task in t.tasks]
        if (asks.route is not None) != bool(tasks):
            need = "needs teachers with tasks" if asks.route else "asks no teachers; leave them out"
            raise ValueError(f"teachers: {type(self.algorithm).__name__} {need}")
        for teacher in self.teachers:
            if not teacher.name.replace("_", "").replace("-", "").isalnum() or teacher.name == "base":
                raise ValueError(
                    f"teachers: {teacher.name!r} cannot be a name; take letters, digits, - and _, not base"
                )
            if not teacher.tasks and teacher.name != asks.anchor:
                raise ValueError(f"teachers: {teacher.name} has no task and is no anchor; leave it out")
        for twice in [name for many in (names, tasks) for name in many if many.count(name) > 1]:
            raise ValueError(f"teachers: {twice!r} is there twice; a task has one teacher, and a teacher one name")
        if asks.anchor is not None and asks.anchor not in ("base", *names):
            raise unknown_name("anchor", asks.anchor, ("base", *names))

    def _check_rewards(self, algorithm: OnPolicy) -> None:
        if not algorithm.weights and algorithm.requirements.route is None:
            raise ValueError("algorithm.weights is empty: name at least one reward and its weight")
        judged = algorithm.requirements.comparisons is not None
        blend = algorithm.requirements.blend or Blend()
        if WIN_RATE in {*algorithm.weights, *blend.gate} and not judged:
            raise ValueError(f"{WIN_RATE} is a reward of PrefGRPO only; {type(algorithm).__name__} compares no images")
        if judged != (self.judge is not None):
            need = "needs a judge" if judged else "asks no judge; leave it out"
            raise ValueError(f"judge = {self.judge}: {type(algorithm).__name__} {need}")
        if blend.how == "z_sum" and sum(algorithm.weights.values()) <= 0:
            raise ValueError("algorithm.weights: their sum must be positive for blend.how = z_sum, a weighted mean")

    @property
    def watched(self) -> tuple[str, ...]:
        """The rewards measured on held-out prompts."""
        trained = self.algorithm.requirements.rewards if isinstance(self.algorithm, OnPolicy) else ()
        return tuple(dict.fromkeys([*trained, *self.eval_rewards]))

    @property
    def hidden(self) -> tuple[str, ...]:
        """Of those, the ones that are not trained."""
        trained = self.algorithm.requirements.rewards if isinstance(self.algorithm, OnPolicy) else ()
        return tuple(name for name in self.watched if name not in trained)

    @property
    def rewards(self) -> tuple[str, ...]:
        """All that are asked: those, and what images to learn from must reach."""
        return (*self.watched, *(self.data.min_reward if isinstance(self.data, ImageSource) else ()))

    @property
    def folder(self) -> Path:
        return Path("runs") / self.name
