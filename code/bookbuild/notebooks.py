"""Write and check ``notebooks/``: the executed pairs of the pages with code.

``python -m bookbuild.notebooks`` writes them from the results of :mod:`bookbuild.execute`; with ``--check``
it only tells what is out of step. Text outputs stay; images are left out, and where an output differs from
the committed one only in digits behind ≈, the committed one stays: so a diff shows what changed.
"""

from __future__ import annotations

import argparse
import configparser
import json
import re
import sys
from base64 import b64encode
from functools import cache
from pathlib import Path

import nbformat
from docutils.nodes import make_id
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from bookbuild.addresses import package, repository
from bookbuild.portable import Labels, labels, portable
from bookbuild.results import NOTEBOOKS, ROOT, find_result, name_of, pages_named, with_outputs
from bookbuild.sliders import prepared

IMAGES = ("image/png", "image/jpeg", "image/svg+xml")
SLIDER = re.compile(r"^```\{slider\} (\w+)\n:name: ([\w-]+)\n:alt: (.+)$", flags=re.MULTILINE)
REPAIR = "run `make notebooks` and commit the result"


def pair_of(page: Path) -> Path:
    """The notebook of a page."""
    return NOTEBOOKS / f"{name_of(page)}.ipynb"


def read_source(page: Path, book: Labels) -> NotebookNode:
    """The notebook of a page without outputs; a cell is called after its section and its place there."""
    notebook = portable(page, book)
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    section, places = "start", dict[str, int]()
    for cell in notebook.cells:
        headings = re.findall(r"^#+ (.+)", cell.source, flags=re.MULTILINE)
        if cell.cell_type == "markdown" and headings:
            section = make_id(headings[-1])[:50] or section
        places[section] = places.get(section, 0) + 1
        cell.id = f"{section}-{places[section]}"
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def without_images(notebook: NotebookNode) -> NotebookNode:
    """Leave images and the outputs' metadata out."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "data" in output:
                output.data = {kind: data for kind, data in output.data.items() if kind not in IMAGES}
                output.metadata = {}
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
    return notebook


def keep_equal_outputs(notebook: NotebookNode, committed: NotebookNode) -> NotebookNode:
    """Keep the committed outputs of each cell where the tests would see no difference."""
    before = {cell.source: cell.outputs for cell in committed.cells if cell.cell_type == "code"}
    for cell in notebook.cells:
        if cell.cell_type == "code" and _compared(cell.outputs) == _compared(before.get(cell.source)):
            cell.outputs = before[cell.source]
    return notebook


def _compared(outputs: list[NotebookNode] | None) -> str:
    """What nbval compares of outputs: all but what its sanitizer replaces."""
    text = json.dumps(outputs, ensure_ascii=False, sort_keys=True)
    for pattern, replacement in _sanitizer():
        text = re.sub(pattern, replacement, text)
    return text


@cache
def _sanitizer() -> list[tuple[str, str]]:
    rules = configparser.ConfigParser(interpolation=None)
    rules.read_string((Path(__file__).resolve().parents[2] / "tests/sanitize.cfg").read_text("utf-8"))
    return [(rules[name]["regex"], rules[name]["replace"]) for name in rules.sections()]


def problems(page: Path, book: Labels) -> list[str]:
    """What is wrong with the notebook of a page; empty if nothing is."""
    pair = pair_of(page)
    if not pair.exists():
        return [f"{pair.name} does not exist: {REPAIR}"]
    stored, source = nbformat.read(pair, as_version=4), read_source(page, book)
    found = []
    keys = ("cell_type", "source", "metadata", "id")
    if [[cell[key] for key in keys] for cell in stored.cells] != [
        [cell[key] for key in keys] for cell in source.cells
    ]:
        found.append(f"{pair.name} is out of step with {page.name}: {REPAIR}")
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    never = [i for i, cell in enumerate(code, 1) if cell.execution_count is None]
    if never:
        found.append(f"{pair.name}: code cells {never} were never executed: {REPAIR}")
    return found


def write(page: Path, book: Labels) -> bool:
    """Write the notebook of a page if it would differ; returns whether the page was executed."""
    result = find_result(page)
    if result is None:
        return False
    pair = pair_of(page)
    notebook = without_images(with_outputs(read_source(page, book), result))
    old = pair.read_text("utf-8") if pair.exists() else ""
    if old:
        notebook = keep_equal_outputs(notebook, nbformat.reads(old, as_version=4))
    text = nbformat.writes(notebook) + "\n"
    if text != old:
        pair.parent.mkdir(parents=True, exist_ok=True)
        pair.write_text(text, "utf-8")
        print(f"wrote {pair.relative_to(ROOT)}")
    return True


def write_with_figures(page: Path, file: Path) -> None:
    """Write the notebook of an executed page as a download, which shows its figures before it is run."""
    result = find_result(page)
    if result is None:
        raise ValueError(f"{page.name}: not executed as it stands; run `make book`, which does it first")
    file.parent.mkdir(parents=True, exist_ok=True)
    book = labels()
    notebook = add_pictures(with_outputs(read_source(page, book), result), page, book)
    if address := repository():
        notebook.cells.insert(0, install_cell(address))
    nbformat.write(notebook, file)


def add_pictures(notebook: NotebookNode, page: Path, book: Labels) -> NotebookNode:
    """Put the picture of each interactive figure, which only the built page can move, before its caption."""
    for name, label, alt in SLIDER.findall(page.read_text("utf-8")):
        caption = f"*{book.names[label]}, which moves"
        cell = next(cell for cell in notebook.cells if caption in cell.source)
        picture = (prepared(name, ROOT / "_build" / "sliders") / f"{name}.png").read_bytes()
        cell.setdefault("attachments", {})[f"{name}.png"] = {"image/png": b64encode(picture).decode()}
        cell.source = cell.source.replace(caption, f"![{alt}](attachment:{name}.png)\n\n{caption}")
    return notebook


def install_cell(address: str) -> NotebookNode:
    """The first cell of a download: it brings the package into Colab, and does nothing anywhere else.

    Colab's IPython and ipykernel stay, since the package asks for no version of them; replacing them by the
    pins of ``requirements.txt`` would end the runtime.
    """
    source = f"""\
# In Colab, this brings the book's package. Anywhere else it does nothing.
import sys

if "google.colab" in sys.modules:
    %pip install --quiet "{package(address)}\""""
    return new_code_cell(source, id="install")


def main(arguments: list[str] | None = None) -> int:
    """Write or check notebooks; returns the number of pages with which something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bookbuild.notebooks", description=__doc__)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="names, such as batch_norm (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing, tell what is out of step")
    settings = parser.parse_args(arguments)
    book, wrong = labels(), list[str]()
    for page in pages_named(settings.pages):
        if settings.check:
            wrong += problems(page, book)
        elif not write(page, book):
            wrong.append(f"{page.name} was not executed: run python -m bookbuild.execute")
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
