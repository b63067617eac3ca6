"""Every family in the widths of a released model, with two blocks of each kind and random weights: one iteration.

    python bench/real_layers.py --json bench/results/real_layers.json [MODEL ...]

Flow-GRPO in bf16 with a LoRA: two prompts, two images of each, three steps, rolled out and replayed.  Models that edit
have an input picture for every prompt.  What a tiny network cannot show is shown here: shapes and heads as released, a
ratio of 1 in bf16, and a finite gradient on every adapted layer.  Adapted layers whose outputs nothing reads are named:
the last block of SD3 and of Qwen-Image drops its text.

Seconds and the peak of memory are those of a process of its own on one thread of this machine.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from harness import make_parser, provenance, read_json, write_json
from real_size import materialise, precise, prompts, replayed
from released import RELEASED, Released, released

from afterflow.algorithms.base import Models
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.experiment.cost_estimate import trial_iteration
from afterflow.models.adapters import LoRA, attach, trainable_parameters
from afterflow.models.wan import Wan
from afterflow.models.wrappers import in_chunks
from afterflow.train.clock import Clock
from afterflow.train.explore import ExploreOptions

BLOCKS = 2
LAYERS = ("num_layers", "num_single_layers", "n_layers", "n_refiner_layers")
"""Names of the numbers of blocks in networks' configurations."""
ALGORITHM = FlowGRPO({"reward": 1.0}, steps=3, group=2, beta=0.0)
CLIP, PICTURE = {"height": 128, "width": 128, "frames": 5}, {"size": 256}
CHUNK, TOKENS = 2, 64


def shortened(model: Released) -> Released:
    """The model with two blocks of each kind."""
    network = model.files["transformer/config.json"]
    if "dual_attention_layers" in network:
        network = network | {"dual_attention_layers": network["dual_attention_layers"][:1]}
    kinds = dict.fromkeys(("Flux", "FluxKontext", "Flux2Klein"), LAYERS[:2]) | {"ZImage": LAYERS[2:]}
    names = kinds.get(model.config.__name__, LAYERS[:1])
    network = network | dict.fromkeys(names, BLOCKS)
    networks = [name for name in model.files if name.startswith("transformer")]  # two of a pair, of one shape
    return replace(model, files={**model.files, **dict.fromkeys(networks, network)})


def measure(name: str) -> dict:
    """One iteration of a model, in this process."""
    torch.set_num_threads(1)
    RELEASED[name] = shortened(RELEASED[name])
    family = RELEASED[name].config
    options = CLIP if issubclass(family, Wan) else PICTURE
    options = options | ({"picture_size": 256} if hasattr(family, "picture_size") else {})
    options = options | ({"max_sequence_length": TOKENS} if hasattr(family, "max_sequence_length") else {})
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = released(name, Path(folder), **options).load("meta")
    attach(model, LoRA(rank=32, alpha=64))
    materialise(model, torch.device("cpu"))
    for parameter_name, parameter in model.module.named_parameters():
        if parameter.ndim == 1 and parameter_name.endswith("weight"):  # of a norm
            torch.nn.init.ones_(parameter)
    parameters = trainable_parameters(model.module)
    cond = prompts(model, 2, torch.device("cpu"), RELEASED[name].edits)
    loaded = time.perf_counter()
    velocity = precise(model.velocity(model.module), torch.device("cpu"), torch.bfloat16)
    models, clock = Models(in_chunks(velocity, CHUNK)), Clock()
    options = ExploreOptions(0, model.latent_shape, CHUNK, low_noise=model.low_noise)
    iteration = trial_iteration(ALGORITHM, models, cond, options, clock)
    ratios = replayed(ALGORITHM, models, iteration)
    gradients = [parameter.grad for parameter in parameters.values()]
    without = [n for n, p in parameters.items() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    return {
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "adapted_tensors": len(gradients),
        "without_gradient": without,
        "ratio_mean": ratios[:, 0].max().item(),
        "ratio_max": ratios[:, 1].max().item(),
        "latent_shape": list(model.latent_shape),
        "seconds_to_make": round(loaded - start, 1),
        "seconds_of_iteration": round(time.perf_counter() - loaded, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("models", nargs="*", help="all of them without a name")
    parser.add_argument("--one", action="store_true", help="print the figures of one model, measured in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.models[0])))
        return
    models = read_json(options.json).get("models", {})
    for name in options.models or RELEASED:
        command = [sys.executable, __file__, "--one", name]
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        models[name] = json.loads(made.stdout.splitlines()[-1])
        print(name, models[name], flush=True)
        write_json(provenance() | {"models": models}, options.json, indent=1, show=False)


if __name__ == "__main__":
    main()
