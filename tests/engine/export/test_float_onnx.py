import copy

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from workbench.engine.errors import CaptureError, WrongState, WrongValue
from workbench.engine.export.float_onnx import to_onnx
from workbench.engine.graph.capture import capture
from workbench.engine.graph.folding import plan_folding

STANDARD = ("Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool")


def settle(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def run(model: ir.Model, *inputs: torch.Tensor) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))


def check(model: nn.Module, *inputs: torch.Tensor, fold: bool = True, batches=(1, 5)) -> ir.Model:
    """Convert, check the contract on names, and compare with torch at other batch sizes."""
    model = settle(model)
    captured = capture(model, inputs)
    made = to_onnx(captured, plan_folding(captured) if fold else None)
    for batch in batches:
        shaped = [torch.cat([x] * batch)[:batch] for x in inputs]
        shaped = [torch.randn_like(x) if x.is_floating_point() else x for x in shaped]
        with torch.no_grad():
            wanted = copy.deepcopy(model)(*shaped).numpy()
        (got,) = run(made, *shaped)
        assert np.abs(got - wanted).max() <= 1e-5 * max(np.abs(wanted).max(), 1e-3)
    nodes = list(ir.traversal.RecursiveGraphIterator(made.graph))
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names)
    assert all(node.domain == "" for node in nodes)
    by_name = {node.name: node for node in nodes}
    for name, info in captured.layers.items():
        if info.eligible:
            assert by_name[name].op_type in STANDARD
            if info.has_weight:
                assert by_name[name].inputs[1].name == f"{name}.weight"
                assert by_name[name].inputs[1].const_value is not None
    for tap in captured.taps:
        assert by_name[tap.key].op_type == {"add": "Add", "cat": "Concat"}[tap.op]
    if captured.dynamic_batch:
        assert made.graph.inputs[0].shape[0].value == "batch"
        assert made.graph.outputs[0].shape[0].value == "batch"
    return made


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        return self.fc(self.drop(torch.flatten(self.pool(self.relu(y)), 1)))


def test_a_residual_network_becomes_its_layers_and_nothing_else():
    made = check(Residual(), torch.randn(2, 3, 9, 9))
    assert operators(made) == [
        "Conv", "Relu", "Conv", "Add", "Relu", "GlobalAveragePool", "Flatten", "Gemm",
    ]  # fmt: skip
    assert [node.name for node in made.graph] == [
        "conv1", "relu#relu0", "conv2", "#add0", "relu#relu1", "pool#globalaveragepool0",
        "#flatten0", "fc",
    ]  # fmt: skip
    assert set(made.graph.initializers) == {
        f"{layer}.{part}" for layer in ("conv1", "conv2", "fc") for part in ("weight", "bias")
    }
    assert made.opset_imports[""] == 18
    assert [value.name for value in made.graph.inputs] == ["x"]


def test_unfolded_batchnorm_stays_apart_and_its_conv_has_no_bias():
    made = check(Residual(), torch.randn(2, 3, 9, 9), fold=False)
    assert operators(made).count("BatchNormalization") == 2
    by_name = {node.name: node for node in made.graph}
    assert len(by_name["conv1"].inputs) == 2
    folded = check(Residual(), torch.randn(2, 3, 9, 9))
    assert len(list(made.graph)) - len(list(folded.graph)) == 2


def test_batchnorm_at_the_end_keeps_the_outputs_name():
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)))
    captured = capture(model, torch.randn(2, 3, 4, 4))
    before = to_onnx(captured, None)
    after = to_onnx(captured, plan_folding(captured))
    assert [v.name for v in after.graph.outputs] == [v.name for v in before.graph.outputs]
    x = torch.randn(2, 3, 4, 4)
    np.testing.assert_allclose(run(before, x)[0], run(after, x)[0], atol=1e-5)


