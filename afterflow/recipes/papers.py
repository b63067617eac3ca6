"""The papers' settings on the models that they are about.

Each recipe is for one GPU: fewer prompts an iteration than published, 4000 prompts of a kind (those of T5 take 1.6 MB
each, in the CPU's memory), and LoRAs where a paper trained all weights, with the rates that LoRAs take, but SOAR's with
the paper's.  `_8gpu` has the published number of images an iteration, of BranchGRPO on FLUX half of it, for several
processes: torchrun --nproc-per-node 8 -m afterflow train NAME.  docs/paper_settings.md has the published settings
beside ours, one by one, and says why two differ.  Rewards are the published ones, but OCR's, whose published formula
pays for text beside what was asked.  Losses are means over all steps, those of tied groups included, as the papers'
are; rates and betas are theirs, and AdamW's step is the same for any constant share of tied groups.

What is not ours to ship are files of yours: prompts/pickscore.txt, prompts/hpd.txt, prompts/video.txt, GenEval's own
prompts/evaluation_metadata.jsonl, which are never trained on, for SOAR the folder images/ with its metadata.jsonl, and
for DPO the folder pairs/ with its pairs.jsonl.
"""

from collections.abc import Callable
from dataclasses import replace

from ..algorithms.base import WIN_RATE
from ..algorithms.branch_grpo import BranchGRPO
from ..algorithms.dance_grpo import DanceGRPO
from ..algorithms.dpo import DPO
from ..algorithms.flow_grpo import FlowGRPO
from ..algorithms.flow_opd import FlowOPD
from ..algorithms.mix_grpo import MixGRPO
from ..algorithms.pref_grpo import PrefGRPO
from ..algorithms.pruning import Pruning
from ..algorithms.soar import SOAR
from ..algorithms.windows import SlidingWindow
from ..data.geneval_prompts import TASK_SHARES, MixedPrompts, ObjectPrompts, SignPrompts
from ..data.images import ImageFolder
from ..data.pairs import PairFolder
from ..data.prompt_sources import Prompts
from ..data.prompts import PromptFile
from ..experiment.config import AnyAlgorithm, Batches, Checkpoints, Evaluation, Logging, Optimization, Run
from ..experiment.stages import Chain, Merge
from ..models.adapters import LoRA, Teacher
from ..models.flux import Flux
from ..models.sd3 import SD3
from ..models.wan import Wan
from ..objectives.advantages import Blend
from ..rewards.vlm.judge import VLMJudge

SD35 = SD3("stabilityai/stable-diffusion-3.5-medium", dtype="float16", size=512, max_sequence_length=128)
FLUX = Flux("black-forest-labs/FLUX.1-dev", dtype="bfloat16", size=720)
WAN21 = Wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", dtype="bfloat16", height=240, width=416, frames=33)
HPD_PROMPTS = PromptFile("prompts/hpd.txt")
GENEVAL_PROMPTS = ObjectPrompts(count=4000, exclude="prompts/evaluation_metadata.jsonl")
OCR_PROMPTS = SignPrompts(count=4000)

MULTI_GPU = {
    "sd35_flow_grpo_geneval": (48, 2, "The same with the paper's 48 prompts an iteration."),
    "sd35_flow_grpo_ocr": (48, 2, "The same with the paper's 48 prompts an iteration."),
    "sd35_flow_grpo_pickscore": (48, 2, "The same with the paper's 48 prompts an iteration."),
    "sd35_flow_dppo": (64, 2, "The same with the paper's 64 prompts an iteration."),
    "sd35_soar": (512, 1, "The same with the batch of the paper's broad run."),
    "sd35_dpo": (2048, 1, "The same with the paper's 2048 pairs an update."),
    "flux_dance_grpo_hps": (16, 2, "The same with 16 prompts and two updates an iteration."),
    "flux_mix_grpo": (32, 4, "The same with the paper's 32 prompts and four updates an iteration."),
    "flux_mix_grpo_flash": (32, 4, "The same with the paper's 32 prompts and four updates an iteration."),
    "flux_branch_grpo": (16, 1, "The same with 16 prompts an iteration."),
    "flux_branch_grpo_mix": (16, 1, "The same with 16 prompts an iteration."),
    "flux_pref_grpo": (64, 2, "The same with the paper's 64 prompts and two updates an iteration."),
    "wan_branch_grpo": (32, 1, "The same with 32 prompts an iteration."),
}
"""Recipe → prompts and updates of an iteration, and the summary, of its twin NAME_8gpu for several processes."""


def sd35_flow_grpo_geneval() -> Run:
    """Flow-GRPO on SD3.5 Medium: composition, by GenEval's rules over transformers' detectors."""
    return _flow_grpo("sd35_flow_grpo_geneval", "geneval_hf_flowgrpo", 0.04, GENEVAL_PROMPTS, ObjectPrompts("test", 68))


