"""The papers' settings of the forward-process methods on SD3.5 Medium, each for one GPU.

As in papers.py an iteration has fewer prompts than published (8 of 48), LoRAs have rank 32 and alpha 64, and data that
is not ours to ship are files of yours.  Rollouts and evaluation are without guidance, as published.  FlowAWR, V-GRPO
and CRD are second-hand: their settings are those of other people's code, as their pages say.
"""

from dataclasses import replace

from ..algorithms.awm import AWM
from ..algorithms.crd import CRD
from ..algorithms.dgpo import DGPO
from ..algorithms.diffusion_nft import DiffusionNFT
from ..algorithms.flow_awr import FlowAWR
from ..algorithms.flow_grpo import FlowGRPO
from ..algorithms.flow_opd import FlowOPD
from ..algorithms.lag import Lag
from ..algorithms.v_grpo import VGRPO
from ..data.geneval_prompts import TASK_SHARES, MixedPrompts, ObjectPrompts, SignPrompts
from ..data.prompt_sources import Prompts
from ..data.prompts import PromptFile
from ..experiment.config import AnyAlgorithm, Batches, Evaluation, Optimization, Run
from ..experiment.stages import Chain
from ..models.adapters import LoRA, Teacher
from .papers import GENEVAL_PROMPTS, OCR_PROMPTS, SD35, _flow_grpo, _sd35

GENEVAL = {"geneval_hf_flowgrpo": 1.0}
PICKSCORE = {"pickscore": 1.0}
PICKSCORE_PROMPTS = PromptFile("prompts/pickscore.txt")


def sd35_nft_geneval() -> Run:
    """DiffusionNFT on SD3.5 Medium: composition, by GenEval's rules over transformers' detectors."""
    return _forward("sd35_nft_geneval", DiffusionNFT(GENEVAL), GENEVAL_PROMPTS, ObjectPrompts("test", 68))


def sd35_nft_ocr() -> Run:
    """DiffusionNFT on SD3.5 Medium: text in pictures, with the paper's small beta and late old policy."""
    algorithm = DiffusionNFT({"ocr": 1.0}, beta=0.1, lag=Lag(flat=75, slope=0.0075, highest=0.999))
    return _forward("sd35_nft_ocr", algorithm, OCR_PROMPTS, SignPrompts("test", 64)).with_options(updates=2)


def sd35_nft_pickscore() -> Run:
    """DiffusionNFT on SD3.5 Medium: what people prefer, by PickScore."""
    return _forward("sd35_nft_pickscore", DiffusionNFT(PICKSCORE), PICKSCORE_PROMPTS, None)


def sd35_awm_geneval() -> Run:
    """AWM on SD3.5 Medium: composition; by the ODE, where the paper has SA-Solver with noise."""
    return _forward("sd35_awm_geneval", AWM(GENEVAL), GENEVAL_PROMPTS, ObjectPrompts("test", 68))


def sd35_awm_ocr() -> Run:
    """AWM on SD3.5 Medium: text in pictures."""
    return _forward("sd35_awm_ocr", AWM({"ocr": 1.0}, kl=0.003), OCR_PROMPTS, SignPrompts("test", 64))


def sd35_v_grpo_pickscore() -> Run:
    """V-GRPO on SD3.5 Medium: what people prefer, in 40 steps at 720 px; second-hand."""
    run = _forward("sd35_v_grpo_pickscore", VGRPO(PICKSCORE, steps=40), PICKSCORE_PROMPTS, None)
    return run.with_options(model=replace(SD35, size=720))


def sd35_flow_awr_pickscore() -> Run:
    """FlowAWR on SD3.5 Medium: what people prefer; second-hand."""
    return _forward("sd35_flow_awr_pickscore", FlowAWR(PICKSCORE), PICKSCORE_PROMPTS, None)


def sd35_dgpo_geneval() -> Run:
    """DGPO on SD3.5 Medium: composition, by the paper's equations."""
    run = _forward("sd35_dgpo_geneval", DGPO(GENEVAL, kl=0.02), GENEVAL_PROMPTS, ObjectPrompts("test", 68))
    return run.with_options(chunk=24)  # the images of a prompt at one time, which a pass then holds


def sd35_crd_geneval() -> Run:
    """CRD on SD3.5 Medium: composition, near to the base under guidance; second-hand."""
    run = _forward("sd35_crd_geneval", CRD(GENEVAL), GENEVAL_PROMPTS, ObjectPrompts("test", 68))
    return run.with_options(chunk=24)


def sd35_generalist() -> Chain:
    """NFT for composition, Guard for text and for what people prefer, and one student of all three by the ODE.

    The chain of DiffusionOPD (arXiv:2605.15055), which has no anchor.  It sums a batch of every task before each
    update; here the prompts of all tasks are mixed in every batch, which has as many images.
    """
    text = _guard("ocr", OCR_PROMPTS, SignPrompts("test", 64), 2e-6)
    preference = _guard("pickscore", PICKSCORE_PROMPTS, None, 4e-6)
    runs = {"geneval": sd35_nft_geneval(), "ocr": text, "pickscore": preference}
    tags = {"geneval": tuple(TASK_SHARES), "ocr": ("text",), "pickscore": ("preference",)}
    scales = {"geneval": 1.0, "ocr": 4.5, "pickscore": 4.5}
    student = Run(
        FlowOPD(group=6, beta=0.0),
        MixedPrompts((GENEVAL_PROMPTS, OCR_PROMPTS, replace(PICKSCORE_PROMPTS, tag="preference"))),
        SD35,
        LoRA(rank=32, alpha=64),
        teachers=tuple(Teacher(t, str(run.folder / "lora"), tags[t], scales[t]) for t, run in runs.items()),
        name="sd35_generalist",
        batches=Batches(iterations=500, batch=12, chunk=8),
        optimization=Optimization(mixed_precision="fp16"),
        evaluation=Evaluation(inference_steps=40),
    )
    return Chain("sd35_generalist", (*runs.values(), student))


def _guard(reward: str, data: Prompts, held_out: Prompts | None, clip: float) -> Run:
    """GRPO-Guard, whose clip is published for each reward."""
    run = _flow_grpo(f"sd35_guard_{reward}", reward, 0.0, data, held_out)
    algorithm = FlowGRPO({reward: 1.0}, beta=0.0, guard=True, clip=clip)
    return run.with_options(algorithm=algorithm, learning_rate=1e-4, eval_every=run.evaluation.eval_every)


def _forward(name: str, algorithm: AnyAlgorithm, data: Prompts, held_out: Prompts | None) -> Run:
    return _sd35(name, algorithm, Batches(iterations=1000, batch=8, chunk=16), data, held_out)
