"""DMQ from ``quantize_preprocess`` to the exported files."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from workbench.engine import (
    create_quant_config,
    quantize_model,
    quantize_preprocess,
    save_model,
    verify_export,
)
from workbench.engine.errors import WorkbenchError
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.config import read_config
from workbench.engine.files.record import LayerRecord, Record, read_record, write_record
from workbench.engine.flows.ptq import calibrate
from workbench.engine.graph.capture import capture


class Net(nn.Module):
    """Every kind of layer that can be balanced, Linear in two and in three dimensions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.pool = nn.AvgPool2d(4)
        self.tokens = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.grouped(input=x) + x)
        x = self.pool(F.relu(self.up(x)))
        x = self.tokens(x.flatten(2).transpose(1, 2))
        return self.head(x.mean(1))


LAYERS = ("stem", "grouped", "up", "tokens", "head")
KINDS = {"stem": 0.5, "grouped": 0.3, "up": 0.7, "tokens": 0.5, "head": 0.5}


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net()
    net.bn.running_mean.normal_()
    net.bn.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    found = [torch.randn(4, 4, 8, 8, generator=generator) for _ in range(3)]
    for batch in found:
        batch[:, 1] *= 20
    return found


@pytest.fixture
def files(tmp_path):
    return [str(tmp_path / n) for n in ("config.json", "modified.onnx", "record.txt", "out/net")]


def configure(path, net, batch, strengths=KINDS, **options):
    create_quant_config(path, net, (batch,), **options)
    settings = json.loads(open(path).read())
    for name, strength in strengths.items():
        settings[name]["dmq_balancer_param"] = strength
    with open(path, "w") as file:
        json.dump(settings, file)


def layer_inputs(net, names, batch):
    """Inputs of the layers, seen by hooks of our own."""
    seen = {}
    hooks = [
        net.get_submodule(n).register_forward_pre_hook(
            lambda _m, args, kwargs, n=n: seen.__setitem__(n, args[0] if args else kwargs["input"]),
            with_kwargs=True,
        )
        for n in names
    ]
    with torch.no_grad():
        net(batch)
    for hook in hooks:
        hook.remove()
    return seen


def run_onnx(path, x):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        path, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConvMulFusion"]
    )
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def test_the_first_batch_fills_the_record(net, batches, files):
    config, _, record, _ = files
    configure(config, net, batches[0])
    model = quantize_preprocess(config, record, net, (batches[0],))
    assert open(record).read() == ""
    assert not model.balancing.is_done and set(model.balancing.missing()) == set(LAYERS)
    with torch.no_grad():
        torch.testing.assert_close(model(batches[0]), net(batches[0]), rtol=1e-4, atol=1e-5)
    first = open(record).read()
    assert "tensor_balance_factor" in first and "scale" not in first
    model(batches[1])
    assert open(record).read() == first and model.balancing.is_done

    found = read_record(record).layers
    assert {n: len(r.tensor_balance_factor) for n, r in found.items()} == {
        "stem": 4, "grouped": 8, "up": 8, "tokens": 6, "head": 6,
    }  # fmt: skip
    inputs = layer_inputs(net, LAYERS, batches[0])
    fused = net.stem.weight * (net.bn.weight / torch.sqrt(net.bn.running_var + 1e-5)).reshape(
        -1, 1, 1, 1
    )
    a = inputs["stem"].abs().amax((0, 2, 3))
    v = fused.detach().abs().amax((0, 2, 3))
    expected = a.sqrt() / v.sqrt()
    np.testing.assert_allclose(found["stem"].tensor_balance_factor, expected, rtol=1e-5)
    a = inputs["tokens"].abs().amax((0, 1))
    expected = a.sqrt() / net.tokens.weight.detach().abs().amax(0).sqrt()
    np.testing.assert_allclose(found["tokens"].tensor_balance_factor, expected, rtol=1e-4)