class Mixed(nn.Module):
    """Depthwise and grouped convolutions, a grouped transposed one, one- and three-dimensional."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, (3, 2), padding="same", groups=4, bias=False)
        self.point = nn.Conv2d(4, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1, groups=2, bias=False)
        self.line = nn.Conv1d(4, 4, 3, padding=1, bias=False)
        self.lift = nn.ConvTranspose1d(4, 4, 2, 2)
        self.volume = nn.Conv3d(1, 2, 2)
        self.head = nn.Conv1d(4, 2, 1)

    def forward(self, x):
        x = self.up(F.relu6(self.norm(self.point(self.depthwise(x)))))
        y = self.volume(x.unsqueeze(1)).mean((1, 2, 3, 4))
        return self.head(self.lift(self.line(x.flatten(2)))) + y[:, None, None]


def test_convolutions_of_every_kind():
    made = check(Mixed(), torch.randn(2, 4, 6, 7))
    by_name = {node.name: node for node in made.graph}
    assert by_name["up"].op_type == "ConvTranspose"
    assert len(by_name["up"].inputs) == 2
    assert by_name["line"].op_type == "Conv"
    assert by_name["volume"].op_type == "Conv"
    assert "norm.weight" not in made.graph.initializers


class Attention(nn.Module):
    def __init__(self, width=8, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, t, c))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = Attention()
        self.up, self.down = nn.Linear(8, 16, bias=False), nn.Linear(16, 8)
        self.act = nn.GELU()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.down(self.act(self.up(self.norm2(x))))
        return self.head(x[:, 0])


def test_a_vision_transformer():
    made = check(Transformer(), torch.randn(2, 3, 8, 8))
    by_name = {node.name: node for node in made.graph}
    assert by_name["up"].op_type == "MatMul"
    assert tuple(by_name["up"].inputs[1].shape) == (8, 16)
    assert by_name["head"].op_type == "Gemm"
    assert {"#cat0", "#add1", "#add2"} <= set(by_name)
    (user,) = [user for user, _ in by_name["down"].outputs[0].uses()]
    assert user.op_type == "Add"
    assert user.inputs[1].name == "down.bias"


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.rnn = nn.LSTM(4, 6, batch_first=True)
        self.norm = nn.GroupNorm(2, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = self.rnn(self.attention(x, x, x, need_weights=False)[0])[0]
        return self.head(self.norm(x.transpose(1, 2)).transpose(1, 2))


def test_layers_that_stay_float_still_export():
    check(Recurrent(), torch.randn(2, 5, 4))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1, bias=False)
        self.conv1 = nn.Conv2d(4, 4, 1)
        self.wide = nn.Linear(3, 3)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.wide.weight

    def forward(self, x):
        return self.tied(self.wide(self.conv(self.conv1(self.conv(x)))))


def test_reused_modules_and_tied_weights_keep_their_names_apart():
    made = check(Twice(), torch.randn(2, 4, 3, 3))
    names = [node.name for node in made.graph]
    assert names[:3] == ["conv#conv0", "conv1", "conv#conv1"]
    assert {"wide", "tied"} <= set(names)


class Renamed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.alias = self.first
        self.stem = nn.Conv2d(3, 4, 1)
        self.stem_alias = self.stem

    def forward(self, x):
        return self.alias(self.stem_alias(x).mean((2, 3)))


def test_a_module_run_under_its_second_name_keeps_its_first():
    made = check(Renamed(), torch.randn(2, 3, 4, 4))
    assert {"first.weight", "first.bias", "stem.weight", "stem.bias"} <= set(
        made.graph.initializers
    )


class Permuted(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.sizes = nn.ModuleList(nn.AdaptiveAvgPool2d(size) for size in (1, 3, (2, 5)))

    def forward(self, x):
        x = self.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return torch.cat([pool(x).flatten(1) for pool in self.sizes], 1)


def test_adaptive_pooling_of_a_permuted_tensor():
    made = check(Permuted(), torch.randn(2, 3, 6, 7))
    assert "GatherND" not in operators(made)
    assert "Gather" not in operators(made)
    assert operators(made).count("GlobalAveragePool") == 1


class Pools(nn.Module):
    def __init__(self):
        super().__init__()
        self.pools = nn.ModuleList(
            nn.AvgPool2d(kernel, stride, padding, ceil_mode, include, divisor)
            for kernel, stride, padding in ((3, 2, 1), (2, 2, 0), (3, 3, 1), ((3, 2), (1, 2), 0))
            for ceil_mode in (False, True)
            for include in (False, True)
            for divisor in (None, 3)
        )

    def forward(self, x):
        x = F.relu(x)
        return torch.cat([pool(x).flatten(1) for pool in self.pools], 1)


@pytest.mark.parametrize("size", [7, 8, 9])
def test_average_pooling(size):
    made = check(Pools(), torch.randn(2, 2, size, size + 1))
    kinds = {node.name: node.op_type for node in made.graph}
    assert all(kinds[f"pools.{index}"] == "AveragePool" for index in range(32))


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.BatchNorm2d(3, affine=False)
        self.batch = nn.BatchNorm2d(3, track_running_stats=False)
        self.flat = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.flat(self.batch(self.plain(x)).mean((2, 3)))


def test_every_form_of_batchnorm():
    check(Norms(), torch.randn(3, 3, 4, 4), batches=(2, 5))


class Views(nn.Module):
    """In-place writes that other names for the same memory can see."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        y = self.fc(x)
        half = y[:, :2]
        y.relu_()
        z = y.mul_(2)
        z.add_(1)
        return y + torch.cat([half, half], 1)


def test_in_place_writes_through_views():
    check(Views(), torch.randn(3, 4))


class Sizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 4)

    def forward(self, image, other):
        x = image.view(image.size(0), -1)
        return self.fc(x) + other


