"""Run the notebooks of a class and tell who passed which exercise: ``python -m bnbook.exercises FOLDER``.

Every notebook runs in a kernel of its own, with a time limit. Behind each of its cells the grading checks
once more what the cell gave to ``check``, with checks that come fresh from the files. What this finds counts:
it is of no use to print "passed", to define another ``check``, or to overwrite the package. A notebook that
crashes, hangs or is none costs only itself.

It is no protection against a student who copies the solution from the book or from this package, or who means
to deceive and changes NumPy, the files or the running interpreter. The notebooks run with your rights: use a
container or an account of its own for code that you do not trust.
"""

from __future__ import annotations

import argparse
import asyncio
import codecs
import contextlib
import csv
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bnbook._checks import check_positive, check_whole
from bnbook._extra import book_extra
from bnbook.exercises import _find_or_none, find
from bnbook.exercises._again import CELL
from bnbook.exercises._engine import NOT_ANSWERED
from bnbook.exercises.handout import hand_out, notebooks_in

with book_extra():
    import nbformat
    from jupyter_core.utils import ensure_async
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError
    from tqdm import tqdm

NOT_ATTEMPTED = "not attempted"

_QUIET = logging.Logger("grading", logging.CRITICAL)  # the remarks say what happened


class Row(NamedTuple):
    """One line of the table.

    `result` is a verdict of :func:`bnbook.exercises.check`, such as "not answered", or "not attempted" where
    the notebook ran no check of this exercise.
    """

    name: str
    exercise: str
    result: str
    remark: str


class Report(NamedTuple):
    """Verdict and remark of each exercise that a notebook checked, and why it stopped early."""

    verdicts: dict[str, tuple[str, str]]
    stopped: str = ""


def grade(
    folder: Path,
    exercises: Sequence[str] = (),
    seconds: float = 300,
    jobs: int = 2,
    each: Callable[[list[Row]], object] = lambda rows: None,
) -> list[Row]:
    """Run all notebooks of a folder and its subfolders.

    Parameters
    ----------
    folder : Path
    exercises : sequence of str
        The names that were set; each notebook gets a row for each. Without them it gets one for each exercise
        whose `check` it ran.
    seconds : float
        Time limit for each notebook.
    jobs : int
        How many notebooks run at a time.
    each : function
        Called with the rows of a notebook as soon as there are any.

    Returns
    -------
    list of Row
        In the order of the notebooks' names.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "ada.ipynb").write_text("not a notebook")
    ...     grade(Path(folder))
    [Row(name='ada', exercise='', result='not attempted', remark='no notebook: not JSON')]
    """
    paths = _checked(folder, exercises, seconds, jobs)

    def rows_of(path: Path, report: Report) -> list[Row]:
        name = _printable(os.fspath(path.relative_to(folder).with_suffix("")))
        wanted = list(exercises) or list(report.verdicts) or [""]
        rows = []
        for exercise in wanted:
            result, remark = report.verdicts.get(exercise, (NOT_ATTEMPTED, ""))
            rows.append(Row(name, exercise, result, "; ".join(filter(None, [remark, report.stopped]))))
        each(rows)
        return rows

    async def all_of_them() -> list[Row]:
        free = asyncio.Semaphore(jobs)

        async def one(path: Path) -> list[Row]:
            async with free:
                return rows_of(path, await _graded(path, seconds))

        loop = asyncio.get_running_loop()
        # Ctrl-C ends the grading: nbclient would let it end one notebook.
        loop.add_signal_handler = _refuse  # type: ignore[assignment,method-assign]
        # nbclient leaves a task behind for a kernel that was stopped; its end concerns nobody.
        loop.set_exception_handler(lambda loop, context: None)
        return [row for rows in await asyncio.gather(*map(one, paths)) for row in rows]

    return asyncio.run(all_of_them())


def _refuse(*_: Any) -> None:
    raise RuntimeError("no signal handlers, as in a thread")


def grade_notebook(path: Path, seconds: float) -> Report:
    """Run one notebook in its folder, without changing it, and collect its verdicts."""
    return asyncio.run(_graded(path, seconds))


async def _graded(path: Path, seconds: float) -> Report:
    try:
        sources = _sources(path)
    except ValueError as error:
        return Report({}, f"no notebook: {error}")
    cells = [nbformat.v4.new_code_cell(source) for own in sources for source in (own, CELL)]
    client = NotebookClient(
        nbformat.v4.new_notebook(cells=cells),
        kernel_name="python3",
        allow_errors=True,  # a cell that raises does not keep the next ones from running
        timeout=None,
        record_timing=False,
        shutdown_kernel="immediate",  # one that hangs would not listen
        extra_arguments=["--log-level=50"],
        log=_QUIET,
        resources={"metadata": {"path": os.fspath(path.parent)}},
    )
    stopped, end = "", time.monotonic() + seconds
    try:
        await asyncio.wait_for(client.async_execute(env={**os.environ, "PYTHONUTF8": "1"}), seconds)
    except (TimeoutError, DeadKernelError):  # nbclient may call a stopped kernel a dead one
        stopped = f"stopped after {seconds:g} s" if time.monotonic() >= end else "kernel died"
    except Exception as error:  # whatever it is, the next notebook runs
        stopped = f"could not be run: {type(error).__name__}"
    finally:
        if client.km is not None and client.km.has_kernel:  # stopped while it started
            await ensure_async(client.km.shutdown_kernel(now=True))
    return Report(_verdicts(cells), stopped)


