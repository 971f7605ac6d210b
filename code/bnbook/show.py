"""What a cell shows besides a figure: source code, tables and measured numbers.

A measured number is marked with **≈**. The notebooks' tests skip the digits after a ≈ and
nothing else, so everything without the mark has to be the same on every machine.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bnbook._checks import check_whole
from bnbook._extra import book_extra

with book_extra():
    from IPython.display import Markdown, display


def approx(value: float, digits: int = 3) -> str:
    """Write a measured number, marked with ≈, with `digits` significant digits.

    NaN and infinity keep no mark: no test may skip them.

    >>> approx(97.3421), approx(0.00012345), approx(float("nan"))
    ('≈97.3', '≈1.23e-04', 'nan')
    """
    check_whole(1, digits=digits)
    value = float(value)
    if not np.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"≈{value:.{digits - 1}e}"
    return "≈" + np.format_float_positional(value, digits, fractional=False, trim="-")


def spread(values: ArrayLike, digits: int = 3) -> str:
    """Write the median of several runs, and their smallest and largest value; a single value stands alone.

    >>> spread([4.8, 5.2, 6.1])
    '≈5.2 [≈4.8, ≈6.1]'
    """
    values = np.asarray(values, float).ravel()
    if values.size == 0:
        raise ValueError("values: got none, at least one is needed")
    middle = approx(float(np.median(values)), digits)
    if values.size == 1:
        return middle
    return f"{middle} [{approx(values.min(), digits)}, {approx(values.max(), digits)}]"


def show_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Show a table below the cell; entries are shown by ``str``.

    Columns are not padded: a measured number may be one digit longer on another machine. Every column needs a
    name, since a screen reader reads it.

    >>> show_table(["m", "error"], [[2, approx(10.1)], [32, approx(9.9)]])
    <IPython.core.display.Markdown object>
    """
    if not all(header):
        raise ValueError(f"header: got {list(header)}, every column needs a name (a screen reader reads it)")
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"rows: got a row of {len(row)} entries, expected {len(header)}: {row!r}")
        lines.append("| " + " | ".join(str(entry) for entry in row) + " |")
    display(Markdown("\n".join(lines)))  # type: ignore[no-untyped-call]


def show_source(*objects: Any) -> None:
    """Show the source of functions and classes of the package: the very code that is tested.

    Of each docstring only the first line is shown; the chapter's text says the rest. Statements that only
    check arguments (``check_...`` calls and ``if ...: raise``) are left out, which is said below.

    >>> show_source(spread)
    <IPython.core.display.Markdown object>
    """
    for thing in objects:
        whole = textwrap.dedent(inspect.getsource(thing)).rstrip()
        source = _without_checks(whole)
        note = "" if source == whole else "\n\n*(argument checks left out)*"
        display(Markdown(f"```python\n{_shorten_docstrings(source)}\n```{note}"))  # type: ignore[no-untyped-call]


def _without_checks(source: str) -> str:
    """Leave out the statements of `source` that do nothing but check, if others stand beside them."""
    gone: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        for block in (getattr(node, "body", None), getattr(node, "orelse", None)):
            if isinstance(block, list) and not all(map(_only_checks, block)):
                for check in filter(_only_checks, block):
                    gone.update(range(check.lineno, check.end_lineno + 1))
    return "\n".join(line for number, line in enumerate(source.splitlines(), 1) if number not in gone)


def _only_checks(node: ast.stmt) -> bool:
    """Whether a statement calls a ``check_`` function, raises under a condition, or does this in a loop."""
    match node:
        case ast.Expr(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name))):
            return name.lstrip("_").startswith("check_")
        case ast.If(body=body, orelse=[]) | ast.For(body=body, orelse=[]):
            return all(isinstance(inner, ast.Raise) or _only_checks(inner) for inner in body)
    return False


def _shorten_docstrings(source: str) -> str:
    """Cut each docstring of `source` down to its first line."""
    lines = source.splitlines()
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for node in sorted(nodes, key=lambda node: node.lineno, reverse=True):  # from the end: line numbers stay
        first = node.body[0]
        if ast.get_docstring(node) and first.end_lineno and first.end_lineno > first.lineno:
            quote = lines[first.lineno - 1].lstrip()[:3]
            lines[first.lineno - 1 : first.end_lineno] = [lines[first.lineno - 1] + quote]
    return "\n".join(lines)
