"""What an import says if the packages are missing that only the book needs."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def book_extra() -> Iterator[None]:
    """Around imports of packages that ``pip install ./code`` leaves out: say how to get them."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is not installed; it comes with: pip install './code[book]'"
        ) from error
