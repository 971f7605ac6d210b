"""What an exercise is: a question, a solution as a text, and slips of the pen in that text.

A wrong answer is mostly the right one with a slip: a sum for a mean, a missing root. So it is written down as
a substitution in the solution's source:

    eps outside the root: The divisor is the root of (variance + eps).
        np.sqrt(var + eps) => (np.sqrt(var) + eps)

The first line is the name and the advice; indented lines are substitutions (`old =>` deletes), each of all
occurrences. Two slips can so be made at once. What is more than a slip is an expression behind an `=`, in
which `right` is the solution:

    percent: Give a share from 0 to 1.
        = lambda *given: 100 * right(*given)

An indented line of neither kind goes on with the advice, and one that is indented twice with the line above.
"""

from __future__ import annotations

import ast
import functools
import linecache
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Inputs = dict[str, Any]


class Slip(NamedTuple):
    """A wrong answer that readers give: substitutions in the solution, or an expression of its own."""

    name: str
    advice: str
    swaps: tuple[tuple[str, str], ...] = ()
    whole: str = ""

    def applied(self, source: str) -> str:
        """The source with this slip; empty if a text to be replaced does not occur in it."""
        for old, new in self.swaps:
            if old not in source:
                return ""
            source = source.replace(old, new)
        return source


@dataclass(frozen=True, eq=False)
class Exercise:
    """What the checker needs to know about an exercise.

    Attributes
    ----------
    title : str
        As in the chapter.
    asks : str
        What is checked: the call of a function, such as ``"my_backward(dy, x, gamma, eps)"``, or what the
        value is.
    solution : str
        Source of a right answer: a function with the name in `asks`, or lines that end with the value.
    slips : str
        Wrong answers, see above. Each differs from the solution and from the others on some input.
    also : tuple of str
        Other right answers, of another form: a slip anywhere in them is looked for as well.
    hints : tuple of str
        Given one by one on request; each says a little more.
    inputs : function, optional
        Returns the inputs, the smallest first: dictionaries with the arguments in their order. Without it
        the answer is a value.
    returns : tuple of str
        What the parts of an answer are called. With more than one an answer is a sequence of this length.
    uses : mapping
        Names that solution and slips use besides `np` and `math`.
    observe : function, optional
        Turns what a function returned, and its inputs, into arrays that can be compared; for answers that
        are not arrays themselves, such as networks.
    invariants : mapping of str to function
        What the solution fulfils, as a sentence with "should", and a function of the parts by name that is
        zero if it is so.
    forbids : mapping of str to tuple of str
        What the text does not allow, and the words of the source that show it: names, "for", "while" or
        "arithmetic".
    rtol, atol : float
        Allowed difference, relative to the largest value of a part, and absolute.
    may_change : tuple of str
        The arguments that a function is asked to change in place.
    keeps_dtype : bool
        Whether the results must have the dtype of the inputs.
    keywords : tuple of str
        The arguments that are passed by name.
    seconds : float
        How long one call may take.
    slow : bool
        Whether a call takes so long that only single slips are tried.
    """

    title: str
    asks: str
    solution: str
    slips: str = ""
    also: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    inputs: Callable[[], list[Inputs]] | None = None
    returns: tuple[str, ...] = ("the result",)
    uses: Mapping[str, Any] = field(default_factory=dict)
    observe: Callable[[Any, Inputs], Any] | None = None
    invariants: Mapping[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)
    forbids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rtol: float = 1e-7
    atol: float = 1e-12
    may_change: tuple[str, ...] = ()
    keeps_dtype: bool = False
    keywords: tuple[str, ...] = ()
    seconds: float = 5.0
    slow: bool = False

    @functools.cached_property
    def right(self) -> Any:
        """The solution, which is a function or a value."""
        return self.run(self.solution)

    @functools.cached_property
    def parsed_slips(self) -> tuple[Slip, ...]:
        """The slips, one by one."""
        found: list[Slip] = []
        for line in filter(str.strip, self.slips.splitlines()):
            text = line.strip()
            if not line.startswith(" "):
                name, _, advice = text.partition(": ")
                found.append(Slip(name, advice))
            elif line.startswith(" " * 8) and found[-1].whole:
                found[-1] = found[-1]._replace(whole=found[-1].whole + text)
            elif line.startswith(" " * 8):
                *others, (old, new) = found[-1].swaps
                found[-1] = found[-1]._replace(swaps=(*others, (old, f"{new} {text}".strip())))
            elif text.startswith("= "):
                found[-1] = found[-1]._replace(whole=text[2:])
            elif " =>" in text:
                old, _, new = text.partition(" =>")
                found[-1] = found[-1]._replace(swaps=(*found[-1].swaps, (old, new.strip())))
            else:
                found[-1] = found[-1]._replace(advice=f"{found[-1].advice} {text}")
        return tuple(found)

    def wrong(self, slip: Slip) -> Any:
        """What somebody with this slip hands in."""
        if slip.whole:
            return eval(slip.whole, {**self._names(), "right": self.right})
        source = slip.applied(self.solution)
        if not source:
            raise ValueError(
                f"slips: {slip.name!r} replaces a text that is not in the solution of {self.title!r}"
            )
        return self.run(source)

    def run(self, source: str | ast.Module) -> Any:
        """The function that a source defines, or the value of its last line."""
        tree = ast.parse(source) if isinstance(source, str) else source
        names, last = self._names(), tree.body[-1]
        if self.inputs is None and isinstance(last, ast.Expr | ast.Assign):
            *first, _ = tree.body
            exec(compile(ast.Module(first, []), "<solution>", "exec"), names)
            return eval(compile(ast.Expression(last.value), "<solution>", "eval"), names)
        filename = "<solution>"
        if source is self.solution:  # so that its source can be shown
            filename = f"<solution of {self.asks}>"
            linecache.cache[filename] = (len(self.solution), None, self.solution.splitlines(True), filename)
        exec(compile(tree, filename, "exec"), names)
        return names[self.asks.partition("(")[0]]

    def _names(self) -> dict[str, Any]:
        return {"np": np, "math": math, "__name__": "solution", **self.uses}


def numbers(seed: int, *shape: int, dtype: Any = np.float64) -> NDArray[Any]:
    """Gaussian numbers with two decimals: the same on every machine, and short to print."""
    return np.random.default_rng(seed).normal(size=shape).round(2).astype(dtype)


IMAGES = (
    ((2, 2, 1, 2), 0.1, np.float64),
    ((3, 2, 2, 2), 1e-5, np.float64),  # as many channels as columns
    ((2, 3, 4, 5), 0.5, np.float64),
    ((4, 3, 2, 5), 1e-5, np.float32),
)
"""Shape, eps and dtype of batches of images on which the mistakes of readers show."""
