"""Take what was returned apart and compare it: equal up to rounding, of the right kind, inputs unchanged."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnbook.exercises._exercise import Exercise, Inputs
from bnbook.exercises._words import kind, the

Part = NDArray[Any] | frozenset[Any]


@dataclass(frozen=True)
class Outcome:
    """What came of one call: parts that can be compared, or a verdict of its own and its explanation.

    `kinds` says of each part what it was before it was made an array, with its dtype; `changed` names the
    arguments that were changed.
    """

    parts: dict[str, Part] = field(default_factory=dict)
    kinds: dict[str, tuple[str, str]] = field(default_factory=dict)
    verdict: str = ""
    message: str = ""
    changed: tuple[str, ...] = ()
    printed: bool = False


class _NotComparableError(Exception):
    """Verdict and message about a value that has the wrong type or the wrong number of parts."""


def outcome_of(exercise: Exercise, value: Any, inputs: Inputs) -> Outcome:
    """Take what was returned apart."""
    try:
        if value is None or value is ...:
            raise _NotComparableError("returned nothing", f"It is {value}: is there a `return`?")
        names = exercise.returns
        if exercise.observe is not None:
            try:
                value = exercise.observe(value, inputs)
            except (Exception, SystemExit) as error:
                text = f"What your function returned, {kind(value)}, cannot be used: {error}"
                raise _NotComparableError("wrong type", text) from error
        values = [value]
        if len(names) > 1:
            if not isinstance(value, list | tuple | np.ndarray) or len(value) != len(names):
                size = f" of {len(value)}" if hasattr(value, "__len__") else ""
                text = f"Expected {len(names)} values ({', '.join(names)}), got {kind(value)}{size}."
                raise _NotComparableError("wrong number of values", text)
            values = list(value)
        parts = {name: _part(name, item) for name, item in zip(names, values, strict=True)}
        return Outcome(parts, {name: _kind_of(item) for name, item in zip(names, values, strict=True)})
    except _NotComparableError as error:
        return Outcome(verdict=error.args[0], message=error.args[1])


def _part(name: str, value: Any) -> Part:
    """Something that can be compared: an array or a set."""
    if isinstance(value, set | frozenset):
        return frozenset(value)
    if isinstance(value, list | tuple) and any(isinstance(item, str) for item in value):
        raise _NotComparableError("wrong type", f"{the(name)}: got {kind(value)} of text.")
    array = as_array(value)
    if array.dtype.kind not in "biuf":
        raise _NotComparableError("wrong type", f"{the(name)}: expected numbers, got {kind(value)}.")
    return array


def as_array(value: Any) -> NDArray[Any]:
    """An array of a tensor, a number or a list; one of objects if that is not possible."""
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError:  # lists of different lengths
        return np.asarray(None)


def _kind_of(value: Any) -> tuple[str, str]:
    """Whether a part is an array, a tensor, a list or something else, and its dtype."""
    if isinstance(value, np.ndarray) and value.ndim:
        return "an array", str(value.dtype)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor) and value.ndim:
        return "a tensor", str(value.dtype).removeprefix("torch.")
    return ("a list" if isinstance(value, list | tuple) else ""), ""


def agree(exercise: Exercise, one: Outcome, other: Outcome) -> bool:
    """Whether two answers come to the same on one input: equal parts, or the same failure."""
    if one.parts.keys() != other.parts.keys() or one.verdict != other.verdict:
        return False
    return all(same(one.parts[name], other.parts[name], exercise) for name in one.parts)


def same(want: Part, have: Part, exercise: Exercise) -> bool:
    """Whether two parts are equal up to rounding."""
    if isinstance(want, frozenset) or isinstance(have, frozenset):
        return isinstance(want, frozenset) and isinstance(have, frozenset) and want == have
    if exercise.inputs is None:  # a row and a column are the same answer on paper
        want, have = want.squeeze(), have.squeeze()
    if want.shape != have.shape:
        return False
    single = any(array.dtype.kind == "f" and array.dtype.itemsize < 8 for array in (want, have))
    finite = np.abs(want[np.isfinite(want)], dtype=float)
    scale = finite.max(initial=0)
    atol = (max(exercise.rtol, 3e-5) if single else exercise.rtol) * scale + exercise.atol
    return bool(np.allclose(want.astype(float), have.astype(float), rtol=0, atol=atol, equal_nan=True))


def kept_kind(exercise: Exercise, want: Outcome, have: Outcome) -> tuple[str, str] | None:
    """Verdict and sentence about right numbers in the wrong container or dtype; None if all is well."""
    # On paper a list of numbers is as good as an array.
    for name in () if exercise.observe or exercise.inputs is None else want.kinds:
        (wanted, to), (given, got) = want.kinds[name], have.kinds[name]
        if wanted in ("an array", "a tensor") and given and given != wanted:
            return f"{given[2:]} returned", f"Right numbers, but you returned {given}; {wanted} is wanted."
        if exercise.keeps_dtype and to != got:
            text = f"Right numbers, but {to} came in and {got} went out: is an array made without `dtype`?"
            return "dtype lost", text
    return None


def untouched(now: Any, before: Any) -> bool:
    """Whether an argument is as it was."""
    if isinstance(now, list | tuple):
        return len(now) == len(before) and all(map(untouched, now, before))
    if hasattr(now, "state_dict"):
        state, former = now.state_dict(), before.state_dict()
        return state.keys() == former.keys() and all(map(untouched, state.values(), former.values()))
    return bool(np.array_equal(as_array(now), as_array(before)))
