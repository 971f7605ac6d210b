"""Checked exercises: ``check("backward.2", my_backward)`` runs an answer and names the mistake.

``CHAPTER.K`` is the K-th exercise of a chapter. Each chapter has a module here that holds the inputs, the
solution and the wrong answers that readers give; :mod:`bnbook.exercises._engine` compares.

``python -m bnbook.exercises FOLDER`` runs the notebooks of a class and prints a table, see
:mod:`bnbook.exercises.grading`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

from bnbook.exercises._engine import Exercise, Mistake, Result, judge

__all__ = ["ATTEMPTS", "CHAPTERS", "Exercise", "Mistake", "Result", "catalogue", "check"]

# In the order of the book. A chapter's module is imported when one of its exercises is checked, not before:
# what the others need, SciPy and mlxtend among it, costs a second, and an edit in one module then concerns
# the cells of one chapter alone.
CHAPTERS = (
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


def _of_chapter(chapter: str) -> dict[str, Exercise]:
    """The exercises of a chapter that can be checked, by their ids."""
    exercises = import_module(f"bnbook.exercises.{chapter}").EXERCISES
    return {f"{chapter}.{number}": exercise for number, exercise in exercises.items()}


def catalogue() -> dict[str, Exercise]:
    """Every exercise that can be checked, by its id; this imports all chapters' modules."""
    return {name: exercise for chapter in CHAPTERS for name, exercise in _of_chapter(chapter).items()}


def _find(name: str) -> Exercise:
    chapter = name.partition(".")[0]
    exercises = _of_chapter(chapter) if chapter in CHAPTERS else {}
    if name not in exercises:
        raise ValueError(f"exercise: got {name!r}, allowed are {', '.join(exercises or catalogue())}")
    return exercises[name]


def check(exercise: str, answer: Any) -> Result:
    """Check an answer, and show whether it is right or which mistake it makes.

    The answer is run on several small inputs. A call that takes longer than a few seconds is stopped; this
    needs a POSIX system and the main thread, which is where a notebook's cells run. Elsewhere (Windows,
    threads) a loop without an end has to be interrupted by hand.

    Parameters
    ----------
    exercise : str
        ``"CHAPTER.K"`` for the K-th exercise of a chapter, such as ``"backward.2"``.
    answer : function or value
        What the exercise asks for.

    Returns
    -------
    Result
        With `passed`, `verdict` and `message`. The message has been shown already.

    Raises
    ------
    ValueError
        If there is no such exercise, or none that can be checked.
    """
    found = _find(exercise)
    ATTEMPTS[exercise] = answer
    result = judge(exercise, found, answer)
    if InteractiveShell.initialized():
        display(  # type: ignore[no-untyped-call]
            {"text/plain": result.message},
            metadata={"bnbook-exercises": {"check": [result.exercise, result.verdict]}},
            raw=True,
        )
    else:
        print(result.message)
    return result
