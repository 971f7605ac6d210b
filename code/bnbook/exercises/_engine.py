"""Run a reader's answer on the inputs of an exercise, and find the name of the mistake.

An answer is right if it gives what the solution gives, on every input. Otherwise it is compared with the
exercise's wrong answers: the one that gives the same as the reader's *on every input* has the name. If there
is none, the message shows the smallest input on which the answer fails.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import io
import linecache
import math
import signal
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Exercise", "Inputs", "Mistake", "Result", "judge", "numbers"]

Inputs = dict[str, Any]
Part = NDArray[Any] | frozenset[Any]

# Frames of these folders are not the reader's own lines.
_NOT_THE_READERS = (
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    str(Path(__file__).resolve().parents[1]),
    "<frozen",
    "<__array_function__",
)


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that readers give.

    Attributes
    ----------
    name : str
        What is wrong, short: it stands in the table of :mod:`bnbook.exercises.grading`.
    advice : str
        One sentence that helps, without giving the solution away.
    wrong : function or value
        What somebody with this mistake hands in.
    """

    name: str
    advice: str
    wrong: Any


@dataclass(frozen=True)
class Exercise:
    """What :func:`judge` needs to know about an exercise.

    Attributes
    ----------
    title : str
        As in the chapter.
    asks : str
        What is checked: the call of a function, such as ``"my_backward(dy, x, gamma, eps)"``, or what the
        value is.
    solution : function or value
        A right answer.
    mistakes : tuple of Mistake
        Each differs from the solution, and from the others, on at least one input.
    inputs : function, optional
        Returns the inputs, the smallest first: dictionaries with the arguments in their order. Without
        it the answer is a value.
    returns : tuple of str
        What the parts of an answer are called. With more than one an answer is a sequence of this length.
    observe : function, optional
        Turns what a function returned, and its inputs, into arrays that can be compared; for answers that
        are not arrays themselves, such as networks.
    rtol, atol : float
        Allowed difference, relative to the largest value of a part, and absolute.
    may_change : tuple of str
        The arguments that a function is asked to change in place.
    keeps_dtype : bool
        Whether float32 inputs must give float32 results.
    keywords : tuple of str
        The arguments that are passed by name.
    seconds : float
        How long one call may take.
    """

    title: str
    asks: str
    solution: Any
    mistakes: tuple[Mistake, ...]
    inputs: Callable[[], list[Inputs]] | None = None
    returns: tuple[str, ...] = ("the result",)
    observe: Callable[[Any, Inputs], Any] | None = None
    rtol: float = 1e-7
    atol: float = 1e-12
    may_change: tuple[str, ...] = ()
    keeps_dtype: bool = False
    keywords: tuple[str, ...] = ()
    seconds: float = 5.0


@dataclass(frozen=True, repr=False)
class Result:
    """What :func:`bnbook.exercises.check` found.

    Attributes
    ----------
    exercise : str
        Its id.
    verdict : str
        ``"passed"``, the name of the mistake, ``"wrong result"``, ``"crash: ..."`` or ``"timed out"``.
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


@dataclass(frozen=True)
class _Outcome:
    """What came of one call: parts that can be compared, or a verdict of its own and its explanation."""

    parts: dict[str, Part] = field(default_factory=dict)
    verdict: str = ""
    message: str = ""
    changed: tuple[str, ...] = ()
    printed: bool = False


class _NotComparableError(Exception):
    """Verdict and message about a value that has the wrong type or the wrong number of parts."""


class _TimeUpError(BaseException):
    """Not an Exception: `except Exception` in the reader's loop must not swallow it."""


# --------------------------------------------------------------------------- the verdict


def judge(name: str, exercise: Exercise, answer: Any) -> Result:
    """Compare an answer with the solution and with the catalogued mistakes.

    Parameters
    ----------
    name : str
        Id of the exercise, for the message.
    exercise : Exercise
    answer : function or value
        The reader's.

    Returns
    -------
    Result
    """
    verdict, lines, printed = _verdict(exercise, answer)
    head = f"{name}, {exercise.title}: {'passed' if verdict == 'passed' else 'not yet'}."
    if printed:
        lines = [*lines, "(What your function printed was left out.)"]
    return Result(name, verdict, "\n".join([f"{head} {lines[0]}", *lines[1:]]))


