"""Execute the pages that are out of date, in parallel: ``python -m bookbuild.execute``.

Each executed page is kept at once, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode
from tqdm import tqdm

from bookbuild.keys import chapter_key, closure
from bookbuild.results import ROOT, find_result, keep_result, name_of, pages_named, read_chapter

CELL_TIMEOUT = 600  # seconds

# Behind the last cell: which modules of the package the page has loaded, for a look at its key.
LOADED = 'import sys; print(*[name for name in sys.modules if name.split(".")[0] == "bnbook"])'


class ChapterError(Exception):
    """A cell failed; the message names page, line, cell and error."""


def execute(page: Path, line: int = 0) -> None:
    """Run all cells of a page in a fresh kernel, with a progress line, and keep the result.

    Parameters
    ----------
    page : Path
        The cells run in its folder.
    line : int
        Where its progress is shown.

    Raises
    ------
    ChapterError
        If a cell raises, takes longer than `CELL_TIMEOUT`, or kills the kernel; or if the page has loaded
        a module on which its key does not depend.
    """
    key, needed, notebook = chapter_key(page), closure(page), read_chapter(page)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    starts = zip(notebook.metadata.source_map, notebook.cells, strict=True)
    lines = [start for start, cell in starts if cell.cell_type == "code"]
    notebook.cells.append(nbformat.v4.new_code_cell(LOADED))
    terminal = sys.stderr.isatty()
    with tqdm(
        total=len(cells),
        desc=name_of(page),
        unit="cell",
        position=line if terminal else 0,
        mininterval=0.1 if terminal else 10,  # a log file wants few lines
    ) as progress:
        running: list[NotebookNode] = []

        def started(cell: NotebookNode, **_: Any) -> None:
            running[:] = [cell]

        def executed(cell: NotebookNode, **_: Any) -> None:
            progress.update(cell.cell_type == "code" and cell.source != LOADED)

        client = NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT,
            kernel_name="python3",
            record_timing=False,
            # Errors only: every kernel would warn that it listens on a local port.
            extra_arguments=["--log-level=40"],
            resources={"metadata": {"path": str(page.parent)}},
            on_cell_start=started,
            on_cell_executed=executed,
        )
        start = time.perf_counter()
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError, RuntimeError) as error:
            number = next((i for i, cell in enumerate(cells, 1) if running and cell is running[0]), 0)
            source = cells[number - 1].source.strip() if number else "(no cell of the page was running)"
            place = f":{lines[number - 1]}" if number else ""
            raise ChapterError(
                f"{page.relative_to(ROOT)}{place}: code cell {number} of {len(cells)} failed"
                f"\n\n{source}\n\n{error}"
            ) from error
    seconds = time.perf_counter() - start
    loaded = set(notebook.cells.pop().outputs[0].text.split())
    if missed := sorted(loaded - needed):
        raise ChapterError(
            f"{page.relative_to(ROOT)}: loads {', '.join(missed)}, which bookbuild.keys.closure does not "
            "find among its imports: a change there would not execute it again"
        )
    keep_result(page, notebook, seconds, key)


def main(arguments: list[str] | None = None) -> int:
    """Execute what is out of date; returns the number of pages that failed."""
    parser = argparse.ArgumentParser(prog="python -m bookbuild.execute", description=__doc__)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="names, such as batch_norm (default: all)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="pages at once (default: one a core)"
    )
    settings = parser.parse_args(arguments)
    # One thread a kernel: networks of this size are bound by overhead, and kernels share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    pages = pages_named(settings.pages)
    stale = [page for page in pages if find_result(page) is None]
    print(f"{len(pages)} pages with code, {len(stale)} to execute", flush=True)
    failures = []
    with ThreadPoolExecutor(max(1, settings.jobs)) as pool:
        runs = [pool.submit(execute, page, line) for line, page in enumerate(stale)]
        try:
            for run in as_completed(runs):
                try:
                    run.result()
                except ChapterError as error:
                    failures.append(str(error))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print("\nInterrupted. The pages that were finished are kept; run the same command to go on.")
            return 130
    for failure in failures:
        text = (
            failure if sys.stderr.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", failure)
        )  # no colours in logs
        print(f"\n{'-' * 80}\n{text}", file=sys.stderr)
    return len(failures)


if __name__ == "__main__":
    sys.exit(main())
