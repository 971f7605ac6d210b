"""Questions that are answered only after a guess: what stands on a page, and what a wrong directive says."""

import re
import subprocess
import sys

import pytest
from bs4 import BeautifulSoup
from PIL import Image

from bookbuild.portable import posed
from bookbuild.predictions import checked

QUESTION = "```{predict} Which *one*?\n:answer: 2\nOf these.\n\n- ten\n- a **thousand**\n```"
END = "```{predict-end}\n```"
HIDDEN = "The answer, as in {numref}`fig-two`.\n\n```{figure} dot.png\n:name: fig-two\nSecond.\n```"
FIGURE = "```{figure} dot.png\n:name: fig-NAME\nA caption.\n```"
PAGE = "\n\n".join(
    [
        "# A page\n\n## A section",
        FIGURE.replace("NAME", "one"),
        f"{QUESTION}\n\n{HIDDEN}\n\n```python\n'secret'\n```\n\n{END}",
        f"After.\n\n{FIGURE.replace('NAME', 'three')}\n\nSee {{numref}}`fig-two` and {{numref}}`fig-three`.",
    ]
)


VARIANTS = {
    "plain": "# A page\n\nText.",
    "counting": "# A page\n\n```{tally}\n```",
    "answer": PAGE.replace(":answer: 2", ":answer: 1"),
    "choice": PAGE.replace("- ten", "- eleven"),
    "wording": PAGE.replace("Of these.", "Of those."),
}
# What does not fit: the page, the line that is named, and what is said.
FAULTS = [
    (
        PAGE.replace(":answer: 2", ":answer: 3"),
        10,
        "answer: got '3', allowed is the number of a choice, 1 to 2",
    ),
    (
        PAGE.replace(":answer: 2", ":answer: 2\n:within: 1"),
        10,
        "within: got '1', allowed only with an answer",
    ),
    (PAGE.replace("- ten\n", ""), 10, "two choices or more"),
    (PAGE.replace("- ten", "- ten\n\n  More"), 10, "of one paragraph each"),
    (PAGE.replace(":answer:", ":anser:"), 10, "nknown option"),
    (PAGE.replace(END, ""), 10, "predict: no {predict-end} follows before the next heading"),
    (PAGE.replace(END, f"## Next\n\n{END}"), 10, "predict: no {predict-end} follows before the next heading"),
    (PAGE.replace("After.", END), 32, "predict-end: ends no {predict} of its section"),
    (
        PAGE.replace("The answer,", f"{QUESTION}\n\nIt,"),
        10,
        "another {predict} begins before its {predict-end}",
    ),
    (f"# A page\n\n{QUESTION}\n\n{END}", 3, "nothing stands between it and its {predict-end}"),
    (f"# A page\n\n```{{predict}}\n```\n\nIt.\n\n{END}", 3, "predict: got no question"),
]


def build(folder, pages, builder="html"):
    """Build pages; returns what Sphinx said against them, and the folder of the result."""
    for name, text in pages.items():
        # Each has names of its own for its figures.
        (folder / f"{name}.md").write_text(text.replace("fig-", f"{name}-"), "utf-8")
    (folder / "index.md").write_text("# All\n\n```{toctree}\n" + "\n".join(pages) + "\n```\n", "utf-8")
    Image.new("RGB", (4, 4)).save(folder / "dot.png")
    settings = ["extensions=myst_parser,bookbuild.predictions", "numfig=1"]
    options = [option for setting in settings for option in ("-D", setting)]
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-C", "-b", builder, *options]
    process = subprocess.run([*command, folder, folder / "out"], capture_output=True, text=True)
    assert bool(process.returncode) == bool(process.stderr)
    return process.stderr, folder / "out"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages with which nothing is wrong, as built."""
    said, out = build(tmp_path_factory.mktemp("html"), {"page": PAGE} | VARIANTS)
    assert said == ""
    return {path.stem: BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in out.glob("*.html")}


@pytest.fixture
def page(pages):
    """The page."""
    return pages["page"]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What Sphinx says against the others."""
    texts = {f"fault{i}": text for i, (text, *_) in enumerate(FAULTS)}
    return build(tmp_path_factory.mktemp("faults"), texts)[0]