def sd35_flow_grpo_ocr() -> Run:
    """Flow-GRPO on SD3.5 Medium: text in pictures, by rapidocr."""
    return _flow_grpo("sd35_flow_grpo_ocr", "ocr", 0.04, OCR_PROMPTS, SignPrompts("test", 64))


def sd35_flow_grpo_pickscore() -> Run:
    """Flow-GRPO on SD3.5 Medium: what people prefer, by PickScore."""
    return _flow_grpo("sd35_flow_grpo_pickscore", "pickscore", 0.01, PromptFile("prompts/pickscore.txt"), None)


def sd35_flow_dppo() -> Run:
    """Flow-DPPO on SD3.5 Medium: GenEval's rules and PickScore, with a mask of divergence in place of the clip.

    Its paper trains on the prompts of GenEval 2, by three random steps of the first half; here they are in a row.
    """
    run = sd35_flow_grpo_geneval()
    weights = {"geneval_hf_flowgrpo": 1.0, "pickscore": 1.0}
    algorithm = FlowGRPO(weights, group=16, eta=0.8, window=3, beta=0.0, blend=Blend("z_sum"), divergence=1e-7)
    evaluation = replace(run.evaluation, eval_rewards=("clipscore",))
    return replace(run, algorithm=algorithm, evaluation=evaluation, name="sd35_flow_dppo")


def sd35_soar() -> Run:
    """SOAR on SD3.5 Medium for a LoRA: images of yours that reach an aesthetic score of 6.8.

    Name the predictor's weights: --reward-models.weights aesthetic FILE.
    """
    return Run(
        SOAR(correction=0.2, points=2),
        ImageFolder("images", min_reward={"aesthetic": 6.8}),
        replace(SD35, dtype="bfloat16", max_sequence_length=77),
        LoRA(rank=32, alpha=64),
        name="sd35_soar",
        batches=Batches(iterations=5000, batch=32, chunk=8, guidance_scale=4.5),
        optimization=Optimization(learning_rate=2e-5, weight_decay=1e-2, ema_decay=None, mixed_precision="bf16"),
        evaluation=Evaluation(inference_steps=40),
        logging=Logging(sample_every=250),
        checkpoints=Checkpoints(save_every=250),
    )


def sd35_dpo() -> Run:
    """DPO on SD3.5 Medium: pairs of yours in the folder pairs/, or --images yuvalkirstain/pickapic_v2.

    beta is that of flow_grpo's script for this model; the paper's 2000 and 5000 are of noise predictors.
    """
    return sd35_soar().with_options(
        algorithm=DPO(beta=100.0),
        data=PairFolder("pairs"),
        name="sd35_dpo",
        iterations=2000,
        batch=64,
        chunk=4,
        learning_rate=1e-4,
        warmup=200,
    )


def sd35_flow_opd() -> Chain:
    """Flow-OPD on SD3.5 Medium: the three Flow-GRPO specialists, their merge, and one student of all of them.

    By the ODE, which needs no density (released: the SDE); tasks are mixed in every iteration (released: by turns).
    """
    return _flow_opd("sd35_flow_opd", "", 4)


def sd35_flow_opd_8gpu() -> Chain:
    """The same from the specialists of 48 prompts an iteration, with the paper's 16 for the student."""
    return replace(_flow_opd("sd35_flow_opd_8gpu", "_8gpu", 16), processes=8)


def flux_dance_grpo_hps() -> Run:
    """DanceGRPO on FLUX.1-dev: what people prefer, by HPSv2.1; the LoRA settings that its authors published."""
    algorithm = DanceGRPO({"hpsv2": 1.0}, steps=12, group=12)
    return _flux(algorithm, "flux_dance_grpo_hps", LoRA(rank=128, alpha=256), 3e-4).with_options(ema_decay=0.995)


def flux_mix_grpo() -> Run:
    """MixGRPO on FLUX.1-dev: HPSv2.1, PickScore and ImageReward, noise in a window of four steps of 25."""
    return _flux(_mix(), "flux_mix_grpo", LoRA(rank=64, alpha=128), 1e-4)


def flux_mix_grpo_flash() -> Run:
    """MixGRPO-Flash on FLUX.1-dev: after the window 0.4 of the steps, by a solver of second order."""
    return _flux(replace(_mix(), flash=0.4), "flux_mix_grpo_flash", LoRA(rank=64, alpha=128), 1e-4)


def flux_branch_grpo() -> Run:
    """BranchGRPO on FLUX.1-dev: trees of 16 leaves, HPSv2.1, four steps in a row left out of training."""
    algorithm = BranchGRPO({"hpsv2": 1.0}, prune=Pruning(depth=4))
    return _flux(algorithm, "flux_branch_grpo", LoRA(rank=64, alpha=128), 1e-4).with_options(ema_decay=0.995)


def flux_branch_grpo_mix() -> Run:
    """BranchGRPO-Mix on FLUX.1-dev: noise and training only at the splits and in a window."""
    algorithm = BranchGRPO({"hpsv2": 1.0}, mix=SlidingWindow(idle=1))
    return _flux(algorithm, "flux_branch_grpo_mix", LoRA(rank=64, alpha=128), 1e-4).with_options(ema_decay=0.995)


