"""Notebooks of plain Markdown: every directive and role becomes text that every front end shows."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from bnbook.exercises import CHAPTERS, check, of_chapter
from bookbuild import notebooks, portable, results
from bookbuild.portable import Labels, plain

BOOK = Labels(
    names={
        "eq-a": "(7.1)",
        "eq-b": "(7.2)",
        "fig-a": "Fig. 7.3",
        "ex-a": "Exercise 7.2",
        "th-a": "Theorem 7.1",
        "slider-a": "Fig. 7.4",
    },
    titles={"backward": "The backward pass", "notation": "Notation"},
    addresses={"backward": "backward.ipynb", "notation": "../book/notation.md"},
)


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("{doc}`backward`", "[The backward pass](backward.ipynb)"),
        ("{doc}`the symbols </book/notation>`", "[the symbols](../book/notation.md)"),
        ("by {eq}`eq-a`", "by (7.1)"),
        ("{numref}`fig-a` shows", "Fig. 7.3 shows"),
        ("{prf:ref}`th-a`", "Theorem 7.1"),
        ("{ref}`in words <ex-a>`, {ref}`ex-a`", "in words, Exercise 7.2"),
        ("{cite:t}`ioffe2015` say", "[Ioffe and Szegedy (2015)](https://arxiv.org/abs/1502.03167) say"),
        ("{cite:p}`vanlaarhoven2017,hoffer2018`", "(van Laarhoven, 2017; Hoffer et al., 2018)"),
        (
            "code `{eq}` and ``{doc}`a` `` stay, {eq}`eq-a` not",
            "code `{eq}` and ``{doc}`a` `` stay, (7.1) not",
        ),
        ("`a` and {eq}`eq-a` and `b`", "`a` and (7.1) and `b`"),
        ("(a-place)=\n## A heading\n\nf(x)=\ny", "## A heading\n\nf(x)=\ny"),
    ],
)
def test_a_role_becomes_text(myst, markdown):
    assert plain(myst, BOOK) == markdown


def test_links_do_not_depend_on_the_folder_in_which_the_book_lies(tmp_path, monkeypatch):
    (tmp_path / "book").mkdir()
    monkeypatch.chdir(tmp_path / "book")
    assert plain("{doc}`the symbols </book/notation>`", BOOK) == "[the symbols](../book/notation.md)"


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("```{math}\n:label: eq-a\nx = 1\n```", "$$\nx = 1 \\tag{7.1}\n$$"),
        ("```{math}\nx = 1 \\\\ y = 2\n```", "$$\n\\begin{split}\nx = 1 \\\\ y = 2\n\\end{split}\n$$"),
        (
            "````{admonition} A *title*\n:class: warning\n\n"
            "Text, {eq}`eq-a`.\n\n```{math}\n:label: eq-b\ny\n```\n````",
            "> **A *title*.**\n>\n> Text, (7.1).\n>\n> $$\n> y \\tag{7.2}\n> $$",
        ),
        (
            "```{prf:theorem} Of Somebody\n:label: th-a\n\nSo.\n```",
            "> **Theorem 7.1 (Of Somebody).**\n>\n> So.",
        ),
        ("```{prf:proof}\nClear.\n```", "> **Proof.**\n>\n> Clear."),
        (
            "```{slider} gamma\n:name: slider-a\n:alt: Words.\nWhat to see.\n```",
            "*Fig. 7.4, which moves on the built page:* What to see.",
        ),
        (
            "```{predict} Which {eq}`eq-a`?\n:answer: 2\nOf *these*.\n\n- one\n- $10^6$\n```",
            "**Predict, then run.** Which (7.1)?\n\nOf *these*.\n\n- one\n- $10^6$",
        ),
        ("```{predict} Which?\n```", "**Predict, then run.** Which?"),
        ("```{predict}\n:answer: 4\n:within: 1\n\nHow many?\n```", "**Predict, then run.** How many?"),
        ("before\n\n```python\nx = 1\n```\n\nafter", "before\n\n```python\nx = 1\n```\n\nafter"),
    ],
)
def test_a_directive_becomes_markdown(myst, markdown):
    assert plain(myst, BOOK) == markdown


@pytest.mark.parametrize(
    ("myst", "message"),
    [
        ("```{margin}\nText\n```", "directive: got margin"),
        ("{kbd}`x`", "role: got kbd"),
        ("{eq}`eq-missing`", "eq-missing"),
        ("{cite:t}`nobody1999`", "nobody1999"),
    ],
)
def test_what_cannot_be_written_as_markdown_is_an_error_that_names_it(myst, message):
    with pytest.raises((ValueError, KeyError), match=message):
        plain(myst, BOOK)


def cells(*given):
    return list(portable.portable_cells(new_notebook(cells=list(given)), "backward", BOOK))


def test_a_solution_is_closed_until_the_reader_opens_it():
    exercise = "```{exercise} A title\n:label: ex-a\n\nDo {eq}`eq-a`.\n```"
    start = "```{solution-start} ex-a\n:class: dropdown\n```\n\nLike so."
    made = cells(
        new_markdown_cell(f"Before.\n\n{exercise}\n\n{start}"),
        new_code_cell("2 + 2"),
        new_markdown_cell("```{solution-end}\n```\n\nAfter."),
        new_code_cell("3 + 3"),
    )
    assert [cell.source for cell in made] == [
        "Before.",
        "### Exercise 7.2. A title\n\nDo (7.1).",
        'def my_backward(dy, x, gamma, eps):\n    ...\n\n\ncheck("backward.my_backward", my_backward)',
        "<details><summary>Solution of exercise 7.2</summary>\n\nLike so.\n\n</details>",
        "# @title Solution of exercise 7.2\n2 + 2",
        "After.",
        "3 + 3",
    ]
    closed, shown = made[4], made[6]
    assert closed.metadata.jupyter == {"source_hidden": True, "outputs_hidden": True}  # JupyterLab, VS Code
    assert closed.metadata.cellView == "form"  # Colab
    assert shown.metadata == {}


def test_after_a_question_the_cell_simply_follows():
    made = cells(
        new_markdown_cell("Before.\n\n```{predict} Which?\n:answer: 1\n- one\n- two\n```"),
        new_code_cell("1 + 1"),
        new_markdown_cell("It shows.\n\n```{predict-end}\n```\n\nAfter."),
        new_code_cell("3 + 3"),
        new_markdown_cell("```{predict-end}\n```"),
        new_code_cell("4 + 4"),
    )
    question = "Before.\n\n**Predict, then run.** Which?\n\n- one\n- two"
    assert [cell.source for cell in made] == [question, "1 + 1", "It shows.", "After.", "3 + 3", "4 + 4"]
    assert all(cell.metadata == {} for cell in made)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_an_answer_cell_says_what_its_own_call_of_check_says(chapter, capsys):
    for number, exercise in enumerate(of_chapter(chapter).values(), 1):
        cell = portable.answer_cell(chapter, number)
        exec(cell.source, {"check": check})
        said = [output.data["text/plain"] for output in cell.outputs]
        assert capsys.readouterr().out == "".join(f"{text}\n" for text in said)
        assert all("not answered yet" in text for text in said)
        assert len(said) == (exercise is not None)


def test_a_caption_stands_below_its_figure_and_code_that_only_draws_is_folded():
    drawing = new_code_cell("draw()", metadata={"tags": ["hide-input"]})
    drawing.metadata.mystnb = nbformat.from_dict(
        {"figure": {"name": "fig-a", "caption": "See {eq}`eq-a`.\n"}}
    )
    code, caption = cells(drawing)
    assert "mystnb" not in code.metadata
    assert code.metadata.jupyter == {"source_hidden": True}
    assert caption.source == "**Fig. 7.3.** See (7.1)."


@pytest.mark.parametrize("page", results.chapters(), ids=results.name_of)
def test_no_directive_role_or_label_is_left_in_a_notebook(page):
    notebook = nbformat.read(notebooks.pair_of(page), as_version=4)
    nbformat.validate(notebook)
    raw = r"^\s*(?:`{3,}|:{3,}) *\{|\{[a-z]+(?::[a-z]+)?\}`|^:[a-z]+:|^\([\w-]+\)=|\{(?:math|exercise)"
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert [line for line in "\n".join(text).splitlines() if re.search(raw, line)] == []
    assert not any("mystnb" in cell.metadata for cell in notebook.cells)
