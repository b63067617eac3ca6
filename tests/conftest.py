"""One thread for every test, and no test for an accelerator that is not there."""

import pytest
import torch

torch.set_num_threads(1)  # the toys' tensors are so small that threads cost more than they bring


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs an accelerator"))