def flux_pref_grpo() -> Run:
    """Pref-GRPO on FLUX.1-dev: a judge that thinks (UnifiedReward-Think on a server of yours), and CLIPScore."""
    algorithm = PrefGRPO({WIN_RATE: 0.4, "clipscore": 0.6})
    judge = VLMJudge(model="UnifiedReward", answer="tag", max_tokens=4096)
    return _flux(algorithm, "flux_pref_grpo", LoRA(rank=64, alpha=128), 1e-5, judge)


def wan_branch_grpo() -> Run:
    """BranchGRPO on Wan 2.1 1.3B: clips of 33 frames, HPSv2.1 of their frames.

    The paper rewards motion, by VideoAlign.  Below 16 prompts an iteration clips were found not to learn.
    """
    return Run(
        BranchGRPO({"hpsv2": 1.0}),
        PromptFile("prompts/video.txt"),
        WAN21,
        LoRA(rank=32, alpha=64),
        name="wan_branch_grpo",
        batches=Batches(iterations=200, batch=16, chunk=2, guidance_scale=4.5, offload=True),
        optimization=Optimization(learning_rate=1e-4, mixed_precision="bf16", gradient_checkpointing=True),
        evaluation=Evaluation(inference_steps=50),
        checkpoints=Checkpoints(save_every=20),
    )


def _flow_grpo(name: str, reward: str, beta: float, data: Prompts, held_out: Prompts | None) -> Run:
    """Flow-GRPO's published beta, which is of its released code's KL; its EMA at every update, not each eighth."""
    algorithm = FlowGRPO({reward: 1.0}, beta=beta, kl_scale="legacy")
    batches = Batches(iterations=1000, batch=8, updates=2, chunk=8, guidance_scale=4.5)
    return _sd35(name, algorithm, batches, data, held_out)


def _sd35(name: str, algorithm: AnyAlgorithm, batches: Batches, data: Prompts, held_out: Prompts | None) -> Run:
    """A LoRA that SD3.5 Medium learns from rewards, in half precision."""
    return Run(
        algorithm,
        data,
        SD35,
        LoRA(rank=32, alpha=64),
        name=name,
        batches=batches,
        optimization=Optimization(mixed_precision="fp16"),
        evaluation=Evaluation(
            inference_steps=40,
            held_out=held_out,
            eval_every=0 if held_out is None else 50,
            eval_rewards=() if held_out is None else ("pickscore", "clipscore"),
        ),
    )


def _flux(algorithm: AnyAlgorithm, name: str, tune: LoRA, rate: float, judge: VLMJudge | None = None) -> Run:
    return Run(
        algorithm,
        HPD_PROMPTS,
        FLUX,
        tune,
        judge=judge,
        name=name,
        batches=Batches(iterations=300, batch=4, chunk=2),
        optimization=Optimization(learning_rate=rate, mixed_precision="bf16", gradient_checkpointing=True),
        evaluation=Evaluation(inference_steps=28),
    )


def _mix() -> MixGRPO:
    return MixGRPO({"hpsv2": 1.0, "pickscore": 1.0, "image_reward": 1.0})


def _flow_opd(name: str, suffix: str, batch: int) -> Chain:
    tasks = {"geneval": tuple(TASK_SHARES), "ocr": ("text",), "pickscore": ("preference",)}
    folder = {task: f"runs/sd35_flow_grpo_{task}{suffix}/lora" for task in tasks}
    merge = Merge(tuple(folder.values()), name=f"{name}_merge", rank=32)
    preference = PromptFile("prompts/pickscore.txt", tag="preference")
    student = Run(
        FlowOPD(),
        MixedPrompts((GENEVAL_PROMPTS, OCR_PROMPTS, preference)),
        SD35,
        LoRA(rank=32, alpha=32, start=str(merge.folder / "lora")),
        teachers=tuple(Teacher(task, folder[task], tags, guidance_scale=4.5) for task, tags in tasks.items()),
        name=name,
        batches=Batches(iterations=500, batch=batch, updates=2, chunk=8, guidance_scale=4.5),
        optimization=Optimization(learning_rate=1e-4, mixed_precision="fp16"),
        evaluation=Evaluation(inference_steps=40),
    )
    specialists = (sd35_flow_grpo_geneval, sd35_flow_grpo_ocr, sd35_flow_grpo_pickscore)
    stages = [(_multi_gpu(recipe) if suffix else recipe)() for recipe in specialists]
    return Chain(name, (*stages, merge, student))


def _multi_gpu(recipe: Callable[[], Run]) -> Callable[[], Run]:
    """Return the twin of a recipe of MULTI_GPU, a recipe with the paper's number of images an iteration."""
    batch, updates, summary = MULTI_GPU[recipe.__name__]

    def twin() -> Run:
        return recipe().with_options(batch=batch, updates=updates, name=f"{recipe.__name__}_8gpu")

    twin.__doc__ = summary
    return twin
