"""Chapter 25 part B through its public functions."""

import io
import json

import pytest
import torch
from torch import nn

from workbench.engine.errors import CalibrationError, Cancelled
from workbench.engine.events import CancelToken
from workbench.engine.files.record import read_record
from workbench.engine.flows.kv_cache import (
    calibration_status,
    create_quant_cali_config,
    create_quant_cali_model,
)
from workbench.engine.graph.capture import capture


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.k_proj, self.v_proj = nn.Linear(8, 6), nn.Linear(8, 6)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        x = self.norm(x)
        # Code that reads a layer's attributes must go on working.
        assert self.k_proj.in_features == 8
        return torch.softmax(self.k_proj(x), -1) + self.v_proj(x).relu()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blk0, self.blk1 = Block(), Block()
        self.late = nn.Linear(8, 4)

    def forward(self, x, late=False):
        y = self.blk0(x) + self.blk1(x * 3)
        return (y, self.late(x)) if late else y


NAMES = ["blk0.k_proj", "blk1.v_proj"]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def paths(tmp_path):
    return str(tmp_path / "kv.json"), str(tmp_path / "record.txt")


def configure(net, path, names=NAMES, **changes):
    create_quant_cali_config(path, net, {"kv_cache_quant_layers": names})
    data = json.loads(open(path).read())
    for key, value in changes.items():
        if key in ("batch_num", "activation_offset"):
            data[key] = value
        else:
            for name in names:
                data[name]["kv_data_quant_config"][key] = value
    open(path, "w").write(json.dumps(data))


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 5, 8, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("asymmetric", [True, False])
def test_factors_of_two_layers(net, paths, asymmetric):
    config, record = paths
    configure(net, config, batch_num=2, activation_offset=asymmetric)
    x = batches(3)
    with torch.no_grad():
        expected = [net(b) for b in x]
        seen = torch.cat([net.blk1.v_proj(net.blk1.norm(b * 3)).reshape(-1) for b in x[:2]])
    calibrating = create_quant_cali_model(config, record, net)
    assert calibrating is net and type(net.blk0.k_proj).__name__ == "KVCacheQuant"
    for attribute in ("ori_module", "cali_module", "record_module", "cur_batch"):
        assert hasattr(net.blk0.k_proj, attribute)
    assert torch.equal(net(x[0]), expected[0])
    assert open(record).read() == ""
    assert [(s.name, s.seen, s.needed, s.is_done) for s in calibration_status(net)] == [
        (name, 1, 2, False) for name in NAMES
    ]
    assert torch.equal(net(x[1]), expected[1])
    first = open(record).read()
    assert torch.equal(net(x[2]), expected[2])
    assert open(record).read() == first
    found = read_record(record).kv_cache
    assert set(found) == set(NAMES)
    assert all(s.is_done for s in calibration_status(net))
    scale, offset = found["blk1.v_proj"].scale[0], found["blk1.v_proj"].offset[0]
    assert -128 <= offset <= 127 and (asymmetric or offset == 0)
    rebuilt = (((seen / scale).round() + offset).clamp(-128, 127) - offset) * scale
    # Within the range of all ratios tried, and better than one per cent of the signal.
    assert 0.69 <= scale * 255 / float(seen.max() - seen.min()) <= 1.31 or not asymmetric
    assert float((rebuilt - seen).square().mean()) <= 1e-3 * float(seen.var())


@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg"])
def test_factors_per_channel(net, paths, algorithm):
    config, record = paths
    configure(net, config, quant_granularity=1)
    if algorithm == "hfmg":
        text = json.loads(open(config).read())
        for name in NAMES:
            text[name] = {"kv_data_quant_config": {"act_algo": "hfmg", "quant_granularity": 1}}
        open(config, "w").write(json.dumps(text))
    net(batches(1)[0])
    create_quant_cali_model(config, record, net)
    net(batches(1)[0])
    for entry in read_record(record).kv_cache.values():
        assert len(entry.scale) == len(entry.offset) == 6
        assert all(-128 <= o <= 127 for o in entry.offset)


def test_each_layer_is_written_as_soon_as_it_is_done(net, paths):
    config, record = paths
    configure(net, config, [*NAMES, "late"])
    events = []
    create_quant_cali_model(config, record, net, on_event=events.append)
    net(batches(1)[0])
    assert set(read_record(record).kv_cache) == set(NAMES)
    assert [s.name for s in calibration_status(net) if not s.is_done] == ["late"]
    net(batches(1)[0], late=True)
    assert set(read_record(record).kv_cache) == {*NAMES, "late"}
    assert [(e.done, e.total) for e in events] == [(1, 3), (2, 3), (3, 3)]


def test_a_copy_leaves_the_model_alone(net, paths):
    config, record = paths
    configure(net, config)
    copy = create_quant_cali_model(config, record, net, inplace=False)
    assert copy is not net
    assert type(net.blk0.k_proj) is nn.Linear
    assert copy.blk0.k_proj.ori_module.weight is net.blk0.k_proj.weight
    copy(batches(1)[0])
    assert set(read_record(record).kv_cache) == set(NAMES)


