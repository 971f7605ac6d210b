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

``{playground}`` is the same with two networks that train (:mod:`bookbuild.playground_data`), all knobs and
stories; ``{playground} small`` has no knobs.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from bookbuild.keys import ROOT, source_key


class SliderDirective(SphinxDirective):
    """One interactive figure; its content is the caption."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "name": directives.unchanged_required,
        "alt": directives.unchanged_required,
    }

    def slider(self) -> str:
        """Its name."""
        return str(self.arguments[0])

    def run(self) -> list[nodes.Node]:
        """Take the picture, and embed the numbers."""
        name = self.slider()
        if not self.content or not {"name", "alt"} <= set(self.options):
            raise self.error(f"slider {name}: a caption, :name: and :alt: are needed")
        try:
            folder = prepared(name, Path(self.env.srcdir) / "_build" / "sliders")
        except ValueError as error:
            raise self.error(str(error)) from error

        figure = nodes.figure("", classes=["slider"], assets=(folder / "assets").read_text("utf-8").split())
        image = nodes.image(
            uri=f"/{folder.relative_to(self.env.srcdir).as_posix()}/{name}.png", alt=self.options["alt"]
        )
        numbers = (folder / "numbers.json").read_text("utf-8").replace("</", "<\\/")
        script = f'<script type="application/json" data-slider="{name}">{numbers}</script>'
        parsed = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, parsed)
        caption = nodes.caption("", "", *parsed[0].children)
        self.set_source_info(figure)
        figure += [image, nodes.raw("", script, format="html"), caption]
        self.add_name(figure)
        return [figure]


class PlaygroundDirective(SliderDirective):
    """Two networks that the reader trains."""

    required_arguments = 0
    optional_arguments = 1

    def slider(self) -> str:
        """Its name."""
        return "_".join(["playground", *self.arguments])


def prepared(name: str, base: Path) -> Path:
    """The folder below `base` with a slider's numbers, picture, scripts' names; made if code changed."""
    module = "playground_data.py" if name.startswith("playground") else "slider_data.py"
    key = source_key(Path(__file__).with_name(module), *(ROOT / "book/sliders").glob("*"))
    folder = base / name / key
    done = folder / "assets"
    if not done.exists():
        from bookbuild.slider_data import SLIDERS, save_picture  # takes a second to load

        if name not in SLIDERS:
            raise ValueError(f"slider: got {name!r}, there are {', '.join(SLIDERS)}")
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
        start = SLIDERS[name].data()
        save_picture(SLIDERS[name].draw(start), folder / f"{name}.png")
        numbers = json.dumps(start, ensure_ascii=False, separators=(",", ":"))
        (folder / "numbers.json").write_text(numbers, "utf-8")
        done.write_text("\n".join(SLIDERS[name].assets), "utf-8")
    return folder


def add_assets(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Load scripts and styles on the pages that use them, and on no other."""
    figures = doctree.findall(nodes.figure) if doctree is not None else ()
    assets = [asset for figure in figures for asset in figure.get("assets", ())]
    if assets:
        for asset in dict.fromkeys(["sliders/slider.css", "sliders/slider.js", *assets]):
            add = app.add_js_file if asset.endswith(".js") else app.add_css_file
            add(asset)


def setup(app: Sphinx) -> None:
    """Register the directives."""
    app.add_directive("slider", SliderDirective)
    app.add_directive("playground", PlaygroundDirective)
    app.connect("html-page-context", add_assets)
