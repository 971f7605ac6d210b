"""Read the norms in a file without the model's code: state dicts, safetensors, ONNX. Nothing is executed."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnbook.doctor._examine import _examine_state, _findings, _report
from bnbook.doctor._norms import Norm
from bnbook.doctor._report import Finding, Report
from bnbook.doctor._rules import Case, see

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")


def examine_file(path: str | os.PathLike[str]) -> Report:
    """Examine ``.onnx``, ``.safetensors``, or a state dict of ``torch.save``.

    Only tensors and plain containers are read from a pickle. A file that wants to run code is refused.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"file: {path} {'is no file' if path.exists() else 'does not exist'}")
    if path.suffix == ".onnx":
        return _examine_onnx(path)
    if path.suffix == ".safetensors":
        return _examine_state(_safetensors(path))
    if path.suffix in PICKLES:
        return _examine_state(_pickle(path))
    raise ValueError(f"file: got {path.name}, allowed are .onnx, .safetensors, {', '.join(PICKLES)}")


def _pickle(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of a TorchScript archive before it refuses it
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        OSError,  # a zip that was cut
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
    ) as error:
        reason = str(error).strip().split("\n")[0]
        wants = next(
            (line.strip() for line in str(error).split("\n") if "GLOBAL" in line or "TorchScript" in line), ""
        )
        raise ValueError(
            f"file: {path.name} was not read, and nothing in it was executed: it is no plain state dict. "
            f"{wants or reason} Save model.state_dict() instead."
        ) from error
    found = dict(_flat(content))
    if not found:
        raise ValueError(f"file: {path.name} holds no tensors")
    return found


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested containers, under joined names; optimizers' state is left out."""
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            if "optim" not in str(key):
                yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))


def _safetensors(path: Path) -> dict[str, Tensor]:
    """The length of a JSON header, the header, and raw bytes: so little that it needs no package."""
    try:
        content = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(content[8:start])
        found = dict[str, Tensor]()
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] in _DTYPES:
                begin, end = (start + offset for offset in entry["data_offsets"])
                dtype = _DTYPES[entry["dtype"]]
                flat = torch.frombuffer(content[begin:end], dtype=dtype) if end > begin else torch.empty(0)
                found[name] = flat.reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"file: {path.name} is no whole safetensors file ({reason})") from error
    return found


def _examine_onnx(path: Path) -> Report:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise ValueError("file: reading .onnx needs a package: pip install onnx") from None
    try:
        model = onnx.load(path)
        graph = model.graph
        if not graph.node:  # an empty file is a valid message without content
            raise ValueError("it holds no graph")
        numbers = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:  # PaddleOCR's exports keep parameters in Constant nodes
            if node.op_type == "Constant":
                numbers.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
        tensors = {name: torch.tensor(numpy_helper.to_array(tensor)) for name, tensor in numbers.items()}
    except Exception as error:
        raise ValueError(
            f"file: {path.name} is no ONNX model ({type(error).__name__}: {error})"[:300]
        ) from error
    found, training = list[Norm](), list[str]()
    for index, node in enumerate(n for n in graph.node if n.op_type == "BatchNormalization"):
        attributes = {attribute.name: attribute for attribute in node.attribute}
        name = node.name or f"BatchNormalization {index}"
        gamma, beta, mean, var = (tensors.get(entry) for entry in list(node.input)[1:5])
        eps = attributes["epsilon"].f if "epsilon" in attributes else 1e-5
        found.append(Norm(name, "batch", None, mean, var, gamma, beta, eps, None, None, False, True))
        if "training_mode" in attributes and attributes["training_mode"].i:
            training.append(name)
    case = Case(None, found)
    case.not_examined.append(("momentum, shapes, activations", "an ONNX file was read, not run"))
    others = sorted(
        {n.op_type for n in graph.node if n.op_type.endswith("Normalization")} - {"BatchNormalization"}
    )
    if others:
        case.not_examined.append((", ".join(others), "they keep no statistics that could be wrong"))
    findings = list(_findings(case))
    if training:
        findings.append(
            Finding(
                "exported-in-training",
                "error",
                training[0],
                {"training_mode": 1, "nodes": len(training), "of": len(found)},
                "The model was exported in training mode: it normalizes with the batch that it is given.",
                "torch.onnx.export(model.eval(), ...)",
                see("exported-in-training"),
                tuple(training),
            )
        )
    elif found:
        findings.append(
            Finding(
                "not-folded",
                "note",
                found[0].name,
                {"batch norms": len(found)},
                "These batch norms were not folded into the layer before; most runtimes do that on loading.",
                "doctor.fold(model, example) before the export",
                see("not-folded"),
                tuple(norm.name for norm in found),
            )
        )
    return _report(case, findings, (), None)