def test_a_module_under_two_names_is_watched_under_both(net, paths):
    config, record = paths
    net.blk1.k_proj = net.blk0.k_proj
    configure(net, config, ["blk1.k_proj"], batch_num=2)
    create_quant_cali_model(config, record, net)
    assert net.blk0.k_proj is net.blk1.k_proj
    net(batches(1)[0])
    assert set(read_record(record).kv_cache) == {"blk1.k_proj"}
    other = Net()
    other.blk1.k_proj = other.blk0.k_proj
    configure(other, config, ["blk0.k_proj", "blk1.k_proj"])
    with pytest.raises(ValueError, match="are one module"):
        create_quant_cali_model(config, record, other)


@pytest.mark.parametrize("granularity", [0, 1])
@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg"])
def test_a_calibration_goes_on_from_its_state_dict(net, paths, tmp_path, algorithm, granularity):
    config, record = paths
    params = {"act_algo": algorithm, "quant_granularity": granularity}
    text = {"batch_num": 2, "blk0.k_proj": {"kv_data_quant_config": params}}
    open(config, "w").write(json.dumps(text))
    fresh = Net().eval()
    fresh.load_state_dict(net.state_dict())
    x = batches(2)
    create_quant_cali_model(config, record, net)
    net(x[0])
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    net(x[1])
    straight = read_record(record).kv_cache
    resumed_record = str(tmp_path / "resumed.txt")
    create_quant_cali_model(config, resumed_record, fresh)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    fresh(x[1])
    assert read_record(resumed_record).kv_cache == straight


def test_data_without_factors_names_the_layer(net, paths):
    config, record = paths
    configure(net, config)
    create_quant_cali_model(config, record, net)
    for bad, says in ((1e30, "e+30"), (float("nan"), "nan"), (float("inf"), "inf")):
        net.blk0.k_proj.ori_module.bias.data.fill_(bad)
        with pytest.raises(RuntimeError) as caught:
            net(batches(1)[0])
        assert isinstance(caught.value, CalibrationError)
        assert caught.value.layer_name == "blk0.k_proj"
        text = str(caught.value)
        assert text.startswith("[IFMR]: Do layer blk0.k_proj data calibration failed!")
        assert says in text and "Remove this layer" in text
    assert open(record).read() == ""


def test_data_of_zeros_has_factors(net, paths):
    config, record = paths
    configure(net, config)
    for parameter in net.blk0.k_proj.parameters():
        parameter.data.zero_()
    create_quant_cali_model(config, record, net)
    net(batches(1)[0])
    assert read_record(record).kv_cache["blk0.k_proj"].scale == (1.0,)
    assert read_record(record).kv_cache["blk0.k_proj"].offset == (-128,)


def test_half_precision_is_widened(net, paths):
    for dtype in (torch.bfloat16, torch.float64):
        config, record = paths
        model = Net().eval()
        model.load_state_dict(net.state_dict())
        model.to(dtype)
        configure(model, config)
        create_quant_cali_model(config, record, model)
        model(batches(1)[0].to(dtype))
        assert set(read_record(record).kv_cache) == set(NAMES)


def test_wrong_arguments_write_nothing(net, paths, tmp_path):
    config, record = paths
    layers = {"kv_cache_quant_layers": NAMES}
    cases = [
        (lambda: create_quant_cali_config("", net, layers), ValueError),
        (lambda: create_quant_cali_config("folder/", net, layers), ValueError),
        (lambda: create_quant_cali_config(config, "net", layers), TypeError),
        (lambda: create_quant_cali_config(config, net, NAMES), TypeError),
        (lambda: create_quant_cali_config(config, net), TypeError),
        (lambda: create_quant_cali_config(config, net, None, 3), TypeError),
        (
            lambda: create_quant_cali_config(config, net, None, str(tmp_path / "no.cfg")),
            RuntimeError,
        ),
        (lambda: create_quant_cali_config(config, net, {}), RuntimeError),
        (lambda: create_quant_cali_config(config, net, {"layers": NAMES}), ValueError),
        (lambda: create_quant_cali_config(config, net, {"kv_cache_quant_layers": "x"}), TypeError),
        (
            lambda: create_quant_cali_config(config, net, {"kv_cache_quant_layers": ["blk0.norm"]}),
            ValueError,
        ),
        (lambda: create_quant_cali_model(config, record, net), FileNotFoundError),
        (lambda: create_quant_cali_model(config, 3, net), TypeError),
    ]
    for call, error in cases:
        with pytest.raises(error):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_text_config_decides(net, paths, tmp_path):
    config, _ = paths
    text = tmp_path / "kv.cfg"
    text.write_text('batch_num: 3 kv_cache_quant_config { quant_layers: "late" }')
    create_quant_cali_config(config, net, {"kv_cache_quant_layers": NAMES}, str(text))
    data = json.loads(open(config).read())
    assert list(data) == ["batch_num", "activation_offset", "late"] and data["batch_num"] == 3


def test_a_calibrating_model_is_refused(net, paths):
    config, record = paths
    configure(net, config)
    create_quant_cali_model(config, record, net)
    with pytest.raises(RuntimeError, match="already"):
        create_quant_cali_model(config, record, net)
    with pytest.raises(RuntimeError, match="already"):
        create_quant_cali_config(config, net, {"kv_cache_quant_layers": NAMES})
    with pytest.raises(RuntimeError, match="already contains compression modules: blk0.k_proj"):
        capture(net, batches(1)[0])


def test_cancel_stops_the_next_forward(net, paths):
    config, record = paths
    configure(net, config)
    cancel = CancelToken()
    create_quant_cali_model(config, record, net, cancel=cancel)
    cancel.cancel()
    with pytest.raises(Cancelled):
        net(batches(1)[0])
