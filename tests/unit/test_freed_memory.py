"""What is freed stays with the process that asked for it, and goes back where nobody did."""

import os
import subprocess
import sys

import pytest

from afterflow.system.freed_memory import glibc

pytestmark = pytest.mark.skipif(glibc() is None, reason="needs glibc")
PROGRAM = """
import resource
import numpy as np
from afterflow.system.freed_memory import keep_freed_memory, return_large_blocks

{before}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
take = lambda: [np.ones(2**20) for _ in range(8)]
take()
start = faults()
for _ in range(20):
    take()
print((faults() - start) / 20)
"""


def faults_an_iteration(before: str, **variables: str) -> float:
    """Pages that the system hands out anew for each of twenty times that 64 MB are taken and freed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    program = [sys.executable, "-c", PROGRAM.format(before=before)]
    return float(subprocess.run(program, env=own | variables, capture_output=True, text=True, check=True).stdout)


def test_what_is_freed_is_taken_again_without_the_system():
    assert faults_an_iteration("keep_freed_memory()") < 100
    assert faults_an_iteration("return_large_blocks()") > 1000


@pytest.mark.parametrize(
    "variables", [{"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}]
)
def test_what_users_have_set_is_left_alone(variables):
    assert faults_an_iteration("keep_freed_memory()", **variables) > 1000


@pytest.mark.parametrize("variables", [{"MALLOC_CONF": "narenas:1"}, {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}])
def test_variables_of_something_else_change_nothing(variables):
    assert faults_an_iteration("keep_freed_memory()", **variables) < 100
