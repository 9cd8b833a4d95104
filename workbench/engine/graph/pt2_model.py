"""An exported program as a module tree of real layers (index decision 10).

Convolutions, linear layers, batch norms and average poolings become the torch modules they were,
at their paths; everything else stays the operator that the program names. The result is an
ordinary module: it can be captured, calibrated and exported like any other.
"""

from __future__ import annotations

import json
import operator
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from workbench.engine.errors import WrongValue
from workbench.engine.graph.layer_modules import LayerCall, build_layer, layer_call
from workbench.engine.graph.module_tree import ModuleTree
from workbench.engine.graph.pt2_archive import AGAIN, DTYPES, Pt2Archive, read_pt2

_OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_ARITHMETIC = (
    "getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "lt",
    "le", "gt", "ge",
)  # fmt: skip
_SYMBOLIC = ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not", "sym_ite")
_PYTHON = {f"_operator.{name}": getattr(operator, name) for name in _ARITHMETIC} | {
    f"torch.{name}": getattr(torch, name) for name in _SYMBOLIC
}
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}


def load_exported_program(path: str | Path) -> nn.Module:
    """The model of a ``.pt2`` file, in evaluation mode; nothing in the file is executed.

    Errors: those of ``read_pt2``, and ``WrongValue`` for operators outside ATen, listed with their
    counts, and for inputs that are nested.
    """
    archive = read_pt2(path)
    try:
        return _Rebuilding(archive).model()
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise WrongValue(
            f"the program in it is not understood ({type(error).__name__}: {error})",
            where=str(path),
            hint=AGAIN,
        ) from error


class _Rebuilding:
    def __init__(self, archive: Pt2Archive) -> None:
        self._archive = archive
        module = archive.program["graph_module"]
        self._graph = module["graph"]
        self._signature = module["signature"]
        self._call = module["module_call_graph"][0]["signature"]
        self._tree = ModuleTree(str(archive.path))
        self._values: dict[str, Any] = {}
        self._names: dict[str, str] = {}

    def model(self) -> nn.Module:
        self._refuse_operators()
        self._inputs()
        layers = self._find_layers()
        for position, node in enumerate(self._graph["nodes"]):
            self._node(node, layers.get(position))
        outputs = [
            self._argument(spec["user_output"]["arg"])
            for spec in self._signature["output_specs"]
            if "user_output" in spec
        ]
        return self._tree.finish(_structure(self._call.get("out_spec"), iter(outputs), outputs))

    def _refuse_operators(self) -> None:
        unknown = Counter(
            node["target"] for node in self._graph["nodes"] if _target(node["target"]) is None
        )
        if unknown:
            listed = ", ".join(f"{name} ({n}×)" for name, n in sorted(unknown.items()))
            raise self._wrong(
                f"operators that cannot be read: {listed}",
                "Only ATen operators are: leave custom operators and control flow out.",
            )

    def _inputs(self) -> None:
        if not _flat(self._call.get("in_spec")):
            raise self._wrong(
                "its inputs are nested", "Export a model whose inputs are plain tensors."
            )
        for given, spec in zip(self._graph["inputs"], self._signature["input_specs"], strict=True):
            ((kind, content),) = spec.items()
            if kind == "user_input":
                name = _name(given)
                self._values[name] = self._tree.input(name)
            elif kind in ("parameter", "buffer", "tensor_constant"):
                # Tensors enter the tree when something other than a layer reads them.
                self._names[_name(given)] = content[f"{kind}_name"]
            elif kind != "constant_input":
                raise self._wrong(f"an input of kind {kind!r} cannot be read", AGAIN)

    def _tensor(self, path: str) -> Tensor:
        found = self._archive.tensors.get(path)
        if found is None:
            raise self._wrong(f"tensor {path!r} is missing", AGAIN)
        return found

    def _find_layers(self) -> dict[int, tuple[str, LayerCall]]:
        """Position of a node -> the layer it is. A weight that is read otherwise makes none."""
        calls: dict[str, list[tuple[int, LayerCall]]] = defaultdict(list)
        readers: Counter[str] = Counter()
        for position, node in enumerate(self._graph["nodes"]):
            given = {entry["name"]: entry["arg"] for entry in node["inputs"]}
            readers.update(
                self._names[name] for name in _tensor_names(given.values()) if name in self._names
            )
            call = layer_call(node, given, self._names, self._rank)
            if call is not None and call.path:
                calls[call.path].append((position, call))
        layers = {}
        for path, found in calls.items():
            (_, first), *others = found
            owned = {name for name in self._archive.tensors if name.startswith(f"{path}.")}
            own = set(first.tensors.values())
            spare = {name for name in owned - own if name.endswith(".num_batches_tracked")}
            if (
                owned - spare == own
                and all(call == first for _, call in others)
                and all(readers[name] == len(found) for name in own)
            ):
                tensors = {role: self._tensor(name) for role, name in first.tensors.items()}
                self._tree.add_module(path, build_layer(first, tensors))
                layers.update({position: (path, call) for position, call in found})
        return layers

    def _rank(self, name: str) -> int:
        return len(self._graph["tensor_values"][name]["sizes"])

    def _node(self, node: Mapping[str, Any], layer: tuple[str, LayerCall] | None) -> None:
        if layer is not None:
            path, call = layer
            result = self._tree.call_module(path, self._value(call.input))
            self._values[_name(node["outputs"][0])] = result
            return
        args, kwargs = [], {}
        for entry in node["inputs"]:
            value = self._argument(entry["arg"])
            if entry.get("kind") == 2:
                kwargs[entry["name"]] = value
            else:
                args.append(value)
        target = _target(node["target"])
        assert target is not None
        self._outputs(node["outputs"], self._tree.call(target, tuple(args), kwargs))

    def _outputs(self, outputs: Sequence[Mapping[str, Any]], result: fx.Node) -> None:
        def part(index: int) -> fx.Node:
            return self._tree.call(operator.getitem, (result, index), {})

        if len(outputs) == 1 and "as_tensors" in outputs[0]:
            for index, each in enumerate(outputs[0]["as_tensors"]):
                self._values[each["name"]] = part(index)
        elif len(outputs) == 1:
            if "as_none" not in outputs[0]:
                self._values[_name(outputs[0])] = result
        else:
            for index, output in enumerate(outputs):
                if "as_none" not in output:
                    self._values[_name(output)] = part(index)

    def _value(self, name: str) -> Any:
        if name not in self._values:
            path = self._names[name]
            self._values[name] = self._tree.add_tensor(
                path, self._tensor(path), trained=path in self._archive.trained
            )
        return self._values[name]

    def _argument(self, argument: Mapping[str, Any]) -> Any:
        ((kind, value),) = argument.items()
        if kind == "as_none":
            return None
        if kind in ("as_tensor", "as_sym_int", "as_sym_bool", "as_sym_float"):
            return self._symbol(value)
        if kind in ("as_tensors", "as_sym_ints", "as_sym_bools", "as_sym_floats"):
            return [self._symbol(each) for each in value]
        if kind == "as_optional_tensor":
            return self._argument(value)
        if kind == "as_optional_tensors":
            return [self._argument(each) for each in value]
        if kind == "as_nested_tensors":
            return [[self._symbol(each) for each in group] for group in value]
        if kind == "as_scalar_type":
            return DTYPES[value]
        if kind == "as_memory_format":
            return _MEMORY_FORMATS[value]
        if kind == "as_layout":
            return torch.strided
        if kind == "as_device":
            return torch.device("cpu")
        if kind == "as_complex":
            return complex(value["real"], value["imag"])
        if kind in (
            "as_int", "as_ints", "as_float", "as_floats", "as_string", "as_strings", "as_bool",
            "as_bools", "as_int_lists", "as_float_lists",
        ):  # fmt: skip
            return _number(value)
        raise self._wrong(f"an argument of kind {kind!r} cannot be read", AGAIN)

    def _symbol(self, value: Mapping[str, Any]) -> Any:
        if "name" in value:
            return self._value(value["name"])
        ((kind, content),) = value.items()
        return self._value(content) if kind == "as_name" else _number(content)

    def _wrong(self, message: str, hint: str) -> WrongValue:
        return WrongValue(message, where=str(self._archive.path), hint=hint)


