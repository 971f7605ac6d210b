"""What a rule is: a generator of findings for one kind, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from bnbook.doctor._norms import Norm
from bnbook.doctor._report import Finding, Number

if TYPE_CHECKING:
    from bnbook.doctor._observe import Seen
    from bnbook.doctor._trace import Trace


@dataclass
class Case:
    """All that a rule may look at.

    Attributes
    ----------
    model : nn.Module or None
        None for a file.
    expect : mapping
        What the reader intends: ``frozen``, ``per_example``, ``padding``, ``task``, ``ranks``.
    level : float
        False alarms that a statistical rule may give per 1,000 layers.
    trace : Trace or None
        Shapes, and who feeds whom, from one pass of an example.
    seen : Seen or None
        What passed through the norms, batch by batch.
    ragged : (int, int) or None
        Length of the data set and batch size, of a loader that keeps its last batch.
    not_examined : list of (what, why)
        Rules may add to it.
    """

    model: nn.Module | None
    norms: list[Norm]
    expect: Mapping[str, Any] = field(default_factory=dict)
    level: float = 1.0
    trace: Trace | None = None
    seen: Seen | None = None
    ragged: tuple[int, int] | None = None
    not_examined: list[tuple[str, str]] = field(default_factory=list)

    @property
    def z(self) -> float:
        """How many standard deviations a healthy layer exceeds with the probability `level` / 1,000."""
        return NormalDist().inv_cdf(1 - self.level / 1000)

    def of(self, *families: str) -> list[Norm]:
        """The norms of these families."""
        return [norm for norm in self.norms if norm.family in families]

    def expected_frozen(self, name: str) -> bool:
        """Whether the reader said that this module stands still."""
        patterns = self.expect.get("frozen", ())
        if isinstance(patterns, bool):
            return patterns
        patterns = [patterns] if isinstance(patterns, str) else patterns
        return any(
            fnmatch(name, pattern) or name.startswith(pattern.rstrip(".*") + ".") for pattern in patterns
        )


class Sign(NamedTuple):
    """What a rule yields; its kind and the place in the book are added."""

    severity: str
    module: str
    evidence: Mapping[str, Number]
    says: str
    remedy: str


class Rule(NamedTuple):
    """One kind: what it needs ('weights', 'shapes' or 'batches') and how it is told."""

    kind: str
    needs: str
    check: Callable[[Case], Iterator[Sign]]

    @property
    def summary(self) -> str:
        """One line for the table of the field guide."""
        return (self.check.__doc__ or "").split("\n")[0]

    def findings(self, case: Case) -> Iterator[Finding]:
        """Run the rule."""
        for sign in self.check(case):
            yield Finding(self.kind, *sign, see=see(self.kind))


#: All rules, in the order in which a report names them.
RULES: list[Rule] = []


def rule(
    kind: str, needs: str
) -> Callable[[Callable[[Case], Iterator[Sign]]], Callable[[Case], Iterator[Sign]]]:
    """Enter a generator into `RULES`."""

    def enter(check: Callable[[Case], Iterator[Sign]]) -> Callable[[Case], Iterator[Sign]]:
        RULES.append(Rule(kind, needs, check))
        return check

    return enter


#: Kinds that are not rules of `examine`.
OTHER_KINDS = {
    "updates-per-step": "The running statistics are not updated once for each step of the optimizer.",
    "trains-in-evaluation": "Steps are taken while every batch norm is in evaluation mode.",
    "mode-flip": "A norm changes its mode between two steps.",
    "update-from-skipped-step": "The scaler skipped a step whose forward pass had updated the statistics.",
    "left-behind-buffers": "One model's statistics are far from what its weights give, the other's are not.",
    "first-difference": "The first module whose outputs differ although its inputs do not, and why.",
    "exported-in-training": "An ONNX model normalizes with the batch that it is given.",
    "not-folded": "Batch norms in an ONNX model that were not folded into the layer before.",
}


def kinds() -> dict[str, str]:
    """Every kind of finding, with one line that says what it is."""
    return {rule.kind: rule.summary for rule in RULES} | OTHER_KINDS


def see(kind: str) -> str:
    """The paragraph of the book that explains a kind."""
    return f"field_guide.html#{kind}"
