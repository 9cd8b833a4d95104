"""Small float ONNX files as ``quantize_model`` would leave them, with a matching record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from workbench.engine.files.record import LayerRecord, Record, write_record
from workbench.engine.files.sidecar import Sidecar, TensorRange, write_sidecar

TYPES = {nn.Conv2d: "Conv", nn.ConvTranspose2d: "ConvTranspose", nn.AvgPool2d: "AveragePool"}
AXIS = {"Conv2d": 0, "Linear": 0, "ConvTranspose2d": 1}


class SmallNet(nn.Module):
    """Conv -> ReLU -> grouped ConvTranspose -> AvgPool -> Linear (section 15, Files 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.pool = nn.AvgPool2d(4)
        self.fc = nn.Linear(6 * 4 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.pool(self.up(self.relu(self.conv(x)))), 1))


@dataclass
class Case:
    """A module, its calibrated record, and both as files."""

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    record: Record
    sidecar: Sidecar
    folder: Path

    @property
    def onnx_file(self) -> str:
        return str(self.folder / "modified.onnx")

    @property
    def record_file(self) -> str:
        return str(self.folder / "record.txt")

    @property
    def save_path(self) -> str:
        return str(self.folder / "out" / "net")

    def file(self, kind: str) -> str:
        return str(self.folder / "out" / f"net_{kind}_model.onnx")

    def change(self, layer: str, **fields: Any) -> None:
        layers = dict(self.record.layers)
        layers[layer] = replace(layers[layer], **fields)
        self.record = Record(layers)
        write_record(self.record_file, self.record)


def _run_onnx(path: str | bytes, inputs: tuple[torch.Tensor, ...]) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        path,
        options,
        providers=["CPUExecutionProvider"],
        # Folding the dequantisation into the weight would make the integer products inexact.
        disabled_optimizers=["ConvMulFusion"],
    )
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feed)[0]


def weight_scale(weight: torch.Tensor, kind: str, groups: int, bits: int) -> torch.Tensor:
    """Largest magnitude over the top level, per output channel for convolutions."""
    top = 2 ** (bits - 1) - 1
    if kind == "Linear":
        return weight.abs().max().reshape(1) / top
    if kind == "ConvTranspose2d":
        per_group = weight.reshape(groups, -1, *weight.shape[1:]).abs().amax(dim=(1, 3, 4))
        return per_group.reshape(-1) / top
    return weight.abs().flatten(1).amax(1) / top


def spread(scale: torch.Tensor, weight: torch.Tensor, kind: str, groups: int) -> torch.Tensor:
    """The scale of every element of ``weight``."""
    full = torch.empty_like(weight)
    for index in range(scale.numel() if scale.numel() > 1 else 0):
        if kind == "ConvTranspose2d":
            per = weight.shape[1]
            rows = weight.shape[0] // groups
            group, column = divmod(index, per)
            full[group * rows : (group + 1) * rows, column] = scale[index]
        else:
            full[index] = scale[index]
    return full.fill_(scale.item()) if scale.numel() == 1 else full


def calibrate(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    *,
    skip: tuple[str, ...] = (),
    act_bits: dict[str, int] | None = None,
    wts_bits: dict[str, int] | None = None,
    symmetric: bool = False,
) -> tuple[nn.Module, Record, dict[str, TensorRange]]:
    """Min-max calibration: the module with grid weights, its record and every module's range."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    hooks = [
        m.register_forward_hook(
            lambda _m, args, out, name=name: seen.__setitem__(name, (args[0], out))
        )
        for name, m in module.named_modules()
        if not list(m.children())
    ]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    layers: dict[str, LayerRecord] = {}
    ranges = {"input:x": bounds(inputs[0])}
    with torch.no_grad():
        for name, m in module.named_modules():
            kind = type(m).__name__
            if name not in seen or kind not in (*AXIS, "AvgPool2d"):
                continue
            ranges[name] = bounds(seen[name][1])
            if name in skip:
                continue
            bits = (act_bits or {}).get(name, 8)
            low, high = min(0.0, seen[name][0].min()), max(0.0, seen[name][0].max())
            if symmetric:
                scale = np.float32(max(-low, high) / (2 ** (bits - 1) - 1))
                offset = 0
            else:
                scale = np.float32((high - low) / (2**bits - 1))
                offset = int(-np.rint(low / scale) - 2 ** (bits - 1))
            wide = (wts_bits or {}).get(name, 8)
            scales, wts_type = torch.ones(1), None
            if kind in AXIS:
                groups = getattr(m, "groups", 1)
                scales = weight_scale(m.weight, kind, groups, wide)
                full = spread(scales, m.weight, kind, groups)
                m.weight.copy_(torch.round(m.weight / full) * full)
                wts_type = f"INT{wide}"
            layers[name] = LayerRecord(
                scale_d=float(scale),
                offset_d=offset,
                scale_w=tuple(float(s) for s in scales),
                offset_w=(0,) * scales.numel(),
                act_type=f"INT{bits}",
                wts_type=wts_type,
            )
    return module, Record(layers), ranges


def bounds(x: torch.Tensor) -> TensorRange:
    return TensorRange(float(x.min()), float(x.max()))


def _export_float(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, *, dynamic: bool = True
) -> None:
    """Write the float file and name the nodes by module path, in execution order of each type."""
    order: list[tuple[str, nn.Module]] = []
    hooks = [
        m.register_forward_hook(lambda m, _a, _o, name=name: order.append((name, m)))
        for name, m in module.named_modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.AvgPool2d | nn.Linear)
    ]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    torch.onnx.export(
        module,
        inputs,
        str(path),
        dynamo=False,
        opset_version=18,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "n"}} if dynamic else None,
    )
    model = ir.load(path)
    counts: dict[str, int] = {}
    for node in model.graph:
        matches = [
            name
            for name, m in order
            if node.op_type == TYPES.get(type(m))
            or (isinstance(m, nn.Linear) and node.op_type in ("Gemm", "MatMul"))
        ]
        if matches:
            node.name = matches[0]
            order = [pair for pair in order if pair[0] != matches[0]]
            half = next(module.parameters()).dtype == torch.float16
            node.attributes["op_data_type"] = ir.AttrString(
                "op_data_type", "float16" if half else "float"
            )
        else:
            kind = {"Add": "add", "Concat": "cat"}.get(node.op_type, node.op_type.lower())
            number = counts.setdefault(kind, 0)
            counts[kind] += 1
            node.name = f"#{kind}{number}"
    ir.save(model, path)


@pytest.fixture
def make_case(tmp_path: Path) -> Callable[..., Case]:
    def make(
        module: nn.Module | None = None, shape: tuple[int, ...] = (4, 3, 8, 8), **options: Any
    ) -> Case:
        torch.manual_seed(0)
        module = (module or SmallNet()).eval()
        inputs = (torch.randn(*shape),)
        taps = options.pop("taps", {})
        module, record, ranges = calibrate(module, inputs, **options)
        sidecar = Sidecar(ranges={**ranges, **taps})
        case = Case(module, inputs, record, sidecar, tmp_path)
        _export_float(module, inputs, tmp_path / "modified.onnx")
        write_record(case.record_file, record)
        write_sidecar(case.record_file, sidecar)
        return case

    return make


@pytest.fixture
def small_net() -> type[nn.Module]:
    return SmallNet


@pytest.fixture
def run_onnx() -> Callable[..., np.ndarray]:
    return _run_onnx


@pytest.fixture
def export_float() -> Callable[..., None]:
    return _export_float
