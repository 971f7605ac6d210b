"""A claim: a sentence, its source, a check on numbers that were just measured, and the verdict.

The sentences stand in ``book/claims.yml``. A chapter measures and calls
``claim("some-id").check(condition, measured=values)``: the cell fails if the outcome is not the
expected one, and shows the verdict as a box otherwise. The page *What we measured* collects the
boxes of all executed chapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bnbook._extra import book_extra
from bnbook.show import spread

with book_extra():
    import yaml
    from IPython.display import display

__all__ = ["CLAIMS_FILE", "Claim", "claim", "read_claims"]

# The file of the checkout if the package lies in one (pip install -e), or the copy that the wheel brings.
_CHECKOUT = Path(__file__).resolve().parents[2] / "book" / "claims.yml"
CLAIMS_FILE = _CHECKOUT if _CHECKOUT.is_file() else Path(__file__).with_name("assets") / "claims.yml"

VERDICTS = {
    "holds": "holds here",
    "reverses": "does not hold at our scale",
    "corrected": "is wrong as commonly stated",
}


@dataclass(frozen=True)
class Claim:
    """One entry of ``claims.yml``.

    Attributes
    ----------
    id : str
        Short name, unique in the book.
    says : str
        The sentence that is tested.
    source : str
        A BibTeX key and a place (``ioffe2015, figure 1a``), or ``folklore``, or ``this book``.
    expect : {'holds', 'reverses', 'corrected'}
        What we expect here: the sentence holds; it does not hold at our scale, and the text says
        why; or it is wrong as commonly stated.
    measures : str
        What the measured number is, with its unit.
    published : str
        The literature's figure, empty where there is none.
    """

    id: str
    says: str
    source: str
    expect: str
    measures: str
    published: str = ""

    def check(self, condition: bool | np.bool_, *, measured: ArrayLike) -> None:
        """Compare what was measured with what is expected, and show the verdict.

        Parameters
        ----------
        condition : bool
            Whether the sentence holds. For an expected `reverses` or `corrected` give the weakest
            condition under which somebody could still say that it holds: it has to come out False.
        measured : array_like
            The number behind it, or one for each seed or run.

        Raises
        ------
        AssertionError
            If the outcome is not the expected one, in either direction.

        Examples
        --------
        NaN compares as False, which would pass for a refutation, so a number that is not finite is refused:

        >>> wrong = Claim("x", "Two is three.", "folklore", "reverses", "quotient")
        >>> wrong.check(2 == 3, measured=np.nan)
        Traceback (most recent call last):
        ValueError: measured: got [nan] for claim x, expected finite numbers
        """
        if not isinstance(condition, bool | np.bool_):
            raise TypeError(f"condition: got {type(condition).__name__}, expected True or False")
        values = np.asarray(measured, float).ravel()
        if values.size == 0 or not np.isfinite(values).all():
            raise ValueError(f"measured: got {values.tolist()} for claim {self.id}, expected finite numbers")
        if bool(condition) != (self.expect == "holds"):
            raise AssertionError(
                f"claim {self.id} was expected to be '{self.expect}', but its condition is {bool(condition)} "
                f"with {self.measures}: {spread(values)}. Sentence: {self.says}"
            )
        # The numbers travel as metadata, from where the page "What we measured" reads them.
        display(
            self._mime_bundle(spread(values), values.size),
            metadata={"bnbook": {"claim": self.id, "measured": values.tolist()}},
            raw=True,
        )  # type: ignore[no-untyped-call]

    def _mime_bundle(self, numbers: str, count: int) -> dict[str, str]:
        """The box, for the built book (MyST), for JupyterLab (HTML) and for a terminal."""
        runs = f" (median [smallest, largest] of {count})" if count > 1 else ""
        verdict = VERDICTS[self.expect]
        measured = f"{self.measures}: {numbers}{runs}."
        published = f" Published: {self.published}." if self.published else ""
        return {
            "text/plain": f"Claim {self.id} {verdict}. {self.says} Measured: {measured}",
            "text/html": (
                f'<div class="bn-claim"><p><strong>Claim: {verdict}.</strong> {self.says}</p>'
                f"<p>Measured: {measured}{published} Source: {self.source}.</p></div>"
            ),
            "text/markdown": (
                f":::{{admonition}} Claim: {verdict}\n"
                f":class: claim claim-{self.expect}\n:name: claim-{self.id}\n"
                f"{self.says}\n\nMeasured: {measured}{published} Source: {self.citation()}.\n:::"
            ),
        }

    def citation(self) -> str:
        """The source with its BibTeX key as a MyST citation."""
        key, _, place = self.source.partition(",")
        if key in ("folklore", "this book"):
            return self.source
        return f"{{cite:t}}`{key}`" + (f",{place}" if place else "")


def read_claims(path: Path = CLAIMS_FILE) -> dict[str, Claim]:
    """Read and check ``claims.yml``: its entries by id, in the order of the file.

    >>> read_claims()["bn-whitens"].expect
    'corrected'
    """
    if not path.is_file():
        raise ValueError(f"path: there is no {path}; install the package again")
    entries: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text("utf-8")) or {}
    required, allowed = {"says", "source", "expect", "measures"}, set(Claim.__dataclass_fields__) - {"id"}
    claims = {}
    for name, entry in entries.items():
        missing, unknown = sorted(required - set(entry)), sorted(set(entry) - allowed)
        if missing or unknown:
            raise ValueError(
                f"{path.name}: claim {name} has missing fields {missing}, unknown fields {unknown}"
            )
        if entry["expect"] not in VERDICTS:
            raise ValueError(
                f"{path.name}: claim {name} expects {entry['expect']!r}, allowed are {', '.join(VERDICTS)}"
            )
        claims[name] = Claim(id=name, **{key: str(value).strip() for key, value in entry.items()})
    return claims


@cache
def _claims() -> dict[str, Claim]:
    return read_claims()


def claim(id: str) -> Claim:
    """Look up a claim of ``claims.yml`` by its id.

    >>> claim("bn-whitens").says
    'Batch normalization whitens the activations.'
    """
    if id not in _claims():
        raise ValueError(
            f"id: got {id!r}, which is not in {CLAIMS_FILE.name}; known are {', '.join(_claims())}"
        )
    return _claims()[id]