def _verdict(exercise: Exercise, answer: Any) -> tuple[str, list[str], bool]:
    """Verdict, lines of the message, and whether the reader's function printed something."""
    if callable(answer) != (exercise.inputs is not None):
        wanted = "a value" if exercise.inputs is None else "a function"
        text = f"Expected {wanted}: {exercise.asks}. Got {_kind(answer)}."
        return "wrong type", [text], False

    got = _outcomes(exercise, answer, limited=True)
    printed = any(outcome.printed for outcome in got)
    if got[-1].verdict == "timed out":
        return "timed out", [got[-1].message], printed

    expected = _outcomes(exercise, exercise.solution)
    failing = [k for k, pair in enumerate(zip(expected, got, strict=True)) if not _agree(exercise, *pair)]
    changed = sorted({name for outcome in got for name in outcome.changed})
    if not failing and not changed and not _lost_dtype(exercise, expected, got):
        return "passed", [_praise(exercise, len(got))], printed
    if not failing:
        return (*(_changed(changed) if changed else _LOST_DTYPE), printed)
    named = _name_the_mistake(exercise, expected, got)
    if named:
        verdict, advice = named
        return verdict, [f"This mistake has a name: {verdict}.", *advice], printed
    if changed:
        return (*_changed(changed), printed)
    return (*_first_failure(exercise, expected, got, failing[0]), printed)


def _name_the_mistake(
    exercise: Exercise, expected: list[_Outcome], got: list[_Outcome]
) -> tuple[str, list[str]] | None:
    """The mistake that gives what the reader's answer gives; or one for each part, if each has one."""
    wrong = {mistake.name: _outcomes(exercise, mistake.wrong) for mistake in exercise.mistakes}
    advice = {mistake.name: mistake.advice for mistake in exercise.mistakes}
    for name, outcomes in wrong.items():
        pairs = list(zip(outcomes, got, strict=True))
        if any(theirs.parts for _, theirs in pairs) and all(_agree(exercise, *pair) for pair in pairs):
            return name, [advice[name]]
    if not all(outcome.parts for outcome in got):
        return None

    def only(part: str, outcomes: list[_Outcome]) -> list[_Outcome]:
        return [_Outcome({part: o.parts[part]} if o.parts else {}, o.verdict) for o in outcomes]

    def equal(part: str, outcomes: list[_Outcome]) -> bool:
        pairs = zip(only(part, outcomes), only(part, got), strict=True)
        return all(_agree(exercise, *pair) for pair in pairs)

    found = {}
    for part in exercise.returns:
        if not equal(part, expected):
            found[part] = next((name for name, outcomes in wrong.items() if equal(part, outcomes)), None)
    names = [name for name in found.values() if name]
    if len(names) < len(found):
        return None
    return " + ".join(dict.fromkeys(names)), [
        f"{part}: {name}. {advice[name]}" for part, name in found.items() if name
    ]


def _first_failure(
    exercise: Exercise, expected: list[_Outcome], got: list[_Outcome], k: int
) -> tuple[str, list[str]]:
    """Verdict and lines about the smallest input on which an answer fails, where the mistake has no name."""
    theirs, right = got[k], expected[k]
    if theirs.verdict:
        shown = _show_inputs(exercise, k) if theirs.verdict.startswith("crash") else []
        return theirs.verdict, [theirs.message, *shown]
    part = next(p for p in exercise.returns if not _same(right.parts[p], theirs.parts[p], exercise))
    want, have = right.parts[part], theirs.parts[part]
    if exercise.inputs is None:
        return "wrong result", [_about_value(exercise, part, want, have)]
    if isinstance(want, np.ndarray) and isinstance(have, np.ndarray):
        if want.shape != have.shape:
            turned = " Transposed, it would fit." if want.shape == have.shape[::-1] else ""
            text = f"{_the(part)} has the shape {have.shape}, expected {want.shape}.{turned}"
            return "wrong shape", [text, *_show_inputs(exercise, k)]
        if not np.isfinite(have).all() and np.isfinite(want).all():
            text = f"{_the(part)} contains NaN or infinity: is there a division by zero, or a negative root?"
            return "not a number", [text, *_show_inputs(exercise, k)]
    hint = _pattern(exercise, expected, got, part)
    lines = [*_show_inputs(exercise, k), *_show_difference(exercise, part, want, have)]
    if hint:
        return hint[0], [hint[1], *lines]
    return "wrong result", [
        "The mistake is not in the catalogue. The smallest input on which it shows:",
        *lines,
    ]


