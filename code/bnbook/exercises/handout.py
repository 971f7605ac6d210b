"""Notebooks for a class, without solutions: ``python -m bnbook.exercises --handout FOLDER``.

The solution cells go. An answer cell is as empty as in the book, whoever wrote into it, and says "not
answered yet". All other outputs go as well: a class predicts before it runs. A link to a page of the book
that is no notebook keeps its words only, for the class has the notebooks.
:mod:`bnbook.exercises.grading` takes the notebooks back.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from bnbook._extra import book_extra
from bnbook.exercises import find, judge
from bnbook.exercises._engine import Exercise

with book_extra():
    import nbformat

__all__ = [
    "ANSWER",
    "NOTEBOOKS",
    "SOLUTION_CODE",
    "SOLUTION_TEXT",
    "empty_answer",
    "hand_out",
    "notebooks_in",
]

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"  # of the checkout, if the package lies in one
ANSWER = "answer"  # the tag of the cells in which readers write
# A link from a notebook to a page that has none.
PAGE_LINK = re.compile(r"\[([^\]\[]+)\]\((?:\.\./)+book/[^)\s]+\)")
# How the cells of a solution begin, followed by "of exercise 7.2".
SOLUTION_TEXT = "<details><summary>Solution"
SOLUTION_CODE = "# @title Solution"


def empty_answer(name: str, exercise: Exercise | None) -> nbformat.NotebookNode:
    """The answer cell of an exercise: signature or value, the call of `check`, and what it says to them.

    An exercise without a check has a cell for free work.

    Examples
    --------
    >>> print(empty_answer("batch_norm.bound", find("batch_norm.bound")).source)
    def bound(m):
        ...
    <BLANKLINE>
    <BLANKLINE>
    check("batch_norm.bound", bound)
    """
    cell = nbformat.v4.new_code_cell("# Your work", metadata={"tags": [ANSWER]})
    if exercise is not None:
        written, asked = f"answer = ...  # {exercise.asks}", "answer"
        if exercise.inputs is not None:  # then it asks for a function
            call = re.sub(r"\b(\w+)=\1\b", r"\1", exercise.asks)  # gamma=gamma: passed by name
            written, asked = f"def {call}:\n    ...\n", call.partition("(")[0]
        cell.source = f'{written}\n\ncheck("{name}", {asked})'
        told = {"text/plain": judge(name, exercise, ...).message}
        cell.outputs = [nbformat.v4.new_output("display_data", told)]
    return cell


def hand_out(folder: Path, source: Path | None = None) -> list[Path]:
    """Write the notebooks without solutions.

    Parameters
    ----------
    folder : Path
        A new or an empty one.
    source : Path, optional
        Holds the notebooks, also in subfolders; by default those of the checkout in which the package lies.

    Returns
    -------
    list of Path
        What was written: the names and subfolders are those of `source`.
    """
    if source is None and not NOTEBOOKS.is_dir():
        raise ValueError(
            "source: the package was installed without its notebooks; clone the book's repository and run "
            "this there, or name a folder that has them: --from FOLDER"
        )
    source = source or NOTEBOOKS
    there = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if there or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"folder: {folder} is not empty, and nothing is overwritten; name a new folder")
    ready = {}  # all are read before the first is written
    for path in notebooks_in(source):
        try:
            ready[path.relative_to(source)] = _without_solutions(nbformat.read(path, as_version=4))
        except Exception as error:  # nbformat raises its own kinds
            raise ValueError(f"source: {path} cannot be read as a notebook: {error}") from error
    for name, notebook in ready.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, folder / name)
    return [folder / name for name in ready]


def notebooks_in(folder: Path) -> list[Path]:
    """All notebooks of a folder and its subfolders, such as one for each student; nothing hidden."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
        if path.suffix.lower() == ".ipynb" and not hidden and not path.is_dir():
            found.append(path)
    if not found:
        raise ValueError(f"folder: there is no notebook (*.ipynb) in {os.fspath(folder)}")
    return found


def _without_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    solutions = (SOLUTION_CODE, SOLUTION_TEXT)
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith(solutions)]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = PAGE_LINK.sub(r"\1", cell.source)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if ANSWER in cell.metadata.get("tags", []):
            called = re.search(r"\bcheck\(\s*[\"']([\w.]+)[\"']", cell.source)
            empty = empty_answer(called[1], find(called[1])) if called else empty_answer("", None)
            cell.source, cell.outputs = empty.source, empty.outputs
    return notebook
