"""The prompts of a run are encoded: those to learn from and those held out, by text encoders that are loaded once."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..models.generate import distinct_prompts, encode_records
from ..sampling.conditioning import Conditioning
from ..system.errors import InputError
from ..train.clock import Clock
from .run_folder import RunFolder
from .setup import TrainingSetup


@dataclass
class PromptEncoder:
    """Encodes the prompts that a run learns from, and with the first of them the held-out ones."""

    setup: TrainingSetup
    """The run."""
    held_out: Sequence[dict]
    """Records of the held-out prompts."""
    clock: Clock
    """The clock that knows which stage is running."""
    held_out_prompts: Conditioning | None = None
    """The held-out prompts, when they are encoded and where there are some."""

    def __call__(self, records: Sequence[dict]) -> Conditioning:
        """Encode the prompts of records.  InputError as of `encode_prompts`."""
        first = self.setup.processes.main_first()  # what the first has encoded, others find in the cache
        with first, self.clock.within("encoding of prompts"), self.setup.model.encoders_loaded_once():
            prompts = encode_prompts(self.setup, records)
            # In a call of their own: in one batch with others they would round otherwise, and be cached with them.
            if self.held_out and self.held_out_prompts is None:
                self.held_out_prompts = encode_prompts(self.setup, self.held_out)
        return prompts


def encode_prompts(setup: TrainingSetup, records: Sequence[dict]) -> Conditioning:
    """Encode the prompts of records; InputError for what an encoder would cut, where the run asks for that."""
    cuts = setup.model.cut_prompts(distinct_prompts(records))
    if cuts and setup.run.batches.long_prompts == "stop":
        raise InputError("; ".join(cut.sentence() for cut in cuts) + "; shorten them, or take --long-prompts cut")
    if cuts and setup.processes.main:
        folder = RunFolder(setup.run.folder)
        before = folder.data().get("cut_prompts", {})
        counts = {cut.encoder: max(cut.prompts, before.get(cut.encoder, 0)) for cut in cuts}
        folder.write_data({"cut_prompts": before | counts})
    return encode_records(setup.model, records)
