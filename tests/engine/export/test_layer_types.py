"""Every layer type from module to files: the forms of one quantised network agree.

Chapter 20 section 10 row 6 and chapter 10 section 15, Files 1 and 2.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from workbench.engine import create_quant_config, quantize_model, save_model, verify_export
from workbench.engine.export.simulate import DeploySimulator
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.record import read_record

RUNS = 16


@dataclass
class Saved:
    folder: Path
    fake_quant_module: nn.Module
    record: dict

    def file(self, kind: str) -> str:
        return str(self.folder / f"{kind}_model.onnx")

    def deploy(self) -> tuple[dict[str, onnx.NodeProto], dict[str, onnx.TensorProto]]:
        graph = onnx.load(self.file("deploy")).graph
        return {n.name: n for n in graph.node}, {t.name: t for t in graph.initializer}


def quantise(
    folder: Path,
    model: nn.Module,
    batch: torch.Tensor | tuple[torch.Tensor, ...],
    *,
    output_names: list[str] | None = None,
    change: Callable[[dict], None] = lambda config: None,
    options: dict | None = None,
    **saving: bool,
) -> Saved:
    saving_bias = saving.get("bias_before_dequant", False)
    config, modified, record = (str(folder / n) for n in ("c.json", "m.onnx", "r.txt"))
    batch = batch if isinstance(batch, tuple) else (batch,)
    create_quant_config(config, model, batch, **(options or {}))
    chosen = json.loads(Path(config).read_text())
    change(chosen)
    Path(config).write_text(json.dumps(chosen))
    calibrating = quantize_model(config, modified, record, model, batch, None, output_names)
    calibrating(*batch)
    save_model(modified, record, f"{folder}/", **saving)
    calibration = calibrating.calibration
    module = to_fake_quant(
        calibration.folded,
        calibration.finalize(),
        weights=calibration.fake_weights,
        bias_before_dequant=saving_bias,
    )
    return Saved(folder, module, read_record(record).layers)


def each_key(section: str, key: str, value: object) -> Callable[[dict], None]:
    def change(config: dict) -> None:
        for entry in config.values():
            if isinstance(entry, dict) and section in entry:
                entry[section][key] = value

    return change


LAYERS = {
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), (4, 9)),
    "Conv1d padded": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (4, 9)),
    "Conv1d same": (lambda: nn.Conv1d(4, 6, 4, padding="same", bias=False), (4, 9)),
    "Conv1d grouped": (lambda: nn.Conv1d(4, 8, 3, groups=2, padding=1), (4, 9)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3), (4, 7, 6)),
    "Conv2d padded": (lambda: nn.Conv2d(4, 6, (3, 2), padding=(2, 1), stride=2), (4, 7, 6)),
    "Conv2d same": (lambda: nn.Conv2d(4, 6, (2, 4), padding="same"), (4, 7, 6)),
    "Conv2d depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 7, 6)),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 2), (4, 3, 4, 5)),
    "Conv3d padded": (lambda: nn.Conv3d(4, 6, 3, padding=1, dilation=(1, 2, 2)), (4, 3, 6, 6)),
    "Conv3d grouped": (lambda: nn.Conv3d(4, 6, 2, groups=2, stride=2), (4, 4, 4, 4)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (4, 5)),
    "ConvTranspose1d padded": (
        lambda: nn.ConvTranspose1d(4, 6, 4, stride=3, padding=1, output_padding=2, dilation=2),
        (4, 5),
    ),
    "ConvTranspose1d grouped": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2, stride=2), (4, 5)),
    "ConvTranspose1d sized": (
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1),
        (4, 5),
    ),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3), (4, 5, 4)),
    "ConvTranspose2d padded": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=(1, 0)),
        (4, 5, 4),
    ),
    "ConvTranspose2d grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 4)),
    "ConvTranspose2d sized": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2),
        (4, 5, 4),
    ),
    "Linear 2-D": (lambda: nn.Linear(8, 5), (8,)),
    "Linear 2-D no bias": (lambda: nn.Linear(8, 5, bias=False), (8,)),
    "Linear 3-D": (lambda: nn.Linear(8, 5), (3, 8)),
    "Linear 4-D": (lambda: nn.Linear(8, 5, bias=False), (2, 3, 8)),
    "Linear 5-D": (lambda: nn.Linear(8, 5), (2, 1, 3, 8)),
    "Linear 6-D": (lambda: nn.Linear(8, 5), (2, 1, 2, 3, 8)),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), (4, 6, 6)),
    "AvgPool2d padded": (lambda: nn.AvgPool2d(3, stride=2, padding=1), (4, 6, 6)),
    "AvgPool2d uncounted": (
        lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        (4, 6, 6),
    ),
    "AvgPool2d ceil": (lambda: nn.AvgPool2d(3, stride=3, padding=1, ceil_mode=True), (4, 6, 6)),
}


def random_batch(shape: tuple[int, ...], samples: int = 2) -> torch.Tensor:
    return torch.rand(samples, *shape) * 4 - 1.6


SIZES = {"ConvTranspose1d sized": [10], "ConvTranspose2d sized": [10, 8]}
"""What ``output_size`` asks for."""


class Branches(nn.Module):
    """Every layer of ``names`` on an input of its own shape, so that one export serves all."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: LAYERS[name][0]() for name in names})
        self.shapes = tuple(dict.fromkeys(LAYERS[name][1] for name in names))

    def forward(self, *inputs):
        by_shape = dict(zip(self.shapes, inputs, strict=True))
        outputs = []
        for name, layer in self.layers.items():
            x = by_shape[LAYERS[name][1]]
            size = SIZES.get(name)
            outputs.append(layer(x) if size is None else layer(x, output_size=size))
        return tuple(outputs)

    def batch(self, samples: int = 2) -> tuple[torch.Tensor, ...]:
        return tuple(random_batch(shape, samples) for shape in self.shapes)