def _target(name: str) -> Any:
    """The operator of that name, None for all but ATen's and Python's arithmetic."""
    match = _OPERATOR.fullmatch(name)
    if match is None:
        return _PYTHON.get(name)
    packet = getattr(torch.ops.aten, match[1], None)
    return getattr(packet, match[2], None) if packet is not None else None


def _number(value: Any) -> Any:
    """Infinities and NaN are written as text."""
    if isinstance(value, list):
        return [_number(each) for each in value]
    if value in ("Infinity", "-Infinity", "NaN"):
        return float(value)
    return value


def _name(argument: Mapping[str, Any]) -> str:
    ((_, value),) = argument.items()
    return str(value["name"] if "name" in value else value["as_name"])


def _tensor_names(arguments: Any) -> Iterator[str]:
    for argument in arguments:
        for kind, value in argument.items():
            if kind == "as_tensor":
                yield value["name"]
            elif kind == "as_tensors":
                yield from (each["name"] for each in value)
            elif kind == "as_optional_tensor":
                yield from _tensor_names([value])
            elif kind == "as_optional_tensors":
                yield from _tensor_names(value)


def _spec(text: str | None) -> Mapping[str, Any] | None:
    loaded = json.loads(text) if text else None
    return loaded[1] if isinstance(loaded, list) and len(loaded) == 2 else None


def _flat(text: str | None) -> bool:
    """Whether arguments and keyword arguments are all plain values."""
    spec = _spec(text)
    if spec is None:
        return True
    return all(
        not leaf["children_spec"]
        for group in spec["children_spec"]
        for leaf in group["children_spec"]
    )


def _structure(text: str | None, leaves: Iterator[Any], flat: list[Any]) -> Any:
    """The outputs nested as the model gave them; a tuple in place of a class of its own."""

    def build(spec: Mapping[str, Any]) -> Any:
        kind, children = spec["type"], spec["children_spec"]
        if kind is None:
            return next(leaves)
        parts = [build(child) for child in children]
        if kind == "builtins.dict":
            return dict(zip(json.loads(spec["context"]), parts, strict=True))
        return parts if kind == "builtins.list" else tuple(parts)

    spec = _spec(text)
    return build(spec) if spec is not None else (flat[0] if len(flat) == 1 else tuple(flat))
