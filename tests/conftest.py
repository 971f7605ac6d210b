"""Settings for all tests: Hypothesis draws the same examples on every run and every machine.

The fixtures are for the browser tests, `test_*web.py`.
"""

import pytest
import torch
from browser import launched, opener
from hypothesis import settings

settings.register_profile("book", derandomize=True, database=None, deadline=None, max_examples=50)
settings.load_profile("book")


@pytest.fixture(autouse=True)
def _same_random_state():
    """Every test begins with the same global random state, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def chromium():
    """A running Chromium."""
    with launched() as browser:
        yield browser


@pytest.fixture
def open_page(chromium):
    """Open a built page offline: see `browser.opener`."""
    with opener(chromium) as open_page:
        yield open_page
