"""Wrong answers made from the solution: an exercise's slips, two of them at once, and single slips anywhere.

What somebody may get wrong in every exercise is not written down anew for each: two arguments exchanged,
`keepdims` forgotten, another operator, a mean for a sum, a term left out.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from bnbook.exercises._comparing import Outcome, agree
from bnbook.exercises._exercise import Exercise, Slip
from bnbook.exercises._running import guarded, inputs_of, outcome, outcomes


class Named(NamedTuple):
    """A wrong answer with its name, a sentence of advice, and what it gives on each input."""

    name: str
    advice: str
    gives: list[Outcome]

    def explains(self, exercise: Exercise, got: list[Outcome]) -> bool:
        """Whether it gives on every input what the reader's answer gives, and something at all."""
        pairs = list(zip(self.gives, got, strict=True))
        return any(theirs.parts for _, theirs in pairs) and all(agree(exercise, *pair) for pair in pairs)


@functools.cache
def solution_of(exercise: Exercise) -> list[Outcome]:
    """What the solution gives."""
    return outcomes(exercise, exercise.right)


@functools.cache
def known(exercise: Exercise) -> list[Named]:
    """The slips of an exercise, and behind them those that every exercise of its form has."""

    def given(slips: Iterable[Slip]) -> list[Named]:
        with guarded():
            return [Named(slip.name, slip.advice, outcomes(exercise, exercise.wrong(slip))) for slip in slips]

    found, right = given(exercise.parsed_slips), Named("", "", solution_of(exercise))
    for slip in [*given(_usual(exercise)), *_exchanged_parts(exercise)]:
        same = any(other.explains(exercise, slip.gives) for other in (right, *found))
        if any(outcome.parts for outcome in slip.gives) and not same:
            found.append(slip)
    return found


def _usual(exercise: Exercise) -> Iterator[Slip]:
    """`keepdims` forgotten, and two arguments of the same form exchanged."""
    if exercise.inputs is None:
        return
    keeps = tuple((text, "") for text in (", keepdims=True", ", keepdim=True") if text in exercise.solution)
    if keeps:
        text = (
            "A mean over some axes loses them, and then broadcasts along the last ones: keep the dimensions."
        )
        yield Slip("keepdims forgotten", text, keeps)
    inputs = inputs_of(exercise, 0)
    names = [name for name in inputs if name not in exercise.keywords]
    for one, other in itertools.combinations(names, 2):
        if _form(inputs[one]) == _form(inputs[other]):
            there, back = (rf"(def .*?\b){one}(\b.*?\b){other}(\b.*)", rf"\g<1>{other}\g<2>{one}\g<3>")
            head = exercise.solution.strip().partition("\n")[0]
            text = f"The arguments come in the order {exercise.asks}."
            yield Slip(f"{one} and {other} exchanged", text, ((head, re.sub(there, back, head)),))


def _form(value: Any) -> Any:
    return type(value), getattr(value, "shape", None)


def _exchanged_parts(exercise: Exercise) -> Iterator[Named]:
    """Two of the returned parts exchanged."""
    right = solution_of(exercise)
    order = f"The order is {', '.join(exercise.returns)}."
    for one, other in itertools.combinations(exercise.returns, 2):
        if all(_form(r.parts[one]) == _form(r.parts[other]) for r in right):
            parts = [{**r.parts, one: r.parts[other], other: r.parts[one]} for r in right]
            yield Named(f"{one} and {other} exchanged", order, [Outcome(p) for p in parts])


def two_at_once(exercise: Exercise, got: list[Outcome]) -> Named | None:
    """The two slips of this exercise that together give what the reader's answer gives."""
    if exercise.slow:
        return None
    slips = [slip for slip in [*exercise.parsed_slips, *_usual(exercise)] if slip.swaps]
    for one, other in itertools.combinations(slips, 2):
        sources = (b.applied(a.applied(exercise.solution)) for a, b in ((one, other), (other, one)))
        source = next(filter(None, sources), "")  # the one may replace what the other looks for
        found = _tried(exercise, source, got) if source else None
        if found:
            return Named(f"{one.name} + {other.name}", f"{one.advice}\n{other.advice}", found)
    return None


