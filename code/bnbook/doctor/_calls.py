"""How a batch becomes a call of the model: unpacking, moving, and reading what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bnbook.doctor._norms import clean

_LABELS = ("labels", "label", "targets", "target", "y")

Pick = int | str | list[Any] | tuple[Any, ...] | Callable[[Any], Any] | None


class ForwardFailed(RuntimeError):
    """A forward pass raised: which batch, in which module, and what."""

    def __init__(self, batch: int, module: str, error: Exception) -> None:
        super().__init__(
            f"batch {batch}: the forward pass failed in {module or 'the model'}: {_first_line(error)}"
        )
        self.batch, self.module, self.error = batch, module, error


@dataclasses.dataclass(frozen=True)
class Caller:
    """Calls the model on a batch as its loader gives it.

    Attributes
    ----------
    inputs, labels : int, str, list of these, callable or None
        Which part of a batch goes into the model, and which is the label. By default a tensor is the input;
        of a tuple the first entry is the input and the second the label; a mapping is passed by keyword
        without what is called labels or target.
    forward : callable or None
        ``forward(model, batch)``, in place of all this.
    """

    inputs: Pick = None
    labels: Pick = None
    forward: Callable[[nn.Module, Any], Any] | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """Output of the model for a batch."""
        if self.forward is not None:
            return self.forward(model, batch)
        given = self._input(batch)
        if isinstance(given, Mapping):
            return model(**given)
        return model(*given) if isinstance(given, list | tuple) else model(given)

    def _input(self, batch: Any) -> Any:
        if self.inputs is not None:
            return _pick(batch, self.inputs, "inputs")
        if isinstance(batch, Mapping):
            return {key: value for key, value in batch.items() if key not in _LABELS}
        return batch[0] if isinstance(batch, list | tuple) and batch else batch

    def labels_of(self, batch: Any) -> Tensor | None:
        """The labels in a batch, None if there are none."""
        if self.labels is not None:
            found = _pick(batch, self.labels, "labels")
        elif isinstance(batch, Mapping):
            found = next((batch[key] for key in _LABELS if key in batch), None)
        else:
            found = batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
        return found if isinstance(found, Tensor) and found.ndim > 0 else None


def _pick(batch: Any, pick: Any, name: str) -> Any:
    try:
        if callable(pick):
            return pick(batch)
        return [batch[key] for key in pick] if isinstance(pick, list | tuple) else batch[pick]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{name}: got {pick!r}, but a batch is a {type(batch).__name__} without it"
        ) from error


def tensors(structure: Any) -> Iterator[Tensor]:
    """All tensors in a nested structure, in order."""
    if isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, Mapping):
        for value in structure.values():
            yield from tensors(value)
    elif isinstance(structure, list | tuple):
        for value in structure:
            yield from tensors(value)
    elif dataclasses.is_dataclass(structure) and not isinstance(structure, type):
        yield from tensors([getattr(structure, f.name) for f in dataclasses.fields(structure)])


def mapped(structure: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with each tensor changed."""
    if isinstance(structure, Tensor):
        return change(structure)
    if isinstance(structure, Mapping):
        changed = {key: mapped(value, change) for key, value in structure.items()}
        return changed if type(structure) is dict else _like(structure, changed)
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(mapped(value, change) for value in structure))
    if isinstance(structure, list | tuple):
        return type(structure)(mapped(value, change) for value in structure)
    return structure


def _like(mapping: Mapping[Any, Any], changed: dict[Any, Any]) -> Any:
    """A mapping of the same class where it can be made from a dict (transformers' BatchEncoding can)."""
    try:
        return type(mapping)(changed)  # type: ignore[call-arg]
    except TypeError:
        return changed


def examples(batch: Any) -> int:
    """Number of examples: the length of the first tensor."""
    return next((len(tensor) for tensor in tensors(batch) if tensor.ndim), 0)


def logits(output: Any, n: int) -> Tensor | None:
    """The part of an output that is compared: ``logits`` if it is called so, else the first of n rows."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    for tensor in tensors([named, output]):
        if tensor.is_floating_point() and tensor.ndim and len(tensor) == n:
            return tensor
    return None


def hookable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with their names, without those that TorchScript runs by itself."""
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield clean(name), module


def device_of(model: nn.Module) -> torch.device:
    """Where the model is."""
    everything = [*model.parameters(), *model.buffers()]
    return everything[0].device if everything else torch.device("cpu")


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}"
