"""LSTM and GRU in every file: float ONNX, fake-quant, deploy, QDQ, and the torch module."""

import copy
import functools
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import rnn_models
import torch
from onnx import numpy_helper

from workbench.engine.export.float_onnx import to_onnx
from workbench.engine.export.onnx_file import save_onnx
from workbench.engine.export.save import save_model
from workbench.engine.export.simulate import DeploySimulator
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.export.verify import verify_export
from workbench.engine.files.config import default_config
from workbench.engine.files.record import Record, write_record
from workbench.engine.files.sidecar import write_sidecar
from workbench.engine.flows.ptq import calibrate, modified_onnx
from workbench.engine.graph.capture import capture

EVERY = [("LSTM", True), ("LSTM", False), ("GRU", True), ("GRU", False)]
TORCH_TO_ONNX = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


def run_file(path, inputs):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feed)


def onnx_rows(kind, array):
    gates = np.split(np.asarray(array), len(TORCH_TO_ONNX[kind]))
    return np.concatenate([gates[gate] for gate in TORCH_TO_ONNX[kind]])


class Case:
    """A calibrated network and its files."""

    def __init__(
        self, folder, kind, batch_first, change=lambda layer: layer, force=False, **options
    ):
        self.net = rnn_models.model(kind, batch_first, **options)
        self.kind, self.folder = kind, folder
        captured = capture(self.net, rnn_models.data(self.net, 2))
        config = default_config(captured.layers, batch_num=2)
        config = replace(
            config,
            layers={**config.layers, "rnn": change(config.layers["rnn"])},
            fakequant_precision_mode="FORCE_FP16_QUANT" if force else "DEFAULT",
        )
        self.batches = [rnn_models.data(self.net, 3, seed) for seed in (1, 2)]
        self.calibration = calibrate(captured, config, self.batches)
        self.record = self.calibration.finalize()
        self.entry = self.record.layers["rnn"]
        save_onnx(modified_onnx(self.calibration), str(folder / "m.onnx"), suffix=".external")
        self.write(self.record)
        write_sidecar(str(folder / "r.txt"), self.calibration.sidecar())

    def write(self, record):
        write_record(str(self.folder / "r.txt"), record)

    def save(self):
        save_model(str(self.folder / "m.onnx"), str(self.folder / "r.txt"), self.path)
        return self

    @property
    def path(self):
        return str(self.folder / "net")

    def load(self, kind):
        return onnx.load(f"{self.path}_{kind}_model.onnx")

    def module(self):
        return to_fake_quant(self.calibration.folded, self.record)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """``plain(folder, kind, batch_first)``: a case with the default options, built once, copied."""

    @functools.cache
    def built(kind, batch_first):
        return Case(tmp_path_factory.mktemp("case"), kind, batch_first)

    def copied(folder, kind, batch_first):
        case = copy.copy(built(kind, batch_first))
        case.folder = shutil.copytree(case.folder, folder, dirs_exist_ok=True)
        return case

    return copied


def bits(width):
    return lambda layer: replace(layer, activation=replace(layer.activation, num_bits=width))


def narrow(layer):
    return replace(layer, weight=replace(layer.weight, num_bits=4))


def per_tensor(layer):
    return replace(layer, weight=replace(layer.weight, channel_wise=False))


