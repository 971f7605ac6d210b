"""Predictions in Chromium, on a small page of their own in the book's clothes."""

import json
import subprocess
import sys

import pytest
from browser import ROOT, violations
from playwright.sync_api import expect

PAGE = """# A page

[To the answer](#place)

## One

```{predict} Which one?
:answer: 2
- ten
- a **thousand**
```

The first answer.

(place)=
A place to go to.

```{predict-end}
```

```{predict} How many?
:answer: 4096
:within: 10 %
```

The second answer.

```{predict-end}
```

```{predict} Why?
```

The third answer.

```{predict-end}
```

```{tally}
```
"""
SAID = "Object.values(JSON.parse(localStorage.getItem('bnbook-predictions')))"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page, built with the theme, the scripts and the styles of the book."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "index.md").write_text(PAGE, "utf-8")
    settings = ["extensions=myst_parser,bookbuild.predictions", "html_theme=sphinx_book_theme"]
    settings += [
        f"html_static_path={ROOT / 'book/_static'}",
        "html_css_files=book.css",
        "html_js_files=book.js",
    ]
    settings += ["html_title=Small", "html_context.default_mode=auto"]
    options = [option for setting in settings for option in ("-D", setting)]
    command = [sys.executable, "-m", "sphinx", "-q", "-C", *options, folder, folder / "out"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "out" / "index.html"


@pytest.fixture
def page(open_page, site):
    """The page as a reader finds it."""
    return open_page(site.name, answers=False, served=site.parent)


def question(page, text):
    return page.locator(".prediction", has_text=text)


def test_answers_are_closed_until_a_guess_is_committed_with_the_keyboard(page):
    asked = question(page, "Which one?")
    assert page.locator(".prediction-answer > p:visible").count() == 0
    asked.get_by_role("radio").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.get_by_text("The first answer.").is_visible()
    assert page.get_by_text("The second answer.").is_hidden()
    assert asked.locator("li").nth(1).inner_text() == "a thousand ← you said this, and this came true"
    assert asked.get_by_role("status").inner_text() == "Your guess came true."
    # What was opened comes next.
    assert page.evaluate("document.activeElement.matches('details[open] > summary')")
    page.keyboard.press("Enter")
    assert page.get_by_text("The first answer.").is_hidden()


def test_a_choice_that_does_not_come_true_is_told_beside_the_one_that_does(page):
    asked = question(page, "Which one?")
    asked.get_by_label("ten").check()
    asked.get_by_role("button", name="Commit").click()
    assert asked.locator("li").all_inner_texts() == ["ten ← you said this", "a thousand ← this came true"]
    assert asked.get_by_role("status").inner_text() == "Your guess did not come true."


def test_nothing_opens_without_a_guess(page):
    for text in ("Which one?", "How many?", "Why?"):
        question(page, text).get_by_role("button", name="Commit").click()
    question(page, "How many?").get_by_label("Your guess").fill("many")
    question(page, "How many?").get_by_role("button", name="Commit").click()
    question(page, "Why?").get_by_label("Your guess").fill("  ")
    question(page, "Why?").get_by_role("button", name="Commit").click()
    assert page.locator("details[open]").count() == 0
    assert page.evaluate("localStorage.getItem('bnbook-predictions')") is None


@pytest.mark.parametrize(
    ("typed", "hit"),
    [
        ("4096", True),
        ("4,000", True),
        ("≈ 4 200.5", True),
        ("4.2e3", True),
        ("3686,4", True),
        ("4506", False),
        ("−4096", False),
        ("4096 %", True),
        ("4,1", False),
    ],
)
def test_a_number_is_read_as_people_write_it(page, typed, hit):
    asked = question(page, "How many?")
    asked.get_by_label("Your guess").fill(typed)
    page.keyboard.press("Enter")
    verdict = "Your guess came true." if hit else "Your guess did not come true."
    assert asked.get_by_role("status").inner_text() == f"You said: {typed}. It came out as 4096. {verdict}"


def test_a_guess_without_an_answer_is_kept_and_words_are_never_markup(page):
    asked = question(page, "Why?")
    asked.get_by_label("Your guess").fill("<b>because</b>")
    page.keyboard.press("Enter")
    told = "You said: <b>because</b>. Compare it with what came out."
    assert asked.get_by_role("status").inner_text() == told
    page.reload()
    assert asked.get_by_role("status").inner_text() == told
    assert page.get_by_text("The third answer.").is_visible()
    assert page.evaluate(SAID) == [{"said": "<b>because</b>", "hit": None}]


def test_who_looks_first_makes_no_prediction(page):
    asked = question(page, "Which one?")
    asked.locator("summary").press("Enter")
    assert page.get_by_text("The first answer.").is_visible()
    expect(asked.get_by_role("radio").first).to_be_disabled()
    asked.locator("summary").press("Enter")
    expect(asked.get_by_role("radio").first).to_be_enabled()
    assert page.evaluate("localStorage.getItem('bnbook-predictions')") is None


def test_the_tally_counts_hits_among_what_has_an_answer_and_forgets(page):
    tally = page.locator(".prediction-tally")
    assert tally.is_hidden()
    for text, typed in (("How many?", "5"), ("Why?", "so")):
        question(page, text).get_by_label("Your guess").fill(typed)
        page.keyboard.press("Enter")
    question(page, "Which one?").get_by_label("a thousand").check()
    question(page, "Which one?").get_by_role("button", name="Commit").click()
    page.reload()
    assert tally.locator("p").inner_text() == (
        "You have made 3 predictions; 1 of the 2 that have one answer came true."
    )
    tally.get_by_role("button", name="Forget them").press("Enter")
    assert tally.inner_text() == "Your predictions are forgotten."
    assert page.evaluate("document.activeElement.textContent") == "Your predictions are forgotten."
    page.reload()
    assert tally.is_hidden()
    assert page.locator("details[open]").count() == 0


@pytest.mark.parametrize("kept", ["{", "null", "5", '{"a": null, "b": 3}'])
def test_what_others_left_in_the_storage_breaks_nothing(page, kept):
    page.evaluate(f"localStorage.setItem('bnbook-predictions', {json.dumps(kept)})")
    page.reload()
    assert page.locator(".prediction-tally").is_hidden()
    assert page.get_by_role("radio").count() == 2
    assert page.faults == []


def test_without_a_storage_a_guess_lasts_as_long_as_the_page(page):
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no'); } })"
    )
    page.reload()
    asked = question(page, "Which one?")
    asked.get_by_label("a thousand").check()
    asked.get_by_role("button", name="Commit").click()
    assert asked.get_by_role("status").inner_text() == "Your guess came true."
    assert page.get_by_text("The first answer.").is_visible()


