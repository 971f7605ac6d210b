"""The directives ``{predict}``, ``{predict-end}`` and ``{tally}``: a guess comes before the answer.

````
```{predict} At which ratio is no digit left?
:answer: 2
- about 10
- about 1,000
```

(code cells and text: the answer, which is closed until the reader has committed a guess or asks to see it)

```{predict-end}
```
````

A list at the end of the question holds the choices; without one the reader types. ``:answer:`` is the
number of the choice that comes true, or the number to be typed,
with ``:within:`` a tolerance (``10 %``, or ``0.5``).
``:head:`` takes the place of the words "Predict, then run."

On the page the answer is a ``<details>``, so that it opens without a script, from the keyboard, and when the
browser finds a word in it. ``book/_static/predictions.js`` adds the form and keeps the guesses. The end is
written out, since a code cell cannot stand in a directive, and an end that is found by a rule (the next
heading, the next paragraph) moves when the text does and lets an answer slip out.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

from bookbuild.portable import posed


class prediction(nodes.container):
    """A question and, once `CloseAnswers` has run, its answer; what the script reads is in `data`."""


class answer(nodes.container):
    """What is closed until the reader has guessed."""


class prediction_end(nodes.container):
    """Where an answer ends; none is left in a finished tree."""


class tally(nodes.container):
    """Where the script tells how many guesses came true."""


class PredictDirective(SphinxDirective):
    """One question; its argument and content are what is asked."""

    optional_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "head": directives.unchanged_required,
        "answer": directives.unchanged_required,
        "within": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """Parse the question, and check that it can be answered as the options say."""
        argument, body = " ".join(self.arguments), "\n".join(self.content)
        if not argument and not body:
            raise self.error("predict: got no question, allowed are an argument, a content, or both")
        head = {"head": self.options["head"]} if "head" in self.options else {}
        lines = StringList(posed(argument, body, **head).splitlines(), source=self.env.docname)
        asked = nodes.container(classes=["prediction-question"])
        self.state.nested_parse(lines, self.content_offset - (2 if argument else 0), asked)
        choices = asked[-1] if isinstance(asked[-1], nodes.bullet_list | nodes.enumerated_list) else None
        if choices is not None:
            choices["classes"].append("prediction-choices")
            if len(choices) < 2 or any(len(choice) != 1 for choice in choices):
                raise self.error(
                    "predict: a list at the end needs two choices or more, of one paragraph each"
                )
        try:
            data = checked(self.options, len(choices) if choices is not None else 0)
        except ValueError as error:
            raise self.error(str(error)) from error
        # A guess belongs to this wording and this answer: after a change of either it is asked again.
        wording = hashlib.sha256(f"{asked.astext()}\n{data}".encode()).hexdigest()[:8]
        node = prediction(
            "", asked, classes=["prediction"], data={"key": f"{self.env.docname} {wording}"} | data
        )
        self.set_source_info(node)
        return [node]


def checked(options: dict[str, str], choices: int) -> dict[str, str]:
    """What decides whether a guess came true.

    Parameters
    ----------
    options : dict of str to str
        ``answer`` and ``within`` of a question, as far as they are given.
    choices : int
        How many choices it offers; 0 if the reader types.

    Returns
    -------
    dict of str to str
        Nothing, if nothing decides it; ``answer``; of a number also the bounds ``low`` and ``high``.
    """
    given, within = options.get("answer"), options.get("within")
    if within is not None and (given is None or choices):
        raise ValueError(f"within: got {within!r}, allowed only with an answer that is a number to be typed")
    if given is None:
        return {}
    if choices:
        if not given.isdecimal() or not 1 <= int(given) <= choices:
            raise ValueError(f"answer: got {given!r}, allowed is the number of a choice, 1 to {choices}")
        return {"answer": given}
    right, slack = _number("answer", given), Decimal(0)
    if within is not None:
        slack = _number("within", within.removesuffix("%").strip())
        slack *= abs(right) / 100 if within.endswith("%") else 1
        if slack <= 0:
            raise ValueError(f"within: got {within!r}, allowed is more than nothing, such as 10 % or 0.5")
    return {"answer": given, "low": str(right - slack), "high": str(right + slack)}


def _number(name: str, text: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise ValueError(
            f"{name}: got {text!r}, allowed is a number (or, with a list of choices, the choice's)"
        )
    return number


class PredictEndDirective(SphinxDirective):
    """The end of an answer."""

    def run(self) -> list[nodes.Node]:
        """Mark the place."""
        node = prediction_end()
        self.set_source_info(node)
        return [node]


class TallyDirective(SphinxDirective):
    """How many of the reader's guesses came true."""

    def run(self) -> list[nodes.Node]:
        """Mark the place."""
        return [tally()]


class CloseAnswers(SphinxTransform):
    """Put what stands between a question and its end into an answer."""

    default_priority = 20  # sphinx-exercise has put its solutions together, at 10

    def apply(self, **kwargs: Any) -> None:
        """Tell what does not fit together, with its page and line."""
        for start in list(self.document.findall(prediction)):
            siblings = start.parent.children[start.parent.index(start) + 1 :]
            end = next((i for i, node in enumerate(siblings) if isinstance(node, prediction_end)), None)
            inside = siblings[:end]
            if end is None:
                fault = "no {predict-end} follows before the next heading"
            elif not inside:
                fault = "nothing stands between it and its {predict-end}"
            elif any(found for node in inside for found in node.findall(prediction)):
                fault = "another {predict} begins before its {predict-end}"
            else:
                for node in siblings[: end + 1]:
                    start.parent.remove(node)
                start += answer("", *inside)
                continue
            self.document.reporter.error(f"predict: {fault}", base_node=start)
        for node in list(self.document.findall(prediction_end)):
            self.document.reporter.error("predict-end: ends no {predict} of its section", base_node=node)
            node.parent.remove(node)


def visit_prediction(self: HTML5Translator, node: prediction) -> None:
    """Open it, with what the script needs."""
    data = {f"data-{name}": value for name, value in node["data"].items()}
    self.body.append(self.starttag(node, "div", **data))


def visit_answer(self: HTML5Translator, node: answer) -> None:
    """Open it; the style sheet shows one of the two words."""
    summary = (
        '<summary><span class="when-closed">Show me</span><span class="when-open">Hide it</span></summary>'
    )
    self.body.append(f'<details class="prediction-answer">{summary}\n')


def visit_tally(self: HTML5Translator, node: tally) -> None:
    """Hidden until there is something to tell."""
    self.body.append('<div class="prediction-tally" hidden>')


def depart_answer(self: HTML5Translator, node: answer) -> None:
    """Close it."""
    self.body.append("</details>\n")


def depart_block(self: HTML5Translator, node: nodes.container) -> None:
    """Close it."""
    self.body.append("</div>\n")


def add_script(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Load script and style on the pages that use them, and on no other."""
    if doctree is not None and any(doctree.findall(lambda node: isinstance(node, prediction | tally))):
        app.add_css_file("predictions.css")
        app.add_js_file("predictions.js")


def setup(app: Sphinx) -> None:
    """Register the directives; other builders than HTML's show the answers, as containers."""
    app.add_node(prediction, html=(visit_prediction, depart_block))
    app.add_node(answer, html=(visit_answer, depart_answer))
    app.add_node(tally, html=(visit_tally, depart_block))
    app.add_directive("predict", PredictDirective)
    app.add_directive("predict-end", PredictEndDirective)
    app.add_directive("tally", TallyDirective)
    app.add_transform(CloseAnswers)
    app.connect("html-page-context", add_script)
