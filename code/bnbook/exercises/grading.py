"""Run the notebooks of a class and tell who passed which exercise: ``python -m bnbook.exercises FOLDER``.

Every notebook runs in a kernel of its own, with a time limit. After its last cell the grading adds one more:
it loads the checks anew and runs them on the last answer that the notebook gave to ``check`` for each
exercise. Only what that cell reports counts.

So it is of no use to a student to print "passed", to define another ``check``, to change what ``check``
shows, or to overwrite the catalogue: the printed text is not read, and the checks come fresh from the files.
A notebook that crashes or hangs costs only itself. Its exercises before that point are then taken from what
``check`` showed, and marked as not checked again.

It is no protection against a student who copies the solution from the book or from this package, or who
means to deceive and changes NumPy, the files of the package or the running interpreter. The notebooks run
with your rights: use a container or an account of its own for code that you do not trust.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from IPython.display import display
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

__all__ = ["Row", "check_again", "grade", "grade_notebook", "main"]

NOT_ATTEMPTED = "not attempted"


class Row(NamedTuple):
    """One line of the table.

    Attributes
    ----------
    name : str
        The notebook's file name, without its ending.
    exercise : str
        Id of the exercise.
    result : str
        ``"passed"``, the name of the mistake, ``"wrong result"``, ``"crash: ..."``, ``"timed out"`` or
        ``"not attempted"``.
    remark : str
        Why a result was not checked again, or empty.
    """

    name: str
    exercise: str
    result: str
    remark: str


class Report(NamedTuple):
    """What came of one notebook: a verdict for each exercise that it attempted, and why it stopped early."""

    verdicts: dict[str, str]
    stopped: str


def check_again(attempts: dict[str, Any]) -> None:
    """Check answers again with modules that are read from their files, and show the verdicts as metadata.

    The grading runs this in the kernel of each notebook, behind its last cell.

    Parameters
    ----------
    attempts : dict of str to function or value
        The last answer to each exercise.
    """
    for name in [name for name in sys.modules if name.startswith("bnbook.exercises")]:
        del sys.modules[name]
    engine = importlib.import_module("bnbook.exercises._engine")
    catalogue = importlib.import_module("bnbook.exercises").catalogue()
    verdicts = {
        name: engine.judge(name, catalogue[name], answer).verdict
        for name, answer in attempts.items()
        if name in catalogue
    }
    display(  # type: ignore[no-untyped-call]
        {"text/plain": f"{len(verdicts)} exercises checked again"},
        metadata={"bnbook-exercises": {"checked_again": verdicts}},
        raw=True,
    )


# Behind the last cell. The answers lie in the module that the notebook has used.
_LAST_CELL = """
import sys as _sys
_attempts = dict(getattr(_sys.modules.get("bnbook.exercises"), "ATTEMPTS", {}))
for _name in [name for name in _sys.modules if name.startswith("bnbook.exercises")]:
    del _sys.modules[_name]
from bnbook.exercises.grading import check_again as _check_again
_check_again(_attempts)
"""


def grade_notebook(path: Path, seconds: float) -> Report:
    """Run one notebook and collect its verdicts.

    Parameters
    ----------
    path : Path
        The notebook; its cells run in its folder, and the file is not changed.
    seconds : float
        How long all of its cells together may take.

    Returns
    -------
    Report
    """
    try:
        notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    except (ValueError, OSError, AttributeError) as error:
        return Report({}, f"no notebook: {type(error).__name__}")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []  # what is saved in the file does not count
    last = nbformat.v4.new_code_cell(_LAST_CELL)  # type: ignore[no-untyped-call]
    notebook.cells.append(last)
    end = time.monotonic() + seconds
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        allow_errors=True,  # a cell that raises does not keep the next ones from running
        timeout_func=lambda cell: max(1, round(end - time.monotonic())),
        record_timing=False,
        shutdown_kernel="immediate",  # one that hangs would not listen
        extra_arguments=["--log-level=40"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    stopped = ""
    try:
        client.execute()
    except CellTimeoutError:
        stopped = f"stopped after {seconds:g} s"
    except DeadKernelError:
        stopped = "kernel died"
    return _read(notebook.cells, stopped)


def _read(cells: Sequence[Any], stopped: str) -> Report:
    """The verdicts of the last cell; where it did not run, those that `check` showed."""
    *own, last = [cell for cell in cells if cell.cell_type == "code"]
    found = [mark for mark in _marks([last]) if "checked_again" in mark]
    if found:
        return Report(dict(found[0]["checked_again"]), stopped)
    pairs = [mark.get("check") for mark in _marks(own)]
    shown = {str(pair[0]): str(pair[1]) for pair in pairs if isinstance(pair, list) and len(pair) == 2}
    return Report(shown, stopped or "could not be checked again")


def _marks(cells: Sequence[Any]) -> list[dict[str, Any]]:
    """Our metadata of all outputs, in their order."""
    outputs = itertools.chain.from_iterable(cell.outputs for cell in cells)
    marks = (output.get("metadata", {}).get("bnbook-exercises") for output in outputs)
    return [mark for mark in marks if isinstance(mark, dict)]


def grade(folder: Path, exercises: Sequence[str] = (), seconds: float = 300) -> list[Row]:
    """Run all notebooks of a folder, one after another.

    Parameters
    ----------
    folder : Path
        With a notebook (``*.ipynb``) of each student.
    exercises : sequence of str
        The ids that were set; without them, all that occur in one of the notebooks.
    seconds : float
        Time limit for each notebook.

    Returns
    -------
    list of Row
        For each notebook and each exercise, in the order of names.

    Raises
    ------
    ValueError
        If there is no notebook, or an id is unknown.
    """
    catalogue = importlib.import_module("bnbook.exercises").catalogue()
    for exercise in exercises:
        if exercise not in catalogue:
            raise ValueError(f"exercises: got {exercise!r}, allowed are {', '.join(catalogue)}")
    paths = sorted(folder.glob("*.ipynb"))
    if not paths:
        raise ValueError(f"folder: there is no notebook (*.ipynb) in {folder}")
    reports = {}
    for path in paths:
        print(f"running {path.name}", file=sys.stderr, flush=True)
        reports[path.stem] = grade_notebook(path, seconds)
    attempted = {name for report in reports.values() for name in report.verdicts}
    wanted = list(exercises) or [name for name in catalogue if name in attempted] or ["-"]
    return [
        Row(name, exercise, report.verdicts.get(exercise, NOT_ATTEMPTED), report.stopped)
        for name, report in reports.items()
        for exercise in wanted
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it as CSV if asked to."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m bnbook.exercises", description=summary)
    parser.add_argument("folder", type=Path, help="with a notebook of each student")
    parser.add_argument("--csv", type=Path, help="write the table into this file as well")
    parser.add_argument("--seconds", type=float, default=300, help="time limit for a notebook (default: 300)")
    parser.add_argument(
        "--exercises",
        nargs="+",
        default=[],
        metavar="ID",
        help="the ids that were set (default: all attempted)",
    )
    given = parser.parse_args(arguments)
    try:
        rows = grade(given.folder, given.exercises, given.seconds)
    except ValueError as error:
        parser.error(str(error))
    table = [Row._fields, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(Row._fields))]
    for row in table:
        print("  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip())
    if given.csv is not None:
        # utf-8-sig: spreadsheets recognize ε and accents in names by the mark at the start.
        with given.csv.open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows(table)
    return 0
