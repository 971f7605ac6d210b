"""The browser of these tests; the unit tests need neither it nor Playwright."""

import pytest
from browser import PAGES, launched, opener


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


# To open a page and set its maths takes longer than most looks at it. Pytest runs the tests of one page one
# after another, on one opening of it, and no test may leave it otherwise than it was.
@pytest.fixture(scope="module", params=PAGES)
def wide(request, chromium):
    """Each page of the book in turn, in a wide window, with its maths set: to look at."""
    with opener(chromium) as open_page:
        yield open_page(request.param, maths=True)


@pytest.fixture(scope="module", params=PAGES)
def phone(request, chromium):
    """Each page of the book in turn, on a phone, with its maths set: to look at."""
    with opener(chromium) as open_page:
        yield open_page(request.param, width=375, maths=True)
