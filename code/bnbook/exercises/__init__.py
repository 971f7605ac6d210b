"""Checked exercises: ``check("backward.my_backward", my_backward)`` runs an answer and names the mistake.

An exercise is called ``CHAPTER.NAME``: NAME is the function that it asks for, or a noun for numbers. Each
chapter has a module here that holds the inputs, the solution and the slips that readers make; `_engine`
compares. ``python -m bnbook.exercises FOLDER`` grades a class (:mod:`bnbook.exercises.grading`), and
``python -m bnbook.exercises --handout FOLDER`` writes its notebooks (:mod:`bnbook.exercises.handout`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import Markdown, display

from bnbook.exercises._engine import NOT_ANSWERED, Exercise, Result, judge

__all__ = [
    "ATTEMPTS",
    "CHAPTERS",
    "Exercise",
    "Result",
    "catalogue",
    "check",
    "find",
    "judge",
    "of_chapter",
    "solution",
]

# In the order of the book: the first page has no number, those after it are chapters 1, 2, ... A chapter's
# module is imported when one of its exercises is checked, not before: what the others need, SciPy and mlxtend
# among it, costs a second, and an edit in one module then concerns the cells of one chapter alone.
CHAPTERS = (
    "start",
    "sgd",
    "saturation",
    "covariate_shift",
    "internal_covariate_shift",
    "whitening",
    "batch_norm",
    "backward",
    "training",
    "cnn",
    "inference",
    "accelerating",
    "ics_revisited",
    "landscape",
    "scale_invariance",
    "small_batches",
    "group_norm",
    "distributed",
    "adaptation",
    "beyond",
)

# The last answer to each exercise in this session; the grading checks them again.
ATTEMPTS: dict[str, Any] = {}


def check(exercise: str, answer: Any, hint: int = 0) -> Result:
    """Check an answer, and show whether it is right or which mistake it makes.

    A call that takes longer than a few seconds is stopped, in notebooks on Linux and macOS.

    Parameters
    ----------
    exercise : str
        ``"CHAPTER.NAME"``, as it stands in the exercise.
    answer : function or value
        What the exercise asks for.
    hint : int
        How many hints to show besides.

    Returns
    -------
    Result
        With `passed`, `verdict` and `message`. The message has been shown already.

    Examples
    --------
    >>> result = check("batch_norm.bound", lambda m: m - 1)
    batch_norm.bound, The loudest possible example: not yet. This mistake has a name: square of the bound.
    This bounds the square of x_hat; take the root.
    >>> result.passed
    False
    """
    found = find(exercise)
    if hint < 0:
        raise ValueError(f"hint: got {hint}, allowed are 0, 1, 2, ...")
    result = judge(exercise, found, answer, hint)
    if result.verdict != NOT_ANSWERED:
        ATTEMPTS[exercise] = answer
    if InteractiveShell.initialized():
        display(  # type: ignore[no-untyped-call]
            {"text/plain": result.message},
            metadata={"bnbook-exercises": {"check": [result.exercise, result.verdict]}},
            raw=True,
        )
    else:
        print(result.message)
    return result


def solution(exercise: str) -> Callable[..., Any]:
    """Show the source of the solution, and return the function.

    Examples
    --------
    >>> bound = solution("batch_norm.bound")
    def bound(m):
        return np.sqrt(m - 1)
    >>> float(bound(10))
    3.0
    """
    found = find(exercise)
    if found.inputs is None:
        raise ValueError(f"exercise: got {exercise!r}, which asks for {found.asks} and not for a function")
    source = found.solution.strip()
    if InteractiveShell.initialized():
        display(Markdown(f"```python\n{source}\n```"))  # type: ignore[no-untyped-call]
    else:
        print(source)
    return found.right  # type: ignore[no-any-return]


def catalogue() -> dict[str, Exercise]:
    """Every exercise that can be checked, by its name; this imports all chapters' modules.

    Examples
    --------
    >>> catalogue()["batch_norm.bound"].title
    'The loudest possible example'
    """
    return {
        f"{chapter}.{name}": exercise
        for chapter in CHAPTERS
        for name, exercise in of_chapter(chapter).items()
        if exercise is not None
    }


def of_chapter(chapter: str) -> dict[str, Exercise | None]:
    """All exercises of a chapter in the book's order; those without a check are None."""
    return import_module(f"bnbook.exercises.{chapter}").EXERCISES  # type: ignore[no-any-return]


def find(name: str) -> Exercise:
    """The exercise of a name; a ValueError that tells the right name if this one only nearly fits.

    Examples
    --------
    >>> find("batch_norm.3")
    Traceback (most recent call last):
    ValueError: exercise: got 'batch_norm.3'. Did you mean 'batch_norm.bound'?
    """
    exercise = _find_or_none(name)
    if exercise is None:
        raise ValueError(f"exercise: got {name!r}. {_nearest(name)}")
    return exercise


def _find_or_none(name: str) -> Exercise | None:
    chapter, _, rest = name.partition(".")
    return of_chapter(chapter).get(rest) if chapter in CHAPTERS else None


def _nearest(name: str) -> str:
    """A sentence about the name that was meant."""
    chapter, _, rest = name.strip().lower().replace(" ", "_").partition(".")
    if chapter.isdecimal() and 0 < int(chapter) < len(CHAPTERS):  # the number is that of the book
        chapter = CHAPTERS[int(chapter)]
    if chapter in CHAPTERS:
        names = list(of_chapter(chapter))
        if rest.isdecimal() and 0 < int(rest) <= len(names):  # the number that is printed in the book
            rest = names[int(rest) - 1]
        if rest in names and of_chapter(chapter)[rest] is None:
            return "This exercise has no automatic check: compare with its solution."
        checked = [f"{chapter}.{known}" for known, exercise in of_chapter(chapter).items() if exercise]
    else:
        checked = list(catalogue())
        rest = rest or chapter
        own = [known for known in checked if known.partition(".")[2] == rest]
        if own:
            return f"Did you mean {' or '.join(map(repr, own))}?"
    near = difflib.get_close_matches(f"{chapter}.{rest}", checked, 1, 0.75)
    return f"Did you mean {near[0]!r}?" if near else f"Allowed are {', '.join(checked)}."