def _pattern(
    exercise: Exercise, expected: list[_Outcome], got: list[_Outcome], part: str
) -> tuple[str, str] | None:
    """A factor between what is right and what was returned, the same for all values of every input."""
    factors = []
    for right, theirs in zip(expected, got, strict=True):
        want, have = right.parts[part], theirs.parts.get(part)
        if (
            not isinstance(want, np.ndarray)
            or not isinstance(have, np.ndarray)
            or want.dtype.kind not in "fiu"
        ):
            return None
        square = float((want.astype(float) ** 2).sum()) if want.shape == have.shape else 0.0
        factor = float((want * have).sum()) / square if square else math.nan
        if not math.isfinite(factor) or abs(factor) < 1e-6 or not _same(factor * want, have, exercise):
            return None
        factors.append(factor)
    if np.allclose(factors, -1):
        return "sign flipped", f"{_the(part)} has the wrong sign everywhere."
    if np.allclose(factors, factors[0]):
        text = f"{_the(part)} is {factors[0]:.4g} times what it should be, everywhere."
        return "constant factor", text
    return (
        "factor",
        f"{_the(part)} is off by one factor for each input: {', '.join(f'{f:.4g}' for f in factors)}.",
    )


# --------------------------------------------------------------------------- running the reader's code


def _outcomes(exercise: Exercise, answer: Any, limited: bool = False) -> list[_Outcome]:
    """What comes of an answer on each input; it ends at the first one that takes too long."""
    if exercise.inputs is None:
        return [_outcome_of(exercise, answer, {})]
    outcomes = []
    for k in range(len(_made(exercise.inputs))):
        outcomes.append(_call(exercise, answer, k, exercise.seconds if limited else math.inf))
        if outcomes[-1].verdict == "timed out":
            break
    return outcomes


def _call(exercise: Exercise, answer: Any, k: int, seconds: float) -> _Outcome:
    """Call a function on fresh inputs, and look at what it returned, changed and printed."""
    assert exercise.inputs is not None
    inputs, untouched = _inputs_of(exercise, k), _made(exercise.inputs)[k]
    out = io.StringIO()
    try:
        with _guarded(out), _time_limit(seconds):
            by_name = {name: inputs[name] for name in exercise.keywords}
            value = answer(*(inputs[name] for name in inputs if name not in by_name), **by_name)
    except _TimeUpError as error:
        line = _readers_line(error, loop=True)
        text = f"Your function had not ended after {seconds:g} s. Is there a loop without an end?{line}"
        return _Outcome(verdict="timed out", message=text, printed=bool(out.getvalue()))
    except (Exception, SystemExit) as error:
        return _crash(exercise, error, bool(out.getvalue()))
    changed = tuple(
        name
        for name in inputs
        if name not in exercise.may_change and not _untouched(inputs[name], untouched[name])
    )
    with _guarded(io.StringIO()):
        outcome = _outcome_of(exercise, value, inputs)
    return _Outcome(outcome.parts, outcome.verdict, outcome.message, changed, bool(out.getvalue()))


def _inputs_of(exercise: Exercise, k: int) -> Inputs:
    """A copy of the k-th input."""
    assert exercise.inputs is not None
    return copy.deepcopy(_made(exercise.inputs)[k])


@functools.cache
def _made(inputs: Callable[[], list[Inputs]]) -> list[Inputs]:
    """Inputs, made once; networks among them always get the same weights."""
    with _guarded(io.StringIO()):
        return inputs()


def _crash(exercise: Exercise, error: BaseException, printed: bool) -> _Outcome:
    kind, line = type(error).__name__, _readers_line(error)
    text = f"Your function stopped with {kind}: {error}"
    if not line and isinstance(error, TypeError):  # no line of the reader's: the arguments do not fit
        text = f"Your function could not be called as {exercise.asks}: {error}"
    return _Outcome(verdict=f"crash: {kind}", message=text + line, printed=printed)


