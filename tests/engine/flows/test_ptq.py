"""The three calls of post-training quantisation: life cycle, files, and what they leave alone."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from workbench.engine import create_quant_config, quantize_model, save_model, verify_export
from workbench.engine.errors import WorkbenchError
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.record import read_record
from workbench.engine.files.sidecar import read_sidecar


class Net(nn.Module):
    """Conv + BN + ReLU, a residual add in code, a pool, a functional relu, a Linear."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = self.pool(F.relu(self.body(input=x) + x))
        return self.head(x.mean((2, 3)))


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
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(3)]


@pytest.fixture
def files(tmp_path):
    names = ("config.json", "modified.onnx", "record.txt", "out/net")
    return [str(tmp_path / name) for name in names]


def digest(model):
    state = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        state.update(name.encode() + value.numpy().tobytes())
    return state.hexdigest()


def calibrated(net, batches, files):
    config, modified, record, _ = files
    create_quant_config(config, net, (batches[0],), batch_num=len(batches))
    model = quantize_model(config, modified, record, net, (batches[0],))
    for batch in batches:
        model(batch)
    return model


def ifmr(x, bits=8, steps=61):
    """IFMR, asymmetric, by brute force in float64 (chapter 10 section 9.1; default percentiles)."""
    x = np.sort(x.astype(np.float64).ravel())
    k = len(x) - int(0.999999 * len(x))
    high, low = max(0.0, x[-k]), min(0.0, x[k - 1])
    best = None
    for ratio in np.arange(0.7, 1.3, 0.01, dtype=np.float32)[:steps]:
        top = float(ratio) * high
        scale = (top - low) / (2**bits - 1)
        loss = np.mean((np.round(np.clip(x, low, top) / scale) * scale - x) ** 2)
        if best is None or loss < best[0]:
            best = (loss, scale)
    return best[1], int(-np.round(low / best[1]) - 2 ** (bits - 1))


def test_record_grows_in_the_specified_states(net, batches, files):
    config, modified, record, _ = files
    create_quant_config(config, net, (batches[0],), batch_num=3)
    model = quantize_model(config, modified, record, net, (batches[0],))
    first = open(record).read()
    assert "scale_w" in first and "scale_d" not in first
    model(batches[0])
    model(batches[1])
    assert open(record).read() == first
    assert not model.calibration.is_done
    model(batches[2])
    complete = open(record).read()
    assert complete.count("scale_d") == 4
    assert model.calibration.is_done
    model(batches[0])
    assert open(record).read() == complete


def test_scales_equal_a_brute_force_computation(net, batches, files):
    calibrated(net, batches, files)
    record = read_record(files[2]).layers
    stem, bn = net.stem, net.bn
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    weight = (stem.weight * factor.reshape(-1, 1, 1, 1)).detach().numpy()
    largest = np.where(
        weight.reshape(8, -1).max(1) < -weight.reshape(8, -1).min(1),
        -weight.reshape(8, -1).min(1) / 128,
        weight.reshape(8, -1).max(1) / 127,
    )
    np.testing.assert_allclose(record["stem"].scale_w, largest, rtol=1e-6)
    scale, offset = ifmr(torch.cat(batches).numpy())
    assert record["stem"].scale_d == pytest.approx(scale, rel=1e-6)
    assert record["stem"].offset_d == offset
    # The second layer reads what the fake-quantised stem computes.
    codes = np.clip(np.round(weight / largest.reshape(-1, 1, 1, 1)), -128, 127)
    fake = torch.tensor(codes * largest.reshape(-1, 1, 1, 1), dtype=torch.float32)
    bias = (bn.bias - bn.running_mean * factor).detach()
    body_input = F.relu(F.conv2d(torch.cat(batches), fake, bias, padding=1)).numpy()
    scale, offset = ifmr(body_input)
    assert record["body"].scale_d == pytest.approx(scale, rel=1e-4)
    assert record["body"].offset_d == offset
    assert record["pool"].scale_w == (1.0,) and record["pool"].wts_type is None


def test_ranges_of_adds_and_outputs_are_in_the_sidecar(net, batches, files):
    model = calibrated(net, batches, files)
    ranges = read_sidecar(files[2]).ranges
    with torch.no_grad():
        weights = dict(model.named_parameters())
        x = torch.cat(batches)
        stem = F.conv2d(x, weights["stem.weight"], weights["stem.bias"], padding=1)
        relu = F.relu(stem)
        body = F.conv2d(relu, weights["body.weight"], weights["body.bias"], padding=1, groups=8)
    for key, value in (("stem", stem), ("body", body), ("#add0", body + relu), ("input:x", x)):
        assert ranges[key].low == pytest.approx(float(value.min()), rel=1e-4), key
        assert ranges[key].high == pytest.approx(float(value.max()), rel=1e-4), key