def test_the_running_maximum_of_several_batches(net, batches, files):
    config, _, record, _ = files
    configure(config, net, batches[0], {"stem": 0.5})
    model = quantize_preprocess(config, record, net, (batches[0],), batches=3)
    for batch in batches[:2]:
        model(batch)
        assert open(record).read() == ""
    model(batches[2])
    largest = torch.cat(batches).abs().amax((0, 2, 3))
    one = quantize_preprocess(config, str(record) + ".one", net, (batches[0],))
    one(batches[0])
    single = np.array(one.balancing.finalize()["stem"])
    ratio = (largest / batches[0].abs().amax((0, 2, 3))).sqrt().numpy()
    found = read_record(record).layers["stem"].tensor_balance_factor
    np.testing.assert_allclose(found, single * ratio, rtol=1e-5)


def test_the_record_grows_in_the_states_of_section_12(net, batches, files):
    config, modified, record, prefix = files
    configure(config, net, batches[0], {"stem": 0.5, "up": 0.5})
    quantize_preprocess(config, record, net, (batches[0],))(batches[0])
    factors = {n: r.tensor_balance_factor for n, r in read_record(record).layers.items()}
    model = quantize_model(config, modified, record, net, (batches[0],))
    middle = read_record(record).layers
    assert {n: r.tensor_balance_factor for n, r in middle.items() if n in factors} == factors
    assert not middle["head"].tensor_balance_factor
    assert all(r.scale_w and r.scale_d is None for r in middle.values())
    model(batches[0])
    last = read_record(record).layers
    assert all(r.scale_d is not None for r in last.values())
    assert {n: last[n].tensor_balance_factor for n in factors} == factors
    save_model(modified, record, prefix)


def test_weights_are_balanced_before_they_are_quantised(net, batches, files):
    config, modified, record, _ = files
    configure(config, net, batches[0], {"tokens": 0.5})
    quantize_preprocess(config, record, net, (batches[0],))(batches[0])
    model = quantize_model(config, modified, record, net, (batches[0],))
    factors = torch.tensor(read_record(record).layers["tokens"].tensor_balance_factor)
    balanced = net.tokens.weight.detach() * factors
    low, high = float(balanced.min()), float(balanced.max())
    scale = max(-low / 128, high / 127) if -low > high else high / 127
    assert read_record(record).layers["tokens"].scale_w[0] == pytest.approx(scale, rel=1e-6)
    stored = model.tokens.weight.detach()
    assert float((stored - balanced).abs().max()) <= scale * 0.5001
    graph = onnx.load(modified).graph
    node = next(n for n in graph.node if n.name == "tokens")
    saved = next(t for t in graph.initializer if t.name == node.input[1])
    saved = onnx.numpy_helper.to_array(saved)
    assert any(np.array_equal(saved, w) for w in (stored.numpy(), stored.T.numpy()))


def test_activations_are_divided_before_they_are_observed(net, batches, files):
    config, modified, record, _ = files
    configure(config, net, batches[0], {"stem": 0.5}, batch_num=1, activation_offset=False)
    quantize_preprocess(config, record, net, (batches[0],))(batches[0])
    quantize_model(config, modified, record, net, (batches[0],))(batches[0])
    entry = read_record(record).layers["stem"]
    balanced = batches[0] / torch.tensor(entry.tensor_balance_factor).reshape(1, -1, 1, 1)
    # IFMR searches 0.7 to 1.3 of the largest magnitude.
    bound = float(balanced.abs().max()) / 127
    assert 0.69 * bound < entry.scale_d < 1.31 * bound
    assert bound < 0.5 * float(batches[0].abs().max()) / 127


def exported(net, batches, files, strengths=KINDS):
    config, modified, record, prefix = files
    configure(config, net, batches[0], strengths, batch_num=len(batches))
    quantize_preprocess(config, record, net, (batches[0],))(batches[0])
    model = quantize_model(config, modified, record, net, (batches[0],))
    for batch in batches:
        model(batch)
    save_model(modified, record, prefix)
    return model


