"""What test_processes.py runs in one process and, by torchrun, in two: `several.py FOLDER` writes what each found."""

import copy
import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from afterflow.algorithms.branch_grpo import BranchGRPO
from afterflow.algorithms.crd import CRD
from afterflow.algorithms.ddpo import DDPO
from afterflow.algorithms.diffusion_nft import DiffusionNFT
from afterflow.algorithms.dpo import DPO
from afterflow.algorithms.flow_grpo import FlowGRPO
from afterflow.algorithms.lag import Lag
from afterflow.algorithms.pref_grpo import PrefGRPO
from afterflow.algorithms.sft import SFT
from afterflow.algorithms.soar import SOAR
from afterflow.algorithms.v_grpo import VGRPO
from afterflow.experiment.latent_dataset import encode_in_shares
from afterflow.models.wrappers import in_chunks
from afterflow.sampling.schedules import LinearShift
from afterflow.system.errors import InputError, TrainingStopped
from afterflow.train.checkpoint import WeightState, save_checkpoint
from afterflow.train.distributed import Processes, make_accelerator
from afterflow.train.ema import Ema
from afterflow.train.lagged import LaggedPolicy
from afterflow.train.sharding import gather_network, reshard, shard_network
from toy import MLP, learn, optimize, prompts, score

NEAR = {"near": 1.0}
ALGORITHMS = {
    "flow_grpo": FlowGRPO(NEAR, steps=4, group=4, beta=0.0),
    "branch_grpo": BranchGRPO(NEAR, steps=4, splits=(0, 1)),
    "ddpo": DDPO(NEAR, steps=4, group=2, history=8, min_count=2),
    "pref_grpo": PrefGRPO(steps=4, group=4),
    "nft": DiffusionNFT(NEAR, steps=4, group=4, schedule=LinearShift(3.0), kl=0.0, lag=Lag(start=0.5)),
    "v_grpo": VGRPO(NEAR, steps=4, group=4, schedule=LinearShift(3.0)),
    "crd": CRD(NEAR, steps=4, group=4, schedule=LinearShift(3.0), kl=0.0),
    "sft": SFT(dropout=0.1),
    "soar": SOAR(points=2),
    "dpo": DPO(beta=20.0, sft=0.1, dropout=0.1),
    "soar_paths": SOAR(points=2, paths=3, steps=4, density="uniform"),
}


def named(model):
    return dict(model.named_parameters())


def seen(steps):
    return [{name: value for name, value in metrics.items() if "seconds" not in name} for _, metrics in steps]


def told(model, steps):
    """Metrics and final weights."""
    metrics = seen(steps)
    return {"metrics": metrics, "weights": {name: p.tolist() for name, p in named(model).items()}}


def trains(accelerator, name):
    """With two gradient partitions, whoever has them."""
    model, processes = MLP(), Processes(accelerator, grad_partitions=2)
    wrap = lambda network: in_chunks(network, 16)  # as in a run: rows are rounded alike, whatever stands beside them
    options = {"wrap": wrap, "reference": wrap(copy.deepcopy(model)), "ema": Ema(named(model), 0.9)}
    return told(model, learn(ALGORITHMS[name], model, 4, chunk=16, processes=processes, **options))


def tied(rank):
    """The last four of eight prompts, those of process 1, have equal rewards, so it has nothing to train on."""

    def scores(leaves, records, generators, clock):
        found = score(leaves, records)
        found.rewards["near"][4 - 4 * rank :] = 0.0
        return found

    return scores


def trains_where_one_has_nothing(accelerator):
    model, processes = MLP(), Processes(accelerator, grad_partitions=2)
    options = {"score": tied(processes.rank), "updates": 1, "processes": processes}
    return told(model, learn(ALGORITHMS["flow_grpo"], model, 3, **options))


def stopped(accelerator, **options):
    """How training ends where process 1 cannot go on."""
    try:
        list(learn(ALGORITHMS["flow_grpo"], MLP(), 3, processes=Processes(accelerator, grad_partitions=2), **options))
    except (TrainingStopped, ConnectionError) as error:
        return f"{type(error).__name__}: {error}"
    return "not at all"


def fails_in(rank):
    def failing(leaves, records, generators, clock):
        if accelerator_rank() == rank:
            raise ConnectionError("the reward's server is gone")
        return score(leaves, records)

    return failing


