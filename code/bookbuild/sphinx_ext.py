"""What the book adds to Sphinx.

* Outputs come from the executed chapters of :mod:`bookbuild.results`, and a page whose outputs changed
  is read again even if its text did not; so is one whose tables collect something that changed.
* ``{reading}`` tells how long pages take to read;
  ``{claims-table}``, ``{claim-counts}`` and ``{chapter-map}`` collect all chapters.
* Below the title of a page with code stands how long it takes, and which pages go deeper.
* ``{slider}`` is an interactive figure (:mod:`bookbuild.sliders`); ``{predict}`` asks before it answers
  (:mod:`bookbuild.predictions`).
* Over a symbol of a formula stands what it means (:mod:`bookbuild.symbols`).
* The search ranks headings and claims first (``book/_static/search.js``).
* The sources that docstrings cite are those of ``references.bib``.
* MathJax is copied into the book, so that no page asks another host.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective, SphinxRole

from bnbook.claims import KINDS, Claim, read_claims
from bookbuild import predictions, sliders
from bookbuild.keys import chapter_key, files_key
from bookbuild.pages import question
from bookbuild.reading import facts, read
from bookbuild.replications import read_replications, seed_sets
from bookbuild.results import (
    BOOK,
    ROOT,
    Result,
    chapter_of,
    chapters,
    deeper_pages,
    find_result,
    name_of,
    parts,
    title_of,
)
from bookbuild.symbols import write_symbols


@cache
def results() -> dict[Path, Result]:
    """The executed pages, in the order of the book; found once a build, since all their keys are computed."""
    found = {page: find_result(page) for page in chapters()}
    missing = [name_of(page) for page, result in found.items() if result is None]
    if missing:
        raise ExtensionError(f"not executed yet: {', '.join(missing)}; run `make book`, which does it first")
    return {page: result for page, result in found.items() if result is not None}


def reading_time(names: str) -> tuple[list[Path], str]:
    """Pages by their names, and how long they take to read together."""
    pages = [BOOK / f"{name}.md" for name in names.split()]
    if unknown := [name_of(page) for page in pages if not page.is_file()]:
        raise ExtensionError(f"{{reading}}`{names}`: there is no page {', '.join(unknown)}")
    return pages, f"{sum(read(page).minutes for page in pages)} min"


class ReadingTime(SphinxRole):
    """``{reading}`sgd saturation``` : the minutes that these pages take to read together."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the time as text; a change of these pages changes it."""
        pages, time = reading_time(self.text)
        for page in pages:
            self.env.note_dependency(str(page))
        return [nodes.Text(time)], []


class ParsedDirective(SphinxDirective):
    """A directive whose content is MyST text made at build time."""

    @classmethod
    def text(cls) -> str:
        """The MyST text."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """Parse the text."""
        container = nodes.container(classes=[self.name])
        lines = StringList(self.text().splitlines(), source=self.env.docname)
        self.state.nested_parse(lines, self.content_offset, container)
        return [container]


def _row(cells: Iterable[object]) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"


def count_kinds(claims: Iterable[Claim]) -> str:
    """How many claims there are of each kind, in words."""
    counts = Counter(claim.kind for claim in claims)
    return ", ".join(f"{n} {kind if n == 1 else KINDS[kind]}" for kind in KINDS if (n := counts[kind]))


class ClaimCounts(ParsedDirective):
    """How many claims the book has of each kind."""

    @classmethod
    def text(cls) -> str:
        """One sentence."""
        claims = read_claims().values()
        return f"The book has {len(claims)} claims: {count_kinds(claims)}."


class ClaimsTable(ParsedDirective):
    """All claims with source, published figure, our measurement and verdict, the three kinds apart."""

    @classmethod
    def text(cls) -> str:
        """Unfolding tables, one per chapter and kind, below the counts; each claim has to be checked."""
        claims = read_claims()
        checked: dict[Path, dict[str, list[float]]] = {}
        for page, result in results().items():
            if result.claims:  # those of a deeper page stand with its chapter's
                checked.setdefault(chapter_of(page), {}).update(result.claims)
        seen = {name for measured in checked.values() for name in measured}
        unchecked = sorted(set(claims) - seen)
        if unchecked:
            raise ExtensionError(f"claims.yml: no chapter checks {', '.join(unchecked)}")
        sets = seed_sets(read_replications())
        parts = [f"- {cls.verdicts(of_kind.values(), kind)}." for kind, of_kind in cls.kinds(claims)]
        parts = [f"All {len(claims)} claims:", "\n".join(parts)]
        for page, measured in checked.items():
            here = {name: claims[name] for name in measured}
            parts.append(f":::{{dropdown}} {title_of(page)} – {count_kinds(here.values())}")
            for kind, of_kind in cls.kinds(here):
                parts += [f"{cls.verdicts(of_kind.values(), kind)}:", cls.table(of_kind, measured, sets)]
            parts.append(":::")
        return "\n\n".join(parts)

    @staticmethod
    def kinds(claims: dict[str, Claim]) -> list[tuple[str, dict[str, Claim]]]:
        """The claims of each kind that occurs."""
        found = ((kind, {name: c for name, c in claims.items() if c.kind == kind}) for kind in KINDS)
        return [(kind, of_kind) for kind, of_kind in found if of_kind]

    @staticmethod
    def verdicts(claims: Iterable[Claim], kind: str) -> str:
        """How many claims of a kind have each verdict."""
        counts = Counter(claim.verdict for claim in claims)
        verdicts = ", ".join(f"{verdict}: {n}" for verdict, n in counts.most_common())
        return f"**{KINDS[kind].capitalize()}** – {verdicts}"

    @staticmethod
    def table(claims: dict[str, Claim], measured: dict[str, list[float]], sets: dict[str, str]) -> str:
        """The claims of one chapter; without the literature's column if it gives no figure for any."""
        columns = ["Claim", "Source", "Published", "Measured here", "Seed sets", "Verdict"]
        if not any(claim.published for claim in claims.values()):
            columns.remove("Published")
        lines = [_row(columns), "| --- " * len(columns) + "|"]
        for name, claim in claims.items():
            values = measured[name]
            runs = f", {len(values)} values" if len(values) > 1 else ""
            cells = {
                "Claim": claim.says,
                "Source": claim.citation(),
                "Published": claim.published or "–",
                "Measured here": f"{claim.measures}: {claim.numbers(values)}{runs}",
                "Seed sets": sets.get(name, "1 of 1"),
                "Verdict": f"{{ref}}`{claim.verdict} <claim-{name}>`",
            }
            lines.append(_row([cells[column] for column in columns]))
        return "\n".join(lines)