def test_a_link_into_an_answer_opens_it(page):
    page.get_by_role("link", name="To the answer").click()
    assert page.get_by_text("A place to go").is_visible()
    page.goto(page.url.partition("#")[0])
    page.goto(page.url + "#place")
    page.get_by_text("A place to go").wait_for()
    assert page.get_by_text("The second answer.").is_hidden()


def test_without_a_script_an_answer_opens_by_itself(open_page, site):
    page = open_page(site, java_script=False, answers=False)
    assert page.locator(".prediction-choices li").all_inner_texts() == ["ten", "a thousand"]
    assert page.get_by_text("The first answer.").is_hidden()
    page.locator("summary").first.press("Enter")
    assert page.get_by_text("The first answer.").is_visible()
    assert page.locator(".prediction-tally").is_hidden()


@pytest.mark.parametrize("java_script", [True, False])
def test_on_paper_all_answers_are_open(open_page, site, java_script):
    page = open_page(site, java_script=java_script, answers=False)
    page.emulate_media(media="print")
    page.pdf()  # prints, and so asks the page to get ready
    if java_script:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        for answer in ("first", "second", "third"):
            assert page.get_by_text(f"The {answer} answer.").is_visible()
        assert page.get_by_role("button", name="Commit").count() == 0
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("details[open]").count() == 0
    else:
        heights = page.locator(".prediction-answer").evaluate_all("all => all.map((a) => a.offsetHeight)")
        assert min(heights) > 0


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_before_or_after_and_a_finger_hits(open_page, site, theme, width):
    page = open_page(site, width, theme, answers=False)
    for state in ("asked", "answered"):
        if state == "answered":
            question(page, "Which one?").get_by_label("ten").check()
            question(page, "Which one?").get_by_role("button", name="Commit").click()
            question(page, "Why?").get_by_label("Your guess").fill("so")
            page.keyboard.press("Enter")
        assert not violations(page, "article", rules={"target-size": {"enabled": True}}), state
        sizes = page.locator(
            ".prediction :is(button, summary, label:has([type=radio]), input:not([type=radio])):visible"
        ).evaluate_all("all => all.map((e) => Math.min(e.offsetWidth, e.offsetHeight))")
        assert min(sizes) >= 24
        assert page.evaluate("document.documentElement.scrollWidth") <= width
