"""The files of ``save_model`` (chapter 10 sections 13 and 15)."""

from __future__ import annotations

import logging
import stat
import struct
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from workbench.engine.errors import Cancelled
from workbench.engine.events import CancelToken, FileWritten
from workbench.engine.export import external
from workbench.engine.export.save import output_paths, save_model
from workbench.engine.export.simulate import DeploySimulator
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.sidecar import sidecar_path


def load(path: str) -> tuple[dict[str, onnx.NodeProto], dict[str, onnx.TensorProto]]:
    graph = onnx.load(path).graph
    return {n.name: n for n in graph.node}, {t.name: t for t in graph.initializer}


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def save(case, **options) -> None:
    save_model(case.onnx_file, case.record_file, case.save_path, **options)


def test_deploy_nodes_and_tensors(make_case):
    case = make_case()
    save(case)
    nodes, tensors = load(case.file("deploy"))
    stored = {"conv": (8, 3, 3, 3), "up": (8, 3, 2, 2), "fc": (96, 5)}
    for name, entry in case.record.layers.items():
        quant, layer, dequant = nodes[f"{name}.quant"], nodes[name], nodes[f"{name}.dequant"]
        assert (quant.op_type, quant.domain) == ("AscendQuant", "")
        assert (dequant.op_type, dequant.domain) == ("AscendDequant", "")
        assert list(quant.output) == [f"{name}.quant.output0"] == [layer.input[0]]
        assert list(dequant.input) == [layer.output[0], f"{name}.dequant.param"]
        settings = attributes(quant)
        assert set(settings) == {"scale", "offset", "dst_type"}
        assert abs(settings["scale"] * entry.scale_d - 1) < 1e-7
        assert settings["offset"] == float(entry.offset_d)
        assert settings["dst_type"] == b"INT8"
        assert attributes(dequant) == {"dtype": 0}
        param = tensors[f"{name}.dequant.param"]
        assert param.data_type == onnx.TensorProto.UINT64
        assert len(param.uint64_data) == len(entry.scale_w)
        for word, scale_w in zip(param.uint64_data, entry.scale_w, strict=True):
            deq = np.float32(entry.scale_d) * np.float32(scale_w)
            assert struct.pack("<Q", word) == struct.pack("<f", deq) + bytes(4)
        assert "op_data_type" not in attributes(layer)
        if name in stored:
            weight, bias = tensors[layer.input[1]], tensors[layer.input[2]]
            assert weight.data_type == onnx.TensorProto.INT8
            assert weight.raw_data
            assert tuple(weight.dims) == stored[name]
            assert bias.data_type == onnx.TensorProto.INT32
            assert len(bias.int32_data)
            assert not bias.raw_data
    assert attributes(nodes["fc"]).get("transB", 0) == 0
    assert list(nodes["fc.dequant"].output) == ["y"]
    assert list(nodes["fc"].output) == ["fc_output0"]


def test_pack_example_of_the_specification():
    from workbench.engine.export.arithmetic import dequant_scale, pack_dequant_parameter

    word = int(pack_dequant_parameter(np.asarray([0.015 * 0.002], np.float32))[0])
    assert word == 939239554 == 0x37FBA882
    forced = dequant_scale(1.0, np.asarray([1e-5, 70000.0], np.float32), force_fp16=True)
    assert forced.tolist() == pytest.approx([9.998679e-06, 69952.0], rel=1e-6)


