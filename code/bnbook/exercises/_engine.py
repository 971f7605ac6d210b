"""Judge a reader's answer: run it on the inputs of an exercise, and find the name of the mistake.

An answer is right if it gives what the solution gives, on every input. Otherwise it is compared with wrong
answers, the likely ones first: the slips of the exercise, slips in single parts, a slip anywhere in the
solution, two slips at once. The one that gives the same as the reader's *on every input* has the name. If
there is none, the message says which parts are right and what should hold, on the smallest input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnbook.exercises import _slips
from bnbook.exercises._comparing import Outcome, Part, agree, kept_kind, same
from bnbook.exercises._exercise import Exercise
from bnbook.exercises._running import inputs_of, is_empty, outcomes, words_of
from bnbook.exercises._words import described, kind, labelled, listed, show, the

__all__ = ["NOT_ANSWERED", "Exercise", "Result", "judge"]

NOT_ANSWERED = "not answered"


@dataclass(frozen=True, repr=False)
class Result:
    """What :func:`bnbook.exercises.check` found.

    Attributes
    ----------
    exercise : str
        Its name.
    verdict : str
        ``"passed"``, the name of the mistake, ``"wrong result"``, ``"crash: ..."``, ``"timed out"`` or
        ``"not answered"``.
    message : str
        The text for the reader.
    """

    exercise: str
    verdict: str
    message: str

    @property
    def passed(self) -> bool:
        """Whether the answer is right."""
        return self.verdict == "passed"

    def __repr__(self) -> str:
        return self.message

    def _ipython_display_(self) -> None:
        """Show nothing: `check` has shown the message, and often stands in the last line of a cell."""


def judge(name: str, exercise: Exercise, answer: Any, hint: int = 0) -> Result:
    """Compare an answer with the solution and with wrong ones; `name` stands in the message."""
    verdict, lines, printed = _verdict(exercise, answer)
    state = {"passed": "passed", NOT_ANSWERED: "not answered yet"}.get(verdict, "not yet")
    if printed:
        lines = [*lines, "(What your function printed was left out.)"]
    if "wrong result" in verdict and exercise.hints and not hint:
        lines = [*lines, "(`hint=1` in the call of check gives a hint.)"]
    for k in range(min(hint, len(exercise.hints))):
        lines = [*lines, f"Hint {k + 1} of {len(exercise.hints)}: {exercise.hints[k]}"]
    if hint > len(exercise.hints):
        lines = [*lines, "There are no more hints: open the solution, close it, and write it from memory."]
    return Result(name, verdict, "\n".join([f"{name}, {exercise.title}: {state}. {lines[0]}", *lines[1:]]))


def _verdict(exercise: Exercise, answer: Any) -> tuple[str, list[str], bool]:
    """Verdict, lines of the message, and whether the reader's function printed something."""
    if _unanswered(answer):
        return NOT_ANSWERED, ["Write your answer where the `...` stands."], False
    if callable(answer) != (exercise.inputs is not None):
        return "wrong type", [f"Expected {_wanted(exercise)}; got {kind(answer)}."], False

    got = outcomes(exercise, answer, limited=True)
    printed = any(outcome.printed for outcome in got)
    if got[-1].verdict == "timed out":
        return "timed out", [got[-1].message], printed

    expected = _slips.solution_of(exercise)
    pairs = list(zip(expected, got, strict=True))
    failing = [k for k, pair in enumerate(pairs) if not agree(exercise, *pair)]
    changed = sorted({name for outcome in got for name in outcome.changed})
    if failing:
        named = next((slip for slip in _slips.known(exercise) if slip.explains(exercise, got)), None)
        if named:
            return named.name, _named(named), printed
    if changed:
        return (*_changed(changed), printed)
    if failing:
        return (*_unnamed(exercise, expected, got), printed)
    for pair in pairs:
        kinds = kept_kind(exercise, *pair)
        if kinds:
            return kinds[0], [kinds[1]], printed
    words = words_of(answer) if exercise.forbids else set()
    for thing, signs in exercise.forbids.items():
        if words & set(signs):
            return (
                f"uses {thing}",
                [f"Right numbers, but it uses {thing}; the exercise asks to do without."],
                printed,
            )
    return "passed", [f"Right on {len(got)} inputs." if exercise.inputs else "That is right."], printed


def _unanswered(answer: Any) -> bool:
    """Whether an answer, or a part of it, is still a `...`."""
    if isinstance(answer, list | tuple):
        return any(_unanswered(item) for item in answer)
    return answer is ... or answer is None or is_empty(answer)


