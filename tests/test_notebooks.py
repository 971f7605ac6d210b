"""The chapters' executed pairs, and the tools that write them."""

import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from bookbuild import execute, notebooks, results

CHAPTERS = results.chapters()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_a_notebook_is_in_step_with_its_chapter_and_no_cell_is_unexecuted(chapter):
    assert notebooks.problems(chapter) == []


def test_no_notebook_is_left_over():
    assert {path.stem for path in results.NOTEBOOKS.glob("*.ipynb")} == {chapter.stem for chapter in CHAPTERS}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_every_figure_has_a_name_a_caption_and_alternative_text(chapter):
    pair = nbformat.read(results.NOTEBOOKS / f"{chapter.stem}.ipynb", as_version=4)
    drawing = [cell for cell in pair.cells if "<Figure" in str(cell.get("outputs", ""))]
    assert len(drawing) >= 4
    for cell in drawing:
        figure, image = cell.metadata.mystnb.figure, cell.metadata.mystnb.image
        assert figure.name.startswith("fig-")
        assert min(len(figure.caption), len(image.alt)) > 40, figure.name


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book of one chapter, in a folder of its own."""
    for folder in ("book", "notebooks", "code/bnbook"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "requirements.txt").write_text("numpy\n", "utf-8")
    (tmp_path / "code/bnbook/norms.py").write_text("EPS = 1e-5\n", "utf-8")
    (tmp_path / "book/claims.yml").write_text("one: {says: a}\n", "utf-8")
    (tmp_path / "_toc.yml").write_text("parts: [{chapters: [{file: book/tiny}]}]\n", "utf-8")
    write(tmp_path / "book/tiny.md", "1 + 1")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(execute, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(results, "BOOK", tmp_path / "book")
    monkeypatch.setattr(results, "EXECUTED", tmp_path / "_build/executed")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path


def write(chapter, *cells, prose="A page."):
    header = "---\njupytext:\n  text_representation:\n    extension: .md\n    format_name: myst\n"
    header += "kernelspec:\n  display_name: Python 3\n  language: python\n  name: python3\n---\n"
    body = "".join(f"\n```{{code-cell}} ipython3\n{cell}\n```\n" for cell in cells)
    chapter.write_text(f"{header}\n# Tiny\n\n{prose}\n{body}", "utf-8")


def executed(capsys):
    """Run the executor; how many chapters it executed."""
    assert execute.main(["--jobs", "1"]) == 0
    return int(re.search(r"(\d+) to execute", capsys.readouterr().out)[1])


def test_a_chapter_is_executed_again_only_if_its_outputs_could_change(book, capsys):
    chapter = book / "book/tiny.md"
    assert executed(capsys) == 1
    assert executed(capsys) == 0
    write(chapter, "1 + 1", prose="Other words.")
    assert executed(capsys) == 0
    write(chapter, "1 + 2")
    assert executed(capsys) == 1
    (book / "code/bnbook/norms.py").write_text("EPS = 1e-3\n", "utf-8")
    assert executed(capsys) == 1
    (book / "requirements.txt").write_text("numpy==2\n", "utf-8")
    assert executed(capsys) == 1


def test_a_chapter_is_executed_again_if_a_claim_of_its_own_was_reworded(book, capsys):
    write(book / "book/tiny.md", 'print("claim(", end=""); name = "claim(\'one\')"')
    assert executed(capsys) == 1
    (book / "book/claims.yml").write_text("one: {says: a}\ntwo: {says: b}\n", "utf-8")
    assert executed(capsys) == 0
    (book / "book/claims.yml").write_text("one: {says: c}\n", "utf-8")
    assert executed(capsys) == 1


def test_a_failing_cell_names_chapter_cell_and_error_and_fails_the_run(book, capsys):
    write(book / "book/tiny.md", "1 + 1", "1 / 0")
    assert execute.main(["--jobs", "1"]) == 1
    message = capsys.readouterr().err
    assert "book/tiny.md: code cell 2 of 2 failed" in message
    assert "1 / 0" in message
    assert "ZeroDivisionError: division by zero" in message
    assert "\x1b[" not in message  # no colours in a log file


def test_a_killed_kernel_is_an_error_and_not_a_hang(book, capsys):
    write(book / "book/tiny.md", "import os; os._exit(1)")
    assert execute.main(["--jobs", "1"]) == 1
    assert "book/tiny.md: code cell 1 of 1 failed" in capsys.readouterr().err


def test_a_chapter_that_was_finished_is_kept_when_another_fails(book, capsys):
    write(book / "book/other.md", "raise ValueError('no')")
    (book / "_toc.yml").write_text("parts: [{chapters: [{file: book/tiny}, {file: book/other}]}]\n", "utf-8")
    assert execute.main(["--jobs", "1"]) == 1
    assert "2 to execute" in capsys.readouterr().out
    assert execute.main(["--jobs", "1"]) == 1
    assert "1 to execute" in capsys.readouterr().out


def test_only_a_few_earlier_states_of_the_package_are_kept(book, capsys):
    for eps in range(results.KEPT_STATES + 3):
        (book / "code/bnbook/norms.py").write_text(f"EPS = {eps}\n", "utf-8")
        results.open_cache()
    assert len(list(results.EXECUTED.iterdir())) == results.KEPT_STATES + 1


def test_a_written_notebook_keeps_text_and_leaves_images_and_metadata_out(book, capsys):
    cell = "from IPython.display import display\n"
    cell += 'display({"text/plain": "t", "image/png": ""}, raw=True, metadata={"a": {}})'
    write(book / "book/tiny.md", cell, "2 + 2")
    execute.main(["--jobs", "1"])
    assert notebooks.main() == 0
    pair = nbformat.read(book / "notebooks/tiny.ipynb", as_version=4)
    nbformat.validate(pair)
    first, second = (cell for cell in pair.cells if cell.cell_type == "code")
    assert first.outputs[0].data == {"text/plain": "t"}
    assert first.outputs[0].metadata == {}
    assert second.outputs[0].data == {"text/plain": "4"}
    assert (first.execution_count, second.execution_count) == (1, 2)
    assert notebooks.problems(book / "book/tiny.md") == []


def test_a_notebook_that_is_missing_out_of_step_or_unexecuted_is_named(book, capsys):
    chapter, pair = book / "book/tiny.md", book / "notebooks/tiny.ipynb"
    assert "does not exist: run `make notebooks`" in notebooks.problems(chapter)[0]
    assert notebooks.main() == 1  # nothing to write from
    execute.main(["--jobs", "1"])
    notebooks.main()
    stored = nbformat.read(pair, as_version=4)
    write(chapter, "1 + 1", prose="Edited.")
    assert "out of step" in notebooks.problems(chapter)[0]
    write(chapter, "1 + 1")
    stored.cells[-1].execution_count = None
    nbformat.write(stored, pair)
    assert "code cells [1] were never executed" in notebooks.problems(chapter)[0]


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