def test_all_up_to_the_end_is_closed_and_nothing_after_it(page):
    answer = page.select_one(".prediction details.prediction-answer:not([open])")
    assert answer.find_previous_sibling(class_="prediction-question")
    assert [word in answer.get_text() for word in ("The answer, as in", "secret", "After.", "Which")] == [
        1,
        1,
        0,
        0,
    ]
    assert "After." in page.get_text()
    assert answer.select_one("summary") is not None


def test_the_question_stands_open_with_its_choices(page):
    question = page.select_one(".prediction-question")
    assert question.find_parent("details") is None
    assert question.p.get_text() == "Predict, then run. Which one?"
    assert question.em.get_text() == "one"
    assert [choice.get_text() for choice in question.select(".prediction-choices li")] == [
        "ten",
        "a thousand",
    ]
    assert question.parent["data-answer"] == "2"
    assert "data-low" not in question.parent.attrs


def test_figures_in_an_answer_keep_their_numbers(page):
    numbers = [number.get_text().strip() for number in page.select("figure .caption-number")]
    assert numbers == ["Fig. 1", "Fig. 2", "Fig. 3"]
    assert [a.get_text() for a in page.select('a.reference[href^="#page-"]:has(.std-numref)')] == [
        "Fig. 2",
        "Fig. 2",
        "Fig. 3",
    ]


def test_script_and_style_are_loaded_only_where_they_are_used(pages):
    users = {name for name in {"page", *VARIANTS} if "predictions.js" in str(pages[name])}
    assert users == {"page", *VARIANTS} - {"plain"}
    assert all("predictions.css" in str(pages[name]) for name in users)
    assert "hidden" in pages["counting"].select_one(".prediction-tally").attrs


def test_a_guess_belongs_to_one_wording_and_one_answer(pages):
    keys = {name: pages[name].select_one(".prediction")["data-key"] for name in ("page", *list(VARIANTS)[2:])}
    assert all(key.startswith(f"{name} ") for name, key in keys.items())
    assert len({key.split()[1] for key in keys.values()}) == 4


def test_in_latex_the_answer_is_open(tmp_path):
    said, out = build(tmp_path, {"page": PAGE}, "latex")
    assert said == ""
    text = "".join(path.read_text("utf-8") for path in out.glob("*.tex"))
    assert text.index("Which") < text.index("The answer, as in") < text.index("secret") < text.index("After.")


@pytest.mark.parametrize("i", range(len(FAULTS)))
def test_what_does_not_fit_stops_the_build_with_its_line(said, i):
    _, line, message = FAULTS[i]
    lines = [text for text in said.splitlines() if f"fault{i}.md:{line}:" in text]
    assert any(message in text for text in lines), said


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({"answer": "4096"}, "4096", "4096"),
        ({"answer": "4096", "within": "10 %"}, "3686.4", "4505.6"),
        ({"answer": "-0.3", "within": "10%"}, "-0.33", "-0.27"),
        ({"answer": "1e-5", "within": "0.5"}, "-0.49999", "0.50001"),
    ],
)
def test_a_number_counts_within_its_bounds_in_exact_decimals(options, low, high):
    data = checked(options, 0)
    assert (float(data["low"]), float(data["high"])) == (float(low), float(high))
    assert data["answer"] == options["answer"]


@pytest.mark.parametrize(
    ("options", "choices", "message"),
    [
        ({"answer": "many"}, 0, "answer: got 'many', allowed is a number"),
        ({"answer": "nan"}, 0, "answer: got 'nan'"),
        ({"answer": "4", "within": "much"}, 0, "within: got 'much'"),
        ({"answer": "4", "within": "0 %"}, 0, "within: got '0 %', allowed is more than nothing"),
        ({"answer": "4", "within": "-1"}, 0, "within: got '-1', allowed is more than nothing"),
        ({"within": "1"}, 0, "within: got '1', allowed only with an answer"),
        ({"answer": "0"}, 2, "answer: got '0', allowed is the number of a choice, 1 to 2"),
        ({"answer": "ten"}, 2, "answer: got 'ten', allowed is the number of a choice, 1 to 2"),
    ],
)
def test_an_answer_that_nothing_could_equal_is_an_error(options, choices, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        checked(options, choices)


def test_a_question_may_be_announced_by_other_words():
    assert posed("Which?", "") == "**Predict, then run.** Which?"
    assert posed("Which?", "- one", head="Does it hold?") == "**Does it hold?** Which?\n\n- one"
