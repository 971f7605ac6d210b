"""Tools that build the book: execute its chapters, write its notebooks, extend Sphinx."""

import sys

# jsonschema, which nbformat loads, compiles the grammars of this package for formats that no notebook uses,
# and takes a second for it at every start. It is installed only because JupyterLab wants it.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