def anywhere(exercise: Exercise, got: list[Outcome]) -> Named | None:
    """A single slip anywhere in a solution that gives what the reader's answer gives."""
    if exercise.slow:
        return None
    for source in (exercise.solution, *exercise.also):
        for name, advice, tree in _mutants(source):
            found = _tried(exercise, tree, got)
            if found:
                return Named(name, advice, found)
    return None


def _tried(exercise: Exercise, source: str | ast.Module, got: list[Outcome]) -> list[Outcome] | None:
    """What a source gives on each input if it is what the reader's answer gives: mostly one call tells."""
    try:
        with guarded():
            answer = exercise.run(source)
    except Exception:  # a value that cannot be computed so, or no Python at all
        return None
    gives: list[Outcome] = []
    for k, theirs in enumerate(got):
        gives.append(outcome(exercise, answer, k, seconds=1))  # a slip may make an endless loop
        if not agree(exercise, gives[k], theirs):
            return None
    return gives if any(theirs.parts for theirs in got) else None


# --------------------------------------------------------------------------- single slips anywhere

_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)
_REDUCTION = {"mean": "sum", "sum": "mean", "var": "std", "std": "var", "floor": "ceil", "ceil": "floor"}


def _mutants(source: str) -> Iterator[tuple[str, str, ast.Module]]:
    """Name, advice and tree of each way to get one place of a source wrong; the next one undoes it."""
    tree = ast.parse(source)
    for parent in ast.walk(tree):
        for place, node in _places(parent):
            if not isinstance(node, ast.expr):
                continue
            for name, advice, new in _slips_of(node, tree):
                keep = place(new)
                try:
                    yield name, advice, ast.fix_missing_locations(tree)
                finally:
                    place(keep)


def _places(parent: ast.AST) -> Iterator[tuple[Any, ast.AST]]:
    """Each child, with a function that puts another node in its place and returns the child."""

    def put(holder: Any, key: Any) -> Any:
        def place(new: ast.AST) -> ast.AST:
            old = holder[key] if isinstance(holder, list) else getattr(holder, key)
            if isinstance(holder, list):
                holder[key] = new
            else:
                setattr(holder, key, new)
            return old  # type: ignore[no-any-return]

        return place

    for field, value in ast.iter_fields(parent):
        if isinstance(value, ast.AST):
            yield put(parent, field), value
        elif isinstance(value, list):
            yield from ((put(value, i), item) for i, item in enumerate(value) if isinstance(item, ast.AST))


