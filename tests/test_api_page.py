"""The page on the package: complete, and its examples are those that run."""

import doctest
import pkgutil
import re
from importlib import import_module

import pytest
from helpers import public

import bnbook
import bnbook.experiments
from bookbuild.results import BOOK, ROOT

SHOWN = re.findall(r"automodule:: (\S+)", (BOOK / "api.md").read_text("utf-8"))
PUBLIC = [
    package.__name__ + "." + module.name
    for package in (bnbook, bnbook.experiments)
    for module in pkgutil.iter_modules(package.__path__)
    if not module.name.startswith("_")
]
# The modules whose functions all have an example.
EXEMPLARY = ["norms", "sgd", "whitening", "shifts", "models", "show", "plots", "claims"]


def test_every_public_module_stands_on_the_page_once():
    commands = {"bnbook.exercises.grading", "bnbook.exercises.handout"}
    assert sorted({*SHOWN} - commands) == sorted(PUBLIC)
    assert len(SHOWN) == len({*SHOWN})


@pytest.mark.parametrize("name", EXEMPLARY)
def test_every_function_has_an_example(name):
    module = import_module(f"bnbook.{name}")
    functions = {key for key in public(module) if key[0].islower()}
    tests = {test.name.split(".")[-1] for test in doctest.DocTestFinder().find(module) if test.examples}
    assert functions - tests == set()


def test_a_docstring_marks_its_sources_in_one_way():
    sources = {
        key for key in re.findall(r"^@\w+\{(\S+),", (BOOK / "references.bib").read_text("utf-8"), re.M)
    }
    for name in EXEMPLARY:
        text = (ROOT / "code" / "bnbook" / f"{name}.py").read_text("utf-8")
        assert {key for key in re.findall(r"\[(\w+)\](?!_)", text) if key in sources} == set(), name