def test_the_exported_files_agree(net, batches, files):
    model = exported(net, batches, files)
    job = model.calibration
    torch_form = to_fake_quant(job.folded, job.finalize())
    for parity in verify_export(torch_form, files[3], [(b,) for b in batches]):
        assert parity.ok, parity
        if parity.left == "ONNX":
            assert parity.max_abs == 0
    with torch.no_grad():
        y = net(batches[0]).numpy()
    for kind in ("fake_quant", "qdq"):
        z = run_onnx(f"{files[3]}_{kind}_model.onnx", batches[0])
        assert np.dot(y.ravel(), z.ravel()) / np.linalg.norm(y) / np.linalg.norm(z) > 0.999


def test_the_nodes_of_section_13(net, batches, files):
    exported(net, batches, files)
    record = read_record(files[2]).layers
    shapes = {
        "stem": [1, 4, 1, 1], "grouped": [1, 8, 1, 1], "up": [1, 8, 1, 1],
        "tokens": [1, 6], "head": [1, 6],
    }  # fmt: skip
    for kind in ("deploy", "fake_quant", "qdq"):
        graph = onnx.load(f"{files[3]}_{kind}_model.onnx").graph
        nodes = {n.name: n for n in graph.node}
        readers = {name: n for n in graph.node for name in n.input}
        for name, shape in shapes.items():
            constant, mul = nodes[f"{name}.tensor_balance_factor"], nodes[f"{name}.mul"]
            assert (constant.op_type, mul.op_type) == ("Constant", "Mul")
            assert constant.output[0] in mul.input
            value = onnx.numpy_helper.to_array(constant.attribute[0].t)
            assert value.dtype == np.float32 and list(value.shape) == shape
            inverse = 1 / np.array(record[name].tensor_balance_factor, np.float32)
            np.testing.assert_array_equal(value.ravel(), inverse.astype(np.float32))
            after = readers[mul.output[0]]
            first = {"deploy": "AscendQuant", "fake_quant": "Mul", "qdq": "QuantizeLinear"}[kind]
            assert after.op_type == first
            if kind == "deploy":
                assert after.name == f"{name}.quant"


def test_without_rounding_the_balanced_graph_is_the_float_one(net, batches, files):
    """Section 15, Files 6: a grid so fine that quantisation is the identity."""
    config, modified, record, _ = files
    configure(config, net, batches[0])
    quantize_preprocess(config, record, net, (batches[0],))(batches[0])
    balanced = quantize_model(config, modified, record, net, (batches[0],))
    factors = read_record(record).layers
    # The calibration model divides activations; give it the balanced weights without rounding.
    job = balanced.calibration
    for name in LAYERS:
        own = job.folded.get_submodule(name).weight.detach()
        f = torch.tensor(factors[name].tensor_balance_factor)
        if name == "up":
            full = own * f.reshape(-1, 1, 1, 1)
        elif name == "grouped":
            full = own * f.reshape(4, 2).repeat_interleave(2, 0).reshape(8, 2, 1, 1)
        else:
            full = own * f.reshape(1, -1, *(1,) * (own.dim() - 2))
        balanced.get_submodule(name).weight = nn.Parameter(full)
    with torch.no_grad():
        torch.testing.assert_close(balanced(batches[0]), net(batches[0]), rtol=1e-5, atol=1e-5)


