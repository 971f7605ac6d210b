"""The command that runs the book with other seeds."""

import subprocess
import sys

import numpy as np
import pytest

from bookbuild import replicate, results

SHIFTED = """
import numpy as np, torch
from bnbook import data
before = data.digits().x_test
from bookbuild.replicate import shift_seeds
shift_seeds(1000)
print(np.random.default_rng(7).random(), np.random.default_rng(np.int64(7)).random())
print(float(torch.rand(1, generator=torch.Generator().manual_seed(7))))
torch.manual_seed(7)
print(float(torch.rand(1)))
data.digits.cache_clear() if hasattr(data.digits, "cache_clear") else None
print(np.array_equal(before, data.digits().x_test))
"""


def test_every_seed_of_a_page_is_shifted_and_those_of_the_data_are_not():
    command = [sys.executable, "-c", SHIFTED]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    import torch

    there = torch.Generator().manual_seed(1007)
    assert [float(number) for number in out[:2]] == [np.random.default_rng(1007).random()] * 2
    assert [float(number) for number in out[2:4]] == [float(torch.rand(1, generator=there))] * 2
    assert out[4] == "True"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page whose claim depends on its seed, and whose last cell fails."""
    (tmp_path / "book").mkdir()
    (tmp_path / "_toc.yml").write_text("parts: [{chapters: [{file: book/tiny}]}]\n", "utf-8")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "BOOK", tmp_path / "book")
    cells = [
        "import numpy as np\nfrom bnbook.claims import claim",
        "steady, luck = claim('bn-eps-place'), claim('bn-whitens')\n"
        "steady.check(steady.expect == 'holds', measured=1.0)",
        f"lucky = np.random.default_rng(0).random() == {np.random.default_rng(0).random()!r}\n"
        "luck.check(lucky == (luck.expect == 'holds'), measured=[1.0, 2.0])",
        "1 / 0",
    ]
    fences = "".join(f"\n```{{code-cell}} ipython3\n{cell}\n```\n" for cell in cells)
    (tmp_path / "book/tiny.md").write_text(
        f"---\nkernelspec:\n  display_name: Python 3\n  name: python3\n---\n\n# Tiny\n{fences}", "utf-8"
    )


def test_claims_that_flip_and_cells_that_fail_are_told_and_stop_nothing(page, capsys):
    assert replicate.main(["--seeds", "0"]) == 1
    assert "2 claims, 0 flipped, 1 cells failed" in capsys.readouterr().out
    assert replicate.main(["--seeds", "1000", "tiny"]) == 2
    told = capsys.readouterr().out
    assert "tiny: bn-whitens flips; measured [1.0, 2.0]" in told
    assert "tiny: a cell failed with ZeroDivisionError: division by zero" in told