def _slips_of(node: ast.expr, tree: ast.Module) -> Iterator[tuple[str, str, ast.expr]]:
    """What may be written instead of an expression, the slips that have a name of their own first."""
    match node:
        case ast.BinOp(left, ast.Add() | ast.Sub() as operator, right):
            minus = isinstance(operator, ast.Sub)
            text = f"Look at the sign of {_brief(right)}: it is {'subtracted' if minus else 'added'}."
            yield f"sign of {_brief(right)}", text, _with(node, op=ast.Add() if minus else ast.Sub())
            for kept, lost in ((left, right), (right, left)):
                yield f"term {_brief(lost)} forgotten", f"A term is missing: {_brief(lost)}.", kept
        case ast.BinOp(left, ast.Mult(), right):
            for kept, lost in ((left, right), (right, left)):
                yield f"factor {_brief(lost)} forgotten", f"A factor is missing: {_brief(lost)}.", kept
        case ast.BinOp(left, ast.Div(), right):
            yield f"not divided by {_brief(right)}", f"A division is missing: by {_brief(right)}.", left
        case ast.BinOp(left, ast.Pow(), _):
            yield f"power of {_brief(left)} forgotten", f"{_brief(left)} enters with a power.", left
        case ast.UnaryOp(ast.USub(), operand):
            yield (
                f"sign of {_brief(operand)}",
                f"Look at the sign of {_brief(operand)}: a minus is missing.",
                operand,
            )
        case ast.Call(ast.Attribute(_, "sqrt"), [inner]):
            yield "root forgotten", f"A root is missing, at {_brief(inner)}.", inner
            yield "root twice", f"One root is enough, at {_brief(inner)}.", _with(node, args=[node])
        case ast.Call(ast.Attribute(_, name) as function) if name in _REDUCTION:
            text = f"A {name} is wanted, not a {_REDUCTION[name]}."
            yield (
                f"{_REDUCTION[name]} instead of {name}",
                text,
                _with(node, func=_with(function, attr=_REDUCTION[name])),
            )
            if name in ("var", "std"):
                more = [*node.keywords, ast.keyword("ddof", ast.Constant(1))]
                text = "Divide by the number of values, not by one less."
                yield f"unbiased {name}", text, _with(node, keywords=more)
            for i, axes in enumerate(node.args):
                for new in _other_axes(axes):
                    args = [*node.args[:i], new, *node.args[i + 1 :]]
                    text = f"Look at the axes of the {name}: {ast.unparse(new)} is not right."
                    yield f"{name} over the axes {ast.unparse(new)}", text, _with(node, args=args)
        case ast.Tuple(elements) if elements and all(map(_is_int, elements)):
            for new in _other_axes(node):
                yield f"axes {ast.unparse(new)}", f"Look at the axes: {ast.unparse(new)} is not right.", new
    for new in _others(node, tree):
        text = f"Your result is that of the solution with one slip: {ast.unparse(new)} is wrong in its place."
        yield f"slip at {ast.unparse(new)}", text, new


def _others(node: ast.expr, tree: ast.Module) -> Iterator[ast.expr]:
    """Other operators, arguments in another order or missing, numbers off by one, other variables."""
    match node:
        case ast.BinOp(left, operator, right):
            yield from (
                ast.BinOp(left, other(), right) for other in _OPERATORS if not isinstance(operator, other)
            )
            yield from (ast.BinOp(right, operator, left), left, right)
        case ast.Call(function, arguments, keywords):
            yield from (
                ast.Call(function, arguments, [k for k in keywords if k is not lost]) for lost in keywords
            )
            if len(arguments) > 1:
                yield ast.Call(function, arguments[::-1], keywords)
        case ast.Tuple(elements, ast.Load()):
            yield ast.Tuple(elements[::-1], ast.Load())
        case ast.Constant(int() | float() as number) if not isinstance(number, bool):
            yield from (ast.Constant(number + 1), ast.Constant(number - 1))
        case ast.Name(name, ast.Load()):
            yield from (ast.Name(other, ast.Load()) for other in sorted(_variables(tree) - {name}))


def _brief(node: ast.expr) -> str:
    """A short expression as it is; a long one would be the solution."""
    text = ast.unparse(node)
    return text if len(text) <= 16 else "one part"


def _with(node: Any, **fields: Any) -> Any:
    """A copy of a node with other fields."""
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})


def _is_int(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int)


def _other_axes(axes: ast.expr) -> list[ast.expr]:
    """Axes with one left out or the missing one added; the other one of two."""
    if isinstance(axes, ast.Constant) and axes.value in (0, 1):
        return [ast.Constant(1 - axes.value)]
    if not (isinstance(axes, ast.Tuple) and all(map(_is_int, axes.elts))):
        return []
    values = (element.value for element in axes.elts if isinstance(element, ast.Constant))
    numbers = {value for value in values if isinstance(value, int)}
    others = [numbers - {n} for n in numbers] + [numbers | {n} for n in set(range(4)) - numbers]
    return [ast.Tuple([ast.Constant(n) for n in sorted(other)], ast.Load()) for other in others if other]


def _variables(tree: ast.Module) -> set[str]:
    """Arguments and names that are assigned to."""
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return arguments | {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
