"""Turn a page into a notebook of plain Markdown, which JupyterLab, VS Code, Colab and GitHub all show.

The pages use a handful of MyST's directives and roles. Here each becomes Markdown, with the number that the
built page shows: equations get a tag, references become text and links, captions stand below their figures,
an exercise is headed by its number and title, and its solution is closed until the reader opens it. Anything
else in braces is an error, so that no directive can reach a notebook.

sphinx-tojupyter does the same from Sphinx's document tree. It was tried first. It leaves exercise titles,
captions, tags and outputs to others, writes every page anew in half a minute where this takes seconds, and
cannot run before the book is built, so that `make test` would not work alone.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from pybtex.database import Entry, Person, parse_file
from pybtex.richtext import Text

from bnbook.exercises import of_chapter
from bnbook.exercises.handout import SOLUTION_CODE, SOLUTION_TEXT, empty_answer
from bookbuild.reading import facts
from bookbuild.results import BOOK, chapter_of, contents, name_of, title_of

# A directive: its fence, name, argument, and body up to the same fence.
DIRECTIVE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w:-]+)\} *(?P<argument>.*)\n(?P<body>(?:.*\n)*?)(?P=fence) *$",
    flags=re.MULTILINE,
)
# A role, or code, in which nothing is a role.
ROLE = re.compile(
    r"\{(?P<name>[a-z]+(?::[a-z]+)?)\}`(?P<text>[^`]+)`|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"
)
# These begin a cell of their own.
CELLS = ("exercise", "solution-start", "solution-end", "predict-end")


class Labels(NamedTuple):
    """What the book's labels are called on the built pages.

    Attributes
    ----------
    names : dict of str to str
        Such as ``"Fig. 6.3"``, ``"(6.3)"``, ``"Exercise 6.3"``.
    titles : dict of str to str
        Of the pages, by their names.
    addresses : dict of str to str
        Of the pages, from the folder of the notebooks: a page's notebook, or else its source.
    folder : str
        Where the page stands that refers to them, below ``book/``.
    """

    names: dict[str, str]
    titles: dict[str, str]
    addresses: dict[str, str]
    folder: str = ""


def labels() -> Labels:
    """Number all that has a label, as Sphinx does: by kind, in the order of each chapter.

    A deeper page goes on where its chapter ends. Pages outside the numbered parts count together, from 1.
    """
    book, places = Labels({}, {}, {}), contents()
    chapters = dict.fromkeys(place.chapter for place in places if place.numbered)
    prefixes = {chapter: f"{number}." for number, chapter in enumerate(chapters, 1)}
    counts: dict[str, int] = {}
    listed = {place.page: prefixes.get(place.chapter, "") for place in places}
    for page in [*sorted({*BOOK.rglob("*.md")} - set(listed)), *listed]:  # the front page comes first
        name, text = name_of(page), page.read_text("utf-8")
        book.names.update(_numbered(text, listed.get(page, ""), counts))
        book.titles[name] = title_of(page)
        book.addresses[name] = f"{name}.ipynb" if "```{code-cell}" in text else f"../book/{name}.md"
    return book


# What gets a number, by the words with which a reference to it begins and ends.
COUNTED = {
    "math": ("(", ")"),
    "exercise": ("Exercise ", ""),
    "prf:theorem": ("Theorem ", ""),
    "slider": ("Fig. ", ""),
    "playground": ("Fig. ", ""),
    "figure": ("Fig. ", ""),
}


def _numbered(text: str, chapter: str, counts: dict[str, int]) -> dict[str, str]:
    """The labels of a page and what they are called; `counts` has, and gets, what was counted so far."""
    found = {}
    figure = r"^```\{code-cell\}[^`]*?^ +figure:\n(?:^ +.*\n)*?^ +name: (?P<figure>[\w-]+)$"
    label = r"^`{3,}\{(?P<kind>[\w:-]+)\}.*\n(?:^:\w+:.*\n)*?^:(?:label|name): (?P<label>[\w-]+)$"
    for match in re.finditer(f"{figure}|{label}", text, flags=re.MULTILINE):
        kind = match["kind"] or "figure"
        before, after = COUNTED[kind]
        first = f"{before}{chapter}"
        counts[first] = counts.get(first, 0) + 1
        found[match["label"] or match["figure"]] = f"{first}{counts[first]}{after}"
    return found


# --------------------------------------------------------------------------- roles


def plain_roles(text: str, book: Labels) -> str:
    """Replace the roles of a text."""

    def replaced(match: re.Match[str]) -> str:
        if match["ticks"]:
            return match[0]
        words, target = _target(match["text"])
        match match["name"]:
            case "doc":
                name = posixpath.relpath(posixpath.join("/book", book.folder, target), "/book")
                # From a root of its own: the folder in which this runs may be called "book", too.
                here = posixpath.join("/notebooks", book.folder)
                address = posixpath.relpath(posixpath.join("/notebooks", book.addresses[name]), here)
                return f"[{words or book.titles[name]}]({address})"
            case "eq" | "numref" | "ref" | "prf:ref":
                return words or book.names[target]
            case "cite:t" | "cite:p":
                textual = match["name"] == "cite:t"
                sources = [_source(key.strip(), textual) for key in target.split(",")]
                return " and ".join(sources) if textual else f"({'; '.join(sources)})"
            case name:
                raise ValueError(
                    f"role: got {name} in {match[0]!r}, which portable.py cannot write as Markdown"
                )

    return ROLE.sub(replaced, text)


def _target(text: str) -> tuple[str, str]:
    """Words and target of ``words <target>``; without words both are the text."""
    found = re.fullmatch(r"(?s)(.+?)\s*<(.+)>", text)
    return (found[1], found[2]) if found else ("", text)


@cache
def _sources() -> dict[str, Entry]:
    return dict(parse_file(str(BOOK / "references.bib")).entries)


def _source(key: str, textual: bool) -> str:
    """A citation as the pages have it, by names and year, with a link to the source."""
    entry = _sources()[key]
    people = entry.persons.get("author") or entry.persons["editor"]
    names = [_surname(person) for person in people]
    several = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
    year = entry.fields["year"]
    words = f"{several} ({year})" if textual else f"{several}, {year}"
    fields = entry.fields
    link = f"https://doi.org/{fields['doi']}" if "doi" in fields else fields.get("url")
    if not link and fields.get("archiveprefix", fields.get("eprinttype", "")).lower() == "arxiv":
        link = f"https://arxiv.org/abs/{fields['eprint']}"
    return f"[{words}]({link})" if link else words


def _surname(person: Person) -> str:
    return str(Text.from_latex(" ".join([*person.prelast_names, *person.last_names])))


# --------------------------------------------------------------------------- directives


def plain(text: str, book: Labels) -> str:
    """Replace the directives and roles of a text by Markdown, and leave the targets of references out."""
    text = re.sub(r"^\([\w-]+\)=\n", "", text, flags=re.MULTILINE)
    pieces, end = [], 0
    for match in DIRECTIVE.finditer(text):
        pieces += [plain_roles(text[end : match.start()], book), _directive(match, book)]
        end = match.end()
    return "".join([*pieces, plain_roles(text[end:], book)])


def _directive(match: re.Match[str], book: Labels) -> str:
    options, body = _options(match["body"])
    name = book.names.get(options.get("label", options.get("name", "")), "")
    match match["name"]:
        case "math":
            tag = f" \\tag{{{name.strip('()')}}}" if name else ""
            return f"$$\n{_aligned(body)}{tag}\n$$"
        case "admonition" | "prf:theorem" | "prf:proof" as kind:
            title = plain_roles(match["argument"], book)
            if kind == "prf:theorem":
                title = f"{name} ({title})" if title else name
            head = f"**{title or 'Proof'}.**"
            return "\n".join(f"> {line}".rstrip() for line in [head, "", *plain(body, book).splitlines()])
        case "predict":
            return posed(plain_roles(match["argument"].strip(), book), plain(body, book))
        case "slider":
            return f"*{name}, which moves on the built page:* {plain(body, book)}"
        case kind:
            raise ValueError(f"directive: got {kind}, which portable.py cannot write as Markdown")


def posed(argument: str, body: str, head: str = "Predict, then run.") -> str:
    """The text of a question that ``{predict}`` asks, behind the words that announce it."""
    return f"**{head}** {argument}\n\n{body}".rstrip() if argument else f"**{head}** {body}"


def _options(body: str) -> tuple[dict[str, str], str]:
    """The options at the head of a directive, and its content."""
    head = re.match(r"(?::\w+:.*\n)*", body)
    options = dict(re.findall(r"^:(\w+): *(.*)$", head[0] if head else "", flags=re.MULTILINE))
    return options, body[len(head[0]) if head else 0 :].strip("\n")


def _aligned(formula: str) -> str:
    """Lines need an environment, which Sphinx adds by itself."""
    several = "\\\\" in formula and "\\begin" not in formula
    return f"\\begin{{split}}\n{formula}\n\\end{{split}}" if several else formula


# --------------------------------------------------------------------------- cells


def portable_cells(notebook: NotebookNode, chapter: str, book: Labels) -> Iterator[NotebookNode]:
    """The cells of a page, with exercises, answers, solutions and captions in cells of their own."""
    solution = ""  # the exercise whose solution these cells are
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield from _code(cell, book, solution)
            continue
        for name, argument, text in _pieces(cell.source):
            if name == "exercise":
                options, body = _options(text)
                number = book.names[options["label"]]
                yield new_markdown_cell(f"### {number}. {argument}\n\n{plain(body, book)}")
                yield answer_cell(chapter, int(re.split("[ .]", number)[-1]))  # Exercise 6.3; 3 before Part I
            elif name == "solution-start":
                solution = book.names[argument]
            elif name == "solution-end":
                solution = ""
            elif name == "predict-end":
                pass  # the cell has shown the answer
            elif solution:
                head = f"{SOLUTION_TEXT} of {solution.lower()}</summary>"
                yield new_markdown_cell(f"{head}\n\n{plain(text, book)}\n\n</details>")
            else:
                yield new_markdown_cell(plain(text, book))


def _pieces(text: str) -> Iterator[tuple[str, str, str]]:
    """Name, argument and body of the directives that begin a cell, and ``("", "", text)`` between them."""
    end = 0
    for match in DIRECTIVE.finditer(text):
        if match["name"] in CELLS:
            if before := text[end : match.start()].strip("\n"):
                yield "", "", before
            yield match["name"], match["argument"].strip(), match["body"]
            end = match.end()
    if rest := text[end:].strip("\n"):
        yield "", "", rest


def answer_cell(chapter: str, number: int) -> NotebookNode:
    """Where the reader writes the answer to an exercise, with what it says as long as nothing is written."""
    name, exercise = list(of_chapter(chapter).items())[number - 1]
    return empty_answer(f"{chapter}.{name}", exercise)


def _code(cell: NotebookNode, book: Labels, solution: str) -> Iterator[NotebookNode]:
    """A code cell in the front ends' own words, and the caption of its figure below it."""
    figure = cell.metadata.pop("mystnb", {}).get("figure", {})
    tags = cell.metadata.get("tags", [])
    if solution or "hide-input" in tags:  # JupyterLab and VS Code, Colab
        cell.metadata["jupyter"] = {"source_hidden": True} | ({"outputs_hidden": True} if solution else {})
        cell.metadata["cellView"] = "form"
    if solution:  # a folded cell shows its first line
        cell.source = f"{SOLUTION_CODE} of {solution.lower()}\n{cell.source}"
    yield cell
    if figure:
        yield new_markdown_cell(f"**{book.names[figure['name']]}.** {plain(figure['caption'].strip(), book)}")


def portable(page: Path, book: Labels) -> NotebookNode:
    """The notebook of a page, without outputs."""
    notebook = jupytext.read(page)
    try:
        book = book._replace(folder=posixpath.dirname(name_of(page)))
        title = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
        line = facts(page, "less than a minute")  # what nbval compares is the same on every machine
        title.source = re.sub(
            r"^# .+$", lambda head: f"{head[0]}\n\n{line}", title.source, count=1, flags=re.M
        )
        notebook.cells = list(portable_cells(notebook, chapter_of(page).stem, book))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{page.name}: {error}") from error
    return notebook
