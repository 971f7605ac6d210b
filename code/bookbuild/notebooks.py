"""Write and check ``notebooks/``: the executed pairs of the chapters.

``python -m bookbuild.notebooks`` writes them from the results of :mod:`bookbuild.execute`. Text outputs
stay, images are left out, so that a diff stays readable. The tests call :func:`problems`.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from bookbuild.results import NOTEBOOKS, ROOT, chapters, find_result, open_cache

IMAGES = ("image/png", "image/jpeg", "image/svg+xml")


def read_source(chapter: Path) -> NotebookNode:
    """A chapter as a notebook without outputs, with cell ids that depend on the source alone."""
    notebook = jupytext.read(chapter)
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        name = hashlib.sha256(cell.source.encode()).hexdigest()[:12]
        seen[name] = seen.get(name, 0) + 1
        cell.id = f"{name}-{seen[name]}"
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def with_outputs(source: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """Put the outputs of an executed chapter into `source`, without images and output metadata."""
    code = [cell for cell in source.cells if cell.cell_type == "code"]
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    if [cell.source for cell in code] != [cell.source for cell in ran]:
        raise ValueError("executed: its code cells are not those of the source")
    for count, (cell, result) in enumerate(zip(code, ran, strict=True), 1):
        cell.execution_count = count
        cell.outputs = [nbformat.from_dict(dict(output)) for output in result.outputs]
        for output in cell.outputs:
            if "data" in output:
                output.data = {kind: data for kind, data in output.data.items() if kind not in IMAGES}
                output.metadata = {}
            if output.output_type == "execute_result":
                output.execution_count = count
    return source


def problems(chapter: Path) -> list[str]:
    """What is wrong with the notebook of a chapter; empty if nothing is."""
    pair = NOTEBOOKS / f"{chapter.stem}.ipynb"
    repair = "run `make notebooks` and commit the result"
    if not pair.exists():
        return [f"{pair.name} does not exist: {repair}"]
    stored, source = nbformat.read(pair, as_version=4), read_source(chapter)
    found = []
    keys = ("cell_type", "source", "metadata", "id")
    if [[cell[key] for key in keys] for cell in stored.cells] != [
        [cell[key] for key in keys] for cell in source.cells
    ]:
        found.append(f"{pair.name} is out of step with {chapter.name}: {repair}")
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    never = [i for i, cell in enumerate(code, 1) if cell.execution_count is None]
    if never:
        found.append(f"{pair.name}: code cells {never} were never executed: {repair}")
    return found


def main() -> int:
    """Write the notebooks of all chapters; returns the number that had no result."""
    cache = open_cache()
    missing = 0
    for chapter in chapters():
        result = find_result(cache, chapter)
        if result is None:
            print(f"{chapter.name} was not executed: run python -m bookbuild.execute", file=sys.stderr)
            missing += 1
            continue
        pair = NOTEBOOKS / f"{chapter.stem}.ipynb"
        NOTEBOOKS.mkdir(exist_ok=True)
        text = nbformat.writes(with_outputs(read_source(chapter), result.notebook)) + "\n"
        if not pair.exists() or pair.read_text("utf-8") != text:
            pair.write_text(text, "utf-8")
            print(f"wrote {pair.relative_to(ROOT)}")
    return missing


if __name__ == "__main__":
    sys.exit(main())