@pytest.mark.parametrize(("kind", "batch_first"), EVERY)
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"num_layers": 2}, {"num_layers": 2, "bidirectional": True}]
)
def test_the_float_file_computes_what_torch_does(tmp_path, kind, batch_first, options):
    net = rnn_models.model(kind, batch_first, **options)
    model = to_onnx(capture(net, rnn_models.data(net, 1)), None)
    save_onnx(model, str(tmp_path / "m.onnx"), suffix=".external")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    levels = options.get("num_layers", 1)
    assert sum(node.op_type == kind for node in model.graph) == levels
    inputs = rnn_models.data(net, 3, seed=5)
    with torch.no_grad():
        wanted = net(*inputs)
    for got, want in zip(run_file(str(tmp_path / "m.onnx"), inputs), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_float_node_has_the_layers_name_and_whole_weights():
    net = rnn_models.model("LSTM", False)
    model = to_onnx(capture(net, rnn_models.data(net, 2)), None)
    node = next(n for n in model.graph if n.op_type == "LSTM")
    assert node.name == "rnn"
    w, r, b = (value.const_value.numpy() for value in node.inputs[1:4])
    rnn = net.rnn
    np.testing.assert_array_equal(w[0], onnx_rows("LSTM", rnn.weight_ih_l0.detach()))
    np.testing.assert_array_equal(r[0], onnx_rows("LSTM", rnn.weight_hh_l0.detach()))
    halves = [onnx_rows("LSTM", bias.detach()) for bias in (rnn.bias_ih_l0, rnn.bias_hh_l0)]
    np.testing.assert_array_equal(b[0], np.concatenate(halves))
    assert [str(dim) for dim in model.graph.inputs[0].shape] == ["5", "batch", "6"]


@pytest.mark.parametrize(("kind", "batch_first"), EVERY)
def test_the_deploy_node(plain, tmp_path, kind, batch_first):
    case = plain(tmp_path, kind, batch_first).save()
    entry, rnn, rows = case.entry, case.net.rnn, len(case.entry.scale_w)
    model = case.load("deploy")
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    wanted = {"LSTM": "BasicLSTMInplaceFillWindowCache", "GRU": "BasicGRUInplaceFillWindowCache"}
    node = next(n for n in model.graph.node if n.name == "rnn")
    assert (node.op_type, node.domain) == (wanted[kind], "")
    names = list(node.input)
    assert names[7 if kind == "LSTM" else 6] == ""
    assert names[-1] == "rnn.dequant.param"
    states = [i.name for i in model.graph.input][1:]
    assert names[3 : 3 + len(states)] == states
    assert names[3 + len(states) + 1] == ""  # sequence_lens
    assert len(names) == (9 if kind == "LSTM" else 8)
    assert len(node.output) == (3 if kind == "LSTM" else 2)

    for name, weight, scales in (
        (names[1], rnn.weight_ih_l0, entry.scale_w),
        (names[2], rnn.weight_hh_l0, entry.scale_r),
    ):
        codes = np.rint(onnx_rows(kind, weight.detach()) / np.float32(scales)[:, None])
        assert stored[name].dtype == np.int8
        np.testing.assert_array_equal(stored[name][0], np.clip(codes, -128, 127))
    deq_x = np.float32(entry.scale_d) * np.float32(entry.scale_w)
    deq_h = np.float32(entry.scale_h) * np.float32(entry.scale_r)
    bias = stored[names[3 + len(states)]]
    assert bias.dtype == np.int32 and bias.shape == (1, 2 * rows)
    for part, values, deq in ((0, rnn.bias_ih_l0, deq_x), (1, rnn.bias_hh_l0, deq_h)):
        codes = np.rint(onnx_rows(kind, values.detach()).astype(np.float64) / deq)
        np.testing.assert_array_equal(bias[0, part * rows : (part + 1) * rows], codes)
    words = stored["rnn.dequant.param"]
    assert words.dtype == np.uint64 and not (words >> np.uint64(32)).any()
    np.testing.assert_array_equal(
        words.astype(np.uint32).view(np.float32), np.concatenate([deq_x, deq_h])
    )

    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    own = {"input_forget": 0} if kind == "LSTM" else {"linear_before_reset": 1}
    assert attributes == {
        "hidden_size": 4,
        "activation_alpha": [],
        "activation_beta": [],
        "activations": [],
        "clip": -1.0,
        "direction": b"forward",
        "quant_sqrt_mode_x": 0,
        "quant_sqrt_mode_h": 0,
        "quant_scale_x": np.float32(1) / np.float32(entry.scale_d),
        "quant_offset_x": entry.offset_d,
        "quant_scale_h": np.float32(1) / np.float32(entry.scale_h),
        "quant_offset_h": entry.offset_h,
        "quant_dtype": 2,
        **own,
    }
    kinds = [n.op_type for n in model.graph.node if n.name.startswith("rnn.")]
    assert "AscendQuant" not in kinds and "AscendAntiQuant" not in kinds


def test_sixteen_bits_and_packed_weights_in_the_deploy_node(tmp_path):
    (tmp_path / "a").mkdir()
    case = Case(tmp_path / "a", "GRU", True, bits(16)).save()
    node = next(n for n in case.load("deploy").graph.node if n.name == "rnn")
    assert {a.name: a.i for a in node.attribute}["quant_dtype"] == 6
    case = Case(tmp_path, "LSTM", True, narrow).save()
    stored = {t.name: t for t in case.load("deploy").graph.initializer}
    node = next(n for n in case.load("deploy").graph.node if n.name == "rnn")
    assert list(stored[node.input[1]].dims) == [1, 16, 3]
    assert list(stored[node.input[2]].dims) == [1, 16, 2]
    packed = numpy_helper.to_array(stored[node.input[2]])[0].view(np.uint8)
    scale = np.float32(case.entry.scale_r)[:, None]
    codes = np.rint(onnx_rows("LSTM", case.net.rnn.weight_hh_l0.detach()) / scale)
    codes = np.clip(codes, -8, 7).astype(int)
    np.testing.assert_array_equal(packed, (codes[:, ::2] & 15) | ((codes[:, 1::2] & 15) << 4))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_fake_quant_file(plain, tmp_path, kind):
    case = plain(tmp_path, kind, False).save()
    model = case.load("fake_quant")
    onnx.checker.check_model(model, full_check=True)
    assert {n.domain for n in model.graph.node} == {""}
    names = {n.name for n in model.graph.node}
    for quant, anti in (("quant", "anti_quant"), ("quant1", "anti_quant1")):
        parts = ("mul", "round", "add", "clip", "sub")
        assert {f"rnn.{quant}.fakequant.{part}" for part in parts} <= names
        assert f"rnn.{anti}.fake_antiquant.mul" in names
    node = next(n for n in model.graph.node if n.name == "rnn")
    assert node.op_type == kind
    makers = {n.output[0]: n.name for n in model.graph.node}
    assert makers[node.input[0]] == "rnn.anti_quant.fake_antiquant.mul"
    assert makers[node.input[5]] == "rnn.anti_quant1.fake_antiquant.mul"
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    scale = np.float32(case.entry.scale_w)[:, None]
    weight = onnx_rows(kind, case.net.rnn.weight_ih_l0.detach())
    grid = np.clip(np.rint(weight / scale), -128, 127) * scale
    np.testing.assert_allclose(stored[node.input[1]][0], grid, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "batch_first", "options"),
    [
        ("LSTM", True, {}),
        ("LSTM", False, {"bias": False}),
        ("LSTM", True, {"change": narrow}),
        ("LSTM", True, {"force": True}),
        ("GRU", False, {}),
        ("GRU", True, {"change": bits(16)}),
        ("GRU", True, {"change": per_tensor, "force": True}),
    ],
)
def test_three_forms_agree(plain, tmp_path, kind, batch_first, options):
    build = functools.partial(Case, **options) if options else plain
    case = build(tmp_path, kind, batch_first).save()
    pairs = verify_export(
        case.module(), case.path, [*case.batches, rnn_models.data(case.net, 2, 9)]
    )
    for pair in pairs:
        assert pair.ok, pair
        assert pair.max_abs < 1e-6, pair
    assert [layer.name for layer in DeploySimulator(f"{case.path}_deploy_model.onnx").layers] == [
        "rnn",
        "fc",
    ]


