"""Run every page with other seeds and tell which claims flip: ``python -m bookbuild.replicate --seeds 1000``.

The offset is added where random numbers begin (:mod:`bookbuild.other_seeds`): the pages run as they are. The
splits of the data stay the book's. A claim that flips is told and does not stop its page.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

from bookbuild.other_seeds import environment_with
from bookbuild.replications import record
from bookbuild.results import find_result, name_of, pages_named, read_chapter

KEY = "bnbook-replicate"
CELL_TIMEOUT = 600  # seconds


def record_claims() -> None:
    """Let claims record in this process what came out, instead of failing."""
    import numpy as np
    from IPython.display import display

    from bnbook.claims import Claim

    def check(self: Claim, condition: Any, *, measured: Any) -> None:
        values = np.asarray(measured).ravel()
        found = {
            "claim": self.id,
            "as_expected": bool(condition) == (self.expect == "holds"),
            "measured": (values if values.dtype.kind == "i" else values.astype(float)).tolist(),
        }
        display({"text/plain": ""}, metadata={KEY: found}, raw=True)

    Claim.check = check  # type: ignore[method-assign]


def replicate(page: Path, offset: int) -> tuple[list[dict[str, Any]], list[str]]:
    """What the claims of a page came to with other seeds, and the errors of its cells."""
    notebook = read_chapter(page)
    first = "from bookbuild.replicate import record_claims\nrecord_claims()"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        allow_errors=True,  # one cell that fails must not hide the claims of the others
        extra_arguments=["--log-level=40"],
        resources={"metadata": {"path": str(page.parent)}},
    )
    with environment_with(offset) as environment:
        client.execute(env=environment)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    records = [output.metadata[KEY] for output in outputs if KEY in output.get("metadata", {})]
    errors = [f"{output.ename}: {output.evalue}" for output in outputs if output.output_type == "error"]
    return records, errors


def main(arguments: list[str] | None = None) -> int:
    """Run the pages; returns the number of claims that flipped and of cells that failed."""
    parser = argparse.ArgumentParser(prog="python -m bookbuild.replicate", description=__doc__)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="names, such as batch_norm (default: all)")
    parser.add_argument("--seeds", type=int, required=True, metavar="OFFSET", help="added to every seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="pages at once")
    text = "enter what came out into book/replications.yml; the pages have to be executed"
    parser.add_argument("--record", action="store_true", help=text)
    settings = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pages = pages_named(settings.pages)
    own = {page: find_result(page) for page in pages if settings.record}
    if missing := [name_of(page) for page, result in own.items() if result is None]:
        parser.error(f"--record: not executed as they stand: {', '.join(missing)}; run `make execute` first")
    with ThreadPoolExecutor(max(1, settings.jobs or 1)) as pool:
        runs = pool.map(lambda page: replicate(page, settings.seeds), pages)
        results = list(tqdm(runs, total=len(pages), unit="page", mininterval=10))
    flipped = failed = checked = 0
    for page, (records, errors) in zip(pages, results, strict=True):  # as a list in Markdown, for CI
        for found in records:
            checked += 1
            if not found["as_expected"]:
                flipped += 1
                print(f"- {name_of(page)}: {found['claim']} flips; measured {found['measured']}")
        for error in errors:
            failed += 1
            print(f"- {name_of(page)}: a cell failed with {error}")
        if (result := own.get(page)) and not errors:  # a cell that failed may have had claims
            record(page, settings.seeds, records, result.claims)
    print(f"\nseeds from {settings.seeds}: {checked} claims, {flipped} flipped, {failed} cells failed")
    return flipped + failed


if __name__ == "__main__":
    sys.exit(main() > 0)