def test_three_files_run_and_stay_close_to_the_float_model(net, batches, files):
    calibrated(net, batches, files)
    save_model(*files[1:])
    x = torch.cat(batches)
    with torch.no_grad():
        wanted = net(x).numpy()
    for kind in ("fake_quant", "qdq"):
        path = f"{files[3]}_{kind}_model.onnx"
        onnx.checker.check_model(path, full_check=True)
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        cosine = (got * wanted).sum() / np.sqrt((got**2).sum() * (wanted**2).sum())
        assert cosine > 0.999, kind
    with pytest.raises(Exception, match="AscendQuant"):
        ort.InferenceSession(f"{files[3]}_deploy_model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_float_type_takes_its_own_batches(net, batches, files, dtype):
    """They are cast as the engine's copy is; the files take float32 (D23)."""
    net, batches = net.to(dtype), [batch.to(dtype) for batch in batches]
    calibration = calibrated(net, batches, files).calibration
    save_model(files[1], files[2], files[3])
    module = to_fake_quant(
        calibration.folded, calibration.finalize(), weights=calibration.fake_weights
    )
    assert all(line.ok for line in verify_export(module, files[3], [(batches[0],)]))
    with torch.no_grad():
        wanted = net(batches[0]).float()
        assert torch.allclose(module(batches[0]), wanted, atol=0.05 * float(wanted.abs().max()))


def test_a_channel_that_training_switched_off_can_be_saved(net, batches, files):
    """Its weight has a scale of its own size, at which the bias that is left has no int32 code."""
    with torch.no_grad():
        net.bn.weight[2], net.bn.bias[2] = 1e-12, 0.3
        net.bn.weight[3], net.bn.bias[3] = 0.0, 0.3
    model = calibrated(net, batches, files)
    save_model(files[1], files[2], files[3])
    record = read_record(files[2]).layers["stem"]
    assert 0.3 / (record.scale_d * record.scale_w[2]) <= 2**30 * (1 + 1e-6)
    calibration = model.calibration
    module = to_fake_quant(
        calibration.folded, calibration.finalize(), weights=calibration.fake_weights
    )
    assert all(line.ok for line in verify_export(module, files[3], [(batches[0],)]))
    with torch.no_grad():
        off = (module.stem(batches[0]) - calibration.folded.stem(batches[0]))[:, 2:4]
    assert off.abs().max() < 1e-3  # a scale of 1 for the channel of zeros gave half a step, 0.01


def test_users_model_is_untouched(net, batches, files):
    net.train()
    before, modes = digest(net), [m.training for m in net.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    calibrated(net, batches, files)
    assert digest(net) == before
    assert [m.training for m in net.modules()] == modes
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()] == hooks
    assert all(p.requires_grad for p in net.parameters())


def test_incomplete_calibration_names_the_layers(net, batches, files):
    config, modified, record, prefix = files
    create_quant_config(config, net, (batches[0],), batch_num=2)
    model = quantize_model(config, modified, record, net, (batches[0],))
    model(batches[0])
    with pytest.raises(RuntimeError, match=r"stem \(1 of 2\)"):
        model.calibration.finalize()
    with pytest.raises(RuntimeError, match="scale_d.*stem|stem.*scale_d"):
        save_model(modified, record, prefix)


def test_interleaved_jobs_give_the_records_of_separate_ones(net, batches, files, tmp_path):
    calibrated(net, batches, files)
    alone = open(files[2]).read()
    other = Net().eval()
    others = [str(tmp_path / f"b-{n}") for n in ("config.json", "modified.onnx", "record.txt")]
    create_quant_config(others[0], other, (batches[0],), batch_num=3)
    a = quantize_model(files[0], files[1], files[2], net, (batches[0],))
    b = quantize_model(others[0], others[1], others[2], other, (batches[0],))
    for batch in batches:
        a(batch)
        b(batch * 3)
    assert open(files[2]).read() == alone
    assert open(others[2]).read() != alone


def test_same_inputs_give_the_same_bytes(net, batches, files):
    calibrated(net, batches, files)
    save_model(*files[1:])
    first = [open(p, "rb").read() for p in (files[0], files[2], files[3] + "_deploy_model.onnx")]
    calibrated(net, batches, files)
    save_model(*files[1:])
    assert first == [
        open(p, "rb").read() for p in (files[0], files[2], files[3] + "_deploy_model.onnx")
    ]


def test_editing_the_config_leaves_a_layer_in_float(net, batches, files):
    create_quant_config(files[0], net, (batches[0],))
    config = json.loads(open(files[0]).read())
    config["body"]["quant_enable"] = False
    open(files[0], "w").write(json.dumps(config))
    quantize_model(files[0], files[1], files[2], net, (batches[0],))(batches[0])
    save_model(*files[1:])
    assert set(read_record(files[2]).layers) == {"stem", "pool", "head"}
    deploy = onnx.load(files[3] + "_deploy_model.onnx")
    names = {node.name for node in deploy.graph.node}
    assert "stem.quant" in names and "body.quant" not in names


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ('"batch_num":1|"batch_num":0', ValueError, "batch_num"),
        ('"batch_num":1|"batch_num":"1"', TypeError, "batch_num"),
        ('"stem":|"stemm":', ValueError, "stemm"),
        ('"stem":|"body":', ValueError, "body"),
        ('"max_percentile":0.999999|"max_percentile":1.5', ValueError, "max_percentile"),
        ('"quant_enable":true|"quant_enable":1', TypeError, "quant_enable"),
        ('"act_algo":"ifmr"|"act_algo":"best"', ValueError, "act_algo"),
        ('"wts_algo":"arq_quantize"|"wts_algo":"best"', ValueError, "wts_algo"),
        ("true|tru", ValueError, "config.json"),
    ],
)
def test_bad_configs_are_refused_before_any_file_is_written(
    net, batches, files, change, error, says
):
    create_quant_config(files[0], net, (batches[0],))
    old, new = change.split("|")
    text = open(files[0]).read()
    assert old in text
    open(files[0], "w").write(text.replace(old, new, 1))
    with pytest.raises(error, match=re.escape(says)) as caught:
        quantize_model(files[0], files[1], files[2], net, (batches[0],))
    assert isinstance(caught.value, WorkbenchError)
    assert not any(map(__import__("os").path.exists, files[1:3]))


