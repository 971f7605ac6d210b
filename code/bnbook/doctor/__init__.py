"""The doctor says what is wrong with the normalization in a network.

>>> from bnbook import doctor
>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8))
>>> [finding.kind for finding in doctor.examine(model, example=(1, 4)).findings]
['few-values', 'norm-at-output']

It needs PyTorch and nothing else, and works on PyTorch's norms and on what behaves like them.
"""

from bnbook.doctor._compare import compare
from bnbook.doctor._cures import Folded, fold, freeze, recompute, replace
from bnbook.doctor._examine import examine
from bnbook.doctor._files import examine_file
from bnbook.doctor._loop import watch
from bnbook.doctor._report import Finding, Report
from bnbook.doctor._rules import kinds

__all__ = [
    "Finding",
    "Folded",
    "Report",
    "compare",
    "examine",
    "examine_file",
    "fold",
    "freeze",
    "kinds",
    "recompute",
    "replace",
    "watch",
]
