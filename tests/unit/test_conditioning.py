"""The prompts of an iteration take the embeddings of their own texts with them, and no others."""

import pytest
import torch

from afterflow.sampling.conditioning import Embedding, condition


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("index", [[0, 3, 3, 1], [2], [-1, 4, -1], [-1]])
def test_the_embeddings_that_are_needed_are_those_of_the_rows(index, pooled):
    positive = Embedding(torch.randn(4, 3, 2), torch.randn(4, 5) if pooled else None, torch.ones(4, 3).long())
    negative = Embedding(torch.randn(1, 3, 2), torch.randn(1, 5) if pooled else None, torch.zeros(1, 3).long())
    records = [{"prompt": str(i)} for i in range(5)]
    texts = torch.tensor([3, 1, 0, 1, 2])  # two records share a text, as in a data set with tags
    rows = condition(positive, negative, records, texts)
    rows = rows.dropped(torch.zeros(5, dtype=torch.bool))[torch.tensor([max(i, 0) for i in index])]
    rows = rows.dropped(torch.tensor(index) < 0)
    needed = rows.needed()
    assert len(needed.positive.sequence) <= len(index) and needed.records() == rows.records()
    for made, expected in zip(needed.embedding(), rows.embedding(), strict=True):
        assert (made is None and expected is None) or torch.equal(made, expected)
    assert rows.on_device() is rows  # they lie there already
