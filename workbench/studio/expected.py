"""What a model wants as inputs: names, shapes and types, from the file or the module alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from workbench.engine.errors import WrongValue


@dataclass(frozen=True)
class ExpectedInput:
    """One input. ``shape`` with 0 where any size will do, None where nothing is known of it."""

    name: str
    shape: tuple[int, ...] | None = None
    dtype: str = ""

    @property
    def words(self) -> str:
        """``x: any×3×224×224, float32``."""
        parts = [] if self.shape is None else [shape_text(self.shape)]
        return f"{self.name}: {', '.join(parts + [self.dtype] * bool(self.dtype))}".rstrip(": ")


def shape_text(shape: Sequence[int]) -> str:
    return "×".join(str(size) if size else "any" for size in shape) or "one number"


def expected_of_file(path: Path) -> tuple[ExpectedInput, ...]:
    """Inputs of a ``.onnx`` or ``.pt2`` file or a folder of ``transformers``; no weight is read.

    Errors: those of the readers of these files.
    """
    if path.is_dir():
        return _of_config(path / "config.json")
    return _of_onnx(path) if path.suffix == ".onnx" else _of_program(path)


def _of_onnx(path: Path) -> tuple[ExpectedInput, ...]:
    import onnx

    from workbench.engine.graph.onnx_source import external_locations

    external_locations(path)  # says what is wrong with a file that is none
    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    found = []
    for value in graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        shape = None
        if kind.HasField("shape"):
            shape = tuple(d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim)
        try:
            numpy_type = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        except KeyError:  # undefined, or of a later version
            found.append(ExpectedInput(value.name, shape, ""))
        else:
            found.append(ExpectedInput(value.name, shape, numpy_type.name))
    return tuple(found)


def _of_program(path: Path) -> tuple[ExpectedInput, ...]:
    from workbench.engine.graph.pt2_archive import DTYPES, read_program

    program = read_program(path)
    try:
        module = program["graph_module"]
        values = module["graph"]["tensor_values"]
        found = []
        for given, spec in zip(
            module["graph"]["inputs"], module["signature"]["input_specs"], strict=True
        ):
            if "user_input" not in spec or "as_tensor" not in given:
                continue
            name = given["as_tensor"]["name"]
            sizes = tuple(int(size.get("as_int", 0)) for size in values[name]["sizes"])
            dtype = DTYPES.get(values[name]["dtype"])
            found.append(ExpectedInput(name, sizes, str(dtype or "").removeprefix("torch.")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WrongValue(
            f"the program in it is not understood ({type(error).__name__}: {error})",
            where=str(path),
        ) from error
    return tuple(found)


def _of_config(path: Path) -> tuple[ExpectedInput, ...]:
    try:
        config: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WrongValue(f"it cannot be read ({error})", where=str(path)) from error
    if isinstance(config, dict) and isinstance(config.get("image_size"), int):
        size, channels = config["image_size"], int(config.get("num_channels", 3))
        return (ExpectedInput("pixel_values", (0, channels, size, size), "float32"),)
    return (ExpectedInput("input_ids", (0, 0), "int64"),)


def model_channels(model: nn.Module) -> int:
    """Channels of the pictures a model takes: of its first convolution; 3 if it has none."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def expected_of_model(model: nn.Module, names: Sequence[str]) -> tuple[ExpectedInput, ...]:
    """What a module gives away of its one input by the first layer with weights; else the names."""
    layer = next(
        (m for m in model.modules() if next(m.parameters(recurse=False), None) is not None), None
    )
    if len(names) != 1 or layer is None:
        return ()
    if isinstance(layer, nn.Conv2d):
        return (ExpectedInput(names[0], (0, layer.in_channels, 0, 0), _dtype(layer)),)
    if isinstance(layer, nn.Embedding):
        return (ExpectedInput(names[0], None, "int64"),)
    return (ExpectedInput(names[0], None, _dtype(layer)),)


def _dtype(layer: nn.Module) -> str:
    return str(next(layer.parameters()).dtype).removeprefix("torch.")


def mismatch(expected: Sequence[ExpectedInput], given: Sequence[Tensor]) -> str:
    """What of a batch does not fit, in words; empty where nothing is known to be wrong.

    ``input `x` wants 3×224×224, the data has 224×224×3: transpose?``. The first dimension counts
    samples.
    """
    if expected and len(given) != len(expected):
        wanted = ", ".join(f"`{one.name}`" for one in expected)
        return f"the model wants {len(expected)} inputs ({wanted}), the data has {len(given)}"
    said = []
    for one, x in zip(expected, given, strict=False):
        actual = tuple(x.shape)
        if one.shape is not None and not _fits(one.shape, actual):
            head = f"input `{one.name}` wants {shape_text(one.shape[1:])}"
            said.append(
                f"{head}, the data has {shape_text(actual[1:])}{_advice(one.shape, actual)}"
            )
        dtype = str(x.dtype).removeprefix("torch.")
        if one.dtype and one.dtype != dtype:
            said.append(f"input `{one.name}` wants {one.dtype}, the data has {dtype}: convert?")
    return "; ".join(said)


def _fits(wanted: Sequence[int], actual: Sequence[int]) -> bool:
    if len(wanted) != len(actual):
        return False
    return all(w in (0, a) for w, a in zip(wanted[1:], actual[1:], strict=True))


def _advice(wanted: Sequence[int], actual: Sequence[int]) -> str:
    if len(wanted) == len(actual) == 4:
        channels, height, width = wanted[1:]
        turned = (actual[3], actual[1], actual[2])
        if _fits(wanted, (0, *turned)):
            return ": transpose?"
        if actual[1] == channels or not channels:
            return f": resize or crop to {height}×{width}?" if height and width else ""
        if {channels, actual[1]} == {1, 3}:
            return ": grey or colour?"
    if len(wanted) == len(actual) + 1:
        return ": is the dimension of the samples or the channels missing?"
    return ""
