"""Run a reader's function on the inputs of an exercise: with a time limit, and so that nothing leaks out."""

from __future__ import annotations

import ast
import contextlib
import copy
import dis
import functools
import inspect
import io
import linecache
import math
import random
import signal
import sys
import sysconfig
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from bnbook.exercises._comparing import Outcome, outcome_of, untouched
from bnbook.exercises._exercise import Exercise, Inputs

# Frames of these folders are not the reader's own lines.
_NOT_THE_READERS = (
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    str(Path(__file__).resolve().parents[1]),
    "<frozen",
    "<__array_function__",
)


class _TimeUpError(BaseException):
    """Not an Exception: `except Exception` in the reader's loop must not swallow it."""


def outcomes(exercise: Exercise, answer: Any, limited: bool = False) -> list[Outcome]:
    """What comes of an answer on each input; it ends at the first one that takes too long."""
    if exercise.inputs is None:
        return [outcome_of(exercise, answer, {})]
    found: list[Outcome] = []
    for k in range(len(_made(exercise.inputs))):
        found.append(outcome(exercise, answer, k, exercise.seconds if limited else math.inf))
        if found[-1].verdict == "timed out":
            break
    return found


def outcome(exercise: Exercise, answer: Any, k: int, seconds: float = math.inf) -> Outcome:
    """What a function returns, changes and prints on a fresh copy of the k-th input."""
    if exercise.inputs is None:
        return outcome_of(exercise, answer, {})
    inputs, before = inputs_of(exercise, k), _made(exercise.inputs)[k]
    out = io.StringIO()
    try:
        with guarded(out), _time_limit(seconds):
            by_name = {name: inputs[name] for name in exercise.keywords}
            value = answer(*(inputs[name] for name in inputs if name not in by_name), **by_name)
            printed = bool(out.getvalue())
            changed = tuple(
                name
                for name in inputs
                if name not in exercise.may_change and not untouched(inputs[name], before[name])
            )
            found = outcome_of(exercise, value, inputs)
    except _TimeUpError as error:
        line = _readers_line(error, loop=True)
        text = f"Your function had not ended after {seconds:g} s. Is there a loop without an end?{line}"
        return Outcome(verdict="timed out", message=text, printed=bool(out.getvalue()))
    except (Exception, SystemExit) as error:
        return _crash(exercise, error, bool(out.getvalue()))
    return Outcome(found.parts, found.kinds, found.verdict, found.message, changed, printed)


def inputs_of(exercise: Exercise, k: int) -> Inputs:
    """A copy of the k-th input."""
    return copy.deepcopy(_made(exercise.inputs)[k]) if exercise.inputs else {}


@functools.cache
def _made(inputs: Callable[[], list[Inputs]]) -> list[Inputs]:
    """Inputs, made once; networks among them always get the same weights."""
    with guarded():
        return inputs()


def _crash(exercise: Exercise, error: BaseException, printed: bool) -> Outcome:
    name, line = type(error).__name__, _readers_line(error)
    text = f"Your function stopped with {name}: {error}"
    if not line and isinstance(error, TypeError):  # no line of the reader's: the arguments do not fit
        text = f"Your function could not be called as {exercise.asks}: {error}"
    return Outcome(verdict=f"crash: {name}", message=text + line, printed=printed)


# --------------------------------------------------------------------------- nothing leaks out


@contextlib.contextmanager
def guarded(out: io.StringIO | None = None) -> Iterator[None]:
    """Catch what is printed, silence warnings, and put random states and default dtype back."""
    states = np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    try:
        with (
            contextlib.redirect_stdout(out or io.StringIO()),
            warnings.catch_warnings(),
            np.errstate(all="ignore"),
            _torch_left_alone(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(states[0])  # noqa: NPY002
        random.setstate(states[1])


@contextlib.contextmanager
def _torch_left_alone() -> Iterator[None]:
    """A fixed seed, float32 and gradients inside, and what it was before afterwards; else nothing."""
    torch = sys.modules.get("torch")  # an exercise about numbers does not wait for its import
    if torch is None:
        yield
        return
    dtype, generator = torch.get_default_dtype(), torch.default_generator
    state = generator.get_state()
    try:
        with torch.enable_grad():
            torch.set_default_dtype(torch.float32)
            generator.manual_seed(1729)  # no seed that a reader would take
            yield
    finally:
        torch.set_default_dtype(dtype)
        generator.set_state(state)


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


# --------------------------------------------------------------------------- the reader's own lines


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


def is_empty(function: Any) -> bool:
    """Whether the body of a function is still the `...` of the answer cell."""
    code = getattr(function, "__code__", None)
    if code is None or not set(code.co_consts) <= {None, ..., function.__doc__}:
        return False
    operations = {operation.opname for operation in dis.get_instructions(code)}
    return operations <= {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}


def words_of(function: Any) -> set[str]:
    """The names in the source of a function and of those of its module that it calls; empty without source.

    Besides names there are "for" and "while" for loops, and "arithmetic" for an operator between numbers.
    """
    words: set[str] = set()
    todo, done = [function], set()
    while todo:
        function = todo.pop()
        done.add(function)
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):
            continue
        around = getattr(function, "__globals__", {})
        for node in ast.walk(tree):
            match node:
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                    found = around.get(name) if isinstance(node, ast.Name) else None
                    words |= {name, getattr(found, "__name__", name).partition(".")[0]}
                    if inspect.isfunction(found) and found.__module__ == function.__module__:
                        todo += [] if found in done else [found]
                case ast.For():
                    words.add("for")
                case ast.comprehension(iter=ast.Call(ast.Name("range"))):
                    words.add("for")
                case ast.While():
                    words.add("while")
                case ast.BinOp() | ast.AugAssign():
                    words.add("arithmetic")
    return words