class ChapterMap(ParsedDirective):
    """The chapters, by parts, with the question each answers, what it builds on, and the time it runs."""

    @classmethod
    def text(cls) -> str:
        """One table a part. A chapter builds on those that its paragraph "You need ..." names."""
        executed, claims = results(), read_claims()
        lines: list[str] = []
        for caption, pages in parts().items():
            own = [page for page in pages if page in executed and chapter_of(page) == page]
            rows = [cls.row(page, executed, claims) for page in own]
            if rows:
                head = _row(
                    ["Chapter", "The question it answers", "Builds on", "Claims", "To read", "To run"]
                )
                lines += [f":::{{rubric}} {caption}\n:::\n", head, "| --- " * 6 + "|", *rows, ""]
        return "\n".join(lines)

    @staticmethod
    def row(page: Path, executed: dict[Path, Result], claims: dict[str, Claim]) -> str:
        """One chapter, with its deeper pages."""
        text = page.read_text("utf-8")
        asked = question(text)
        if not asked:
            raise ExtensionError(f"{page.name}: no paragraph begins with **The question.**")
        need = re.search(r"^You need .+?(?=\n\n|\Z)", text, flags=re.DOTALL | re.MULTILINE)
        before = dict.fromkeys(re.findall(r"{doc}`(\w+)`", need[0])) if need else {}
        builds_on = ", ".join(f"{{doc}}`/book/{name}`" for name in before) or "–"
        deeper = [other for other in deeper_pages(page) if other in executed]
        checked = [name for one in (page, *deeper) for name in executed[one].claims]
        counts = count_kinds(claims[name] for name in checked) or "–"
        names = [f"{{doc}}`/book/{name_of(page)}`"]
        names += [f"deeper: {{doc}}`/book/{name_of(other)}`" for other in deeper]
        times = [f"{read(page).minutes} min", f"{executed[page].seconds:.0f} s"]
        return _row(["; ".join(names), asked, builds_on, counts, *times])


def facts_of(page: Path) -> str:
    """The line below the title of an executed page."""
    return facts(page, f"{results()[page].seconds:.0f} s")


def add_facts(app: Sphinx, doctree: nodes.document) -> None:
    """Say below the title of a page with code how long it takes, and which pages go deeper."""
    page = app.srcdir / f"{app.env.docname}.md"
    title = doctree.next_node(nodes.title)
    if page not in results() or title is None:
        return
    line = nodes.paragraph(classes=["facts"])
    for piece in re.split(r"(\{doc\}`[^`]+`)", facts_of(page)):
        if link := re.fullmatch(r"\{doc\}`(?:(?P<words>.+) <)?(?P<target>[^>]+)>?`", piece):
            xref = pending_xref(
                refdomain="std",
                reftype="doc",
                reftarget=link["target"],
                refexplicit=bool(link["words"]),
                refdoc=app.env.docname,
                refwarn=True,
            )
            xref += nodes.inline(text=link["words"] or link["target"])
            line += xref
        else:
            line += nodes.Text(piece)
    title.parent.insert(title.parent.index(title) + 1, line)


COLLECTED: dict[str, type[ParsedDirective]] = {"book/claims": ClaimsTable, "book/index": ChapterMap}


def use_executed_pages(app: Sphinx, config: Any) -> None:
    """Let myst-nb read each page with code together with its outputs."""
    results.cache_clear()
    for page in results():  # says what is missing before any page is read
        # A suffix that only this page has: myst-nb asks the reader with the longest one.
        reader = ("bookbuild.results.read_executed", {"name": name_of(page)}, False)
        config.nb_custom_formats[f"book/{name_of(page)}.md"] = reader


