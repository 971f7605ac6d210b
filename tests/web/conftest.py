"""The browser of these tests; the unit tests need neither it nor Playwright."""

import pytest
from browser import launched, opener


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
