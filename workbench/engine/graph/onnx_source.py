"""Reading an ONNX file as a model to work on: checked, its tensors inside its own folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import external_data_helper, inliner, numpy_helper, shape_inference

from workbench.engine.errors import MissingFile, WrongValue

OLDEST_OPSET = 11
MAX_LOCATION = 1024
Array = NDArray[Any]


@dataclass(frozen=True)
class OnnxSource:
    """``nodes`` in order; ``constants`` by name; ``ranks`` and ``shapes`` of what is known.

    In ``shapes`` a dimension that is not fixed is 0. ``opset`` is that of the default domain.
    """

    path: Path
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]


def read_onnx(path: str | Path) -> OnnxSource:
    """Read and check a model file.

    Errors: ``MissingFile``; ``WrongValue`` for what is no valid ONNX model, for external data that
    lies outside the file's folder, and for an opset before 11.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingFile("there is no such file", where=str(file), hint="Check the path.")
    try:
        model = onnx.load(str(file), load_external_data=False)
    except DecodeError as error:
        raise _wrong(file, f"it is not an ONNX file ({error})") from error
    _check_external(file, model)
    try:
        onnx.checker.check_model(str(file))
        external_data_helper.load_external_data_for_model(model, str(file.parent))
    except (onnx.checker.ValidationError, OSError, ValueError, RuntimeError) as error:
        raise _wrong(file, f"it is not valid: {_first_line(error)}") from error
    if model.functions:
        model = inliner.inline_local_functions(model)
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        hint = "Convert it with onnx.version_converter, or export it again."
        raise _wrong(file, f"its opset is {opset}; {OLDEST_OPSET} and later are read", hint)
    graph = model.graph
    constants = {t.name: _array(file, t) for t in graph.initializer}
    return OnnxSource(
        path=file,
        opset=opset,
        inputs=tuple(i.name for i in graph.input if i.name not in constants),
        outputs=tuple(o.name for o in graph.output),
        nodes=tuple(graph.node),
        constants=constants,
        shapes=dict(_shapes(model)),
    )


def _array(file: Path, tensor: onnx.TensorProto) -> Array:
    try:
        return numpy_helper.to_array(tensor)
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(file, f"the tensor {tensor.name[:80]!r} is not valid ({error})") from error


def refuse_operators(source: OnnxSource, known: Mapping[str, object]) -> None:
    """``WrongValue`` that lists every operator not in ``known``, with its count."""
    unknown = Counter(
        f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for node in source.nodes
        if node.op_type not in known or node.domain not in ("", "ai.onnx")
    )
    if unknown:
        listed = ", ".join(f"{name} ({n}×)" for name, n in sorted(unknown.items()))
        hint = "Open the model that the file was exported from."
        raise _wrong(source.path, f"operators that cannot be read: {listed}", hint)


def external_locations(path: str | Path) -> list[str]:
    """Names of the files, relative to the model's folder, that hold its external tensors.

    Errors: ``MissingFile``; ``WrongValue`` for what is no ONNX file and for a place outside the
    folder.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingFile("there is no such file", where=str(file), hint="Check the path.")
    try:
        model = onnx.load(str(file), load_external_data=False)
    except DecodeError as error:
        raise _wrong(file, f"it is not an ONNX file ({error})") from error
    return _check_external(file, model)


def _check_external(file: Path, model: onnx.ModelProto) -> list[str]:
    folder = os.path.realpath(file.parent)
    found = []
    for tensor in external_data_helper._get_all_tensors(model):
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            if "\0" in entry.value or len(os.fsencode(entry.value)) > MAX_LOCATION:
                raise _wrong(file, f"the data of {tensor.name[:80]!r} has no possible file name")
            target = os.path.realpath(os.path.join(folder, entry.value))
            if os.path.commonpath([folder, target]) != folder or os.path.isabs(entry.value):
                raise _wrong(
                    file,
                    f"the data of {tensor.name!r} is said to be in {entry.value!r}, "
                    "outside the folder of the file",
                )
            found.append(entry.value)
    return list(dict.fromkeys(found))


def _shapes(model: onnx.ModelProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    try:
        graph = shape_inference.infer_shapes(model).graph
    except Exception:  # shapes help, they are not needed
        graph = model.graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            yield value.name, tuple(d.dim_value if d.HasField("dim_value") else 0 for d in dims)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes as Python values; tensors as arrays."""
    found = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = numpy_helper.to_array(value)
        elif isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif attribute.type == onnx.AttributeProto.FLOAT:
            value = float(np.float32(value))
        found[attribute.name] = value
    return found


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _wrong(file: Path, message: str, hint: str = "Check where the file comes from.") -> WrongValue:
    return WrongValue(message, where=str(file), hint=hint)
