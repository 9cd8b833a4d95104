"""The QDQ file: ONNX Runtime must find integer kernels everywhere, and the right numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from workbench.engine.export.save import save_model
from workbench.engine.files.sidecar import Sidecar, TensorRange, write_sidecar


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.a = nn.Conv2d(inside, outside, 3, stride, 1)
        self.b = nn.Conv2d(outside, outside, 3, 1, 1)
        self.down = nn.Conv2d(inside, outside, 1, stride) if stride > 1 else nn.Identity()
        self.sum = nn.Identity()

    def forward(self, x):
        return torch.relu(self.sum(self.b(torch.relu(self.a(x))) + self.down(x)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.one, self.two = Block(8, 8), Block(8, 16, 2)
        self.fc = nn.Linear(16, 6)

    def forward(self, x):
        x = self.two(self.one(self.pool(torch.relu(self.stem(x)))))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.dw = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.pw = nn.Conv2d(16, 8, 1)
        self.act = nn.ReLU6()
        self.mean = nn.AvgPool2d(8)
        self.fc = nn.Linear(8 * 4, 4)

    def forward(self, x):
        x = self.act(self.pw(self.act(self.dw(self.act(self.stem(x) * 3)))))
        return self.fc(torch.flatten(self.mean(x), 1))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.cat = nn.Identity()
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        both = [torch.relu(self.a(x)), torch.relu(self.b(x))]
        return self.last(self.cat(torch.cat(both, 1)))


def with_taps(module, inputs):
    """Ranges of sums and concats, which the test nets pass through an Identity of that name."""
    ranges, counts = {}, Counter()
    hooks = []
    for name, child in module.named_modules():
        kind = {"sum": "add", "cat": "cat"}.get(name.rpartition(".")[2])
        if kind:
            key = f"#{kind}{counts[kind]}"
            counts[kind] += 1
            hooks.append(
                child.register_forward_hook(
                    lambda _m, _a, out, key=key: ranges.__setitem__(
                        key, TensorRange(float(out.min()), float(out.max()))
                    )
                )
            )
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    return ranges


@pytest.fixture
def quantize(make_case):
    """Build a case with taps, save it, and return it with the operators that ORT really runs."""

    def build(module, shape=(4, 3, 32, 32), options=None, **calibration):
        case = make_case(module, shape, **calibration)
        sidecar = Sidecar(
            ranges={**case.sidecar.ranges, **with_taps(case.module, case.inputs)},
            options=options or {},
        )
        write_sidecar(case.record_file, sidecar)
        save_model(case.onnx_file, case.record_file, case.save_path)
        onnx.checker.check_model(case.file("qdq"), full_check=True)
        return case, executed(case)

    return build


def executed(case) -> Counter:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    optimized = Path(case.folder) / "optimized.onnx"
    options.optimized_model_filepath = str(optimized)
    ort.InferenceSession(case.file("qdq"), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(optimized).graph.node)


def close(case, run_onnx, *, worst: float) -> None:
    """The QDQ file stays as near to the float network as fake-quant does, within a factor."""
    fake = run_onnx(case.file("fake_quant"), case.inputs)
    qdq = run_onnx(case.file("qdq"), case.inputs)
    assert np.abs(qdq - fake).max() <= worst * np.abs(fake).max()


FLOAT_OPS = {"Conv", "Add", "Concat", "Gemm", "Relu", "Clip", "AveragePool", "MaxPool", "FusedConv"}


@pytest.mark.parametrize("symmetric", [False, True])
def test_resnet_is_one_integer_island(quantize, run_onnx, symmetric):
    case, ops = quantize(ResNet(), symmetric=symmetric)
    assert ops["QLinearConv"] == 6
    assert ops["QLinearAdd"] == 2
    assert ops["QLinearGlobalAveragePool"] == 1
    assert ops["QGemm"] == 1
    assert not FLOAT_OPS & set(ops)
    assert ops["QuantizeLinear"] == 1
    assert ops["DequantizeLinear"] == 0
    close(case, run_onnx, worst=0.03)


def test_depthwise_net_and_relu6(quantize, run_onnx):
    case, ops = quantize(Depthwise())
    assert ops["QLinearConv"] == 3
    assert ops["QLinearAveragePool"] == 1
    assert ops["QGemm"] == 1
    close(case, run_onnx, worst=0.05)


def test_concat(quantize, run_onnx):
    case, ops = quantize(Concat())
    assert ops["QLinearConv"] == 3
    assert ops["QLinearConcat"] == 1
    assert not FLOAT_OPS & set(ops)
    close(case, run_onnx, worst=0.05)


def test_rolled_back_layer_stays_float(quantize, run_onnx):
    case, ops = quantize(ResNet(), skip=("two.a", "fc"))
    assert ops["Conv"] + ops["FusedConv"] == 1
    assert ops["QLinearConv"] == 5
    assert ops["Gemm"] + ops["FusedGemm"] == 1
    assert ops["QGemm"] == 0
    close(case, run_onnx, worst=0.03)


def test_rolled_back_neighbours_leave_no_stray_pairs(quantize):
    case, ops = quantize(ResNet(), skip=("stem", "one.a", "one.b", "two.a", "two.b", "two.down"))
    graph = onnx.load(case.file("qdq")).graph
    pairs = Counter(n.op_type for n in graph.node)
    assert pairs["QuantizeLinear"] == 1
    assert ops["QGemm"] == 1
    assert ops["QLinearAdd"] == 0


def test_weights_and_biases_are_the_records_integers(quantize):
    case, _ = quantize(ResNet())
    tensors = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(case.file("qdq")).graph.initializer
    }
    entry = case.record.layers["stem"]
    scale = np.asarray(entry.scale_w, np.float32)
    weight = case.module.stem.weight.detach().numpy()
    codes = np.rint(weight / scale.reshape(-1, 1, 1, 1)).astype(int)
    assert np.array_equal(tensors["stem.weight_quantized"].astype(int) - 128, codes)
    assert np.array_equal(tensors["stem.weight_scale"], scale)
    assert set(tensors["stem.weight_zero_point"].tolist()) == {128}
    assert np.array_equal(tensors["stem.bias_scale"], np.float32(entry.scale_d) * scale)
    assert tensors["stem.bias_quantized"].dtype == np.int32
    assert np.array_equal(tensors["x_scale"], np.float32(entry.scale_d))
    assert int(tensors["x_zero_point"]) == entry.offset_d + 128


def test_int8_weights_on_request(quantize):
    case, ops = quantize(ResNet(), options={"qdq_weights": "int8"})
    assert ops["QLinearConv"] == 6
    graph = onnx.load(case.file("qdq")).graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    assert kinds["stem.weight_quantized"] == onnx.TensorProto.INT8


def test_unknown_weight_option(quantize):
    with pytest.raises(ValueError, match="qdq_weights"):
        quantize(ResNet(), options={"qdq_weights": "int4"})


@pytest.mark.parametrize("bits", [4, 16])
def test_other_widths_use_opset_21(quantize, run_onnx, bits):
    case, _ = quantize(ResNet(), act_bits={"one.a": bits})
    model = onnx.load(case.file("qdq"))
    assert model.opset_import[0].version == 21
    kind = {4: onnx.TensorProto.INT4, 16: onnx.TensorProto.INT16}[bits]
    zero = next(t for t in model.graph.initializer if t.name == "one.a.input_zero_point")
    assert zero.data_type == kind
    close(case, run_onnx, worst=0.3 if bits == 4 else 0.03)


def test_small_net_with_grouped_transposed_convolution(quantize, run_onnx, small_net):
    case, ops = quantize(small_net(), (4, 3, 8, 8))
    assert ops["QLinearConv"] == 1
    assert ops["ConvTranspose"] == 1
    close(case, run_onnx, worst=0.05)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.two(torch.relu(self.one(x)))


def test_matmul(quantize, run_onnx):
    case, ops = quantize(Tokens(), (2, 5, 8))
    assert ops["MatMulIntegerToFloat"] + ops["QLinearMatMul"] == 2
    assert ops["MatMul"] == 0
    close(case, run_onnx, worst=0.02)
