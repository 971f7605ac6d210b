"""Values in words and digits, the same on every machine."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np

_SHOWN = 12  # values


def show(value: Any, digits: int = 4) -> str:
    """A value in a line or two: what is tiny beside the rest is written as 0."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.nn.Module):
        parts = len(list(value.children()))
        return f"a network of {parts} parts" if parts else repr(value)
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, tuple):
        return "(" + ", ".join(map(show, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, str | bool | int):
        return repr(value)
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(repr, value))) + "}"
    if callable(value):
        return getattr(value, "__name__", repr(value))
    array = np.asarray(value)
    if array.size > _SHOWN:
        return f"array of shape {array.shape}, {array.dtype}"
    if array.dtype.kind == "f":
        array = np.where(np.abs(array) < 1e-9 * np.abs(array).max(initial=0), 0, array) + 0.0
    if array.ndim == 0:
        return f"{array.item():.{digits}g}" if array.dtype.kind == "f" else repr(array.item())
    text = np.array2string(
        array, precision=digits - 1, separator=", ", floatmode="maxprec", suppress_small=True
    )
    return re.sub(r"\n\s*\n", "\n", re.sub(r"\n\s*\n", "\n", text))  # no empty lines between blocks


def labelled(label: str, text: str) -> str:
    """A text behind its label; further lines are indented."""
    return label + text.replace("\n", "\n" + " " * len(label))


def listed(names: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def the(part: str) -> str:
    """The name of a part at the start of a sentence."""
    return part[0].upper() + part[1:] if " " in part else part


def kind(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "None"
    name = type(value).__name__
    if callable(value) and not isinstance(value, type) and not hasattr(value, "state_dict"):
        name = "function"
    return f"{'an' if name[0] in 'aeiouAEIOU' or name == 'ndarray' else 'a'} {name}"


def described(value: Any) -> str:
    """What a value of numbers is, and how many it holds."""
    try:
        array = np.asarray(value)
    except ValueError:
        return f"{kind(value)} of rows of different lengths"
    if array.ndim == 0:
        return "a single number" if array.dtype.kind in "biuf" else kind(value)
    if isinstance(value, list | tuple):
        if array.ndim == 1:
            return f"{kind(value)} of {len(value)} number{'s' * (len(value) != 1)}"
        return f"{kind(value)} of shape {array.shape}"
    return f"an array of shape {array.shape}"