def reread_changed_outputs(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Name the pages whose outputs, or what they collect of others, changed since they were read."""
    before: dict[str, str] = getattr(env, "bnbook_read", {})
    now = {f"book/{name_of(page)}": chapter_key(page) + facts_of(page) for page in chapters()}
    now |= {page: directive.text() for page, directive in COLLECTED.items()}
    # No page shows these in its text, but without an outdated page Sphinx copies no file.
    static = sorted((BOOK / "_static").rglob("*"))
    now["book/references"] = str([(str(path), path.stat().st_mtime_ns) for path in static])
    env.bnbook_read = now  # type: ignore[attr-defined]
    return [page for page in now if page in env.found_docs and before.get(page) != now[page]]


@cache
def sources() -> set[str]:
    """The keys of ``references.bib``."""
    return set(re.findall(r"^@\w+\{(\S+),", (BOOK / "references.bib").read_text("utf-8"), re.MULTILINE))


def _citation(mark: re.Match[str]) -> str:
    if mark[1] not in sources():
        raise ExtensionError(f"{mark[0]}: references.bib has no such source")
    return f":cite:t:`{mark[1]}`"


def tidy_docstring(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Cite the book's sources, and print the types of attributes, which are prose, as they are.

    ``[ioffe2015]_`` becomes a citation of the book, and the docstring's own entry is left out. A key that
    ``references.bib`` lacks stops the build.
    """
    text = re.sub(r"^\.\. \[\w+\] .*(\n +.*)*", "", "\n".join(lines), flags=re.MULTILINE)
    text = re.sub(r"\[(\w+)\]_\b", _citation, text)
    types = dict(re.findall(r"^:vartype (.+?): (.*)$", text, flags=re.MULTILINE))
    text = re.sub(r"^:vartype .*\n?", "", text, flags=re.MULTILINE)
    text = re.sub(  # Sphinx takes the first of several words for a type
        r"^:ivar (.+?):",
        lambda m: f":ivar {m[1].replace(', ', ',')}: *{types[m[1]]}* –",
        text,
        flags=re.MULTILINE,
    )
    # A | or a single * is a sign of mathematics here, but in literals.
    parts = re.split(r"(``.*?``)", text)
    parts[::2] = [re.sub(r"\||(?<!\*)\*(?=\w+[,)\]])", r"\\\g<0>", part) for part in parts[::2]]
    lines[:] = "".join(parts).splitlines()


def skip_field_numbers(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out "Alias for field number 0", which Python writes for each field of a named tuple."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


# startup.js and core.js, and what `mathjax3_config` in _config.yml names; output/svg asks for its glyphs.
MATHJAX_FILES = (
    "startup.js",
    "core.js",
    "input/tex.js",
    "output/svg.js",
    "output/svg/fonts/tex.js",
    "a11y/assistive-mml.js",
    "ui/lazy.js",
)


def mathjax_folder() -> Path:
    """Where the installed MathJax is."""
    package = find_spec("sphinx-mathjax-offline")  # with hyphens, so it cannot be imported by name
    if package is None or package.origin is None:
        raise ExtensionError("sphinx-mathjax-offline is missing: install what requirements.txt names")
    return Path(package.origin).parent / "static" / "mathjax"


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy what the pages load of MathJax (the whole folder has 24 MB)."""
    if exception is None and app.builder.format == "html":
        for name in MATHJAX_FILES:
            target = Path(app.outdir) / "_static" / "mathjax" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(mathjax_folder() / name, target)


def put_claims_into_search(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Give the search what it ranks first besides headings: the claims, as (page, id, sentence)."""
    if pagename == "search":
        says = {name: claim.says for name, claim in read_claims().items()}
        found = [
            (page.relative_to(ROOT).with_suffix("").as_posix(), name, says[name])
            for page, result in results().items()
            for name in result.claims
        ]
        embedded = json.dumps(found, ensure_ascii=False).replace("</", "<\\/")
        # Deferred: after Sphinx's own script, and before that one starts to search.
        app.add_js_file(None, body=f"const BOOK_CLAIMS = {embedded};")
        app.add_js_file("search.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    # With another state of these tools, every page is read again.
    app.add_config_value("bookbuild_state", files_key(*Path(__file__).parent.glob("*.py")), "env")
    app.add_role("reading", ReadingTime())
    app.add_directive("claims-table", ClaimsTable)
    app.add_directive("claim-counts", ClaimCounts)
    app.add_directive("chapter-map", ChapterMap)
    sliders.setup(app)
    predictions.setup(app)
    app.connect("config-inited", use_executed_pages, priority=900)  # after myst-nb has read the suffixes
    app.connect("env-get-outdated", reread_changed_outputs)
    app.connect("doctree-read", add_facts)
    app.connect("autodoc-skip-member", skip_field_numbers)
    app.connect("autodoc-process-docstring", tidy_docstring, priority=600)  # after napoleon
    app.connect("html-page-context", put_claims_into_search)
    app.connect("builder-inited", write_symbols)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
