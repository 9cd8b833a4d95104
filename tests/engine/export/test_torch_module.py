"""The torch form of the quantised network (chapter 20 section 4)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from workbench.engine.export.torch_module import FakeQuantLayer, to_fake_quant
from workbench.engine.files.record import LayerRecord, Record


def test_layers_by_the_formula_in_integers(make_case):
    case = make_case()
    module = to_fake_quant(case.module, case.record)
    torch.manual_seed(1)
    x = torch.randn(2, 3, 8, 8)
    entry = case.record.layers["conv"]
    inverse = torch.tensor(1.0) / torch.tensor(entry.scale_d)
    codes = torch.clamp(torch.round(x * inverse) + entry.offset_d, -128, 127) - entry.offset_d
    scale = torch.tensor(entry.scale_w).reshape(-1, 1, 1, 1)
    weight = torch.clamp(torch.round(case.module.conv.weight / scale), -128, 127)
    deq = torch.tensor(entry.scale_d) * scale.reshape(-1)
    bias = torch.round(case.module.conv.bias.double() / deq.double())
    total = nn.functional.conv2d(codes.long().double(), weight.double(), bias, padding=1)
    expected = total.float() * deq.reshape(1, -1, 1, 1)
    with torch.no_grad():
        assert torch.equal(module.conv(x), expected)


def test_shares_parameters_and_leaves_the_model_alone(make_case):
    case = make_case()
    before = copy.deepcopy(case.module.state_dict())
    module = to_fake_quant(case.module, case.record)
    with torch.no_grad():
        module(*case.inputs)
    assert not any(isinstance(m, FakeQuantLayer) for m in case.module.modules())
    assert module.conv.inner.weight is case.module.conv.weight
    after = case.module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_subset_and_attributes_of_the_wrapped_layer(make_case):
    case = make_case()
    module = to_fake_quant(case.module, case.record, names=("fc",))
    wrapped = [n for n, m in module.named_modules() if getattr(m, "workbench_wrapper", False)]
    assert wrapped == ["fc"]
    assert (module.fc.in_features, module.fc.out_features) == (96, 5)
    assert module.fc.weight is case.module.fc.weight
    assert module.fc.inner_type == "Linear"
    with pytest.raises(AttributeError):
        _ = module.fc.nothing_of_that_name
    again = copy.deepcopy(module)
    with torch.no_grad():
        assert torch.equal(again(*case.inputs), module(*case.inputs))


def test_offsets_saturate_like_the_operators(make_case):
    """Clamping to shifted bounds is the same as adding, clamping and subtracting."""
    case = make_case(nn.Sequential(nn.Linear(1, 1, bias=False)), (4, 1))
    with torch.no_grad():
        case.module[0].weight.fill_(1.0)
    record = Record({"0": LayerRecord(0.5, -100, (1.0,), (0,), act_type="INT8", wts_type="INT8")})
    module = to_fake_quant(case.module, record)
    x = torch.tensor([[-1e9], [-20.0], [0.25], [0.75], [1e9]])
    # codes: -128, -128, -100 (0.5 rounds to 0), -98 (1.5 rounds to 2), 127
    with torch.no_grad():
        assert module(x).flatten().tolist() == [-14.0, -14.0, 0.0, 1.0, 113.5]


def test_transposed_convolution_with_output_size():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2)
    scale = float(layer.weight.detach().abs().max()) / 127
    record = LayerRecord(0.02, 0, (scale,), (0,), act_type="INT8", wts_type="INT8")
    x = torch.randn(1, 4, 5, 5)
    wrapped = FakeQuantLayer(layer, "up", record)
    with torch.no_grad():
        y = wrapped(x, output_size=[10, 10])
        assert y.shape == (1, 6, 10, 10)
        assert torch.nn.functional.mse_loss(y, layer(x, output_size=[10, 10])) < 1e-4


def test_bias_that_overflows(make_case):
    case = make_case()
    with torch.no_grad():
        case.module.conv.bias[2] = 1e12
    with pytest.raises(RuntimeError, match="conv"):
        to_fake_quant(case.module, case.record)


@pytest.mark.parametrize(
    ("record", "word"),
    [
        (Record({"ghost": LayerRecord(0.1, 0, (0.1,), (0,))}), "ghost"),
        (Record({"conv": LayerRecord(scale_w=(0.1,), offset_w=(0,))}), "conv"),
        (Record({"relu": LayerRecord(0.1, 0, (0.1,), (0,))}), "ReLU"),
        (Record({"conv": LayerRecord(0.1, 0, (0.1, 0.2), (0, 0))}), "1 or 8"),
    ],
)
def test_refusals(make_case, record, word):
    case = make_case()
    with pytest.raises(RuntimeError, match=word):
        to_fake_quant(case.module, record)


def test_depthwise_and_dilated_convolution_against_float64():
    torch.manual_seed(2)
    layer = nn.Conv2d(6, 12, 3, stride=2, padding=2, dilation=2, groups=6)
    scales = layer.weight.detach().abs().flatten(1).amax(1) / 127
    record = LayerRecord(
        0.03, 5, tuple(scales.tolist()), (0,) * 12, act_type="INT8", wts_type="INT8"
    )
    x = torch.randn(2, 6, 9, 9)
    codes = (np.clip(np.rint(x.numpy() / np.float32(0.03)) + 5, -128, 127) - 5).astype(np.float64)
    with torch.no_grad():
        y = FakeQuantLayer(layer, "dw", record)(x)
        reference = layer.double()(torch.from_numpy(codes * np.float64(np.float32(0.03))))
    assert torch.allclose(y.double(), reference, atol=0.1)
    assert float((y.double() - reference).abs().mean()) < 0.01