def accelerator_rank():
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 1


def nothing(x, t, cond):
    """NaN in process 1 alone."""
    return x * (torch.nan if accelerator_rank() == 1 else 1.0) + torch.zeros((), requires_grad=True)


def in_shards(accelerator, folder, algorithm, score=score, how="full", updates=1):
    """All of it in a process, or a part in each of two; and a checkpoint of the shards."""
    sharded = accelerator.num_processes > 1
    processes = Processes(accelerator, sharded, grad_partitions=2)
    model = MLP()
    if sharded:
        shard_network(model, (), how, torch.device("cpu"), processes.count)
        assert all(isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in model.parameters())
    optimizer, ema = optimize(model), Ema(named(model), 0.9)
    chunked = lambda network: in_chunks(network, 64, processes.all_max if sharded else int)
    velocity, lagged = chunked(model), {}
    for name, lag in algorithm.requirements.lagged.items():
        network = MLP().requires_grad_(False)
        if sharded:
            shard_network(network, (), "full", torch.device("cpu"), processes.count)
        lagged[name] = network, LaggedPolicy(named(network), lag)
    options = {"velocity": velocity, "ema": ema, "updates": updates, "score": score, "lagged": lagged, "wrap": chunked}
    metrics = seen(learn(algorithm, model, 3, optimizer=optimizer, processes=processes, **options))
    weights = WeightState(named(model), optimizer, ema, processes=processes)
    save_checkpoint(folder / "checkpoints", 2, weights, keep=2)
    x, t = torch.ones(3, 2), torch.full((3,), 0.5)
    outputs = []
    for context in (nullcontext, partial(ema.applied, named(model)), nullcontext):
        with torch.no_grad(), context():
            reshard(model)
            outputs.append(velocity(x, t, prompts(3)).tolist())
        reshard(model)
    network = model if not sharded else whole_mlp(model)
    found = {"metrics": metrics, "outputs": outputs}
    return found | ({"weights": {name: p.tolist() for name, p in named(network).items()}} if network else {})


def whole_mlp(model):
    MLP.from_config = classmethod(lambda kind, config: kind())
    model.config = {}
    return gather_network(model)


def encoded(accelerator, fails=None):
    """What processes get of five shards of two shapes, the last without a picture, and which this one encoded."""
    mine = []

    def encode(shard):
        if shard == fails:
            raise InputError(f"{shard} cannot be read")
        mine.append(shard)
        shape = (shard % 4, 2, 3 + shard % 2)
        return torch.randn(shape, generator=torch.Generator().manual_seed(shard)), list(range(shape[0])), shard

    try:
        made = list(encode_in_shares(iter(range(5)), encode, Processes(accelerator)))
    except (InputError, TrainingStopped) as error:
        return f"{type(error).__name__}: {error}"
    return {"mine": mine, "all": [(shard, z.tolist(), *z.shape, *others) for shard, (z, *others) in made]}


def main(folder):
    torch.set_num_threads(1)
    accelerator = make_accelerator("no")
    found = {name: trains(accelerator, name) for name in ALGORITHMS}
    found["nothing to train on"] = trains_where_one_has_nothing(accelerator)
    found["a reward that fails"] = stopped(accelerator, score=fails_in(1))
    found["a loss that is not finite"] = stopped(accelerator, velocity=nothing)
    found["shards"] = in_shards(accelerator, folder, ALGORITHMS["flow_grpo"])
    ties = tied(accelerator.process_index)
    found["shards, nothing to train on"] = in_shards(accelerator, folder / "tied", ALGORITHMS["flow_grpo"], ties)
    found["shards, zero2"] = in_shards(accelerator, folder / "zero2", ALGORITHMS["flow_grpo"], how="zero2")
    found["shards of NFT"] = in_shards(accelerator, folder / "nft", ALGORITHMS["nft"], how="zero2")
    found["shards of V-GRPO, nothing to train on"] = in_shards(
        accelerator, folder / "v_grpo", ALGORITHMS["v_grpo"], ties, updates=2
    )
    found["shards of SFT"] = in_shards(accelerator, folder / "sft", ALGORITHMS["sft"])
    found["encoded"], found["encoded, one fails"] = encoded(accelerator), encoded(accelerator, fails=3)
    (folder / f"{accelerator.process_index}_of_{accelerator.num_processes}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
