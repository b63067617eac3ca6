import torch

from forked import Forked


def compute_on_two_threads():
    torch.set_num_threads(2)
    return int(torch.rand(2_000_000).sin().sum() == 0)


def test_a_forked_process_computes_where_this_one_has_used_several_threads():
    before = torch.get_num_threads()
    compute_on_two_threads()
    torch.set_num_threads(before)
    assert Forked(compute_on_two_threads).wait(60) == 0