def test_bad_arguments(net, batches, files, tmp_path):
    x = (batches[0],)
    with pytest.raises(TypeError, match="model must be Module"):
        create_quant_config(files[0], "net", x)
    with pytest.raises(TypeError, match="batch_num must be int"):
        create_quant_config(files[0], net, x, batch_num=True)
    with pytest.raises(ValueError, match="batch_num"):
        create_quant_config(files[0], net, x, batch_num=0)
    with pytest.raises(ValueError, match="nothere"):
        create_quant_config(files[0], net, x, skip_layers=["nothere"])
    with pytest.raises(ValueError, match="bn"):
        create_quant_config(files[0], net, x, skip_layers=["bn"])
    with pytest.raises(ValueError, match="stem"):
        create_quant_config(files[0], net, x, skip_layers=["stem", "stem"])
    with pytest.raises(ValueError):
        create_quant_config(files[0], net, x, skip_layers=["stem", "body", "pool", "head"])
    with pytest.raises(ValueError, match="config_file"):
        create_quant_config("", net, x)
    with pytest.raises(ValueError, match="255 characters; allowed: 254"):
        create_quant_config(str(tmp_path / ("c" * 255)), net, x)
    with pytest.raises(TypeError, match="skip_layers must hold strings only, it holds 3"):
        create_quant_config(files[0], net, x, skip_layers=["stem", 3])
    with pytest.raises(ValueError, match="config_defination is ''"):
        create_quant_config(files[0], net, x, config_defination="")
    with pytest.raises(RuntimeError, match="bare Conv2d"):
        create_quant_config(files[0], net.stem, x)
    with pytest.raises(TypeError, match="input_data"):
        create_quant_config(files[0], net, None)
    with pytest.raises(RuntimeError):
        create_quant_config(files[0], net, [batches[0]])
    with pytest.raises(RuntimeError):
        create_quant_config(files[0], net, (batches[0][:, :2],))
    with pytest.raises(ValueError):
        create_quant_config(files[0], nn.Sequential(nn.ReLU()), x)
    with pytest.raises(FileNotFoundError, match="config"):
        quantize_model(str(tmp_path / "no.json"), files[1], files[2], net, x)
    assert not list(tmp_path.iterdir())