# --------------------------------------------------------------------------- reading


def _checked(folder: Path, exercises: Sequence[str], seconds: float, jobs: int) -> list[Path]:
    check_positive(seconds=seconds)
    check_whole(1, jobs=jobs)
    for exercise in exercises:
        find(exercise)
    return notebooks_in(folder)


def _sources(path: Path) -> list[str]:
    """The code cells of a notebook; a ValueError that says in a few words why it is none."""
    if not path.is_file():
        raise ValueError("not a file")
    try:
        data = path.read_bytes()
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        content = json.loads(data.decode("utf-16" if wide else "utf-8-sig"))
    except OSError as error:
        raise ValueError("cannot be read") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    try:
        cells = content["cells"] if content["nbformat"] >= 4 else content["worksheets"][0]["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        sources = [cell["source"] if "source" in cell else cell["input"] for cell in code]
        return ["".join(source.splitlines(True) if isinstance(source, str) else source) for source in sources]
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("JSON of another shape") from error


def _verdicts(cells: Sequence[Any]) -> dict[str, tuple[str, str]]:
    """Verdict and remark of each exercise: what was found behind a cell counts, not what the cell showed."""
    found: dict[str, tuple[str, str]] = {}
    for own, again in zip(cells[::2], cells[1::2], strict=True):
        marks = [mark["check"] for mark in _marks(own) if "check" in mark]
        shown = {str(mark[0]): str(mark[1]) for mark in marks if isinstance(mark, list) and len(mark) == 2}
        if again.execution_count is None or (again.outputs and not list(_marks(again))):  # it failed
            found |= {name: (verdict, "not checked again") for name, verdict in shown.items()}
        for name, verdict in shown.items():
            if verdict == NOT_ANSWERED and _find_or_none(name):
                found.setdefault(name, (NOT_ANSWERED, ""))
        for name, verdict in ((n, v) for mark in _marks(again) for n, v in mark["checked_again"].items()):
            remark = f"the notebook showed: {shown[name]}" if shown.get(name, verdict) != verdict else ""
            found[name] = verdict, remark
    return found


def _marks(cell: Any) -> Iterator[dict[str, Any]]:
    """Our metadata in the outputs of a cell."""
    for output in cell.outputs:
        mark = output.get("metadata", {}).get("bnbook-exercises")
        if isinstance(mark, dict):
            yield mark


# --------------------------------------------------------------------------- writing


def _printable(name: str) -> str:
    """A file's name as text: what is not UTF-8, and line ends, as escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(tuple("=+-@＝＋－＠")) else text


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it as CSV if asked to; or write the handout.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "ada.ipynb").write_text("not a notebook")
    ...     status = main([folder, "--exercises", "backward.my_backward"])
    name  exercise              result         remark
    ada   backward.my_backward  not attempted  no notebook: not JSON
    """
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m bnbook.exercises", description=summary)
    text = "with the notebooks of the class, subfolders included; with --handout a new one"
    parser.add_argument("folder", type=Path, help=text)
    parser.add_argument(
        "--csv", type=Path, help="write the rows into this file as well, each as soon as it is known"
    )
    parser.add_argument("--seconds", type=float, default=300, help="time limit for a notebook (default: 300)")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at a time (default: 2)")
    text = "the exercises that were set (default: all that a notebook checks)"
    parser.add_argument("--exercises", nargs="+", default=[], metavar="NAME", help=text)
    parser.add_argument(
        "--handout", action="store_true", help="grade nothing, write the notebooks without solutions"
    )
    text = "where --handout finds the notebooks (default: notebooks/ of the checkout)"
    parser.add_argument("--from", type=Path, metavar="FOLDER", dest="source", help=text)
    given = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if given.handout and (given.csv or given.exercises):
        parser.error("--csv and --exercises belong to the grading, not to --handout")
    if given.source and not given.handout:
        parser.error("--from belongs to --handout")
    if given.handout:
        try:
            written = hand_out(given.folder, given.source)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        print(f"{len(written)} notebooks without solutions are in {given.folder}")
        return 0
    with contextlib.ExitStack() as stack:
        writer = None
        try:
            paths = _checked(given.folder, given.exercises, given.seconds, given.jobs)
            if given.csv is not None:
                # utf-8-sig: spreadsheets recognize ε and accents in names by the mark at the start.
                file = stack.enter_context(given.csv.open("w", encoding="utf-8-sig", newline=""))
                writer = csv.writer(file)
                writer.writerow(Row._fields)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        bar = stack.enter_context(tqdm(total=len(paths), unit="notebook"))

        def each(rows: list[Row]) -> None:
            if writer is not None:
                writer.writerows(map(_cell, row) for row in rows)
                file.flush()
            bar.set_postfix_str(rows[0].name, refresh=False)
            bar.update()

        rows = grade(given.folder, given.exercises, given.seconds, given.jobs, each)
    table = [Row._fields, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(Row._fields))]
    for row in table:
        print("  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip())
    return 0
