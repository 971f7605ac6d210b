"""A plugin of pytest: a page whose notebook nbval found as stored need not be executed again for the book.

``pytest notebooks --nbval -p bookbuild.from_nbval`` keeps what the cells printed and drew, as
:mod:`bookbuild.execute` would.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from nbformat import NotebookNode

from bookbuild.execute import LOADED
from bookbuild.keys import chapter_key, closure
from bookbuild.notebooks import problems
from bookbuild.portable import labels
from bookbuild.results import ANSWER, NOTEBOOKS, chapters, keep_result, name_of, read_chapter


class Running:
    """A notebook that nbval is working through: the key of its page, and what each cell gave."""

    def __init__(self, page: Path, cells: list[NotebookNode]) -> None:
        self.page, self.key = page, chapter_key(page)  # before the first cell: the page may change meanwhile
        self.wanted = [cell for cell in cells if ANSWER not in cell.metadata.get("tags", [])]
        self.outputs: list[list[NotebookNode]] = []  # of the wanted cells
        self.seconds = 0.0

    def keep(self) -> None:
        """Keep the outputs as the page's."""
        notebook = read_chapter(self.page)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for cell, outputs in zip(code, self.outputs, strict=True):
            cell.outputs = outputs
        keep_result(self.page, notebook, self.seconds, self.key)


class Keeper:
    """Follows nbval from cell to cell; in a parallel run there is one in each process."""

    def __init__(self) -> None:
        self.running: dict[Path, Running] = {}
        self.pages = {NOTEBOOKS / f"{name_of(page)}.ipynb": page for page in chapters()}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Generator[None, Any, Any]:
        """Look at each cell that nbval has run."""
        report = yield
        if call.when == "call" and item.path in self.pages:
            self.ran(item, report.passed, call.duration)
        return report

    def ran(self, item: Any, passed: bool, seconds: float) -> None:
        """Take the outputs of a cell; behind the last one keep the page, if all of them passed."""
        cells = [cell for cell in item.parent.nb.cells if cell.cell_type == "code"]
        if item.cell is cells[0]:
            self.running[item.path] = Running(self.pages[item.path], cells)
        running = self.running.get(item.path)
        if running is None or not passed:
            self.running.pop(item.path, None)
            return
        running.seconds += seconds
        if item.cell in running.wanted:
            running.outputs.append(item.test_outputs)
        if item.cell is cells[-1] and len(running.outputs) == len(running.wanted):
            # If it is out of step, a test of its own says so. If the key misses a module, `execute` has to
            # run the page, and says so.
            in_step = not problems(running.page, labels())
            if in_step and not loaded(item.parent.kernel) - closure(running.page):
                running.keep()


def loaded(kernel: Any) -> set[str]:
    """The modules of the package that a kernel of nbval has loaded."""
    kernel.await_reply(kernel.execute_cell_input(LOADED, allow_stdin=False), timeout=60)
    text, state = "", "busy"
    while state != "idle":
        content = kernel.get_message(stream="iopub", timeout=60)["content"]
        text, state = text + content.get("text", ""), content.get("execution_state", state)
    return set(text.split())


def pytest_configure(config: pytest.Config) -> None:
    """Begin to follow, in a process that runs tests itself."""
    if not config.getoption("numprocesses", None):
        config.pluginmanager.register(Keeper(), "from_nbval")
