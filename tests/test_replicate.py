"""The command that runs the book with other seeds, and the record of what it found."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from bnbook.claims import read_claims
from bookbuild import keys, replicate, replications, results
from bookbuild.other_seeds import environment_with

PRINTED = """
import numpy as np, torch
from bnbook import data
data.digits.cache_clear() if hasattr(data.digits, "cache_clear") else None
print(data.digits().x_test.sum())
print(np.random.default_rng(7).random(), np.random.default_rng(np.int64(7)).random())
print(np.random.default_rng([7, 3]).random(), np.random.default_rng((7, 3)).random())
print(float(torch.rand(1, generator=torch.Generator().manual_seed(7))))
torch.manual_seed(7)
print(float(torch.rand(1)))
print(np.random.default_rng(np.random.SeedSequence(7)).random())
"""


def test_every_seed_of_a_process_and_of_those_that_it_starts_is_shifted_and_those_of_the_data_are_not():
    from bnbook import data

    another = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {PRINTED!r}], check=True)"
    there = torch.Generator().manual_seed(1007)
    one, two = np.random.default_rng(1007).random(), np.random.default_rng([1007, 3]).random()
    drawn = float(torch.rand(1, generator=there))
    kept = np.random.default_rng(7).random()
    expected = [data.digits().x_test.sum(), one, one, two, two, drawn, drawn, kept]
    with environment_with(1000) as environment:
        command = [sys.executable, "-uc", PRINTED + another]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [float(number) for number in done.stdout.split()] == expected * 2


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page whose claim depends on its seed, and whose last cell fails."""
    (tmp_path / "book").mkdir()
    (tmp_path / "_toc.yml").write_text("parts: [{chapters: [{file: book/tiny}]}]\n", "utf-8")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "BOOK", tmp_path / "book")
    monkeypatch.setattr(replications, "FILE", tmp_path / "book" / "replications.yml")
    cells = [
        "import numpy as np\nfrom bnbook.claims import claim",
        "steady, luck = claim('bn-eps-place'), claim('bn-whitens')\n"
        "steady.check(steady.expect == 'holds', measured=1.0)",
        f"lucky = np.random.default_rng(0).random() == {np.random.default_rng(0).random()!r}\n"
        "luck.check(lucky == (luck.expect == 'holds'), measured=[1.0, 2.0])",
        "1 / 0",
    ]
    fences = "".join(f"\n```{{code-cell}} ipython3\n{cell}\n```\n" for cell in cells)
    page = tmp_path / "book/tiny.md"
    page.write_text(
        f"---\nkernelspec:\n  display_name: Python 3\n  name: python3\n---\n\n# Tiny\n{fences}", "utf-8"
    )
    return page


def test_claims_that_flip_and_cells_that_fail_are_told_and_stop_nothing(page, capsys):
    assert replicate.main(["--seeds", "0"]) == 1
    assert "2 claims, 0 flipped, 1 cells failed" in capsys.readouterr().out
    assert replicate.main(["--seeds", "1000", "tiny"]) == 2
    told = capsys.readouterr().out
    assert "- tiny: bn-whitens flips; measured [1.0, 2.0]" in told
    assert "- tiny: a cell failed with ZeroDivisionError: division by zero" in told


def found(held, measured):
    return [
        {"claim": name, "as_expected": as_expected, "measured": [value]}
        for (name, as_expected), value in zip(held.items(), measured, strict=True)
    ]


def recorded():
    return replications.seed_sets(replications.read_replications())


def test_the_record_counts_seed_sets_and_not_runs_and_gives_claims_without_chance_a_dash(page):
    own = {"a": [1.0], "b": [2.0], "c": [3.0]}
    replications.record(page, 1000, found({"a": True, "b": True, "c": True}, [1.0, 2.5, 3.0]), own)
    assert recorded() == {"a": "–", "b": "2 of 2", "c": "–"}
    replications.record(page, 2000, found({"a": True, "b": False, "c": True}, [1.0, 0.1, 3.5]), own)
    assert recorded() == {"a": "–", "b": "2 of 3", "c": "3 of 3"}
    replications.record(page, 2000, found({"a": True, "b": True, "c": True}, [1.0, 2.1, 3.5]), own)
    assert recorded() == {"a": "–", "b": "3 of 3", "c": "3 of 3"}


def test_a_record_of_other_cells_is_not_shown_and_prose_does_not_matter(page):
    replications.record(page, 1000, found({"b": True}, [2.5]), {"b": [2.0]})
    page.write_text(page.read_text("utf-8") + "\nA sentence.\n", "utf-8")
    assert recorded() == {"b": "2 of 2"}
    page.write_text(page.read_text("utf-8").replace("1 / 0", "1 / 1"), "utf-8")
    assert recorded() == {}
    replications.record(page, 2000, found({"b": True}, [2.5]), {"b": [2.0]})
    assert recorded() == {"b": "2 of 2"}  # the run of the old cells is gone


def test_only_a_page_that_was_executed_and_had_no_failing_cell_is_recorded(page, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        replicate.main(["--seeds", "1000", "--record"])
    assert "not executed as they stand: tiny; run `make execute` first" in capsys.readouterr().err
    own = results.Result([], 1.0, {"bn-eps-place": [1.0], "bn-whitens": [1.0, 2.0]})
    monkeypatch.setattr(replicate, "find_result", lambda page: own)
    assert replicate.main(["--seeds", "1000", "--record"]) == 2
    assert recorded() == {}
    page.write_text(page.read_text("utf-8").replace("1 / 0", "1 / 1"), "utf-8")
    assert replicate.main(["--seeds", "1000", "--record"]) == 1
    entry = yaml.safe_load(replications.FILE.read_text("utf-8"))["tiny"]
    assert entry == {
        "key": keys.cells_key(page),
        "seeds": [1000],
        "held": {"bn-eps-place": [1000], "bn-whitens": []},
        "unmoved": ["bn-eps-place", "bn-whitens"],
    }


def test_the_books_record_names_existing_pages_and_claims_and_seeds_that_it_ran():
    pages = {results.name_of(page) for page in results.chapters()}
    entries = yaml.safe_load(replications.FILE.read_text("utf-8"))
    assert {*entries} <= pages
    for entry in entries.values():
        assert {*entry["held"]} <= {*read_claims()}
        assert {*entry["unmoved"]} <= {*entry["held"]}
        assert {offset for held in entry["held"].values() for offset in held} <= {*entry["seeds"]}
