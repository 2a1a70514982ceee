"""Every number of these tests is one thread's: sums depend on how they are split."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