def test_fake_quant_is_standard_and_deploy_is_not(make_case):
    case = make_case()
    save(case)
    model = onnx.load(case.file("fake_quant"))
    onnx.checker.check_model(model, full_check=True)
    assert {n.domain for n in model.graph.node} == {""}
    names = {n.name for n in model.graph.node}
    base = "conv.quant.fakequant"
    steps = ("mul", "round", "add", "clip", "sub", "scale", "offset", "min_val", "max_val")
    assert {f"{base}.{step}" for step in steps} <= names
    assert {"conv.fakedequant.mul", "conv.fakedequant.dqscale"} <= names
    with pytest.raises(Exception, match="(?i)no op registered"):
        ort.InferenceSession(case.file("deploy"), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("symmetric", [False, True])
def test_small_net_is_exact_in_all_forms(make_case, symmetric, run_onnx):
    case = make_case(symmetric=symmetric)
    save(case)
    expected = run_onnx(case.file("fake_quant"), case.inputs)
    simulator = DeploySimulator(case.file("deploy"))
    result = simulator.run({"x": case.inputs[0].numpy()})["y"]
    assert np.array_equal(result, expected)
    assert not simulator.overflows
    with torch.no_grad():
        module = to_fake_quant(case.module, case.record)(*case.inputs).numpy()
    assert np.abs(module - expected).max() <= 1e-6 * np.abs(expected).max()


def test_fake_quant_against_the_formula(make_case, run_onnx):
    """One convolution computed by hand in integers."""
    case = make_case(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1)), (1, 2, 4, 4))
    save(case)
    entry = case.record.layers["0"]
    conv = case.module[0]
    x = case.inputs[0].numpy().astype(np.float32)
    inverse = np.float32(1) / np.float32(entry.scale_d)
    codes = np.clip(np.rint(x * inverse) + entry.offset_d, -128, 127).astype(int) - entry.offset_d
    padded = np.pad(codes, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.zeros((1, 4, 4, 4), np.float32)
    for o in range(4):
        scale = np.float32(entry.scale_w[o])
        weight = np.rint(conv.weight[o].detach().numpy() / scale).astype(int)
        deq = np.float32(entry.scale_d) * scale
        bias = int(np.rint(float(conv.bias[o]) / float(deq)))
        for i in range(4):
            for j in range(4):
                total = int((padded[0, :, i : i + 3, j : j + 3] * weight).sum()) + bias
                expected[0, o, i, j] = np.float32(total) * deq
    assert np.array_equal(run_onnx(case.file("fake_quant"), case.inputs), expected)


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.a(x) * self.b(x)


def test_equal_quants_of_one_tensor_are_merged(make_case):
    case = make_case(TwoReaders())
    save(case)
    nodes, _ = load(case.file("deploy"))
    assert "a.quant" in nodes
    assert "b.quant" not in nodes
    assert nodes["a"].input[0] == nodes["b"].input[0] == "a.quant.output0"
    case.change("b", offset_d=case.record.layers["b"].offset_d + 1)
    save(case)
    assert "b.quant" in load(case.file("deploy"))[0]


def test_other_widths_or_scales_of_one_tensor_are_not_merged(make_case):
    case = make_case(TwoReaders())
    own = case.record.layers["b"]
    # The same scale and offset, which fit in both widths, but other codes.
    case.change("b", act_type="INT16")
    save(case)
    nodes, _ = load(case.file("deploy"))
    kinds = [attributes(nodes[f"{n}.quant"])["dst_type"] for n in "ab"]
    assert kinds == [b"INT8", b"INT16"]
    assert [nodes[n].input[0] for n in "ab"] == ["a.quant.output0", "b.quant.output0"]
    # One bit of the float32 scale.
    case.change("b", act_type="INT8", scale_d=float(np.nextafter(np.float32(own.scale_d), 1)))
    save(case)
    assert "b.quant" in load(case.file("deploy"))[0]


class Ends(nn.Module):
    """Its last layer is quantised: a convolution, a Gemm, a MatMul with and without bias."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.last = last

    def forward(self, x):
        return self.last(x)


@pytest.mark.parametrize(
    ("last", "shape"),
    [
        (nn.Conv2d(3, 4, 1), (2, 3, 4, 4)),
        (nn.Linear(6, 4, bias=False), (2, 3, 6)),
        (nn.Linear(6, 4), (2, 3, 6)),
        (nn.Linear(6, 4), (2, 6)),
    ],
)
@pytest.mark.parametrize("before", [False, True])
def test_a_quantised_layer_at_the_end_keeps_the_outputs_name(
    make_case, run_onnx, last, shape, before
):
    case = make_case(Ends(last), shape)
    save(case, bias_before_dequant=before)
    makers = {}
    for kind in ("deploy", "fake_quant", "qdq"):
        graph = onnx.load(case.file(kind)).graph
        assert [o.name for o in graph.output] == ["y"]
        assert [i.name for i in graph.input] == ["x"]
        makers[kind] = {v: n for n in graph.node for v in n.output}
    add = len(shape) == 3 and last.bias is not None
    assert makers["deploy"]["y"].op_type == ("Add" if add and not before else "AscendDequant")
    if not add:
        assert makers["deploy"]["last_output0"].name == "last"
    simulated = DeploySimulator(case.file("deploy")).run({"x": case.inputs[0].numpy()})["y"]
    assert np.array_equal(simulated, run_onnx(case.file("fake_quant"), case.inputs))


def test_int4_weights_pack_and_run(make_case, run_onnx):
    case = make_case(
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2)),
        (2, 4, 8, 8),
        wts_bits={"0": 4, "2": 4},
    )
    save(case)
    nodes, tensors = load(case.file("deploy"))
    packed = numpy_helper.to_array(tensors[nodes["0"].input[1]])
    assert packed.shape == (6, 2, 3, 3)
    assert numpy_helper.to_array(tensors[nodes["2"].input[1]]).shape == (3, 4, 2, 2)
    scale = np.asarray(case.record.layers["0"].scale_w, np.float32).reshape(-1, 1, 1, 1)
    codes = np.rint(case.module[0].weight.detach().numpy() / scale).astype(int)
    low = (packed.view(np.uint8) & 15).astype(int)
    high = (packed.view(np.uint8) >> 4).astype(int)
    assert np.array_equal(np.where(low > 7, low - 16, low), codes[:, 0::2])
    assert np.array_equal(np.where(high > 7, high - 16, high), codes[:, 1::2])
    expected = run_onnx(case.file("fake_quant"), case.inputs)
    result = DeploySimulator(case.file("deploy")).run({"x": case.inputs[0].numpy()})["y"]
    assert np.array_equal(result, expected)


def test_dst_type_decides_both_widths(make_case):
    case = make_case(nn.Sequential(nn.Conv2d(4, 6, 3)), (2, 4, 8, 8), wts_bits={"0": 4})
    case.change("0", dst_type="INT4", offset_d=0, act_type="INT16", wts_type="INT8")
    save(case)
    nodes, tensors = load(case.file("deploy"))
    assert attributes(nodes["0.quant"])["dst_type"] == b"INT4"
    assert tuple(tensors[nodes["0"].input[1]].dims) == (6, 2, 3, 3)
    assert "0.bias_quant" in nodes


def test_int7_weights_stay_in_their_range(make_case):
    case = make_case(wts_bits={"conv": 7})
    save(case)
    _, tensors = load(case.file("deploy"))
    codes = numpy_helper.to_array(tensors["conv.weight"])
    assert codes.min() >= -64
    assert codes.max() <= 63
    assert np.abs(codes).max() > 50


def test_int16_activations(make_case, run_onnx):
    case = make_case(act_bits={"conv": 16})
    case.change("conv", offset_d=-300)
    save(case)
    nodes, _ = load(case.file("deploy"))
    assert attributes(nodes["conv.quant"])["dst_type"] == b"INT16"
    assert attributes(nodes["conv.quant"])["offset"] == -300.0
    expected = run_onnx(case.file("fake_quant"), case.inputs)
    result = DeploySimulator(case.file("deploy")).run({"x": case.inputs[0].numpy()})["y"]
    assert np.abs(result - expected).max() <= 1e-4 * np.abs(expected).max()


def test_int4_activations_cast_the_bias(make_case, run_onnx):
    case = make_case(act_bits={"conv": 4})
    save(case)
    nodes, tensors = load(case.file("deploy"))
    cast = nodes["conv.bias_quant"]
    assert (cast.op_type, attributes(cast)["to"]) == ("Cast", onnx.TensorProto.FLOAT)
    assert tensors[cast.input[0]].data_type == onnx.TensorProto.INT32
    expected = run_onnx(case.file("fake_quant"), case.inputs)
    result = DeploySimulator(case.file("deploy")).run({"x": case.inputs[0].numpy()})["y"]
    assert np.array_equal(result, expected)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        return torch.relu(self.fc(x))


@pytest.mark.parametrize("before", [False, True])
def test_matmul_bias_order(make_case, before, run_onnx):
    case = make_case(Tokens(), (2, 3, 6))
    save(case, bias_before_dequant=before)
    graph = onnx.load(case.file("deploy")).graph
    order = [n.op_type for n in graph.node if n.op_type != "Transpose"]
    middle = ["Add", "AscendDequant"] if before else ["AscendDequant", "Add"]
    assert order == ["AscendQuant", "MatMul", *middle, "Relu"]
    add = next(n for n in graph.node if n.op_type == "Add")
    kinds = {t.name: t.data_type for t in graph.initializer}
    wanted = onnx.TensorProto.INT32 if before else onnx.TensorProto.FLOAT
    assert [kinds[n] for n in add.input if n in kinds] == [wanted]
    expected = run_onnx(case.file("fake_quant"), case.inputs)
    result = DeploySimulator(case.file("deploy")).run({"x": case.inputs[0].numpy()})["y"]
    assert np.array_equal(result, expected)
    with torch.no_grad():
        module = to_fake_quant(case.module, case.record)(*case.inputs).numpy()
    assert np.abs(module - expected).max() < (1e-3 if before else 1e-6)


def test_balance_factors_multiply_before_the_quant(make_case):
    case = make_case()
    case.change("conv", tensor_balance_factor=(2.0, 0.5, 4.0))
    save(case)
    nodes, _ = load(case.file("deploy"))
    product = nodes["conv.mul"]
    assert nodes["conv.quant"].input[0] == product.output[0]
    factor = numpy_helper.to_array(attributes(nodes["conv.tensor_balance_factor"])["value"])
    assert factor.shape == (1, 3, 1, 1)
    assert factor.reshape(-1).tolist() == [0.5, 2.0, 0.25]


def test_forced_fp16_changes_only_numbers(make_case):
    case = make_case()
    case.change("conv", fakequant_precision_mode="FORCE_FP16_QUANT")
    save(case)
    _, tensors = load(case.file("deploy"))
    assert all(word & 0x1FFF == 0 for word in tensors["conv.dequant.param"].uint64_data)


def test_float16_layers_are_cast_around(make_case, tmp_path, run_onnx, export_float, small_net):
    case = make_case()

    half = small_net().eval()
    half.load_state_dict(case.module.state_dict())
    half = half.half()
    export_float(half, (case.inputs[0].half(),), tmp_path / "modified.onnx")
    save(case)
    onnx.checker.check_model(case.file("fake_quant"), full_check=True)
    nodes, _ = load(case.file("fake_quant"))
    assert {"conv.quant.fakequant.cast", "conv.fakedequant.cast"} <= set(nodes)
    deploy, _ = load(case.file("deploy"))
    assert attributes(deploy["conv.dequant"]) == {"dtype": 1}
    inputs = (case.inputs[0].half(),)
    expected = run_onnx(case.file("fake_quant"), inputs)
    result = DeploySimulator(case.file("deploy")).run({"x": inputs[0].numpy()})["y"]
    assert expected.dtype == np.float16
    assert np.array_equal(result, expected)
    with torch.no_grad():
        module = to_fake_quant(half, case.record)(*inputs)
    assert module.dtype == torch.float16
    assert np.abs(module.float().numpy() - expected).max() < 1e-3
    assert not Path(case.file("qdq")).exists()


def test_no_stale_types_remain(make_case):
    case = make_case()
    save(case)
    for kind in ("deploy", "fake_quant"):
        graph = onnx.load(case.file(kind)).graph
        made = {v for n in graph.node for v in n.output} | {t.name for t in graph.initializer}
        kinds = {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
        assert set(kinds) <= made
        for node in graph.node:
            if node.name in case.record.layers:
                assert node.output[0] not in kinds


@pytest.mark.parametrize(
    ("prefix", "name"), [("p", "p_deploy_model.onnx"), ("", "deploy_model.onnx")]
)
def test_prefix_rules(tmp_path, prefix, name):
    paths = output_paths(f"{tmp_path}/{prefix}")
    assert paths.deploy == tmp_path / name
    assert output_paths("").deploy == Path.cwd() / "deploy_model.onnx"


def test_modes_warning_and_events(make_case, caplog):
    case = make_case()
    seen = []
    save(case, on_event=seen.append)
    folder = Path(case.save_path).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    files = sorted(folder.iterdir())
    assert [f.name for f in files] == [
        "net_deploy_model.onnx",
        "net_fake_quant_model.onnx",
        "net_qdq_model.onnx",
    ]
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o640}
    assert {e.path for e in seen if isinstance(e, FileWritten)} == {str(f) for f in files}
    with caplog.at_level(logging.WARNING, "workbench"):
        save(case)
    assert sum("overwritten" in r.message for r in caplog.records) == 3


def test_without_ranges_two_files(make_case):
    case = make_case()
    sidecar_path(case.record_file).unlink()
    save(case)
    assert sorted(p.name for p in Path(case.save_path).parent.iterdir()) == [
        "net_deploy_model.onnx",
        "net_fake_quant_model.onnx",
    ]


def test_external_data(make_case, monkeypatch, run_onnx):
    case = make_case()
    monkeypatch.setattr(external, "LIMIT_BYTES", 500)
    monkeypatch.setattr(external, "MINIMUM_BYTES", 80)
    save(case)
    folder = Path(case.save_path).parent
    for suffix in ("_deploy", "_fakequant", "_qdq"):
        assert list(folder.glob(f"*{suffix}.external")), suffix
    assert (folder / "conv.weight_fakequant.external").stat().st_size == 8 * 3 * 9 * 4
    proto = onnx.load(case.file("deploy"), load_external_data=False)
    weight = next(t for t in proto.graph.initializer if t.name == "conv.weight")
    entries = {e.key: e.value for e in weight.external_data}
    assert entries == {
        "location": "conv.weight_deploy.external",
        "offset": "0",
        "length": str(8 * 3 * 9),
    }
    external_result = run_onnx(case.file("fake_quant"), case.inputs)
    simulated = DeploySimulator(case.file("deploy")).run({"x": case.inputs[0].numpy()})["y"]
    monkeypatch.undo()
    save(case)
    assert np.array_equal(run_onnx(case.file("fake_quant"), case.inputs), external_result)
    assert np.array_equal(simulated, external_result)


def test_external_input_is_read_and_written_external_again(make_case, tmp_path, run_onnx):
    case = make_case()
    save(case)
    expected = run_onnx(case.file("fake_quant"), case.inputs)
    model = onnx.load(case.onnx_file)
    onnx.save_model(
        model,
        case.onnx_file,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="all.data",
        size_threshold=500,
    )
    save(case)
    assert (Path(case.save_path).parent / "fc.weight_fakequant.external").exists()
    assert np.array_equal(run_onnx(case.file("fake_quant"), case.inputs), expected)


def test_cancel_leaves_nothing(make_case):
    case = make_case()
    token = CancelToken()

    def stop(_event: object) -> None:
        token.cancel()

    with pytest.raises(Cancelled):
        save(case, on_event=stop, cancel=token)
    assert list(Path(case.save_path).parent.iterdir()) == []


@pytest.mark.parametrize(("bits", "least"), [(8, 0.999), (4, 0.98)])
def test_cosine_with_float(make_case, bits, least, run_onnx):
    net = nn.Sequential(
        nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 16, 10),
    )  # fmt: skip
    torch.manual_seed(3)
    x = torch.randn(8, 4, 8, 8)
    with torch.no_grad():
        import copy

        reference = copy.deepcopy(net)
    case = make_case(net, (8, 4, 8, 8), wts_bits=dict.fromkeys(("0", "2", "5"), bits))
    save(case)
    x = case.inputs[0]
    with torch.no_grad():
        a = reference(x).numpy().ravel()
    b = run_onnx(case.file("fake_quant"), case.inputs).ravel()
    assert float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) >= least