@pytest.mark.parametrize(("kind", "batch_first"), EVERY)
def test_the_torch_module_equals_onnx_runtime_on_random_inputs(plain, tmp_path, kind, batch_first):
    case = plain(tmp_path, kind, batch_first).save()
    module = case.module()
    for seed in range(16):
        inputs = rnn_models.data(case.net, 1 + seed % 3, seed)
        with torch.no_grad():
            wanted = [y.numpy() for y in module(*inputs)]
        for got, want in zip(
            run_file(f"{case.path}_fake_quant_model.onnx", inputs), wanted, strict=True
        ):
            np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_quantising_the_state_is_seen_by_the_module(plain, tmp_path):
    case = plain(tmp_path, "GRU", True)
    coarse = replace(case.entry, scale_h=0.5, offset_h=0)
    x, h = case.batches[0]
    layer = to_fake_quant(case.calibration.folded, Record({"rnn": coarse})).rnn
    rounded = torch.clamp(torch.round(h / 0.5), -128, 127) * 0.5
    with torch.no_grad():
        assert torch.equal(
            layer(x, h)[0], layer.twin(layer._rounded(x, *layer.grids[0]), rounded)[0]
        )
    assert layer.hidden_size == 4


def test_the_qdq_file_leaves_the_layer_float(plain, tmp_path):
    case = plain(tmp_path, "LSTM", True).save()
    model = case.load("qdq")
    makers = {n.output[0]: n.op_type for n in model.graph.node}
    node = next(n for n in model.graph.node if n.name == "rnn")
    assert makers[node.input[0]] == "Transpose"
    assert "DequantizeLinear" not in {makers.get(name) for name in node.input}
    stored = {t.name: t.data_type for t in model.graph.initializer}
    assert stored[node.input[1]] == onnx.TensorProto.FLOAT
    with torch.no_grad():
        wanted = case.net(*case.batches[0])
    for got, want in zip(
        run_file(f"{case.path}_qdq_model.onnx", case.batches[0]), wanted, strict=True
    ):
        np.testing.assert_allclose(got, want, atol=0.05)