class Twins(nn.Module):
    """Two convolutions on one tensor (section 15, Files 4)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a = nn.Conv2d(4, 4, 3)
        self.b = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.a(x) + self.b(x)


@pytest.mark.parametrize(
    ("strengths", "quants"), [({}, 1), ({"a": 0.5}, 2), ({"a": 0.5, "b": 0.5}, 2)]
)
def test_balanced_layers_share_no_quantiser(batches, files, strengths, quants):
    net = Twins().eval()
    if strengths:
        exported(net, batches, files, strengths)
    else:
        config, modified, record, prefix = files
        create_quant_config(config, net, (batches[0],))
        quantize_model(config, modified, record, net, (batches[0],))(batches[0])
        save_model(modified, record, prefix)
    deploy = onnx.load(f"{files[3]}_deploy_model.onnx")
    assert sum(n.op_type == "AscendQuant" for n in deploy.graph.node) == quants
    record = read_record(files[2]).layers
    if len(strengths) == 1:
        assert record["a"].scale_d != record["b"].scale_d


class Chain(nn.Module):
    """The second layer's balancer can move into the first, the third's cannot: two read it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.a = nn.Conv2d(4, 8, 3)
        self.pool = nn.MaxPool2d(2)
        self.b = nn.Conv2d(8, 6, 2)
        self.c = nn.Conv2d(6, 6, 1)
        with torch.no_grad():
            # Channels that no common grid can hold: 400 to 1.
            self.a.weight[1] *= 20
            self.a.weight[2] /= 20
            self.b.weight[:, 1] /= 20
            self.b.weight[:, 2] *= 20

    def forward(self, x):
        x = self.b(self.pool(F.relu(self.a(x))))
        return self.c(x) + x


def test_the_qdq_file_keeps_integer_kernels_before_a_balanced_layer(batches, files):
    net = Chain().eval()
    exported(net, batches, files, {"a": 0.5, "b": 0.5, "c": 0.5})
    graph = onnx.load(f"{files[3]}_qdq_model.onnx").graph
    assert {n.name for n in graph.node if n.op_type == "Mul"} == {"a.mul", "c.mul"}
    with torch.no_grad():
        y = net(batches[0]).numpy()
    errors = {}
    for kind in ("fake_quant", "qdq"):
        z = run_onnx(f"{files[3]}_{kind}_model.onnx", batches[0])
        errors[kind] = np.square(z - y).mean() / np.square(y).mean()
    # The same codes; only the output of ``b``, read by the sum as well, may be rounded once more.
    assert errors["qdq"] < 2 * errors["fake_quant"] < 1e-3

    # Moved scales change no weight code.
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    made = {out: n for n in graph.node for out in n.output}
    conv = next(n for n in graph.node if n.name == "a")
    codes, scale, zero = (stored[name] for name in made[conv.input[1]].input)
    entry, factors = (read_record(files[2]).layers[n] for n in ("a", "b"))
    own = np.array(entry.scale_w, np.float32)
    inverse = 1 / np.array(factors.tensor_balance_factor, np.float32)
    np.testing.assert_allclose(scale, own * inverse, rtol=1e-6)
    weight = net.a.weight.detach() * torch.tensor(entry.tensor_balance_factor).reshape(1, -1, 1, 1)
    expected = torch.round(weight / torch.tensor(own).reshape(-1, 1, 1, 1)).numpy()
    np.testing.assert_array_equal(
        codes.astype(int) - zero.astype(int).reshape(-1, 1, 1, 1), expected
    )


def test_a_balanced_float16_network_agrees_in_all_forms(files):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten())
    net.add_module("head", nn.Linear(96, 5))
    net = net.half().eval()
    batch = torch.randn(4, 4, 8, 8).half()
    model = exported(net, [batch], files, {"0": 0.5, "2": 0.5, "head": 0.5})
    job = model.calibration
    parities = verify_export(to_fake_quant(job.folded, job.finalize()), files[3], [(batch,)])
    assert all(p.ok for p in parities)
    # The product with the factors is rounded to half in every form.
    assert [p.max_abs for p in parities if p.left == "ONNX fake-quant"] == [0.0]
    for kind in ("deploy", "fake_quant"):
        nodes = {n.name: n for n in onnx.load(f"{files[3]}_{kind}_model.onnx").graph.node}
        factor = nodes["2.tensor_balance_factor"].attribute[0].t
        assert factor.data_type == onnx.TensorProto.FLOAT16


