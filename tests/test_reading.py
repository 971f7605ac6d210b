"""How long pages are: what is counted, and the bars that every page keeps."""

import re

import pytest

from bookbuild import reading, results
from bookbuild.reading import Reading

PLACES = {results.name_of(place.page): place for place in results.contents()}

PAGE = """---
kernelspec: {name: python3}
---

# Two words

(a-place)=
One formula $x = 1$.

```{math}
:label: eq-a
y
```

| a | b |
| --- | --- |

```{code-cell} ipython3
claim("one").check(a, measured=b)

claim("two").check(a, measured=b)
```

```{code-cell} ipython3
---
tags: [hide-input]
mystnb:
  figure:
    name: fig-a
    caption: A caption.
---
draw()
```

```{code-cell} ipython3
:tags: [hide-cell]

1 + 1
```

```{exercise} Title
:label: ex-a

Do so.
```

````{solution-start} ex-a
:class: dropdown
````

Not counted.

```{code-cell} ipython3
2 + 2
```

````{solution-end}
````

:::{dropdown} Not counted
Not counted.
:::

End.
"""


def test_all_words_outside_cells_and_solutions_count_formulas_and_marks_too():
    outside = re.sub(r"```\{code-cell\}[^`]*```", "", PAGE)
    before, after = outside.split("````{solution-start}")[0], outside.split("````{solution-end}\n````")[1]
    words = len(before.split()) + len(after.split())
    assert reading.measure(PAGE) == Reading(words, figures=1, claims=2, cells=1, longest=3)
    assert "Not" in after  # what a dropdown holds can be read


def test_a_minute_for_200_words_for_each_unfolded_cell_and_for_each_figure():
    assert Reading(2200, 6, 5, 16, 15).minutes == 11 + 6 + 16
    assert Reading(20, 0, 0, 0, 0).minutes == 1


def test_what_breaks_a_bar_is_named_with_what_is_allowed():
    page = Reading(2201, 6, 5, 16, 16)
    assert reading.over(page, "chapter") == ["words: 2201, allowed 2200", "longest: 16, allowed 15"]
    assert reading.over(page, "deeper") == ["longest: 16, allowed 15"]
    assert reading.over(page, "start")[0] == "words: 2201, allowed 1800"
    assert reading.over(page, "") == []


@pytest.mark.parametrize("name", sorted(PLACES))
def test_a_page_keeps_the_bars(name):
    assert reading.over(reading.read(PLACES[name].page), reading.kind_of(PLACES[name])) == []


def test_the_whole_book_keeps_its_bar():
    pages = [results.BOOK / "index.md", *(place.page for place in PLACES.values())]
    assert sum(reading.read(page).words for page in pages) <= reading.WORDS_OF_THE_BOOK


def test_the_table_names_the_pages_that_break_a_bar(capsys):
    name = min(PLACES)
    wrong = reading.over(reading.read(PLACES[name].page), reading.kind_of(PLACES[name]))
    assert reading.main([name]) == bool(wrong)
    assert name in capsys.readouterr().out
    with pytest.raises(ValueError, match="PAGE: got nothing; allowed are index, "):
        reading.main(["nothing"])


@pytest.mark.parametrize("page", sorted(results.BOOK.rglob("*.md")), ids=lambda page: page.stem)
def test_no_backtick_stands_behind_a_fence_where_markdown_would_swallow_the_next_cell(page):
    assert not re.search(r"^`{3,}\{[^}]+\}.*`", page.read_text("utf-8"), re.MULTILINE)
