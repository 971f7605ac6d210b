"""Checked exercises: ``check("backward.2", my_backward)`` runs an answer and names the mistake.

``CHAPTER.K`` is the K-th exercise of a chapter. Each chapter has a module here that holds the inputs, the
solution and the wrong answers that readers give; :mod:`bnbook.exercises._engine` compares.

``python -m bnbook.exercises FOLDER`` runs the notebooks of a class and prints a table, see
:mod:`bnbook.exercises.grading`.
"""

from __future__ import annotations

from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

from bnbook.exercises import (
    accelerating,
    adaptation,
    backward,
    batch_norm,
    beyond,
    cnn,
    covariate_shift,
    distributed,
    group_norm,
    ics_revisited,
    inference,
    internal_covariate_shift,
    landscape,
    saturation,
    scale_invariance,
    sgd,
    small_batches,
    training,
    whitening,
)
from bnbook.exercises._engine import Exercise, Mistake, Result, judge

__all__ = ["ATTEMPTS", "CATALOGUE", "Exercise", "Mistake", "Result", "check"]

_CHAPTERS = {
    "sgd": sgd.EXERCISES,
    "saturation": saturation.EXERCISES,
    "covariate_shift": covariate_shift.EXERCISES,
    "internal_covariate_shift": internal_covariate_shift.EXERCISES,
    "whitening": whitening.EXERCISES,
    "batch_norm": batch_norm.EXERCISES,
    "backward": backward.EXERCISES,
    "training": training.EXERCISES,
    "cnn": cnn.EXERCISES,
    "inference": inference.EXERCISES,
    "accelerating": accelerating.EXERCISES,
    "ics_revisited": ics_revisited.EXERCISES,
    "landscape": landscape.EXERCISES,
    "scale_invariance": scale_invariance.EXERCISES,
    "small_batches": small_batches.EXERCISES,
    "group_norm": group_norm.EXERCISES,
    "distributed": distributed.EXERCISES,
    "adaptation": adaptation.EXERCISES,
    "beyond": beyond.EXERCISES,
}

# Every exercise that can be checked, by its id.
CATALOGUE: dict[str, Exercise] = {
    f"{chapter}.{number}": exercise
    for chapter, exercises in _CHAPTERS.items()
    for number, exercise in exercises.items()
}

# The last answer to each exercise in this session; the grading checks them again.
ATTEMPTS: dict[str, Any] = {}


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
    if exercise not in CATALOGUE:
        raise ValueError(f"exercise: got {exercise!r}, allowed are {', '.join(CATALOGUE)}")
    ATTEMPTS[exercise] = answer
    result = judge(exercise, CATALOGUE[exercise], answer)
    if InteractiveShell.initialized():
        display(  # type: ignore[no-untyped-call]
            {"text/plain": result.message},
            metadata={"bnbook-exercises": {"check": [result.exercise, result.verdict]}},
            raw=True,
        )
    else:
        print(result.message)
    return result