def _wanted(exercise: Exercise) -> str:
    """What an answer is, in words."""
    if exercise.inputs is None:
        return f"a value, {exercise.asks}"
    outcome = _slips.solution_of(exercise)[0]
    if len(outcome.parts) > 1:
        gives = f"{len(outcome.parts)} values, {listed(list(outcome.parts))}"
    else:
        ((name, part),) = outcome.parts.items()
        gives = "a set" if isinstance(part, frozenset) else outcome.kinds[name][0] or name
    return f"a function {exercise.asks} that returns {gives}"


# --------------------------------------------------------------------------- mistakes with a name


def _named(slip: _slips.Named) -> list[str]:
    """Lines about a mistake that has a name, or about two."""
    if "\n" in slip.advice:
        lines = zip(slip.name.split(" + "), slip.advice.split("\n"), strict=True)
        return ["Two mistakes at once:", *(f"{name}: {advice}" for name, advice in lines)]
    return [f"This mistake has a name: {slip.name}.", slip.advice]


def _changed(names: list[str]) -> tuple[str, list[str]]:
    text = f"Your function changes {listed(names)}, which belongs to the caller."
    return "argument changed in place", [f"{text} `x -= mean` writes into x; `x = x - mean` does not."]


def _unnamed(exercise: Exercise, expected: list[Outcome], got: list[Outcome]) -> tuple[str, list[str]]:
    """Verdict and lines about an answer that no single slip of the exercise explains as a whole."""
    if not all(outcome.parts for outcome in got):
        # What fails on the smallest input has told why.
        found = got[0].parts and (_slips.anywhere(exercise, got) or _slips.two_at_once(exercise, got))
        if found:
            return found.name, _named(found)
        return _first_failure(exercise, expected, got, exercise.returns)
    right = [part for part in exercise.returns if _equal(exercise, part, expected, got)]
    named: dict[str, _slips.Named] = {}
    for part in exercise.returns:
        slips = (s for s in _slips.known(exercise) if _equal(exercise, part, s.gives, got))
        slip = None if part in right else next(slips, None)
        if slip:
            named[part] = slip
    rest = [part for part in exercise.returns if part not in right and part not in named]
    if rest:
        whole = _slips.anywhere(exercise, got) or _slips.two_at_once(exercise, got)
        if whole:
            return whole.name, _named(whole)
    verdicts = list(dict.fromkeys(slip.name for slip in named.values()))
    lines = [f"{the(part)}: {slip.name}. {slip.advice}" for part, slip in named.items()]
    if right:
        lines.insert(0, f"{listed(right)} {'are' if len(right) > 1 else 'is'} right.")
    if rest:
        verdict, more = _first_failure(exercise, expected, got, rest)
        verdicts, lines = [*verdicts, verdict], [*lines, *more]
    return " + ".join(verdicts), lines


def _equal(exercise: Exercise, part: str, one: list[Outcome], other: list[Outcome]) -> bool:
    """Whether two answers have the same part on every input."""
    pairs = zip(one, other, strict=True)
    return all(
        part in o.parts and part in t.parts and same(o.parts[part], t.parts[part], exercise) for o, t in pairs
    )


# --------------------------------------------------------------------------- mistakes without a name


def _first_failure(
    exercise: Exercise, expected: list[Outcome], got: list[Outcome], parts: Iterable[str]
) -> tuple[str, list[str]]:
    """Verdict and lines about the smallest input on which one of these parts fails."""
    for k, (right, theirs) in enumerate(zip(expected, got, strict=True)):
        if theirs.verdict.startswith("crash"):
            return theirs.verdict, [theirs.message, *_show_inputs(exercise, k)]
        if theirs.verdict:
            return theirs.verdict, [theirs.message]
        for part in parts:
            want, have = right.parts[part], theirs.parts[part]
            if not same(want, have, exercise):
                return _about(exercise, expected, got, k, part)
    raise AssertionError("no part fails")


