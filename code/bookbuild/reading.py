"""How long pages take to read, and whether they keep the bars: ``python -m bookbuild.reading [PAGE]``.

What is inside solutions is not counted. A cell is folded if a tag hides or removes its input.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

from bookbuild.keys import named_claims
from bookbuild.results import BOOK, Place, chapter_of, contents, deeper_pages, name_of, title_of

WORDS_A_MINUTE = 200
FOLDED = re.compile(r"\b(?:hide-input|hide-cell|remove-input|remove-cell)\b")
CELL = re.compile(
    r"^```\{code-cell\}.*\n(?P<options>---\n(?:.*\n)*?---\n|(?::.*\n)*)(?P<source>(?:.*\n)*?)```\s*$", re.M
)
SOLUTION = re.compile(
    r"^(?P<fence>`{3,})\{solution-start\}(?:.*\n)*?`{3,}\{solution-end\}.*\n(?P=fence)\s*$", re.M
)


class Reading(NamedTuple):
    """What a page gives to read: `longest` are the visible lines of its longest unfolded cell."""

    words: int
    figures: int
    claims: int
    cells: int
    longest: int

    @property
    def minutes(self) -> int:
        """Time to read: the words, and a minute for each unfolded cell and each figure."""
        return max(1, round(self.words / WORDS_A_MINUTE + self.cells + self.figures))


CHAPTER = Reading(words=2200, figures=6, claims=5, cells=16, longest=15)
BARS = {
    "chapter": CHAPTER,
    "deeper": CHAPTER._replace(words=3000),
    "start": CHAPTER._replace(words=1800, longest=25),
}
WORDS_OF_THE_BOOK = 60_000


def measure(text: str) -> Reading:
    """Count what a page, given as MyST, gives to read."""
    text = SOLUTION.sub("", text)
    cells = list(CELL.finditer(text))
    shown = [cell["source"].strip("\n") for cell in cells if not FOLDED.search(cell["options"])]
    prose = CELL.sub("", text)
    figures = sum(bool(re.search(r"^ +figure:$", cell["options"], re.M)) for cell in cells)
    return Reading(
        words=len(prose.split()),
        figures=figures + len(re.findall(r"^`{3,}\{(?:slider|figure)\}", prose, re.M)),
        claims=len(named_claims("\n".join(cell["source"] for cell in cells))),
        cells=len(shown),
        longest=max((len(source.splitlines()) for source in shown), default=0),
    )


def read(page: Path) -> Reading:
    """Count what a page gives to read."""
    return measure(page.read_text("utf-8"))


def kind_of(place: Place) -> str:
    """The kind of a page in `BARS`, or ``""``."""
    if place.page.stem == "start":
        return "start"
    if place.page != place.chapter:
        return "deeper"
    return "chapter" if place.numbered else ""


def over(reading: Reading, kind: str) -> list[str]:
    """The bars that a page of this kind breaks, in words."""
    pairs = zip(Reading._fields, reading, BARS.get(kind, reading), strict=True)
    return [f"{name}: {value}, allowed {bar}" for name, value, bar in pairs if value > bar]


def facts(page: Path, runtime: str) -> str:
    """The line below a page's title, in MyST: how long it takes, and where more or less is told."""
    line = f"{_minutes(page)} to read, {runtime} to run."
    if (chapter := chapter_of(page)) != page:
        line = f"A deeper page of {{doc}}`/book/{name_of(chapter)}`. {line}"
    for deeper in deeper_pages(page):
        line += f" Deeper: {{doc}}`{title_of(deeper)} </book/{name_of(deeper)}>` ({_minutes(deeper)})."
    return line


def _minutes(page: Path) -> str:
    minutes = read(page).minutes
    return f"{minutes} minute{'s' * (minutes > 1)}"


def main(arguments: list[str] | None = None) -> int:
    """Print a table; returns the number of pages that break a bar."""
    parser = argparse.ArgumentParser(prog="python -m bookbuild.reading", description=__doc__)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="names, such as batch_norm (default: all)")
    names = parser.parse_args(arguments).pages
    front = BOOK / "index.md"
    pages = [Place(front, front, "", numbered=False), *contents()]
    places = {name_of(place.page): place for place in pages}
    if unknown := sorted(set(names) - set(places)):
        raise ValueError(f"PAGE: got {', '.join(unknown)}; allowed are {', '.join(places)}")
    print(f"{'page':28}" + "".join(f"{field:>9}" for field in (*Reading._fields, "minutes")))
    broken = words = 0
    for name in names or places:
        reading, kind = read(places[name].page), kind_of(places[name])
        wrong = over(reading, kind)
        broken, words = broken + bool(wrong), words + reading.words
        row = "".join(f"{value:9}" for value in (*reading, reading.minutes))
        print(f"{name:28}{row}{'  over' * bool(wrong)}")
    print(f"{words} words, {WORDS_OF_THE_BOOK} allowed in the whole book")
    return broken


if __name__ == "__main__":
    sys.exit(main())
