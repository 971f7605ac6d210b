"""What the doctor found, and what it did not look at."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

__all__ = ["SEVERITIES", "Finding", "Report"]

#: From bad to harmless.
SEVERITIES = ("error", "warning", "note")

Number = float | int | str


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, with the number that shows it.

    Attributes
    ----------
    kind : str
        Its name, such as ``"stale-statistics"``.
    severity : {'error', 'warning', 'note'}
    module : str
        The module that it concerns most, "" for the model as a whole.
    evidence : dict of str to number
    says : str
        What is wrong.
    remedy : str
        The line that mends it.
    see : str
        Where the book explains it.
    modules : tuple of str
        All modules that it concerns.
    """

    kind: str
    severity: str
    module: str
    evidence: Mapping[str, Number]
    says: str
    remedy: str
    see: str = ""
    modules: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """What ``ignore=`` and ``baseline=`` know it by: ``kind:module``."""
        return f"{self.kind}:{self.module}"

    def __str__(self) -> str:
        more = f" and {len(self.modules) - 1} more" if len(self.modules) > 1 else ""
        numbers = ", ".join(f"{name} {_short(value)}" for name, value in self.evidence.items())
        lines = [
            f"{self.severity.upper()}  {self.kind}  in {self.module or 'the model'}{more}",
            *textwrap.wrap(self.says, 100, initial_indent="    ", subsequent_indent="    "),
            *textwrap.wrap(f"evidence: {numbers}", 100, initial_indent="    ", subsequent_indent="      "),
            f"    remedy:   {self.remedy}",
        ]
        return "\n".join([*lines, f"    see:      {self.see}"] if self.see else lines)


@dataclass(frozen=True)
class Report:
    """Findings, worst first, and what was not examined.

    Attributes
    ----------
    findings : list of Finding
    norms : list of dict
        A row for each norm (``pandas.DataFrame(report.norms)`` if you like).
    not_examined : list of (what, why)
    examined : str
        What was looked at, in a sentence.
    """

    findings: list[Finding]
    norms: list[dict[str, Any]] = field(default_factory=list)
    not_examined: list[tuple[str, str]] = field(default_factory=list)
    examined: str = ""

    def __str__(self) -> str:
        counts = {severity: sum(f.severity == severity for f in self.findings) for severity in SEVERITIES}
        head = ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items() if count)
        lines = [self.examined, head or "nothing found", *(f"\n{finding}" for finding in self.findings)]
        if self.not_examined:
            lines += ["\nnot examined:", *(f"    {what}: {why}" for what, why in self.not_examined)]
        return "\n".join(line for line in lines if line)

    __repr__ = __str__

    def table(self) -> str:
        """A row for each norm, as text."""
        if not self.norms:
            return "no norms"
        heads = list(dict.fromkeys(key for row in self.norms for key in row))
        cells = [heads, *([_short(row.get(head, "")) for head in heads] for row in self.norms)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        )

    def raise_for(self, severity: str = "error") -> None:
        """Raise an AssertionError if there is a finding of this severity or worse."""
        if severity not in SEVERITIES:
            raise ValueError(f"severity: got {severity!r}, allowed are {', '.join(SEVERITIES)}")
        allowed = SEVERITIES[: SEVERITIES.index(severity) + 1]
        bad = [finding for finding in self.findings if finding.severity in allowed]
        if bad:
            raise AssertionError("\n" + "\n".join(map(str, bad)))

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The report as JSON, also written to `path`, which a later ``baseline=`` may read."""
        findings = [{"id": finding.id, **asdict(finding)} for finding in self.findings]
        text = json.dumps(
            {"findings": findings, "norms": self.norms, "not_examined": self.not_examined},
            indent=1,
            default=str,
        )
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def of(self, kind: str) -> list[Finding]:
        """The findings of a kind."""
        return [finding for finding in self.findings if finding.kind == kind]


def arranged(
    findings: Iterable[Finding],
    ignore: Sequence[str] = (),
    baseline: str | os.PathLike[str] | None = None,
) -> list[Finding]:
    """Findings of one kind and severity as one, worst first, without those that are known."""
    known = [*ignore, *_known(baseline)]
    kept = [f for f in findings if not any(fnmatch(f.id, pattern) or f.kind == pattern for pattern in known)]
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in kept:
        groups.setdefault((finding.kind, finding.severity, finding.says), []).append(finding)
    merged = [
        replace(first, modules=tuple(dict.fromkeys(f.module for f in group if f.module)) or first.modules)
        if len(group) > 1 or not first.modules
        else first
        for group in groups.values()
        for first in group[:1]
    ]
    return sorted(merged, key=lambda f: SEVERITIES.index(f.severity))


def _known(baseline: str | os.PathLike[str] | None) -> list[str]:
    if baseline is None:
        return []
    try:
        findings = json.loads(Path(baseline).read_text("utf-8"))["findings"]
        return [f"{f['kind']}:{module}" for f in findings for module in f["modules"] or [f["module"]]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"baseline: {baseline} is no file that Report.to_json wrote ({error})") from error


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
