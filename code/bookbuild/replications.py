"""On which seed sets each claim was seen to hold: ``book/replications.yml``, from ``make replicate``.

For each page the file has the offsets with which it was run and, by claim, those on which it held. An entry
counts as long as the page's cells and claims are what they were (`key`). The versions of Python and packages
are not in that key, nor the package's modules: nbval finds what changes with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from bookbuild.keys import cells_key
from bookbuild.results import BOOK, chapters, name_of

FILE = BOOK / "replications.yml"
HEAD = "# Written by `make replicate SEEDS=... RECORD=1`, see bookbuild.replications.\n"


def read_replications() -> dict[str, Any]:
    """The entries by page that belong to the pages as they stand."""
    found = yaml.safe_load(FILE.read_text("utf-8")) if FILE.exists() else None
    pages = {name_of(page): page for page in chapters()}
    return {
        name: entry
        for name, entry in (found or {}).items()
        if name in pages and entry["key"] == cells_key(pages[name])
    }


def record(page: Path, offset: int, records: Iterable[dict[str, Any]], own: dict[str, list[float]]) -> None:
    """Enter one run of a page.

    Parameters
    ----------
    page : Path
    offset : int
        What was added to its seeds.
    records : iterable of dict
        What :func:`bookbuild.replicate.replicate` found out about its claims.
    own : dict of str to list of float
        What the claims measured with the book's own seeds. A claim that measures exactly the same with all
        seed sets is `unmoved`: mostly nothing in it is random, so the runs count for nothing.
    """
    entries = read_replications()
    entry = entries.get(name_of(page), {"key": cells_key(page), "seeds": [], "held": {}, "unmoved": None})
    unmoved = [r["claim"] for r in records if r["measured"] == own[r["claim"]]]
    if entry["unmoved"] is not None:
        unmoved = [name for name in unmoved if name in entry["unmoved"]]
    entry["unmoved"] = unmoved
    entry["seeds"] = sorted({*entry["seeds"], offset})
    for r in records:
        held = {*entry["held"].get(r["claim"], [])} - {offset}
        entry["held"][r["claim"]] = sorted(held | {offset} if r["as_expected"] else held)
    entries[name_of(page)] = entry
    ordered = {name: entries[name] for name in map(name_of, chapters()) if name in entries}
    text = yaml.safe_dump(ordered, sort_keys=False, default_flow_style=None, width=110)
    FILE.write_text(HEAD + text, "utf-8")


def seed_sets(entries: dict[str, Any]) -> dict[str, str]:
    """By claim, on how many seed sets it held, such as "3 of 3", the book's own one among them.

    A dash stands for a claim whose numbers are the same on all of them.
    """
    found = {}
    for entry in entries.values():
        for name, held in entry["held"].items():
            moved = name not in entry["unmoved"]
            found[name] = f"{1 + len(held)} of {1 + len(entry['seeds'])}" if moved else "–"
    return found
