"""The exercise on the page of six explanations, whose answer is a plan that no program can check."""

from bnbook.exercises._exercise import Exercise

EXERCISES: dict[str, Exercise | None] = {"seventh": None}
