"""The chapters' executed pairs, and the tools that write them."""

import base64
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jupytext
import nbformat
import pytest

from bnbook import experiments
from bookbuild import execute, from_nbval, keys, notebooks, portable, results

CHAPTERS = results.chapters()
LABELS = portable.labels()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=results.name_of)
def test_a_notebook_is_in_step_with_its_chapter_and_no_cell_is_unexecuted(chapter):
    assert notebooks.problems(chapter, LABELS) == []


def test_no_notebook_is_left_over():
    found = {path for path in results.NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts}
    assert found == {notebooks.pair_of(chapter) for chapter in CHAPTERS}


WITH_FIGURES = [chapter for chapter in CHAPTERS if chapter.stem != "field_guide"]


@pytest.mark.parametrize("chapter", WITH_FIGURES, ids=results.name_of)
def test_every_figure_has_a_name_a_caption_and_alternative_text(chapter):
    pair = nbformat.read(notebooks.pair_of(chapter), as_version=4)
    source = {cell.source: cell.metadata for cell in jupytext.read(chapter).cells}
    drawing = [cell for cell in pair.cells if "<Figure" in str(cell.get("outputs", ""))]
    assert drawing
    for cell in drawing:
        shown = source[cell.source].mystnb
        assert shown.figure.name.startswith("fig-")
        assert min(len(shown.figure.caption), len(shown.image.alt)) > 40, shown.figure.name


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book of one page, in a folder of its own, with a package of two modules."""
    for folder in ("book", "notebooks", "code/bnbook/assets"):
        (tmp_path / folder).mkdir(parents=True)
    code = tmp_path / "code/bnbook"
    (tmp_path / "code/pyproject.toml").write_text('[project]\ndependencies = ["numpy>=2"]\n', "utf-8")
    (code / "__init__.py").write_text('"""A package."""\n', "utf-8")
    (code / "norms.py").write_text('"""Norms.\n\nMore words.\n"""\n\nEPS = 1e-5\n', "utf-8")
    (code / "layers.py").write_text("from bnbook import norms\n", "utf-8")
    (tmp_path / "book/claims.yml").write_text("one: {says: a}\n", "utf-8")
    (tmp_path / "_toc.yml").write_text("parts: [{chapters: [{file: book/tiny}]}]\n", "utf-8")
    write(tmp_path / "book/tiny.md", "1 + 1")
    for module in (keys, results, execute, notebooks):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(results, "BOOK", tmp_path / "book")
    monkeypatch.setattr(portable, "BOOK", tmp_path / "book")
    monkeypatch.setattr(results, "EXECUTED", tmp_path / "_build/executed")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    yield tmp_path
    keys.forget()


def write(chapter, *cells, prose="A page."):
    header = "---\njupytext:\n  text_representation:\n    extension: .md\n    format_name: myst\n"
    header += "kernelspec:\n  display_name: Python 3\n  language: python\n  name: python3\n---\n"
    body = "".join(f"\n```{{code-cell}} ipython3\n{cell}\n```\n" for cell in cells)
    chapter.write_text(f"{header}\n# Tiny\n\n{prose}\n{body}", "utf-8")


def problems(page):
    return notebooks.problems(page, portable.labels())


def executed(capsys):
    """Run the executor, as a new process would; how many pages it executed."""
    keys.forget()
    assert execute.main(["--jobs", "1"]) == 0
    return int(re.search(r"(\d+) to execute", capsys.readouterr().out)[1])


def test_a_page_is_executed_again_only_if_its_outputs_could_change(book, capsys):
    page = book / "book/tiny.md"
    assert executed(capsys) == 1
    assert executed(capsys) == 0
    write(page, "1 + 1", prose="Other words.")
    assert executed(capsys) == 0
    page.write_text(
        page.read_text("utf-8").replace("ipython3\n", "ipython3\n:tags: [hide-input]\n\n"), "utf-8"
    )
    assert executed(capsys) == 0
    (book / "code/bnbook/norms.py").write_text("EPS = 1e-3\n", "utf-8")  # nothing imports it
    (book / "code/bnbook/empty.py").write_text("", "utf-8")
    assert executed(capsys) == 0
    write(page, "1 + 2")
    assert executed(capsys) == 1
    write(page, "1 + 1")  # as it was
    assert executed(capsys) == 0


def test_the_modules_that_a_page_imports_count_also_through_others(book, capsys):
    write(book / "book/tiny.md", "from bnbook import layers")
    norms = book / "code/bnbook/norms.py"
    assert executed(capsys) == 1
    norms.write_text(norms.read_text("utf-8").replace("More words", "Other words"), "utf-8")
    assert executed(capsys) == 0  # no output shows more of a docstring than its first line
    norms.write_text(norms.read_text("utf-8").replace("Norms.", "All norms."), "utf-8")
    assert executed(capsys) == 1
    norms.write_text(norms.read_text("utf-8").replace("1e-5", "1e-3  # why"), "utf-8")
    assert executed(capsys) == 1


def test_a_page_depends_on_its_own_exercises_and_on_all_that_a_module_imports_by_name(book):
    package = book / "code/bnbook"
    for name in (
        "exercises/__init__",
        "exercises/tiny",
        "exercises/other",
        "plugins/__init__",
        "plugins/one",
    ):
        (package / name).parent.mkdir(exist_ok=True)
        (package / f"{name}.py").write_text("import importlib; importlib.import_module('x')\n", "utf-8")
    write(
        book / "book/tiny.md", "from bnbook.exercises import check\ncheck('tiny.1', 3)\nimport bnbook.plugins"
    )
    assert keys.closure(book / "book/tiny.md") == {
        *("bnbook", "bnbook.exercises", "bnbook.exercises.tiny", "bnbook.plugins", "bnbook.plugins.one")
    }


def test_data_count_for_the_pages_that_may_read_them(book, capsys):
    (book / "code/bnbook/data.py").write_text("", "utf-8")
    images, table = (book / "code/bnbook/assets" / name for name in ("fashion.npz", "ics-medium.csv.gz"))
    images.write_text("1", "utf-8")
    write(book / "book/tiny.md", "from bnbook import data")
    assert executed(capsys) == 1
    images.write_text("2", "utf-8")
    assert executed(capsys) == 1
    table.write_text("2", "utf-8")  # the page does not read it
    assert executed(capsys) == 0
    write(book / "book/tiny.md", "from bnbook import norms")
    assert executed(capsys) == 1
    images.write_text("3", "utf-8")
    assert executed(capsys) == 0


@pytest.mark.parametrize("call", ["shipped('ics')", "shipped(\n  \"ics\", scale='medium')", "shipped(name)"])
def test_a_shipped_table_counts_for_the_pages_that_read_it_and_for_no_other(book, call):
    package, page = book / "code/bnbook", book / "book/tiny.md"
    (package / "experiments").mkdir()
    (package / "experiments/__init__.py").write_text(
        "import importlib; importlib.import_module('x')\n", "utf-8"
    )
    (package / "experiments/ics.py").write_text("", "utf-8")
    write(page, f"from bnbook import experiments\ndef name(): experiments.{call}")
    assert keys.closure(page) == {"bnbook", "bnbook.experiments"}  # a table needs no code
    found = [keys.chapter_key(page)]
    for name in ("ics", "landscape"):
        (package / f"assets/{name}-medium.csv.gz").write_text(call, "utf-8")
        keys.forget()
        found.append(keys.chapter_key(page))
    assert found[0] != found[1]
    assert (found[1] != found[2]) == (call == "shipped(name)")  # it may be any


def test_every_file_that_comes_with_the_package_counts_for_some_module():
    folder = results.ROOT / "code/bnbook/assets"
    patterns = [*keys.ASSETS.values(), *(keys.TABLE.format(name) for name in experiments.names())]
    known = {file.name for pattern in patterns for file in folder.glob(pattern)}
    assert {file.name for file in folder.iterdir()} == known


def test_a_package_that_was_upgraded_by_hand_counts_and_one_that_no_page_uses_does_not(
    book, capsys, monkeypatch
):
    assert executed(capsys) == 1
    installed = dict(numpy="9.9", ruff="9.9")
    monkeypatch.setattr(keys, "version", lambda name: installed[name])
    assert executed(capsys) == 1
    installed["ruff"] = "10"
    assert executed(capsys) == 0


def test_a_module_that_the_key_of_a_page_misses_is_an_error(book, capsys):
    write(book / "book/tiny.md", "__import__('bnbook.norms')")
    keys.forget()
    assert execute.main([]) == 1
    assert "book/tiny.md: loads bnbook, bnbook.norms, which" in capsys.readouterr().err


def test_a_page_is_executed_again_if_a_claim_of_its_own_was_reworded(book, capsys):
    write(book / "book/tiny.md", 'print("claim(", end=""); name = "claim(\'one\')"')
    assert executed(capsys) == 1
    (book / "book/claims.yml").write_text("one: {says: a}\ntwo: {says: b}\n", "utf-8")
    assert executed(capsys) == 0
    (book / "book/claims.yml").write_text("one: {says: c}\n", "utf-8")
    assert executed(capsys) == 1


def test_pages_can_be_named_and_an_unknown_name_is_refused(book, capsys):
    assert execute.main(["tiny"]) == 0
    with pytest.raises(ValueError, match="PAGE: got batch_norm; allowed are tiny"):
        execute.main(["batch_norm"])


def test_a_failing_cell_names_chapter_cell_and_error_and_fails_the_run(book, capsys):
    write(book / "book/tiny.md", "1 + 1", "1 / 0")
    assert execute.main(["--jobs", "1"]) == 1
    message = capsys.readouterr().err
    assert "book/tiny.md:20: code cell 2 of 2 failed" in message
    assert "1 / 0" in message
    assert "ZeroDivisionError: division by zero" in message
    assert "\x1b[" not in message  # no colours in a log file


def test_a_killed_kernel_is_an_error_and_not_a_hang(book, capsys):
    write(book / "book/tiny.md", "import os; os._exit(1)")
    assert execute.main(["--jobs", "1"]) == 1
    assert "book/tiny.md:16: code cell 1 of 1 failed" in capsys.readouterr().err


def test_a_chapter_that_was_finished_is_kept_when_another_fails(book, capsys):
    write(book / "book/other.md", "raise ValueError('no')")
    (book / "_toc.yml").write_text("parts: [{chapters: [{file: book/tiny}, {file: book/other}]}]\n", "utf-8")
    assert execute.main(["--jobs", "1"]) == 1
    assert "2 to execute" in capsys.readouterr().out
    assert execute.main(["--jobs", "1"]) == 1
    assert "1 to execute" in capsys.readouterr().out


def test_only_the_executed_states_that_were_used_last_are_kept(book, capsys):
    page = book / "book/tiny.md"
    for number in range(results.KEPT_STATES):
        write(page, f"{number}")
        assert executed(capsys) == 1
    write(page, "0")
    for number in range(20):  # states that are only looked at push nothing out
        write(page, f"100 + {number}")
        assert results.find_result(page) is None
    write(page, "0")
    assert executed(capsys) == 0
    write(page, "9")  # the oldest use is now that of 1
    assert executed(capsys) == 1
    for number, again in ((0, 0), (2, 0), (1, 1)):
        write(page, f"{number}")
        assert executed(capsys) == again


def test_a_typo_changes_one_cell_of_the_notebook_and_digits_behind_the_mark_stay(book, capsys):
    page, pair = book / "book/tiny.md", book / "notebooks/tiny.ipynb"
    cell = "import os; print('≈' + str(int.from_bytes(os.urandom(8))))"
    write(page, cell, "3")
    executed(capsys)
    notebooks.main([])
    before = pair.read_text("utf-8").splitlines()
    shutil.rmtree(results.EXECUTED)  # as on another machine
    write(page, cell, "3", prose="A page with a typo mended.")
    assert executed(capsys) == 1
    notebooks.main([])
    after = pair.read_text("utf-8").splitlines()
    assert len(before) == len(after)
    assert [line.strip() for old, line in zip(before, after, strict=True) if line != old] == [
        '"A page with a typo mended."'
    ]
    write(page, cell, "4")
    executed(capsys)
    notebooks.main([])
    assert '"4"' in pair.read_text("utf-8")


def test_the_committed_digits_stay_exactly_where_nbval_skips_them():
    def outputs(text):
        return [nbformat.v4.new_output("stream", text=text)]

    compared = notebooks._compared
    assert compared(outputs("≈0.25 of 3")) == compared(outputs("≈1.7e-5 of 3"))
    assert compared(outputs("≈0.25 of 3")) != compared(outputs("≈0.25 of 4"))
    assert compared(outputs("0.25")) != compared(outputs("0.26"))


def test_what_a_cell_prints_in_pieces_is_one_output(book, capsys):
    cell = "import sys, time\nfor word in 'abc':\n    print(word, flush=True)\n    time.sleep(0.1)\n"
    cell += "print('d', file=sys.stderr)"
    write(book / "book/tiny.md", cell)
    execute.main(["--jobs", "1"])
    result = results.find_result(book / "book/tiny.md")
    assert [(output["name"], output["text"]) for output in result.outputs[0]] == [
        ("stdout", "a\nb\nc\n"),
        ("stderr", "d\n"),
    ]


def test_a_written_notebook_keeps_text_and_leaves_images_and_metadata_out(book, capsys):
    cell = "from IPython.display import display\n"
    cell += 'display({"text/plain": "t", "image/png": ""}, raw=True, metadata={"a": {}})'
    write(book / "book/tiny.md", cell, "2 + 2")
    execute.main(["--jobs", "1"])
    assert notebooks.main([]) == 0
    pair = nbformat.read(book / "notebooks/tiny.ipynb", as_version=4)
    nbformat.validate(pair)
    first, second = (cell for cell in pair.cells if cell.cell_type == "code")
    assert first.outputs[0].data == {"text/plain": "t"}
    assert first.outputs[0].metadata == {}
    assert second.outputs[0].data == {"text/plain": "4"}
    assert (first.execution_count, second.execution_count) == (1, 2)
    assert problems(book / "book/tiny.md") == []


def test_a_notebook_that_is_missing_out_of_step_or_unexecuted_is_named(book, capsys):
    chapter, pair = book / "book/tiny.md", book / "notebooks/tiny.ipynb"
    assert "does not exist: run `make notebooks`" in problems(chapter)[0]
    assert notebooks.main([]) == 1  # nothing to write from
    execute.main(["--jobs", "1"])
    notebooks.main([])
    stored = nbformat.read(pair, as_version=4)
    write(chapter, "1 + 1", prose="Edited.")
    assert "out of step" in problems(chapter)[0]
    write(chapter, "1 + 1")
    stored.cells[-1].execution_count = None
    nbformat.write(stored, pair)
    assert "code cells [1] were never executed" in problems(chapter)[0]


def test_the_notebook_tests_see_a_changed_output_and_pass_a_measured_one(tmp_path):
    """The sanitizer with nbval itself: a number behind the mark may change, any other may not."""
    shutil.copy(results.ROOT / "tests/sanitize.cfg", tmp_path)
    for name, stored in (("same", "x = 3, ≈0.25 s"), ("changed", "x = 4, ≈0.25 s")):
        notebook = nbformat.v4.new_notebook()
        source = 'import random; print("x = 3, ≈" + str(random.random()) + " s")'
        output = nbformat.v4.new_output("stream", text=stored + "\n")
        notebook.cells = [nbformat.v4.new_code_cell(source, execution_count=1, outputs=[output])]
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--nbval-current-env",
        "-p",
        "no:cacheprovider",
        "-q",
    ]
    command += ["--nbval-sanitize-with", "sanitize.cfg", "same.ipynb", "changed.ipynb"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 failed, 1 passed" in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize(
    "page", [p for p in CHAPTERS if "```{slider}" in p.read_text("utf-8")], ids=results.name_of
)
def test_a_download_shows_the_picture_of_what_moves_on_the_built_page(page):
    book = portable.labels()
    notebook = notebooks.add_pictures(notebooks.read_source(page, book), page, book)
    shown = [cell for cell in notebook.cells if "attachments" in cell]
    assert len(shown) == page.read_text("utf-8").count("```{slider}")
    for cell in shown:
        (name,) = cell.attachments
        assert base64.b64decode(cell.attachments[name]["image/png"]).startswith(b"\x89PNG")
        assert f"](attachment:{name})\n\n*Fig. " in cell.source
    nbformat.validate(notebook)


class Kernel:
    """Answers as nbval's kernel does, to a question about the modules that are loaded."""

    def __init__(self, modules):
        contents = [{"name": "stdout", "text": f"{modules}\n"}, {"execution_state": "idle"}]
        self.messages = iter([{"content": content} for content in contents])

    def execute_cell_input(self, source, **_):
        assert source == execute.LOADED

    def await_reply(self, *_, **__): ...

    def get_message(self, **_):
        return next(self.messages)


