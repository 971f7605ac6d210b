"""The pages that have code, and where what they printed and drew is kept.

An executed page is a file ``_build/executed/NAME/KEY.json``; the key (:mod:`bookbuild.keys`) says what it
depends on. Several states of a page lie side by side, so that going back executes nothing.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import yaml
from myst_nb.core.read import read_myst_markdown_notebook
from nbformat import NotebookNode

from bookbuild.keys import chapter_key

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
NOTEBOOKS = ROOT / "notebooks"
EXECUTED = ROOT / "_build" / "executed"
ANSWER = "answer"  # the tag of cells in which readers write; they stand in notebooks, not in pages
KEPT_STATES = 4  # executed states of each page, the most recently used ones


class Result(NamedTuple):
    """What a page printed and drew, how long its cells took in seconds, and what it claimed.

    Attributes
    ----------
    outputs : list of list of dict
        For each code cell.
    seconds : float
    claims : dict of str to list of float
        The numbers that each checked claim measured, in the order of the page.
    """

    outputs: list[list[dict[str, Any]]]
    seconds: float
    claims: dict[str, list[float]]


def name_of(page: Path) -> str:
    """The name of a page: its path below ``book/``, without the ending."""
    return page.relative_to(BOOK).with_suffix("").as_posix()


def title_of(page: Path) -> str:
    """The first heading of a page."""
    found = re.search(r"^# (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    if found is None:
        raise ValueError(f"{page.name}: has no title")
    return found[1]


class Place(NamedTuple):
    """Where a page stands in ``_toc.yml``: under which chapter (itself, but for a deeper page) and part."""

    page: Path
    chapter: Path
    part: str
    numbered: bool


def contents() -> list[Place]:
    """The pages of ``_toc.yml`` in the order of the book; a chapter comes before its deeper pages."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    return [
        Place(ROOT / f"{entry['file']}.md", ROOT / f"{chapter['file']}.md", part.get("caption", ""), numbered)
        for part in toc["parts"]
        for numbered in [part.get("numbered", False)]
        for chapter in part["chapters"]
        for entry in [chapter, *chapter.get("sections", [])]
    ]


def parts() -> dict[str, list[Path]]:
    """The pages by the captions of their parts, in the order of the book."""
    found: dict[str, list[Path]] = {}
    for place in contents():
        found.setdefault(place.part, []).append(place.page)
    return found


def chapter_of(page: Path) -> Path:
    """The chapter under which a deeper page stands; any other page itself."""
    return next((place.chapter for place in contents() if place.page == page), page)


def deeper_pages(chapter: Path) -> list[Path]:
    """The pages that stand under a chapter."""
    return [place.page for place in contents() if place.chapter == chapter != place.page]


def chapters() -> list[Path]:
    """The pages that have code cells, in the order of the book."""
    return [page for page, *_ in contents() if "```{code-cell}" in page.read_text("utf-8")]


def pages_named(names: list[str]) -> list[Path]:
    """Those pages with code, or all of them if no name is given."""
    known = {name_of(page): page for page in chapters()}
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"PAGE: got {', '.join(unknown)}; allowed are {', '.join(known)}")
    return [known[name] for name in names or known]


def read_chapter(page: Path) -> NotebookNode:
    """The page as a notebook without outputs."""
    return read_myst_markdown_notebook(page.read_text("utf-8"), add_source_map=True, path=page)


def with_outputs(notebook: NotebookNode, result: Result) -> NotebookNode:
    """Put the outputs of a result into the code cells of the page that was executed, and number all."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    executed = [cell for cell in code if ANSWER not in cell.metadata.get("tags", [])]
    for cell, outputs in zip(executed, result.outputs, strict=True):
        cell.outputs = nbformat.from_dict(outputs)
    for count, cell in enumerate(code, 1):
        cell.execution_count = count
    return notebook


def read_executed(text: str, name: str) -> NotebookNode:
    """For myst-nb: the page of that name with its outputs."""
    page = BOOK / f"{name}.md"
    result = find_result(page)
    if result is None:
        raise ValueError(f"{page.name}: not executed as it stands; run `make book`, which does it first")
    return with_outputs(read_myst_markdown_notebook(text, add_source_map=True, path=page), result)


def find_result(page: Path) -> Result | None:
    """The executed page, if all that decides its outputs is as it was then."""
    file = _file(page)
    if not file.exists():
        return None
    file.touch()  # the most recently used one is the youngest
    return _read(file, file.stat().st_ino)


def keep_result(page: Path, notebook: NotebookNode, seconds: float, key: str) -> None:
    """Keep an executed page under its key, and of its earlier states the most recently used ones."""
    file = _file(page, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    records = [record for output in outputs if (record := output.get("metadata", {}).get("bnbook"))]
    claims = {record["claim"]: record["measured"] for record in records}
    result = Result([_joined(cell.outputs) for cell in code], seconds, claims)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result._asdict(), ensure_ascii=False), "utf-8")
    unfinished.replace(file)  # at once: a killed run leaves no half of a file
    by_age = sorted(file.parent.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for old in by_age[KEPT_STATES:]:
        old.unlink()


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join what was printed in several pieces: chance decides where a kernel cuts."""
    joined: list[dict[str, Any]] = []
    for output in outputs:
        if joined and output["output_type"] == "stream" and output["name"] == joined[-1].get("name"):
            joined[-1]["text"] += output["text"]
        else:
            joined.append(output)
    return joined


def _file(page: Path, key: str = "") -> Path:
    return EXECUTED / name_of(page) / f"{key or chapter_key(page)}.json"


@cache
def _read(file: Path, inode: int) -> Result:
    return Result(**json.loads(file.read_text("utf-8")))
