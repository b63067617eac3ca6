import subprocess
import time

import psutil
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


def start_and_wait(file):
    with subprocess.Popen(["sleep", "60"]) as process:
        file.write_text(str(process.pid))


def test_a_process_that_is_given_up_leaves_none_behind(tmp_path):
    file = tmp_path / "pid"
    process = Forked(start_and_wait, file)
    while not (file.is_file() and file.read_text()):
        time.sleep(0.01)
    started = psutil.Process(int(file.read_text()))
    assert process.wait(0) != 0
    assert psutil.wait_procs([started], 10)[1] == []
