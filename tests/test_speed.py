"""Builds that leave out what did not change: the pages are those of Sphinx, and less is done."""

import pybtex.plugin
import pytest
from sphinx.cmd.build import build_main
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors.toctree import TocTreeCollector
from sphinxcontrib.bibtex.domain import BibtexDomain

from bookbuild import speed

EXTENSIONS = "myst_parser,sphinx.ext.mathjax,sphinxcontrib.bibtex,sphinx_exercise"
SETTINGS = "numfig = math_numfig = True; numfig_secnum_depth = 0; bibtex_bibfiles = ['all.bib']"
FIGURE = "```{figure} dot.png\n:name: FIGURE\nA dot.\n```\n"
PAGE = """# Page NAME

Some prose of {cite:t}`ada`, {numref}`fig-NAME`, {numref}`table-NAME`, {eq}`eq-NAME`, {numref}`code-NAME`.

## A section

:::{note}
```{figure} dot.png
:name: fig-NAME
A dot.
```
:::

```{math}
:label: eq-NAME
x = 1
```

```{list-table} Numbers
:name: table-NAME
* - 1
```

```{code-block} python
:caption: Code
:name: code-NAME
x = 1
```

```{exercise} A title
:label: ex-NAME
Do it.
```
"""


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A small book; returns its folder, and a function that builds it and tells what was done for it."""
    for owner, name in ((TocTreeCollector, "assign_figure_numbers"), (BibtexDomain, "env_updated")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # so that the original comes back
    monkeypatch.setattr(pybtex.plugin, "find_plugin", pybtex.plugin.find_plugin)
    folder, done = tmp_path / "book", []
    whole, format_all = BuildEnvironment.get_doctree, speed._format_sources

    def get_doctree(env, name):
        done.append(name)
        return whole(env, name)

    monkeypatch.setattr(BuildEnvironment, "get_doctree", get_doctree)
    monkeypatch.setattr(
        speed, "_format_sources", lambda domain: done.append("formatted") or format_all(domain)
    )
    folder.mkdir()
    (folder / "conf.py").write_text(SETTINGS)
    (folder / "dot.png").write_bytes(b"")
    (folder / "all.bib").write_text(
        "@misc{ada, author={Ada}, title={T}, year=1900}\n@misc{bob, author={Bob}, title={U}, year=1901}\n"
    )
    (folder / "index.md").write_text("# Book\n\n```{toctree}\n:numbered:\none\ntwo\nsources\n```\n")
    (folder / "sources.md").write_text("# Sources\n\n```{bibliography}\n```\n")
    for name in ("one", "two"):
        (folder / f"{name}.md").write_text(PAGE.replace("NAME", name))

    def build(out):
        extensions = EXTENSIONS + ",bookbuild.speed" * (out == "ours")
        done.clear()
        assert build_main(["-qW", f"-Dextensions={extensions}", str(folder), str(tmp_path / out)]) == 0
        return list(done)

    return folder, build


def pages(folder):
    return {page.name: page.read_text("utf-8") for page in folder.glob("*.html")}


EDITS = [  # of the first page, one behind the other, and whether the sources are formatted anew
    ("Some prose", "Other prose", False),
    ("## A section", FIGURE.replace("FIGURE", "fig-new"), False),  # a figure more, and a section less
    ("{cite:t}`ada`, {numref}`fig-one`, {numref}`table-one`", "{cite:t}`bob`", True),
    (FIGURE.replace("FIGURE", "fig-one"), "", False),
]


@pytest.mark.filterwarnings("ignore")  # of Sphinx and its extensions
def test_after_each_edit_the_pages_are_those_of_sphinx_alone(book, tmp_path):
    folder, build = book
    found, text = {}, (folder / "one.md").read_text()
    for out in ("sphinx", "ours"):
        (folder / "one.md").write_text(text)
        build(out)
        found[out] = []
        for old, new, formats in EDITS:
            now = (folder / "one.md").read_text()
            assert old in now
            (folder / "one.md").write_text(now.replace(old, new))
            done = build(out)
            found[out].append(pages(tmp_path / out))
            assert ("formatted" in done) == (out == "ours" and formats)
            assert out == "sphinx" or old != "Some prose" or "two" not in done
    assert found["ours"] == found["sphinx"]


@pytest.mark.filterwarnings("ignore")
def test_the_sources_are_formatted_anew_when_their_file_or_their_page_changes(book):
    folder, build = book
    assert "formatted" in build("ours")
    (folder / "sources.md").write_text("# The sources\n\n```{bibliography}\n```\n")
    assert "formatted" in build("ours")
    (folder / "all.bib").write_text("@misc{ada, author={A. Ada}, title={Another}, year=1900}\n")
    assert "formatted" in build("ours")