@contextlib.contextmanager
def _guarded(out: io.StringIO) -> Iterator[None]:
    """Catch what is printed, silence warnings, and put the generator of torch back."""
    with (
        contextlib.redirect_stdout(out),
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Stop a Python loop after some seconds, by an alarm of the operating system.

    Only the main thread of a POSIX system has such alarms, a notebook's cells run there. Elsewhere
    (Windows, other threads) there is no limit, and the reader has to interrupt the kernel. An alarm waits
    for a call into compiled code to return, and a bare ``except:`` inside the loop swallows it.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not (math.isfinite(seconds) and in_main and hasattr(signal, "setitimer")):
        yield
        return

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise _TimeUpError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _readers_line(error: BaseException, loop: bool = False) -> str:
    """The last of the reader's own lines that an error passed, or the head of the loop that it ended.

    Where a loop was when it was stopped depends on the machine, its first line does not.
    """
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_NOT_THE_READERS) and frame.line
    ]
    if not frames:
        return ""
    frame = frames[0] if loop else frames[-1]
    number, source = frame.lineno or 0, linecache.getlines(frame.filename)
    if loop:
        number = _head_of_loop("".join(source), number)
    return f"\nLine {number} of your code: {source[number - 1].strip()}"


def _head_of_loop(source: str, number: int) -> int:
    """First line of the outermost loop around a line, within its function; the line itself if none is."""
    around = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.For | ast.While | ast.FunctionDef)
        and node.lineno <= number <= (node.end_lineno or 0)
    ]
    functions = [node.lineno for node in around if isinstance(node, ast.FunctionDef)]
    loops = [node.lineno for node in around if not isinstance(node, ast.FunctionDef)]
    return min((line for line in loops if line > max(functions, default=0)), default=number)


# --------------------------------------------------------------------------- comparing


def _outcome_of(exercise: Exercise, value: Any, inputs: Inputs) -> _Outcome:
    """Take what was returned apart."""
    try:
        if value is None:
            raise _NotComparableError("returned nothing", "It is None: is there a `return`?")
        if exercise.observe is not None:
            try:
                value = exercise.observe(value, inputs)
            except (Exception, SystemExit) as error:
                text = f"{_kind(value)} cannot be used as {exercise.asks} should be: {error}"
                raise _NotComparableError("wrong type", text) from error
        names = exercise.returns
        if len(names) == 1:
            return _Outcome({names[0]: _part(names[0], value)})
        if not isinstance(value, list | tuple | np.ndarray) or len(value) != len(names):
            size = f" of {len(value)}" if hasattr(value, "__len__") else ""
            text = f"Expected {len(names)} values ({', '.join(names)}), got {_kind(value)}{size}."
            raise _NotComparableError("wrong number of values", text)
        return _Outcome({name: _part(name, item) for name, item in zip(names, value, strict=True)})
    except _NotComparableError as error:
        return _Outcome(verdict=error.args[0], message=error.args[1])