@pytest.fixture
def ran(book, monkeypatch):
    """Let a keeper follow nbval through a notebook of two cells, the second of which passes or not."""
    monkeypatch.setattr(from_nbval, "NOTEBOOKS", book / "notebooks")
    page = book / "book/tiny.md"
    write(page, "1 + 1", "2 + 2")
    keys.forget()
    notebook = notebooks.read_source(page, portable.labels())
    for count, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.execution_count = count + 1
    nbformat.write(notebook, notebooks.pair_of(page))

    def follow(passed=True, modules=""):
        keeper = from_nbval.Keeper()
        parent = SimpleNamespace(nb=notebook, kernel=Kernel(modules))
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for cell, good in zip(code, (True, passed), strict=True):
            outputs = [nbformat.v4.new_output("stream", text=cell.source)]
            item = SimpleNamespace(
                parent=parent, path=notebooks.pair_of(page), cell=cell, test_outputs=outputs
            )
            keeper.ran(item, good, 2.0)
        return results.find_result(page)

    follow.page = page
    return follow


def test_what_nbval_found_as_stored_is_kept_for_the_page(ran, capsys):
    kept = ran()
    assert kept.seconds == 4
    assert [outputs[0]["text"] for outputs in kept.outputs] == ["1 + 1", "2 + 2"]
    assert executed(capsys) == 0


def test_what_failed_in_nbval_or_is_out_of_step_or_loads_more_than_its_key_says_is_not_kept(ran):
    assert ran(passed=False) is None
    assert ran(modules="bnbook.norms") is None
    write(ran.page, "1 + 1", "2 + 3")
    keys.forget()
    assert ran() is None
