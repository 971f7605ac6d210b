"""Execute the chapters that are out of date, in parallel: ``python -m bookbuild.execute``.

Each executed chapter is kept at once, so an interrupted run goes on where it stopped.
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

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode
from tqdm import tqdm

from bookbuild.results import ROOT, Result, chapters, find_result, keep_result, open_cache, read_chapter

CELL_TIMEOUT = 600  # seconds


class ChapterError(Exception):
    """A cell failed; the message names chapter, cell and error."""


def execute(notebook: NotebookNode, chapter: Path, line: int = 0) -> Result:
    """Run all cells of a chapter in a fresh kernel, with a progress line.

    Parameters
    ----------
    notebook : NotebookNode
        Without outputs; it is filled in.
    chapter : Path
        Its source, for messages; the cells run in its folder.
    line : int
        Where its progress is shown.

    Returns
    -------
    Result

    Raises
    ------
    ChapterError
        If a cell raises, takes longer than `CELL_TIMEOUT`, or kills the kernel.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    terminal = sys.stderr.isatty()
    with tqdm(
        total=len(cells),
        desc=chapter.stem,
        unit="cell",
        position=line if terminal else 0,
        mininterval=0.1 if terminal else 10,  # a log file wants few lines
    ) as progress:
        running: list[NotebookNode] = []

        def started(cell: NotebookNode, **_: Any) -> None:
            running[:] = [cell]

        def executed(cell: NotebookNode, **_: Any) -> None:
            progress.update(cell.cell_type == "code")

        client = NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT,
            kernel_name="python3",
            record_timing=False,
            # Errors only: every kernel would warn that it listens on a local port.
            extra_arguments=["--log-level=40"],
            resources={"metadata": {"path": str(chapter.parent)}},
            on_cell_start=started,
            on_cell_executed=executed,
        )
        start = time.perf_counter()
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError, RuntimeError) as error:
            number = next((i for i, cell in enumerate(cells, 1) if running and cell is running[0]), 0)
            source = cells[number - 1].source.strip() if number else "(before the first cell)"
            raise ChapterError(
                f"{chapter.relative_to(ROOT)}: code cell {number} of {len(cells)} failed"
                f"\n\n{source}\n\n{error}"
            ) from error
    return Result(notebook, time.perf_counter() - start)


def main(arguments: list[str] | None = None) -> int:
    """Execute what is out of date; returns the number of chapters that failed."""
    parser = argparse.ArgumentParser(prog="python -m bookbuild.execute", description=__doc__)
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="chapters at once (default: one a core)"
    )
    jobs = max(1, parser.parse_args(arguments).jobs)
    # One thread a kernel: networks of this size are bound by overhead, and kernels share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    cache = open_cache()
    pages = chapters()
    stale = [page for page in pages if find_result(cache, page) is None]
    print(f"{len(pages)} chapters, {len(stale)} to execute", flush=True)
    failures = []
    with ThreadPoolExecutor(jobs) as pool:
        # Only this thread touches the cache's database.
        runs = {pool.submit(execute, read_chapter(page), page, line): page for line, page in enumerate(stale)}
        try:
            for run in as_completed(runs):
                try:
                    keep_result(cache, runs[run], run.result())
                except ChapterError as error:
                    failures.append(str(error))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print("\nInterrupted. The chapters that were finished are kept; run the same command to go on.")
            return 130
    for failure in failures:
        text = (
            failure if sys.stderr.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", failure)
        )  # no colours in logs
        print(f"\n{'-' * 80}\n{text}", file=sys.stderr)
    return len(failures)


if __name__ == "__main__":
    sys.exit(main())
