"""Less work for Sphinx after an edit of prose: what did not change is not made again.

The pages are the same as without.

* To number the figures, Sphinx loads the trees of all pages and looks at each node. Here the numbered nodes
  of a page are kept when it is read, and the numbers are made from these.
* The sources are formatted anew only if ``references.bib``, or what the pages cite, has changed.
* pybtex looks for the same plugin in all installed packages at each citation; here once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest.mock import patch

import pybtex.plugin
from docutils import nodes
from sphinx.addnodes import toctree
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors.toctree import TocTreeCollector
from sphinxcontrib.bibtex.domain import BibtexDomain, get_docnames

_assign_figure_numbers = TocTreeCollector.assign_figure_numbers
_format_sources = BibtexDomain.env_updated


def keep_numbered(app: Sphinx, doctree: nodes.document) -> None:
    """Keep what the numbers of a page depend on: sections, lists of contents, and nodes with a number."""
    _kept(app.env)[app.env.docname] = nodes.Element("", *_numbered(app.env, doctree))


def _numbered(env: BuildEnvironment, parent: nodes.Element) -> Iterator[nodes.Node]:
    for node in parent.children:
        if not isinstance(node, nodes.Element):
            continue
        counts = any(domain.get_enumerable_node_type(node) for domain in env.domains.values())
        if isinstance(node, toctree) or (counts and node["ids"]):
            # A node without a title has no number, and a listing is told by what it holds.
            own = (
                part for part in node if isinstance(part, nodes.title | nodes.caption | nodes.literal_block)
            )
            kept = node.copy()
            kept.extend([*(part.deepcopy() for part in own), *_numbered(env, node)])
            yield kept
        else:
            yield from _numbered(env, node)


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget a page that is read again, or is gone."""
    _kept(env).pop(docname, None)


def _kept(env: BuildEnvironment) -> dict[str, nodes.Element]:
    if not hasattr(env, "bnbook_numbered"):
        env.bnbook_numbered = {}  # type: ignore[attr-defined]
    return env.bnbook_numbered  # type: ignore[attr-defined]


def assign_figure_numbers(collector: TocTreeCollector, env: BuildEnvironment) -> list[str]:
    """As Sphinx, with what was kept in the place of the trees."""
    whole = env.get_doctree

    def tree(docname: str) -> Any:
        return _kept(env).get(docname) or whole(docname)

    with patch.object(env, "get_doctree", tree):
        return _assign_figure_numbers(collector, env)


def format_sources(domain: BibtexDomain) -> Any:
    """As the extension, unless nothing on which the list of sources depends has changed."""
    env = domain.env
    cited = sorted({(ref.docname, target.key) for ref in domain.citation_refs for target in ref.targets})
    now = (
        {str(path): file.mtime for path, file in domain.bibdata.bibfiles.items()},
        cited,
        [*get_docnames(env)],
    )
    # A page with a list that is read again has taken its sources away.
    complete = {source.bibliography_key for source in domain.citations} == set(domain.bibliographies)
    if complete and getattr(env, "bnbook_sources", None) == now:
        return []
    env.bnbook_sources = now  # type: ignore[attr-defined]
    return _format_sources(domain)


def setup(app: Sphinx) -> dict[str, Any]:
    """Put these in the place of the originals."""
    TocTreeCollector.assign_figure_numbers = assign_figure_numbers  # type: ignore[method-assign,assignment]
    BibtexDomain.env_updated = format_sources  # type: ignore[method-assign,assignment]
    pybtex.plugin.find_plugin = cache(pybtex.plugin.find_plugin)
    app.connect("doctree-read", keep_numbered, priority=900)  # after what other extensions number
    app.connect("env-purge-doc", forget)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
