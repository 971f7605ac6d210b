"""Check the answers of a cell once more, with checks that come fresh from the files: for the grading."""

from __future__ import annotations

import sys
from types import ModuleType

from IPython.display import display

from bnbook.exercises import _find_or_none
from bnbook.exercises._engine import judge

# Runs behind each cell of a notebook in which something was checked. It uses no built-in function, since a
# notebook may have given `dict` or `list` another meaning.
CELL = """
import sys as _sys
if "bnbook.exercises" in _sys.modules and _sys.modules["bnbook.exercises"].ATTEMPTS:
    _kept = {**_sys.modules}
    for _name in [*_kept]:
        if _name.startswith("bnbook.exercises"):
            del _sys.modules[_name]
    from bnbook.exercises._again import check_again as _check_again
    _check_again(_kept)
"""


def check_again(kept: dict[str, ModuleType]) -> None:
    """Judge the answers since the last time, show the verdicts as metadata, and put the modules back.

    Parameters
    ----------
    kept : dict of str to module
        The modules that the notebook uses: its `check` goes on with these.
    """
    used = kept["bnbook.exercises"]
    answers = dict(used.ATTEMPTS)
    used.ATTEMPTS.clear()
    verdicts = {}
    for name, answer in answers.items():
        exercise = _find_or_none(name)
        if exercise is not None:
            verdicts[name] = judge(name, exercise, answer).verdict
    sys.modules.update({name: module for name, module in kept.items() if name.startswith("bnbook.exercises")})
    setattr(kept["bnbook"], "exercises", used)  # noqa: B010
    display(  # type: ignore[no-untyped-call]
        {"text/plain": f"{len(verdicts)} exercises checked again"},
        metadata={"bnbook-exercises": {"checked_again": verdicts}},
        raw=True,
    )
