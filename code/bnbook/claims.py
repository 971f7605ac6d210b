"""A claim: a sentence, its source, a check on numbers that were just measured, and the verdict.

The sentences stand in ``book/claims.yml``. A chapter measures and calls
``claim("some-id").check(condition, measured=values)``: the cell fails if the outcome is not the
expected one, and shows the verdict as a box otherwise. The page *What we measured* collects the
boxes of all executed chapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
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

# The file of the checkout if the package lies in one (pip install -e), or the copy that the wheel brings.
_CHECKOUT = Path(__file__).resolve().parents[2] / "book" / "claims.yml"
CLAIMS_FILE = _CHECKOUT if _CHECKOUT.is_file() else Path(__file__).with_name("assets") / "claims.yml"

VERDICTS = {
    "holds": "holds here",
    "reverses": "does not hold at our scale",
    "corrected": "is wrong as commonly stated",
}
KINDS = {"measurement": "measurements", "replication": "replications", "identity": "identities"}


@dataclass(frozen=True)
class Claim:
    """One entry of ``claims.yml``.

    Attributes
    ----------
    id : str
        Short name, unique in the book.
    says : str
        The sentence that is tested.
    kind : {'measurement', 'replication', 'identity'}
        Whether it could have come out the other way here; or is a published result at our scale, with
        the published number; or is true (or false) by algebra or arithmetic, so that the check can find
        nothing but a mistake in a program.
    source : str
        A BibTeX key and the place that states the sentence (``ioffe2015, figure 1a``), or ``this book``.
    expect : {'holds', 'reverses', 'corrected'}
        What we expect here: the sentence holds; it does not hold at our scale, and the text says
        why; or it is wrong as commonly stated.
    measures : str
        What the measured number is, with its unit.
    published : str
        The literature's figure, empty where there is none.
    map : str
        The name of the figure that shows how far the verdict holds, empty where there is none.
    """

    id: str
    says: str
    kind: str
    source: str
    expect: str
    measures: str
    published: str = ""
    map: str = ""

    @property
    def verdict(self) -> str:
        """The verdict in words. That of an identity does not depend on the scale."""
        words = VERDICTS[self.expect]
        return words.removesuffix(" here").removesuffix(" at our scale") if self.kind == "identity" else words

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

        >>> wrong = Claim("x", "Two is three.", "identity", "this book", "reverses", "quotient")
        >>> wrong.check(2 == 3, measured=np.nan)
        Traceback (most recent call last):
        ValueError: measured: got [nan] for claim x, expected finite numbers
        """
        if not isinstance(condition, bool | np.bool_):
            raise TypeError(f"condition: got {type(condition).__name__}, expected True or False")
        values = np.asarray(measured).ravel()
        if values.dtype.kind != "i":
            values = values.astype(float)
        if values.size == 0 or not np.isfinite(values).all():
            raise ValueError(f"measured: got {values.tolist()} for claim {self.id}, expected finite numbers")
        if bool(condition) != (self.expect == "holds"):
            raise AssertionError(
                f"claim {self.id} was expected to be '{self.expect}', but its condition is {bool(condition)} "
                f"with {self.measures}: {self.numbers(values)}. Sentence: {self.says}"
            )
        # The numbers travel as metadata, from where the page "What we measured" reads them.
        display(
            self._mime_bundle(self.numbers(values), values.size),
            metadata={"bnbook": {"claim": self.id, "measured": values.tolist()}},
            raw=True,
        )  # type: ignore[no-untyped-call]

    def numbers(self, measured: ArrayLike) -> str:
        """What was measured, as text. What an identity counts is exact and carries no mark ≈."""
        text = spread(measured)
        exact = self.kind == "identity" and np.asarray(measured).dtype.kind == "i"
        return text.replace("≈", "") if exact else text

    def _mime_bundle(self, numbers: str, count: int) -> dict[str, str]:
        """The box, for the built book (MyST), for JupyterLab (HTML) and for a terminal."""
        runs = f" (median [smallest, largest] of {count})" if count > 1 else ""
        title = f"Claim ({self.kind}): {self.verdict}"
        measured = f"{self.measures}: {numbers}{runs}."
        published = f" Published: {self.published}." if self.published else ""
        reach = " How far it holds: {}." if self.map else ""
        here = reach.format("see the map in this chapter")  # only a built page knows its number
        return {
            "text/plain": (
                f"Claim {self.id} ({self.kind}) {self.verdict}. {self.says} Measured: {measured}{here}"
            ),
            "text/html": (
                f'<div class="bn-claim"><p><strong>{title}.</strong> {self.says}</p>'
                f"<p>Measured: {measured}{published} Source: {self.source}.{here}</p></div>"
            ),
            "text/markdown": (
                f":::{{admonition}} {title}\n"
                f":class: claim claim-{self.expect}\n:name: claim-{self.id}\n"
                f"{self.says}\n\nMeasured: {measured}{published} Source: {self.citation()}."
                f"{reach.format(f'{{numref}}`{self.map}`')}\n:::"
            ),
        }

    def citation(self) -> str:
        """The source with its BibTeX key as a MyST citation."""
        key, _, place = self.source.partition(",")
        if key == "this book":
            return self.source
        return f"{{cite:t}}`{key}`" + (f",{place}" if place else "")


def read_claims(path: Path = CLAIMS_FILE) -> dict[str, Claim]:
    """Read and check ``claims.yml``: its entries by id, in the order of the file.

    >>> read_claims()["bn-gaussian"].expect
    'corrected'
    """
    if not path.is_file():
        raise ValueError(f"path: there is no {path}; install the package again")
    # libyaml's loader takes a tenth of the time of the one in Python, half a second for this book.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries: dict[str, dict[str, Any]] = yaml.load(path.read_text("utf-8"), loader) or {}
    for name, entry in entries.items():
        fault = _fault(entry)
        if fault:
            raise ValueError(f"{path.name}: claim {name} {fault}")
    return {
        name: Claim(id=name, **{field: str(value).strip() for field, value in entry.items()})
        for name, entry in entries.items()
    }


def _fault(entry: dict[str, Any]) -> str:
    """What is wrong with an entry of ``claims.yml``; empty if nothing is."""
    allowed = set(Claim.__dataclass_fields__) - {"id"}
    missing = sorted(allowed - {"published", "map"} - set(entry))
    unknown = sorted(set(entry) - allowed)
    if missing or unknown:
        return f"has missing fields {missing}, unknown fields {unknown}"
    for field, words in (("expect", VERDICTS), ("kind", KINDS)):
        if entry[field] not in words:
            return f"has {field}: {entry[field]}, allowed are {', '.join(words)}"
    source, expect = entry["source"], entry["expect"]
    if source == "folklore" or (source, expect) == ("this book", "corrected"):
        return (
            f"has source: {source} and expect: {expect}; cite a place that states the sentence, or ask it as "
            "a question (One might expect that ...) which reverses, with the source this book"
        )
    if entry["kind"] == "replication" and not entry.get("published"):
        return "replicates a result, so it needs the published number"
    return ""


@cache
def _claims() -> dict[str, Claim]:
    return read_claims()


def claim(id: str) -> Claim:
    """Look up a claim of ``claims.yml`` by its id.

    >>> claim("bn-gaussian").says
    'Batch normalization makes the activations Gaussian.'
    """
    if id not in _claims():
        close = ", ".join(get_close_matches(id, _claims())) or "none of a similar name"
        raise ValueError(f"id: got {id!r}, which is not in {CLAIMS_FILE.name}; it has {close}")
    return _claims()[id]
