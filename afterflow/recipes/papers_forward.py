"""The papers' settings of the forward-process methods on SD3.5 Medium, each for one GPU.

As in papers.py an iteration has fewer prompts than published (8 of 48), LoRAs have rank 32 and alpha 64, and data that
is not ours to ship are files of yours.  Rollouts and evaluation are without guidance, as published.  FlowAWR, V-GRPO
and CRD are second-hand: their settings are those of other people's code, as their pages say.
"""

from ..algorithms.awm import AWM
from ..algorithms.crd import CRD
from ..algorithms.dgpo import DGPO
from ..algorithms.diffusion_nft import DiffusionNFT
from ..algorithms.flow_awr import FlowAWR
from ..algorithms.forward_process import ForwardProcess
from ..algorithms.lag import Lag
from ..algorithms.v_grpo import VGRPO
from ..data.geneval_prompts import ObjectPrompts, SignPrompts
from ..data.prompts import PromptFile
from ..experiment.config import Batches, Evaluation, Optimization, Prompts, Run
from ..models.adapters import LoRA
from .papers import GENEVAL_PROMPTS, OCR_PROMPTS, SD35

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
    """V-GRPO on SD3.5 Medium: what people prefer, in 40 steps; second-hand."""
    return _forward("sd35_v_grpo_pickscore", VGRPO(PICKSCORE, steps=40), PICKSCORE_PROMPTS, None)


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


def _forward(name: str, algorithm: ForwardProcess, data: Prompts, held_out: Prompts | None) -> Run:
    return Run(
        algorithm,
        data,
        SD35,
        LoRA(rank=32, alpha=64),
        name=name,
        batches=Batches(iterations=1000, batch=8, chunk=16),
        optimization=Optimization(mixed_precision="fp16"),
        evaluation=Evaluation(
            inference_steps=40,
            held_out=held_out,
            eval_every=0 if held_out is None else 50,
            eval_rewards=() if held_out is None else ("pickscore", "clipscore"),
        ),
    )
