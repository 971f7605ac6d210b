"""Settings for all tests: Hypothesis draws the same examples on every run and every machine."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("book", derandomize=True, database=None, deadline=None, max_examples=50)
settings.load_profile("book")


@pytest.fixture(autouse=True)
def _same_random_state():
    """Every test begins with the same global random state, whichever tests ran before it."""
    torch.manual_seed(0)