def run_file(path: str, inputs: Sequence[torch.Tensor]) -> dict[str, np.ndarray]:
    """Outputs by layer name. Folding a factor into an integer weight would make it inexact."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        path, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConvMulFusion"]
    )
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


@dataclass
class Forms:
    """Outputs by layer name of the float model and of every form, for several inputs."""

    saved: Saved
    model: Branches
    plain: list[dict[str, np.ndarray]] = field(default_factory=list)
    torch: list[dict[str, np.ndarray]] = field(default_factory=list)
    onnx: list[dict[str, np.ndarray]] = field(default_factory=list)
    integers: list[dict[str, np.ndarray]] = field(default_factory=list)
    qdq: list[dict[str, np.ndarray]] = field(default_factory=list)
    overflows: dict[str, int] = field(default_factory=dict)


def forms(folder: Path, names: Sequence[str], runs: int, **options) -> Forms:
    torch.manual_seed(0)
    model = Branches(names).eval()
    saved = quantise(folder, model, model.batch(32), output_names=list(names), **options)
    simulator = DeploySimulator(saved.file("deploy"))
    result = Forms(saved, model)
    for _ in range(runs):
        batch = model.batch()
        with torch.no_grad():
            for net, kept in ((model, result.plain), (saved.fake_quant_module, result.torch)):
                kept.append(dict(zip(names, (y.numpy() for y in net(*batch)), strict=True)))
        result.onnx.append(run_file(saved.file("fake_quant"), batch))
        result.qdq.append(run_file(saved.file("qdq"), batch))
        feed = zip(simulator.input_names, batch, strict=True)
        result.integers.append(simulator.run({n: x.numpy() for n, x in feed}))
    result.overflows = simulator.overflows
    return result


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory) -> Forms:
    return forms(tmp_path_factory.mktemp("int8"), tuple(LAYERS), RUNS)


@pytest.mark.parametrize("name", LAYERS)
def test_torch_onnx_and_integers_agree(eight_bits, name):
    for run in range(RUNS):
        expected = eight_bits.onnx[run][name]
        ours, plain = eight_bits.torch[run][name], eight_bits.plain[run][name]
        assert ours.shape == expected.shape == plain.shape
        assert np.abs(ours - expected).max() <= 1e-6 * np.abs(expected).max()
        assert np.array_equal(eight_bits.integers[run][name], expected)
        # Not the same as float, but near it: a layer was quantised, and rightly.
        assert 0 < np.abs(ours - plain).mean() <= 0.02 * np.abs(plain).max()
    assert not eight_bits.overflows


@pytest.mark.parametrize("name", LAYERS)
def test_the_qdq_file_is_near_the_fake_quant_file(eight_bits, name):
    for expected, given in zip(eight_bits.onnx, eight_bits.qdq, strict=True):
        # The QDQ file also rounds the layer's output, to 8 bits of the range that was calibrated.
        error = np.abs(given[name] - expected[name]).mean()
        assert error <= 0.02 * np.abs(expected[name]).max()


def test_the_files_are_valid(eight_bits):
    for kind in ("fake_quant", "qdq"):
        onnx.checker.check_model(eight_bits.saved.file(kind), full_check=True)


KINDS = {
    "Conv1d grouped": ("Conv", (8, 2, 3), (1, 8, 1)),
    "Conv3d grouped": ("Conv", (6, 2, 2, 2, 2), (1, 6, 1, 1, 1)),
    "ConvTranspose1d grouped": ("ConvTranspose", (4, 3, 3), (1, 6, 1)),
    "ConvTranspose2d": ("ConvTranspose", (4, 6, 3, 3), (1, 6, 1, 1)),
    "Linear 2-D": ("Gemm", (8, 5), (1, 1)),
    "Linear 4-D": ("MatMul", (8, 5), (1, 1)),
    "AvgPool2d padded": ("AveragePool", None, (1, 1)),
}


@pytest.mark.parametrize("name", KINDS)
def test_nodes_and_tensors_of_each_type(eight_bits, name):
    operator, stored, scale_shape = KINDS[name]
    layer = f"layers.{name}"
    nodes, tensors = eight_bits.saved.deploy()
    entry = eight_bits.saved.record[layer]
    node = nodes[layer]
    assert node.op_type == operator
    quant = next(n for n in nodes.values() if node.input[0] in n.output)
    assert (quant.op_type, quant.domain) == ("AscendQuant", "")
    settings = {a.name: onnx.helper.get_attribute_value(a) for a in quant.attribute}
    assert settings["scale"] == np.float32(1) / np.float32(entry.scale_d)
    assert settings["offset"] == entry.offset_d
    assert nodes[f"{layer}.dequant"].input[0] == node.output[0]
    words = tensors[f"{layer}.dequant.param"].uint64_data
    scales = np.float32(entry.scale_d) * np.asarray(entry.scale_w, np.float32)
    assert [w & 0xFFFFFFFF for w in words] == scales.view(np.uint32).tolist()
    if stored is not None:
        weight = tensors[node.input[1]]
        assert weight.data_type == onnx.TensorProto.INT8
        assert weight.raw_data
        assert tuple(weight.dims) == stored
    if operator != "MatMul" and stored is not None:
        assert tensors[node.input[2]].data_type == onnx.TensorProto.INT32
        assert len(tensors[node.input[2]].int32_data)
    fake = {n.name: n for n in onnx.load(eight_bits.saved.file("fake_quant")).graph.node}
    factor = numpy_helper.to_array(fake[f"{layer}.fakedequant.dqscale"].attribute[0].t)
    assert factor.shape == scale_shape
    assert factor.dtype == np.float32


def codes_of(weight: np.ndarray, scale: float, bits: int) -> np.ndarray:
    top = 2 ** (bits - 1)
    return np.clip(np.rint(weight / np.float32(scale)), -top, top - 1).astype(int)


@pytest.mark.parametrize("name", ["ConvTranspose1d grouped", "ConvTranspose2d grouped"])
def test_grouped_transposed_codes_are_those_of_the_rearranged_weight(eight_bits, name):
    layer = f"layers.{name}"
    nodes, tensors = eight_bits.saved.deploy()
    codes = numpy_helper.to_array(tensors[nodes[layer].input[1]]).astype(int)
    weight = eight_bits.model.layers[name].weight.detach().numpy()
    inside, per_group = 2, 3
    for group in range(2):
        for column in range(per_group):
            rows = slice(group * inside, (group + 1) * inside)
            kernel = weight[rows, column]
            low, high = float(kernel.min()), float(kernel.max())
            levels = 128 if abs(high) < abs(low) else 127
            scale = np.float32(max(abs(low), abs(high))) / np.float32(levels)
            recorded = eight_bits.saved.record[layer].scale_w[group * per_group + column]
            assert recorded == pytest.approx(scale)
            assert np.array_equal(codes[rows, column], codes_of(kernel, scale, 8))


INT4 = (
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "Linear 2-D",
    "Linear 3-D",
)


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory) -> Forms:
    change = each_key("weight_quant_params", "num_bits", 4)
    return forms(tmp_path_factory.mktemp("int4"), INT4, 2, change=change)


@pytest.mark.parametrize("name", INT4)
def test_int4_weights_halve_the_input_channels(four_bits, name):
    layer = f"layers.{name}"
    nodes, tensors = four_bits.saved.deploy()
    packed = numpy_helper.to_array(tensors[nodes[layer].input[1]])
    weight = four_bits.model.layers[name].weight.detach().numpy()
    axis = 0 if "Transpose" in name or "Linear" in name else 1
    if "Linear" in name:
        weight = weight.T
    expected = list(weight.shape)
    expected[axis] //= 2
    assert list(packed.shape) == expected
    raw = np.moveaxis(packed.view(np.uint8), axis, 0).astype(int)
    nibbles = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1, *raw.shape[1:])
    codes = np.where(nibbles > 7, nibbles - 16, nibbles)
    scale = np.asarray(four_bits.saved.record[layer].scale_w, np.float32)
    plain = np.moveaxis(weight, axis, 0)
    spread = scale.reshape(1, -1, *[1] * (plain.ndim - 2)) if scale.size > 1 else scale
    assert np.array_equal(codes, np.clip(np.rint(plain / spread), -8, 7))
    for run in range(2):
        expected_output = four_bits.onnx[run][name]
        assert np.array_equal(four_bits.integers[run][name], expected_output)
        near = np.abs(four_bits.torch[run][name] - expected_output).max()
        assert near <= 1e-6 * np.abs(expected_output).max()


INT16 = ("Conv1d", "Conv2d", "ConvTranspose1d", "ConvTranspose2d", "Linear 2-D", "Linear 3-D")


@pytest.fixture(scope="module")
def sixteen_bits(tmp_path_factory) -> Forms:
    change = each_key("activation_quant_params", "num_bits", 16)
    return forms(tmp_path_factory.mktemp("int16"), INT16, 2, change=change)


@pytest.mark.parametrize("name", INT16)
def test_int16_activations(sixteen_bits, name):
    nodes, _ = sixteen_bits.saved.deploy()
    quant = next(n for n in nodes.values() if nodes[f"layers.{name}"].input[0] in n.output)
    settings = {a.name: onnx.helper.get_attribute_value(a) for a in quant.attribute}
    assert settings["dst_type"] == b"INT16"
    assert abs(settings["offset"]) > 128
    for run in range(2):
        expected = sixteen_bits.onnx[run][name]
        for form in (sixteen_bits.torch, sixteen_bits.integers, sixteen_bits.qdq):
            assert np.abs(form[run][name] - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("bits", [6, 7])
def test_odd_widths_are_stored_as_int8(tmp_path, bits):
    build, shape = LAYERS["Conv2d"]
    torch.manual_seed(0)
    change = each_key("weight_quant_params", "num_bits", bits)
    saved = quantise(tmp_path, nn.Sequential(build()).eval(), random_batch(shape), change=change)
    nodes, tensors = saved.deploy()
    codes = numpy_helper.to_array(tensors[nodes["0"].input[1]])
    assert saved.record["0"].wts_type == f"INT{bits}"
    assert codes.dtype == np.int8
    assert -(2 ** (bits - 1)) <= codes.min()
    assert codes.max() <= 2 ** (bits - 1) - 1
    assert np.abs(codes).max() >= 2 ** (bits - 1) - 1


@pytest.mark.parametrize("name", ["Linear 2-D", "Linear 3-D"])
def test_a_linear_with_a_scale_per_channel(tmp_path, run_onnx, name):
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    model = nn.Sequential(build(), nn.ReLU()).eval()
    saved = quantise(
        tmp_path,
        model,
        random_batch(shape),
        change=each_key("weight_quant_params", "channel_wise", True),
        options={"channel_wise_linear": True},
    )
    nodes, tensors = saved.deploy()
    assert len(saved.record["0"].scale_w) == 5
    assert len(tensors["0.dequant.param"].uint64_data) == 5
    codes = numpy_helper.to_array(tensors[nodes["0"].input[1]])
    scale = np.asarray(saved.record["0"].scale_w, np.float32)
    assert np.array_equal(codes, np.rint(model[0].weight.detach().numpy().T / scale))
    x = random_batch(shape)
    expected = run_onnx(saved.file("fake_quant"), (x,))
    with torch.no_grad():
        ours = saved.fake_quant_module(x).numpy()
    assert np.abs(ours - expected).max() <= 1e-6 * np.abs(expected).max()
    simulator = DeploySimulator(saved.file("deploy"))
    (integers,) = simulator.run({simulator.input_names[0]: x.numpy()}).values()
    assert np.array_equal(integers, expected)
    assert np.abs(run_onnx(saved.file("qdq"), (x,)) - expected).mean() <= 0.02 * expected.max()
    qdq = onnx.load(saved.file("qdq")).graph
    scales = [t for t in qdq.initializer if t.name.startswith("0.weight") and "scale" in t.name]
    assert [list(t.dims) for t in scales] == [[5]]


@pytest.mark.parametrize("before", [False, True])
def test_the_torch_module_follows_the_place_of_the_bias(tmp_path, run_onnx, before):
    build, shape = LAYERS["Linear 3-D"]
    torch.manual_seed(0)
    saved = quantise(
        tmp_path,
        nn.Sequential(build()).eval(),
        random_batch(shape),
        bias_before_dequant=before,
    )
    x = random_batch(shape)
    expected = run_onnx(saved.file("fake_quant"), (x,))
    with torch.no_grad():
        assert np.array_equal(saved.fake_quant_module(x).numpy(), expected)


class Half(nn.Module):
    """A layer of every operator, computed in float16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.pool = nn.AvgPool2d(2, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.tokens = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.up(torch.relu(self.pool(self.conv(x))))
        return self.head(self.tokens(x.flatten(2).transpose(1, 2)).mean(1))


def test_a_float16_model(tmp_path, run_onnx):
    torch.manual_seed(0)
    saved = quantise(tmp_path, Half().half().eval(), random_batch((4, 6, 6)).half())
    assert not Path(saved.file("qdq")).exists()
    nodes, _ = saved.deploy()
    fake = onnx.load(saved.file("fake_quant"))
    onnx.checker.check_model(fake, full_check=True)
    made = {n.name for n in fake.graph.node}
    for name in saved.record:
        assert nodes[f"{name}.dequant"].attribute[0].i == 1
        assert {f"{name}.quant.fakequant.cast", f"{name}.fakedequant.cast"} <= made
    assert len(saved.record) == 5
    for graph in (fake.graph, onnx.load(saved.file("deploy")).graph):
        assert not any(a.name == "op_data_type" for n in graph.node for a in n.attribute)
    x = random_batch((4, 6, 6)).half()
    expected = run_onnx(saved.file("fake_quant"), (x,))
    assert expected.dtype == np.float16
    simulator = DeploySimulator(saved.file("deploy"))
    (integers,) = simulator.run({simulator.input_names[0]: x.numpy()}).values()
    assert np.array_equal(integers, expected)
    with torch.no_grad():
        ours = saved.fake_quant_module(x)
    assert ours.dtype == torch.float16
    assert np.abs(ours.float().numpy() - expected).max() <= 2e-3


class HalfSums(nn.Module):
    """Arithmetic between the layers, which ONNX Runtime computes in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = x + 0.37 * self.b(x)
        return self.head((self.c(x) * 1.7 + x).mean((2, 3)))


def test_a_float16_network_with_sums_is_verified(tmp_path):
    torch.manual_seed(0)
    saved = quantise(tmp_path, HalfSums().half().eval(), random_batch((4, 8, 8)).half())
    x = random_batch((4, 8, 8), 16).half()
    assert all(p.ok for p in verify_export(saved.fake_quant_module, f"{tmp_path}/", [(x,)]))
    saved.fake_quant_module.head.deq.mul_(1.02)
    parities = verify_export(saved.fake_quant_module, f"{tmp_path}/", [(x,)])
    assert [p.ok for p in parities] == [False, True, False]


def test_forced_half_precision_from_config_to_file(tmp_path, run_onnx):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()

    def change(config: dict) -> None:
        config["fakequant_precision_mode"] = "FORCE_FP16_QUANT"

    saved = quantise(tmp_path, model, random_batch((4, 6, 6)), change=change)
    nodes, tensors = saved.deploy()
    for name, entry in saved.record.items():
        assert entry.fakequant_precision_mode == "FORCE_FP16_QUANT"
        assert np.float32(np.float16(entry.scale_d)) == np.float32(entry.scale_d)
        assert nodes[f"{name}.quant"].attribute[0].f == np.float32(1) / np.float32(entry.scale_d)
        exact = np.float32(entry.scale_d) * np.asarray(entry.scale_w, np.float32)
        words = [w & 0xFFFFFFFF for w in tensors[f"{name}.dequant.param"].uint64_data]
        assert words == (exact.view(np.uint32) & 0xFFFFE000).tolist()
    x = random_batch((4, 6, 6))
    expected = run_onnx(saved.file("fake_quant"), (x,))
    with torch.no_grad():
        ours = saved.fake_quant_module(x).numpy()
    assert np.abs(ours - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("compat", [False, True])
def test_what_the_reference_records(tmp_path, compat):
    """D4: a transposed convolution's float weight in calibration. D20: the mode is not recorded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2)).eval()

    def change(config: dict) -> None:
        config["fakequant_precision_mode"] = "FORCE_FP16_QUANT"

    saved = quantise(
        tmp_path, model, random_batch((4, 5, 4)), change=change, options={"compat": compat}
    )
    mode = saved.record["0"].fakequant_precision_mode
    assert mode == (None if compat else "FORCE_FP16_QUANT")
    stored = {t.name: t for t in onnx.load(str(tmp_path / "m.onnx")).graph.initializer}
    kept = np.array_equal(
        numpy_helper.to_array(stored["0.weight"]), model[0].weight.detach().numpy()
    )
    assert kept == compat


def test_folding_in_the_files(tmp_path):
    """One node less a pair, a bias where there was none, and the batch norm that is skipped."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(4, 6, 3, bias=False),
        nn.BatchNorm1d(6),
        nn.Unflatten(2, (7, 1)),
        nn.Conv2d(6, 6, 1),
        nn.BatchNorm2d(6),
        nn.Unflatten(3, (1, 1)),
        nn.Conv3d(6, 4, 1),
        nn.BatchNorm3d(4),
    )
    model.train()
    for _ in range(3):
        model(random_batch((4, 9), 8))
    model.eval()

    def graph(folder: str, change: Callable[[dict], None]) -> onnx.GraphProto:
        (tmp_path / folder).mkdir()
        quantise(tmp_path / folder, model, random_batch((4, 9)), change=change)
        return onnx.load(str(tmp_path / folder / "m.onnx")).graph

    apart = graph("apart", lambda config: config.update(do_fusion=False))
    skipped = graph("skipped", lambda config: config.update(skip_fusion_layers=["3"]))
    folded = graph("folded", lambda config: None)
    norms = [
        sum(n.op_type == "BatchNormalization" for n in g.node) for g in (apart, skipped, folded)
    ]
    assert norms == [3, 1, 0]
    assert len(apart.node) - len(folded.node) == 3
    assert "0.bias" not in {t.name for t in apart.initializer}
    assert "0.bias" in {t.name for t in folded.initializer}
    assert [len(n.input) for n in folded.node if n.op_type == "Conv"] == [3, 3, 3]
