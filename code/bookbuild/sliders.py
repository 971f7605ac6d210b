"""The directive ``{slider}``: an interactive figure, and its picture where nothing can be moved.

````
```{slider} batch_norm
:name: slider-bn
:alt: What the picture shows.
The caption.
```
````

It makes a numbered figure with a picture that Python draws at the starting values, and the numbers that the
script begins with as JSON. In a browser with JavaScript ``book/_static/sliders/slider.js`` puts the controls
in the picture's place; everywhere else (PDF, no JavaScript) the picture stays. In JupyterLab one sees the
directive's text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class SliderDirective(SphinxDirective):
    """One interactive figure; its content is the caption."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "name": directives.unchanged_required,
        "alt": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """Draw the picture and embed the numbers."""
        # Loading this takes a second; most builds read no page that has a slider.
        from bookbuild.slider_data import SLIDERS, save_picture

        name = self.arguments[0]
        if name not in SLIDERS:
            raise self.error(f"slider: got {name!r}, there are {', '.join(SLIDERS)}")
        if not self.content or not {"name", "alt"} <= set(self.options):
            raise self.error(f"slider {name}: a caption, :name: and :alt: are needed")
        start = SLIDERS[name].data()
        picture = Path(self.env.srcdir) / "_build" / "sliders" / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        save_picture(SLIDERS[name].draw(start), picture)

        figure = nodes.figure("", classes=["slider"], script=SLIDERS[name].script)
        image = nodes.image(uri=f"/_build/sliders/{name}.png", alt=self.options["alt"])
        numbers = json.dumps(start, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
        script = f'<script type="application/json" data-slider="{name}">{numbers}</script>'
        parsed = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, parsed)
        caption = nodes.caption("", "", *parsed[0].children)
        self.set_source_info(figure)
        figure += [image, nodes.raw("", script, format="html"), caption]
        self.add_name(figure)
        return [figure]


def add_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Load the scripts on the pages that use them, and on no other."""
    figures = doctree.findall(nodes.figure) if doctree is not None else ()
    scripts = [figure["script"] for figure in figures if "script" in figure]
    if scripts:
        app.add_css_file("sliders/slider.css")
        for script in dict.fromkeys(["slider", *scripts]):
            app.add_js_file(f"sliders/{script}.js")


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("slider", SliderDirective)
    app.connect("html-page-context", add_scripts)
