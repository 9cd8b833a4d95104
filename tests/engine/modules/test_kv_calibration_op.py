"""Chapter 25 section 17: ``QuantCalibrationOp``."""

import copy
import io
import logging

import pytest
import torch
from torch import nn

from workbench.engine.files.record import read_record
from workbench.engine.flows.kv_cache import calibration_status
from workbench.engine.modules.kv_cache.calibration_op import QuantCalibrationOp


def tensor(scale=1.0, seed=0):
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.fixture
def record(tmp_path):
    return str(tmp_path / "record.txt")


def test_several_names_and_ops_share_a_file(record):
    first = QuantCalibrationOp(record)
    second = QuantCalibrationOp(record, {"quant_granularity": "per_channel", "act_algo": "hfmg"})
    for scale, name in enumerate(("layers.0.key", "layers.0.value", "type"), 1):
        x = tensor(float(scale))
        assert first(name, x) is x
    second("layers.1.key", tensor())
    found = read_record(record).kv_cache
    assert set(found) == {"layers.0.key", "layers.0.value", "type", "layers.1.key"}
    assert (
        found["layers.0.key"].scale[0] < found["layers.0.value"].scale[0] < found["type"].scale[0]
    )
    assert len(found["layers.1.key"].scale) == 4


def test_each_name_counts_its_own_calls(record):
    op = QuantCalibrationOp(record, {"batch_num": 2, "asymmetric": False})
    op("a", tensor())
    op("b", tensor())
    op("a", tensor(5.0, seed=1))
    assert set(read_record(record).kv_cache) == {"a"}
    op("b", tensor()[:0])  # nothing to see: no call
    before = open(record).read()
    op("a", tensor(100.0))
    assert open(record).read() == before
    assert [(s.name, s.seen, s.is_done) for s in calibration_status(op)] == [
        ("a", 2, True),
        ("b", 1, False),
    ]
    assert read_record(record).kv_cache["a"].offset == (0,)


def test_the_file_is_emptied_only_on_request(record, caplog):
    QuantCalibrationOp(record)("a", tensor())
    QuantCalibrationOp(record)("b", tensor())
    assert set(read_record(record).kv_cache) == {"a", "b"}
    with caplog.at_level(logging.WARNING):
        QuantCalibrationOp(record)("a", tensor(3.0))
    assert "kv_cache_value of a is overwritten" in caplog.text
    QuantCalibrationOp(record, reset=True)("c", tensor())
    assert set(read_record(record).kv_cache) == {"c"}


class Attention(nn.Module):
    def __init__(self, record):
        super().__init__()
        self.calibrate = QuantCalibrationOp(record, {"batch_num": 2, "quant_granularity": "1"})

    def forward(self, x):
        return self.calibrate("layer.0.k%", x)


def test_state_dict_and_copies(record, tmp_path):
    model = Attention(record)
    model(tensor())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other_record = str(tmp_path / "other.txt")
    other = Attention(other_record)
    other.load_state_dict(torch.load(file, weights_only=True))
    duplicate = copy.deepcopy(model)
    for calibrating in (model, other):
        calibrating(tensor(2.0, seed=1))
    assert read_record(record) == read_record(other_record)
    assert calibration_status(duplicate)[0].seen == 1
    # A finished name stays finished.
    third = Attention(str(tmp_path / "third.txt"))
    third.load_state_dict(model.state_dict())
    assert calibration_status(third)[0].is_done


def test_defaults_and_accepted_spellings(record):
    for params in (
        None,
        {"num_bits": 8, "with_offset": True},
        {"quant_granularity": 0, "search_range": (0.5, 1.5), "search_step": 0.1},
        {"max_percentile": 0.5, "min_percentile": 1.0},
    ):
        QuantCalibrationOp(record, params)
    op = QuantCalibrationOp(record, {"with_offset": True, "asymmetric": False})
    op("a", tensor() + 1)
    assert read_record(record).kv_cache["a"].offset == (0,)


@pytest.mark.parametrize(
    ("params", "error", "says"),
    [
        ({"act_algo": "kl"}, RuntimeError, "ifmr"),
        ({"batch_num": 0}, RuntimeError, "above 0"),
        ({"batch_num": 1.0}, TypeError, "batch_num"),
        ({"batch_num": True}, TypeError, "batch_num"),
        ({"asymmetric": 1}, TypeError, "True, False"),
        ({"with_offset": "yes"}, TypeError, "with_offset"),
        ({"num_bits": 4}, RuntimeError, "8"),
        ({"quant_granularity": "per_token"}, RuntimeError, "per_channel"),
        ({"max_percentile": 0.4}, RuntimeError, r"\[0.5, 1\]"),
        ({"max_percentile": 1}, TypeError, "float"),
        ({"search_range": [1.3, 0.7]}, RuntimeError, "start < end"),
        ({"search_range": 0.7}, TypeError, "start"),
        ({"search_step": 1}, TypeError, "float"),
        ({"search_step": 0.0}, RuntimeError, "above 0"),
        ({"act_algo": "hfmg", "num_of_bins": 100}, RuntimeError, "1024"),
        ({"act_algo": "hfmg", "search_step": 0.01}, RuntimeError, "only with act_algo 'ifmr'"),
        ({"num_of_bins": 4096}, RuntimeError, "only with act_algo 'hfmg'"),
        ({"bins": 1}, RuntimeError, "unknown"),
    ],
)
def test_wrong_parameters(record, params, error, says):
    with pytest.raises(error, match=says):
        QuantCalibrationOp(record, params)


def test_all_wrong_parameters_in_one_error(record):
    with pytest.raises(TypeError, match="batch_num") as caught:
        QuantCalibrationOp(record, {"batch_num": "2", "act_algo": "kl", "bins": 1})
    assert isinstance(caught.value, RuntimeError)
    assert "act_algo" in str(caught.value) and "bins" in str(caught.value)


def test_wrong_arguments(record, tmp_path):
    with pytest.raises(TypeError, match="record_file"):
        QuantCalibrationOp(3)
    with pytest.raises(TypeError, match="dict"):
        QuantCalibrationOp(record, ["ifmr"])
    with pytest.raises(RuntimeError, match="kv_cache_quant"):
        QuantCalibrationOp(record, None, "weights")
    with pytest.raises(ValueError, match="must name a file"):
        QuantCalibrationOp("")
    with pytest.raises(PermissionError, match="is a folder"):
        QuantCalibrationOp(str(tmp_path))
    op = QuantCalibrationOp(record)
    with pytest.raises(TypeError, match="name"):
        op(1, tensor())
    with pytest.raises(TypeError, match="floating"):
        op("a", torch.ones(2, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="HFMG.*layer b data"):
        QuantCalibrationOp(record, {"act_algo": "hfmg"})("b", tensor(1e30))
