"""Settings for all tests: Hypothesis draws the same examples on every run and every machine."""

from hypothesis import settings

settings.register_profile("book", derandomize=True, database=None, deadline=None, max_examples=50)
settings.load_profile("book")
