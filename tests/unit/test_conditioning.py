"""The prompts of an iteration take the embeddings of their own texts with them, and no others."""

import pytest
import torch

from afterflow.sampling.conditioning import Embedding, condition


@pytest.mark.parametrize("pooled, pictures", [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("index", [[0, 3, 3, 1], [2], [-1, 4, -1], [-1]])
def test_the_embeddings_that_are_needed_are_those_of_the_rows(index, pooled, pictures):
    """With pictures, the empty prompt of each text is one of its own."""
    positive = Embedding(torch.randn(4, 3, 2), torch.randn(4, 5) if pooled else None, torch.ones(4, 3).long())
    positive = positive._replace(pictures=torch.randn(4, 1, 2, 3, 3) if pictures else None)
    count = 4 if pictures else 1
    negative = Embedding(torch.randn(count, 3, 2), torch.randn(1, 5) if pooled else None, torch.zeros(count, 3).long())
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


def test_a_row_without_its_prompt_is_still_about_its_record_and_picture():
    positive = Embedding(torch.randn(3, 2, 2), pictures=torch.randn(3, 1, 2, 3, 3))
    negative = Embedding(torch.randn(3, 2, 2))
    records = [{"prompt": str(i)} for i in range(3)]
    rows = condition(positive, negative, records)
    dropped = rows.dropped(torch.tensor([False, True, True]))
    assert dropped.index.tolist() == [0, -2, -3] and dropped.records() == records
    made = dropped.embedding()
    assert torch.equal(made.pictures, positive.pictures)
    assert torch.equal(made.sequence, torch.cat([positive.sequence[:1], negative.sequence[1:]]))
    assert dropped.dropped(torch.ones(3, dtype=torch.bool)).index.tolist() == [-1, -2, -3]
    assert rows.unprompted().index.tolist() == dropped.unprompted().index.tolist() == [-1, -2, -3]