class Free(nn.Module):
    """Does with its layers what wrapping them would break (D3)."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)])
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.parts = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))

    def forward(self, x, y, z, *, scale=None):
        y = self.convs[-1](input=F.relu(self.convs[0](x))) + y
        y = self.up(y, output_size=[12, 12])
        z = self.parts[0](y.mean((2, 3))) * self.convs[0].weight.abs().mean() + z
        z = self.parts[1:](z if scale is None else z * scale)
        return {"z": z, "sum": y.sum(1)}, (z + 1,)


def test_layers_may_be_used_freely(files):
    torch.manual_seed(0)
    net = Free().eval()

    def batch(n):
        tensors = torch.randn(n, 3, 6, 6), torch.randn(n, 4, 6, 6), torch.randn(n, 5)
        return *tensors, {"scale": torch.rand(1) + 0.5}

    create_quant_config(files[0], net, batch(2), batch_num=2)
    model = quantize_model(*files[:3], net, batch(2))
    for n in (2, 3):
        *args, kwargs = batch(n)
        model(*args, **kwargs)
    # The weight that forward reads is not quantised: the product with it would change.
    assert set(read_record(files[2]).layers) == {"convs.1", "up", "parts.0", "parts.2"}
    save_model(*files[1:])
    job = model.calibration
    torch_form = to_fake_quant(job.folded, job.finalize())
    assert all(p.ok for p in verify_export(torch_form, files[3], [batch(2), batch(5)]))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"modfied_onnx_file": ""}, ValueError, "modfied_onnx_file is ''"),
        ({"record_file": "folder/"}, ValueError, "record_file"),
        ({"record_file": None}, TypeError, "record_file must be str"),
        ({"model": None}, TypeError, "model must be Module"),
        ({"input_data": []}, RuntimeError, "a list"),
        ({"input_names": "x"}, TypeError, "input_names must be list or None"),
        ({"input_names": [1]}, RuntimeError, "input_names must hold strings"),
        ({"output_names": [None]}, RuntimeError, "output_names must hold strings"),
        ({"input_names": ["a", "b"]}, RuntimeError, "2 names"),
        ({"dynamic_axes": ["x"]}, TypeError, "dynamic_axes must be dict"),
        ({"dynamic_axes": {"x": 0}}, RuntimeError, "dynamic_axes"),
        ({"dynamic_axes": {"x": {-1: "n"}}}, RuntimeError, "axes >= 0"),
        ({"dynamic_axes": {"x": [-1]}}, RuntimeError, "axes >= 0"),
    ],
)
def test_bad_arguments_of_quantize_model(net, batches, files, options, error, says):
    create_quant_config(files[0], net, (batches[0],))
    keys = ("config_file", "modfied_onnx_file", "record_file")
    given = {**dict(zip(keys, files, strict=False)), "model": net, "input_data": (batches[0],)}
    with pytest.raises(error, match=says) as caught:
        quantize_model(**{**given, **options})
    assert isinstance(caught.value, WorkbenchError)
    assert not any(Path(name).exists() for name in files[1:3])


def test_models_that_an_earlier_step_made_are_refused(net, batches, files):
    create_quant_config(files[0], net, (batches[0],))
    made = quantize_model(*files[:3], net, (batches[0],))
    for again in (made, nn.Sequential(made)):
        with pytest.raises(RuntimeError, match="compression modules.*original float model"):
            quantize_model(*files[:3], again, (batches[0],))
    made(batches[0])
    finished = to_fake_quant(made.calibration.folded, made.calibration.finalize())
    with pytest.raises(RuntimeError, match="stem, body, pool, head"):
        create_quant_config(files[0], finished, (batches[0],))


def test_nan_weights_are_refused_by_name(net, batches, files):
    with torch.no_grad():
        net.head.weight[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="head"):
        create_quant_config(files[0], net, (batches[0],))


def test_nan_activations_name_the_layer(net, batches, files):
    config, modified, record, _ = files
    create_quant_config(config, net, (batches[0],))
    model = quantize_model(config, modified, record, net, (batches[0],))
    with pytest.raises(RuntimeError, match="stem"):
        model(batches[0] * float("nan"))


def test_wrong_shaped_data_is_said_in_words(net, batches, files):
    config, modified, record, _ = files
    create_quant_config(config, net, (batches[0],))
    model = quantize_model(config, modified, record, net, (batches[0],))
    before = open(record).read()
    with pytest.raises(ValueError, match=r"input x has \(4, 8, 8, 3\), captured was batch×3×8×8"):
        model(batches[0].permute(0, 2, 3, 1))
    assert open(record).read() == before
    # Some layers have counted the failed batch: going on would mix it in.
    with pytest.raises(RuntimeError, match="earlier batch failed"):
        model(batches[0])
    assert not model.calibration.is_done


def test_an_unwritable_folder_is_refused_before_work(net, batches, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder is wanted")
    with pytest.raises(WorkbenchError, match="file"):
        create_quant_config(str(blocked / "config.json"), net, (batches[0],))