def _part(name: str, value: Any) -> Part:
    """Something that can be compared: an array or a set."""
    if isinstance(value, set | frozenset):
        return frozenset(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        text = f"{_the(name)} is {_kind(value)}, expected numbers."
        raise _NotComparableError("wrong type", text)
    return array


def _agree(exercise: Exercise, one: _Outcome, other: _Outcome) -> bool:
    """Whether two answers come to the same on one input: equal parts, or the same failure."""
    if one.parts.keys() != other.parts.keys() or one.verdict != other.verdict:
        return False
    return all(_same(one.parts[name], other.parts[name], exercise) for name in one.parts)


def _same(want: Part, have: Part, exercise: Exercise) -> bool:
    """Whether two parts are equal up to rounding."""
    if isinstance(want, frozenset) or isinstance(have, frozenset):
        return isinstance(want, frozenset) and isinstance(have, frozenset) and want == have
    if exercise.inputs is None:  # a row and a column are the same answer on paper
        want, have = want.squeeze(), have.squeeze()
    if want.shape != have.shape:
        return False
    single = np.float32 in (want.dtype, have.dtype)
    finite = np.abs(want[np.isfinite(want)], dtype=float)
    scale = finite.max(initial=0)
    atol = (max(exercise.rtol, 3e-5) if single else exercise.rtol) * scale + exercise.atol
    return bool(np.allclose(want.astype(float), have.astype(float), rtol=0, atol=atol, equal_nan=True))


def _lost_dtype(exercise: Exercise, expected: list[_Outcome], got: list[_Outcome]) -> bool:
    """Whether float32 went in and something else came out."""
    if not exercise.keeps_dtype:
        return False
    pairs = [(r.parts[p], t.parts[p]) for r, t in zip(expected, got, strict=True) for p in exercise.returns]
    return any(getattr(want, "dtype", None) != getattr(have, "dtype", None) for want, have in pairs)


def _untouched(now: Any, before: Any) -> bool:
    """Whether an argument is as it was."""
    if isinstance(now, list | tuple):
        return len(now) == len(before) and all(map(_untouched, now, before))
    if isinstance(now, torch.nn.Module):
        state, former = now.state_dict(), before.state_dict()
        return state.keys() == former.keys() and all(map(_untouched, state.values(), former.values()))
    if isinstance(now, torch.Tensor):
        now, before = now.detach().numpy(), before.detach().numpy()
    return bool(np.array_equal(now, before))


# --------------------------------------------------------------------------- text

_LOST_DTYPE = (
    "dtype lost",
    ["Right numbers, but float32 came in and another dtype goes out: is an array made without `dtype`?"],
)


def _changed(names: list[str]) -> tuple[str, list[str]]:
    """Verdict and lines about arguments that were changed."""
    text = f"Your function changes {', '.join(names)}, which belongs to the caller."
    return "argument changed in place", [f"{text} `x -= mean` writes into x; `x = x - mean` does not."]


def _praise(exercise: Exercise, count: int) -> str:
    if exercise.inputs is None:
        return "That is right."
    return f"Right on {count} inputs."


def _about_value(exercise: Exercise, part: str, want: Part, have: Part) -> str:
    """About a wrong value, without telling the right one."""
    about = exercise.asks if len(exercise.returns) == 1 else part
    if (
        isinstance(want, np.ndarray)
        and isinstance(have, np.ndarray)
        and want.squeeze().shape != have.squeeze().shape
    ):
        return f"Expected {about}, {want.size} number{'s' * (want.size != 1)}; got {have.size}."
    return f"{_show(have)} is not {about}, and not a mistake of the catalogue."


def _show_inputs(exercise: Exercise, k: int) -> list[str]:
    """The arguments of one call."""
    return [_labelled(f"  {name} = ", value) for name, value in _inputs_of(exercise, k).items()]


def _show_difference(exercise: Exercise, part: str, want: Part, have: Part) -> list[str]:
    """Expected and got: all values if they are few, otherwise the first that differ."""
    if isinstance(want, np.ndarray) and isinstance(have, np.ndarray) and want.size > _SHOWN:
        limit = exercise.rtol * np.abs(want).max() + exercise.atol
        first = tuple(int(i) for i in np.argwhere(~(np.abs(want - have) <= limit))[0])
        where = f", at [{', '.join(map(str, first))}]"
        want, have = want[first], have[first]
    else:
        where = ""
    return [f"{part}{where}", _labelled("  expected ", want), _labelled("  got      ", have)]


_SHOWN = 12  # values


def _show(value: Any) -> str:
    """A value in a line or two, the same on every machine: what is tiny beside the rest is written as 0."""
    if isinstance(value, torch.nn.Module):
        return f"a network of {len(list(value.children()))} parts"
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_show, value)) + ")"
    if isinstance(value, str | bool | int):
        return repr(value)
    if isinstance(value, frozenset):
        return "{" + ", ".join(sorted(map(repr, value))) + "}"
    array = np.asarray(value)
    if array.size > _SHOWN:
        return f"array of shape {array.shape}, {array.dtype}"
    if array.dtype.kind == "f":
        array = np.where(np.abs(array) < 1e-9 * np.abs(array).max(initial=0), 0, array) + 0.0
    if array.ndim == 0:
        return f"{array.item():.5g}" if array.dtype.kind == "f" else repr(array.item())
    return np.array2string(array, precision=4, separator=", ", floatmode="maxprec", suppress_small=True)


def _labelled(label: str, value: Any) -> str:
    """A value behind its name; further lines are indented."""
    return label + _show(value).replace("\n", "\n" + " " * len(label))


def _the(part: str) -> str:
    """The name of a part at the start of a sentence."""
    return part[0].upper() + part[1:] if " " in part else part


def _kind(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "None"
    name = (
        "function"
        if callable(value) and not isinstance(value, type | torch.nn.Module)
        else type(value).__name__
    )
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


# --------------------------------------------------------------------------- for the catalogue


def numbers(seed: int, *shape: int, dtype: Any = np.float64) -> NDArray[Any]:
    """Gaussian numbers with two decimals: the same on every machine, and short to print.

    Parameters
    ----------
    seed : int
    *shape : int
    dtype : dtype

    Returns
    -------
    ndarray of that shape
    """
    return np.random.default_rng(seed).normal(size=shape).round(2).astype(dtype)