def _about(
    exercise: Exercise, expected: list[Outcome], got: list[Outcome], k: int, part: str
) -> tuple[str, list[str]]:
    """Verdict and lines about a part that is wrong on the k-th input."""
    want, have = expected[k].parts[part], got[k].parts[part]
    if isinstance(want, frozenset) != isinstance(have, frozenset):
        wanted, given = ("numbers", "a set") if isinstance(have, frozenset) else ("a set", described(have))
        return "wrong type", [f"{the(part)}: expected {wanted}, got {given}.", *_show_inputs(exercise, k)]
    if isinstance(want, np.ndarray) and isinstance(have, np.ndarray):
        if exercise.inputs is None and want.squeeze().shape != have.squeeze().shape:
            about = exercise.asks if len(exercise.returns) == 1 else part
            given = described(have if have.ndim != 1 else have.tolist())
            return "wrong shape", [f"Expected {about}; got {given}."]
        if exercise.inputs is not None and want.shape != have.shape:
            turned = " Transposed, it would fit." if want.shape == have.shape[::-1] else ""
            text = f"{the(part)}: expected {described(want)}, got {described(have)}.{turned}"
            return "wrong shape", [text, *_show_inputs(exercise, k)]
        if not np.isfinite(have).all() and np.isfinite(want).all():
            text = f"{the(part)}: NaN or infinity. Is there a division by zero, or a negative root?"
            return "not a number", [text, *_show_inputs(exercise, k)]
    if exercise.inputs is None:
        about = exercise.asks if len(exercise.returns) == 1 else part
        text = f"{show(have)} is not right for {about}, and the check knows no mistake that gives it."
        return "wrong result", [text, *_broken(exercise, got)]
    verdict, text = _pattern(exercise, expected, got, part) or (
        "wrong result",
        "The check knows no mistake that gives this.",
    )
    broken = _broken(exercise, got)
    lines = (
        [*broken, "The smallest input on which it shows:"]
        if broken
        else ["The smallest input on which it shows:"]
    )
    return verdict, [text, *lines, *_show_inputs(exercise, k), *_difference(exercise, part, want, have)]


def _broken(exercise: Exercise, got: list[Outcome]) -> list[str]:
    """What should hold and does not, as sentences."""
    found = []
    for sentence, rest in exercise.invariants.items():
        sizes = [
            np.abs(rest({**inputs_of(exercise, k), **o.parts})).max() for k, o in enumerate(got) if o.parts
        ]
        if max(sizes) > 1e-4:
            found.append(f"{sentence}, and does not.")
    return found


def _pattern(
    exercise: Exercise, expected: list[Outcome], got: list[Outcome], part: str
) -> tuple[str, str] | None:
    """A factor between what is right and what was returned, the same for all values of every input."""
    factors, sizes = [], []
    for right, theirs in zip(expected, got, strict=True):
        want, have = right.parts[part], theirs.parts.get(part)
        if not isinstance(want, np.ndarray) or not isinstance(have, np.ndarray) or want.shape != have.shape:
            return None
        square = float((want.astype(float) ** 2).sum())
        factor = float((want * have).sum()) / square if square else math.nan
        if not math.isfinite(factor) or abs(factor) < 1e-6 or not same(factor * want, have, exercise):
            return None
        factors.append(factor)
        sizes.append(want.size)
    if np.allclose(factors, -1):
        return "sign flipped", f"{the(part)}: the sign is wrong everywhere."
    if np.allclose(factors, factors[0]):
        return "constant factor", f"{the(part)}: {factors[0]:.4g} times what is right, everywhere."
    if max(sizes) > 1:  # single numbers always differ by a factor
        text = f"{the(part)}: off by a factor, on the inputs by {', '.join(f'{f:.4g}' for f in factors)}."
        return "factor", text
    return None


def _show_inputs(exercise: Exercise, k: int) -> list[str]:
    """The arguments of one call."""
    return [labelled(f"  {name} = ", show(value)) for name, value in inputs_of(exercise, k).items()]


def _difference(exercise: Exercise, part: str, want: Part, have: Part) -> list[str]:
    """Expected and got: a few values as they are, otherwise the first one that differs."""
    where = part
    if isinstance(want, np.ndarray) and isinstance(have, np.ndarray) and want.size > _SHOWN:
        one, other = want.astype(float), have.astype(float)
        differing = np.argwhere(~(np.abs(one - other) <= exercise.rtol * np.abs(one).max() + exercise.atol))
        first = tuple(int(i) for i in differing[0])
        where = f"{part}, {len(differing)} of {want.size} values differ, the first at {list(first)}"
        want, have = want[first], have[first]
    texts = show(want), show(have)
    for digits in range(5, 18):  # as few digits as tell them apart
        if texts[0] != texts[1]:
            break
        texts = show(want, digits), show(have, digits)
    return [where, labelled("  expected ", texts[0]), labelled("  got      ", texts[1])]


_SHOWN = 6  # values
