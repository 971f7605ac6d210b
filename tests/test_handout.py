"""The notebooks for a class: without solutions, never over a student's work, and graded when they return."""

import ast
import json
import re
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from bnbook.exercises import CHAPTERS, find, grading, handout, of_chapter
from bookbuild import notebooks, portable, results

PAGES = results.chapters()
ANSWERED = r"(?s)^(?:def .*?:\n    \.\.\.|answer = \.\.\.[^\n]*)"  # what a student replaces


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory):
    """The whole handout, and its notebooks by the names of the pages."""
    folder = tmp_path_factory.mktemp("class") / "new"
    written = handout.hand_out(folder)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in written}


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def answers(notebook):
    return [cell for cell in code(notebook) if "answer" in cell.metadata.get("tags", [])]


def test_every_page_is_handed_out(handed_out):
    assert {*handed_out} == {results.name_of(page) for page in PAGES}
    for path in handed_out.values():
        nbformat.validate(read(path))


@pytest.mark.parametrize("page", PAGES, ids=results.name_of)
def test_all_cells_stay_but_those_that_the_page_has_between_the_marks_of_a_solution(handed_out, page):
    outside = re.sub(r"(?s)`+\{solution-start\}.*?\{solution-end\}\n`+", "", page.read_text("utf-8"))
    expected = [
        *re.findall(r"(?m)^`{3,}\{code-cell\}", outside),
        *re.findall(r"(?m)^`{3,}\{exercise\}", outside),  # each has an answer cell
    ]
    there, whole = read(handed_out[results.name_of(page)]), read(notebooks.pair_of(page))
    assert len(code(there)) == len(expected)
    assert "Solution of exercise" not in json.dumps(there)
    kept = iter(whole.cells)  # the others stay as they are, in their order
    assert all(
        any(cell.source == handout.PAGE_LINK.sub(r"\1", other.source) for other in kept)
        for cell in there.cells
    )
    for cell in code(there):
        said = "not answered yet" in json.dumps(cell.outputs)
        assert said == (cell in answers(there) and cell.source != "# Your work")
        assert said or not cell.outputs