def test_calibrate_finds_the_factors_itself(net, batches, files):
    config, _, record, _ = files
    exported(net, batches, files)
    captured = capture(net, (batches[0],))
    job = calibrate(captured, read_config(config, captured.layers), [(b,) for b in batches])
    assert job.finalize().layers == read_record(record).layers


def test_the_users_model_is_left_alone(net, batches, files):
    state = {n: t.clone() for n, t in net.state_dict().items()}
    net.train()
    configure(files[0], net, batches[0])
    exported(net, batches, files)
    assert net.training and set(state) == set(net.state_dict())
    assert all(torch.equal(state[n], t) for n, t in net.state_dict().items())


def test_no_balancer_configured(net, batches, files):
    create_quant_config(files[0], net, (batches[0],))
    with pytest.raises(RuntimeError, match="dmq_balancer_param"):
        quantize_preprocess(files[0], files[2], net, (batches[0],))


def test_a_balancer_on_a_disabled_layer_does_not_count(net, batches, files):
    configure(files[0], net, batches[0], {"stem": 0.5}, skip_layers=["stem"])
    with pytest.raises(RuntimeError, match="dmq_balancer_param"):
        quantize_preprocess(files[0], files[2], net, (batches[0],))


@pytest.mark.parametrize("name", ["", "folder/", "x" * 255])
@pytest.mark.parametrize("argument", [0, 1])
def test_bad_file_names(net, batches, files, name, argument):
    paths = [files[0], files[2]]
    paths[argument] = name
    with pytest.raises(ValueError):
        quantize_preprocess(*paths, net, (batches[0],))


def test_bad_arguments(net, batches, files):
    with pytest.raises(OSError, match="config"):
        quantize_preprocess(files[0], files[2], net, (batches[0],))
    configure(files[0], net, batches[0])
    with pytest.raises(TypeError, match=r"quantize_preprocess.*model"):
        quantize_preprocess(files[0], files[2], "net", (batches[0],))
    with pytest.raises(ValueError, match="batches is 0"):
        quantize_preprocess(files[0], files[2], net, (batches[0],), batches=0)
    with pytest.raises(ValueError, match="compat"):
        quantize_preprocess(files[0], files[2], net, (batches[0],), compat=True)


@pytest.mark.parametrize("text", [None, ""])
def test_quantize_model_without_a_record(net, batches, files, text):
    configure(files[0], net, batches[0])
    if text is not None:
        with open(files[2], "w") as file:
            file.write(text)
    with pytest.raises(RuntimeError, match="quantize_preprocess"):
        quantize_model(*files[:3], net, (batches[0],))


def test_quantize_model_names_layers_without_factors(net, batches, files):
    configure(files[0], net, batches[0])
    ones = LayerRecord(tensor_balance_factor=(1.0,) * 4)
    write_record(files[2], Record({"stem": ones, "head": ones}))
    with pytest.raises(ValueError, match=r"grouped.*head has 4 factors for 6") as caught:
        quantize_model(*files[:3], net, (batches[0],))
    assert isinstance(caught.value, WorkbenchError)
    assert "layer stem" not in str(caught.value)


def test_a_layer_that_no_batch_reached_is_named(files):
    class Switch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.skip = False

        def forward(self, x):
            return self.a(x) if self.skip else self.b(self.a(x))

    net, x = Switch().eval(), torch.ones(2, 4)
    configure(files[0], net, x, {"a": 0.5, "b": 0.5})
    model = quantize_preprocess(files[0], files[2], net, (x,))
    model.skip = True
    model(x)
    assert open(files[2]).read() == "" and model.balancing.missing() == {"b": 0}
    with pytest.raises(RuntimeError, match="b \\(0 of 1\\)"):
        model.balancing.finalize()
    model.skip = False
    model(x)
    assert set(read_record(files[2]).layers) == {"a", "b"}