def test_inputs_bear_the_forwards_names_and_sizes_leave_no_shape_nodes():
    made = check(Sizes(), torch.randn(2, 3, 2, 2), torch.randn(2, 4))
    assert [value.name for value in made.graph.inputs] == ["image", "other"]
    assert operators(made) == ["Reshape", "Gemm", "Add"]


def test_names_and_axes(caplog):
    captured = capture(settle(Sizes()), (torch.randn(1, 3, 2, 2), torch.randn(1, 4)))
    made = to_onnx(
        captured, None, input_names=["a", "b"], output_names=["y"], dynamic_axes={"a": {0: "n"}}
    )
    assert [value.name for value in made.graph.inputs] == ["a", "b"]
    assert [value.name for value in made.graph.outputs] == ["y"]
    assert [str(value.shape[0].value) for value in made.graph.inputs] == ["n", "n"]
    assert caplog.messages == []
    made = to_onnx(captured, None, dynamic_axes={"a": {0: "n"}})
    assert [str(value.shape[0].value) for value in made.graph.inputs] == ["batch", "batch"]
    (message,) = caplog.messages
    assert message.startswith("dynamic_axes['a']: no input or output has this name; there are ima")
    for wrong in ({"input_names": [1]}, {"output_names": ["a", "b"]}, {"input_names": ["a", "a"]}):
        with pytest.raises(WrongState):
            to_onnx(captured, None, **wrong)
    for axes in ([0], {"a": {-1: "n"}}, {"a": {0: 3}}, {"a": "n"}, {1: [0]}):
        with pytest.raises(WrongState, match="dynamic_axes"):
            to_onnx(captured, None, dynamic_axes=axes)


def test_a_name_is_taken_from_what_lies_inside_but_from_no_weight_or_output():
    captured = capture(settle(Sizes()), (torch.randn(2, 3, 2, 2), torch.randn(2, 4)))
    plain = to_onnx(captured, None)
    inside = str(plain.graph[0].outputs[0].name)
    made = to_onnx(captured, None, input_names=[inside])
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    assert made.graph.inputs[0].name == inside
    for taken in ("fc.weight", "other", str(plain.graph.outputs[0].name)):
        with pytest.raises(WrongState, match=r"input_names\[0\]: the name .* is that of another"):
            to_onnx(captured, None, input_names=[taken])


def test_weights_are_replaced_after_folding():
    model = settle(Residual())
    captured = capture(model, torch.randn(2, 3, 9, 9))
    plan = plan_folding(captured)
    zero = {"conv2": torch.zeros(8, 8, 3, 3), "fc": torch.ones(5, 8)}
    made = to_onnx(captured, plan, weights=zero)
    stored = made.graph.initializers
    assert not stored["conv2.weight"].const_value.numpy().any()
    assert (stored["fc.weight"].const_value.numpy() == 1).all()
    np.testing.assert_allclose(stored["conv2.bias"].const_value.numpy(), plan.pairs[1].bias.numpy())
    assert model.fc.weight.detach().numpy().std() > 0
    with pytest.raises(WrongValue, match=r"weights\['conv2'\]"):
        to_onnx(captured, plan, weights={"conv2": torch.zeros(8, 8)})
    with pytest.raises(WrongValue, match="nothing"):
        to_onnx(captured, plan, weights={"nothing": torch.zeros(8, 8)})


def test_weights_of_a_matmul_are_given_in_the_modules_layout():
    captured = capture(settle(Transformer()), torch.randn(2, 3, 8, 8))
    weight = torch.randn(16, 8)
    made = to_onnx(captured, None, weights={"up": weight})
    stored = made.graph.initializers["up.weight"].const_value.numpy()
    np.testing.assert_array_equal(stored, weight.T.numpy())


def test_a_static_model_exports_at_its_batch():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 2)

        def forward(self, x):
            return self.fc(x.reshape(3, 8))

    check(Fixed(), torch.randn(3, 2, 4), batches=(3,))


def test_half_precision_stays_half():
    captured = capture(settle(Residual()).half(), torch.randn(2, 3, 9, 9, dtype=torch.float16))
    made = to_onnx(captured, plan_folding(captured))
    assert made.graph.inputs[0].dtype == ir.DataType.FLOAT16
    onnx.checker.check_model(ir.to_proto(made), full_check=True)


def test_an_operator_without_onnx_form_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return torch.linalg.eigvals(self.fc(x.unsqueeze(1) * x.unsqueeze(2))).abs()

    captured = capture(Odd(), torch.randn(2, 4))
    with pytest.raises(CaptureError, match="linalg_eig"):
        to_onnx(captured, None)


def test_nothing_is_printed_and_no_path_leaks(capfd):
    captured = capture(settle(Residual()), torch.randn(2, 3, 9, 9))
    text = ir.to_proto(to_onnx(captured, None)).SerializeToString()
    out = capfd.readouterr()
    assert out.out == ""
    assert out.err == ""
    assert b"test_float_onnx" not in text