def test_no_notebook_uses_a_name_that_only_a_solution_gave_it(handed_out):
    folder = handed_out["batch_norm"].parent
    ruff = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--no-cache",
        "--select",
        "F821",
        str(folder),
    ]
    found = subprocess.run(ruff, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_answer_cells_run_on_what_the_notebook_imports_outside_solutions(handed_out, chapter, capsys):
    pages = [read(handed_out[name]) for name in (chapter, f"deeper/{chapter}") if name in handed_out]
    cells = [cell for notebook in pages for cell in code(notebook)]
    statements = [node for cell in cells for node in ast.parse(cell.source).body]
    imports = [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {}
    exec(compile(ast.Module(imports, []), chapter, "exec"), names)
    for cell in (cell for notebook in pages for cell in answers(notebook)):
        exec(cell.source, names)
    checked = [exercise for exercise in of_chapter(chapter).values() if exercise]
    assert capsys.readouterr().out.count("not answered yet") == len(checked)


def fill_in(cell, source):
    """Write an answer into the place of the `...`, as a student would."""
    if cell.source.startswith("answer"):
        *lines, value = source.strip().splitlines()
        source = "\n".join([*lines, f"answer = {value}"])
    cell.source, count = re.subn(ANSWERED, lambda _: source.strip(), cell.source)
    assert count == 1


def test_filled_in_notebooks_get_full_marks_named_mistakes_or_not_answered(handed_out, tmp_path):
    names = ["batch_norm.y_by_hand", "batch_norm.my_batch_norm", "batch_norm.bound"]
    slips = {name: find(name).parsed_slips[0] for name in names}
    written = {
        "right": {name: find(name).solution for name in names},
        "wrong": {name: slip.whole or slip.applied(find(name).solution) for name, slip in slips.items()},
        "untouched": {},
    }
    for student, sources in written.items():
        notebook = read(handed_out["batch_norm"])
        own = answers(notebook)
        for name, source in sources.items():
            (cell,) = [cell for cell in own if f'"{name}"' in cell.source]
            fill_in(cell, source)
        # The experiments of the chapter take half a minute, and no answer needs them.
        notebook.cells = [code(notebook)[0], *own]
        nbformat.write(notebook, tmp_path / f"{student}.ipynb")
    result = {
        "right": dict.fromkeys(names, "passed"),
        "wrong": {name: slip.name for name, slip in slips.items()},
        "untouched": dict.fromkeys(names, "not answered"),
    }
    rows = grading.grade(tmp_path)
    assert {(row.name, row.exercise): row.result for row in rows} == {
        (student, name): verdict for student, of in result.items() for name, verdict in of.items()
    }
    assert {row.remark for row in rows} == {""}


@pytest.fixture
def source(tmp_path):
    """A teacher's folder of two notebooks, one in a subfolder, with answers and outputs in them."""
    answered = "def bound(m):\n    return (m - 1) ** 0.5\n\n\ncheck('batch_norm.bound', bound)"
    printed = [new_output("stream", text="passed")]
    cells = [
        new_markdown_cell("Read [this](../../book/notation.md), [that](b.ipynb)."),
        new_code_cell(answered, outputs=printed, execution_count=3, metadata={"tags": ["answer"]}),
        new_code_cell("my = 'notes'", outputs=printed, metadata={"tags": ["answer"]}),
        new_markdown_cell(f"{handout.SOLUTION_TEXT} of exercise 6.2</summary>\n\nSo.\n\n</details>"),
        new_code_cell(f"{handout.SOLUTION_CODE} of exercise 6.2\nsecret = 1", outputs=printed),
        new_code_cell("1 + 1", outputs=printed, execution_count=4),
    ]
    folder = tmp_path / "teacher"
    for name in ("a.ipynb", "deeper/b.ipynb", ".ipynb_checkpoints/a-checkpoint.ipynb"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=cells), folder / name)
    return folder


def test_a_folder_of_ones_own_is_handed_out_with_its_subfolders_and_answers_are_emptied(
    source, tmp_path, capsys
):
    new = tmp_path / "x" / "new"
    assert grading.main(["--handout", str(new), "--from", str(source)]) == 0
    assert "2 notebooks without solutions are in" in capsys.readouterr().out
    assert {path.relative_to(new).as_posix() for path in new.rglob("*.*")} == {"a.ipynb", "deeper/b.ipynb"}
    notebook = read(new / "deeper/b.ipynb")
    empty = portable.answer_cell("batch_norm", list(of_chapter("batch_norm")).index("bound") + 1)
    told = "Read this, [that](b.ipynb)."  # a class has the notebooks, not the book's other pages
    assert [cell.source for cell in notebook.cells] == [told, empty.source, "# Your work", "1 + 1"]
    assert [cell.outputs for cell in code(notebook)] == [empty.outputs, [], []]
    assert [cell.execution_count for cell in code(notebook)] == [None] * 3


def test_nothing_that_a_student_wrote_is_overwritten(source, tmp_path, capsys):
    folder = tmp_path / "class"
    (folder / ".git").mkdir(parents=True)
    handout.hand_out(folder, source)  # a hidden file is nobody's work
    (folder / "a.ipynb").write_text("my answers", "utf-8")
    with pytest.raises(SystemExit, match="2"):
        grading.main(["--handout", str(folder), "--from", str(source)])
    assert f"folder: {folder} is not empty, and nothing is overwritten" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is not empty"):
        handout.hand_out(folder / "a.ipynb", source)
    assert (folder / "a.ipynb").read_text("utf-8") == "my answers"


def test_a_notebook_that_cannot_be_read_is_named_and_nothing_is_written(source, tmp_path):
    (source / "z.ipynb").write_text("no notebook", "utf-8")
    with pytest.raises(ValueError, match=r"source: .*z\.ipynb cannot be read as a notebook"):
        handout.hand_out(tmp_path / "new", source)
    assert not (tmp_path / "new").exists()


def test_an_installed_package_says_that_the_notebooks_are_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(handout, "NOTEBOOKS", tmp_path / "site-packages" / "notebooks")
    with pytest.raises(ValueError, match=r"clone the book's repository .* --from FOLDER"):
        handout.hand_out(tmp_path / "new")
    with pytest.raises(ValueError, match=r"there is no notebook \(\*\.ipynb\) in"):
        handout.hand_out(tmp_path / "new", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--handout", "--csv", "grades.csv"], "belong to the grading, not to --handout"),
        (["--handout", "--exercises", "batch_norm.bound"], "belong to the grading, not to --handout"),
        (["--from", "notebooks"], "--from belongs to --handout"),
    ],
)
def test_options_of_the_other_command_are_refused(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        grading.main([str(tmp_path / "new"), *arguments])
    assert message in capsys.readouterr().err