def test_large_biases_are_named(plain, tmp_path):
    case = plain(tmp_path, "LSTM", True)
    model = onnx.load(str(tmp_path / "m.onnx"))
    bias = next(t for t in model.graph.initializer if list(t.dims) == [1, 32])
    values = numpy_helper.to_array(bias).copy()
    values[0, 20] = 1e9
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(RuntimeError, match="layer rnn.*bias of channel 4"):
        case.save()


def changed_node(case, change):
    model = onnx.load(str(case.folder / "m.onnx"))
    change(next(n for n in model.graph.node if n.name == "rnn"), model.graph)
    onnx.save(model, str(case.folder / "m.onnx"))


def attribute(name, value):
    def change(node, graph):
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return change


def constant_state(node, graph):
    graph.initializer.append(numpy_helper.from_array(np.zeros((1, 3, 4), np.float32), "zeros"))
    node.input[5] = "zeros"


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("LSTM", constant_state, "comes from no graph input"),
        ("LSTM", attribute("input_forget", 1), "input_forget 1"),
        ("LSTM", attribute("layout", 1), "layout 1"),
        ("LSTM", attribute("direction", "reverse"), "direction reverse"),
        ("LSTM", attribute("activations", ["Sigmoid", "Tanh", "Tanh"]), "other activations"),
        ("LSTM", lambda node, graph: node.input.append("h"), "peephole"),
        ("GRU", attribute("linear_before_reset", 0), "linear_before_reset 0"),
        ("GRU", lambda node, graph: node.output.pop(), "1 outputs"),
    ],
)
def test_nodes_that_cannot_be_quantised_say_why(plain, tmp_path, kind, change, words):
    case = plain(tmp_path, kind, True)
    changed_node(case, change)
    with pytest.raises(RuntimeError, match=words):
        case.save()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scale_h": None}, "scale_h or offset_h is missing"),
        ({"scale_r": (), "offset_r": ()}, "scale_r has 0 values"),
        ({"scale_w": (0.1,) * 3, "offset_w": (0,) * 3}, "scale_w has 3 values; allowed: 1 or 16"),
        ({"act_type": "INT4"}, "4-bit activations"),
    ],
)
def test_record_entries_that_do_not_fit_say_why(plain, tmp_path, fields, words):
    case = plain(tmp_path, "LSTM", True)
    case.write(Record({**case.record.layers, "rnn": replace(case.entry, **fields)}))
    with pytest.raises(RuntimeError, match=words):
        case.save()


class OwnState(torch.nn.Module):
    """Makes its initial state from the batch's size; reads the output or the last state only."""

    def __init__(self, last):
        super().__init__()
        self.last = last
        self.rnn = torch.nn.LSTM(6, 4, batch_first=True)
        self.gru = torch.nn.GRU(4, 4, batch_first=True)
        self.fc = torch.nn.Linear(4, 3)

    def forward(self, x):
        h = torch.zeros(1, x.shape[0], 4)
        y, _ = self.rnn(x, (h, h))
        y, h = self.gru(y, hx=h)
        return self.fc(h[0] if self.last else y[:, -1])


@pytest.mark.parametrize("last", [True, False])
def test_a_state_of_the_batchs_size_and_outputs_that_nothing_reads(tmp_path, last):
    torch.manual_seed(0)
    net, x = OwnState(last).eval(), (torch.randn(2, 5, 6),)
    captured = capture(net, x)
    calibration = calibrate(captured, default_config(captured.layers), [x])
    save_onnx(modified_onnx(calibration), str(tmp_path / "m.onnx"), suffix=".external")
    write_record(str(tmp_path / "r.txt"), calibration.finalize())
    path = str(tmp_path / "net")
    save_model(str(tmp_path / "m.onnx"), str(tmp_path / "r.txt"), path)
    nodes = {n.name: n for n in onnx.load(f"{path}_deploy_model.onnx").graph.node}
    assert (len(nodes["rnn"].output), len(nodes["gru"].output)) == (3, 2)
    assert all([*nodes["rnn"].output, *nodes["gru"].output])
    module = to_fake_quant(calibration.folded, calibration.finalize())
    assert all(pair.ok for pair in verify_export(module, path, [x, (torch.randn(3, 5, 6),)]))
