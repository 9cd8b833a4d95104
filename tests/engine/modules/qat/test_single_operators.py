"""Single operators: construction, training, state (chapter 30 sections 9.1 to 9.3, S1 to S11)."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from workbench.engine.algorithms.weight_training import arq_weight
from workbench.engine.modules.qat.convolutions import (
    Conv1dQAT,
    Conv2dQAT,
    Conv3dQAT,
    ConvTranspose1dQAT,
    ConvTranspose2dQAT,
)
from workbench.engine.modules.qat.linear import LinearQAT, MatMulQAT
from workbench.engine.modules.qat.operator import LayerOperator
from workbench.engine.modules.qat.recurrent import GRUQAT, LSTMQAT

ULQ = {"retrain_weight_config": {"weights_retrain_algo": "ulq_retrain"}}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LAYERS: dict[str, tuple[type[LayerOperator], nn.Module, tuple[int, ...]]] = {
    "conv1d": (Conv1dQAT, nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9)),
    "conv2d": (Conv2dQAT, nn.Conv2d(4, 6, 3, padding="same", dilation=2), (2, 4, 7, 7)),
    "conv3d": (Conv3dQAT, nn.Conv3d(2, 3, 2, dilation=(1, 2, 1)), (1, 2, 3, 4, 5)),
    "deconv1d": (
        ConvTranspose1dQAT,
        nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1),
        (2, 4, 8),
    ),
    "deconv2d": (ConvTranspose2dQAT, nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "linear": (LinearQAT, nn.Linear(5, 3), (2, 4, 5)),
}

STATE = {
    *("acts_clip_max", "acts_clip_min", "acts_clip_max_pre", "acts_clip_min_pre"),
    *("acts_scale", "acts_offset_deploy", "wts_scales", "wts_offsets", "wts_offsets_deploy"),
    "cur_batch",
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_operator_is_its_layer_on_quantised_tensors(name: str) -> None:
    kind, plain, shape = LAYERS[name]
    operator = kind.from_float(plain)
    x = random(*shape)
    weight, before = operator.weight, plain.weight.detach().clone()
    assert weight is plain.weight
    axis = None if name == "linear" else 1 if name.startswith("deconv") else 0
    quantised, _ = arq_weight(before, 8, channel_axis=axis, groups=getattr(plain, "groups", 1))
    twin = copy.deepcopy(plain)
    with torch.no_grad():
        twin.weight.copy_(quantised)
    # The batch that the bounds are found on is used as it is (section 9.3).
    torch.testing.assert_close(operator(x), twin(x))
    y = operator(x)
    scale, offset = float(operator.acts_scale), int(operator.acts_offset_deploy)
    on_grid = torch.fake_quantize_per_tensor_affine(x, scale, offset, -128, 127)
    torch.testing.assert_close(y, twin(on_grid))
    assert y.shape == plain(x).shape
    y.square().sum().backward()
    for parameter in (*operator.clips("acts_"), operator.weight, operator.bias):
        assert parameter is not None
        assert parameter.grad is not None
        assert float(parameter.grad.abs().sum()) > 0
    assert torch.equal(plain.weight, before)  # S1
    assert int(operator.cur_batch) == 2


@pytest.mark.parametrize("name", LAYERS)
def test_state_and_a_strict_round_trip(name: str) -> None:
    kind, plain, shape = LAYERS[name]
    operator = kind.from_float(plain, ULQ)
    state = operator.state_dict()
    assert set(state) == {"weight", "bias", *STATE}
    channels = 1 if name == "linear" else 6 if name != "conv3d" else 3
    assert state["wts_scales"].shape == state["wts_offsets_deploy"].shape == (channels,)
    assert state["acts_scale"].shape == state["acts_offset_deploy"].shape == (1,)
    assert state["acts_offset_deploy"].dtype == torch.int8
    assert state["cur_batch"].dtype == torch.int64
    assert operator.get_parameter("wts_scales").requires_grad  # S7
    operator(random(*shape))
    again = kind.from_float(copy.deepcopy(plain), ULQ)
    again.load_state_dict(operator.state_dict())
    x = random(*shape, seed=1)
    assert torch.equal(operator(x), again(x))  # S8: quantised at once, with the same bounds


def test_copies_share_nothing_and_modes_are_kept() -> None:
    plain = nn.Conv2d(2, 3, 1).eval()
    plain.weight.requires_grad_(False)
    operator = Conv2dQAT.from_float(plain, copy=True)
    assert operator.weight is not plain.weight
    assert torch.equal(operator.weight, plain.weight)
    assert not operator.weight.requires_grad
    assert not operator.training
    assert Conv2dQAT.from_float(nn.Conv2d(2, 3, 1)).training


def test_output_size_and_output_padding() -> None:
    plain = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)
    x = random(1, 2, 8, 8)
    operator = ConvTranspose2dQAT.from_float(plain)
    assert operator(x, output_size=[16, 16]).shape == plain(x, output_size=[16, 16]).shape
    direct = ConvTranspose1dQAT(2, 3, 3, stride=2, output_padding=1)
    assert direct(random(1, 2, 8)).shape == (1, 3, 18)


def test_a_disabled_operator_is_the_float_layer() -> None:
    plain = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")
    operator = Conv2dQAT.from_float(plain, {"retrain_enable": False})
    x = random(1, 2, 5, 5)
    assert torch.equal(operator(x), plain(x))
    assert set(operator.state_dict()) == {"weight", "bias"}
    lstm = nn.LSTM(3, 4, num_layers=2)
    off = LSTMQAT.from_float(lstm, {"retrain_enable": False})
    assert torch.equal(off(random(2, 1, 3))[0], lstm(random(2, 1, 3))[0])
    assert torch.equal(MatMulQAT(config={"retrain_enable": False})(x, x), x @ x)


def test_devices_and_dtypes() -> None:
    operator = LinearQAT(3, 2, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert operator.weight.dtype == torch.bfloat16
    assert operator.acts_clip_max.dtype == torch.float32
    assert operator(random(2, 3).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(TypeError):
        Conv2dQAT(2, 3, 1, device=3.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"retrain_enable": "yes"}, "retrain_enable"),
        ({"retrain_data_config": {"dst_type": "INT4"}}, "INT8, INT16"),
        ({"retrain_data_config": {"batch_num": 0}}, "batch_num"),
        ({"retrain_data_config": {"batch_num": True}}, "batch_num"),
        ({"retrain_data_config": {"clip_max": -1.0}}, "clip_max"),
        ({"retrain_data_config": {"clip_max": 1.0, "clip_min": 2.0}}, "clip_min"),
        ({"retrain_weight_config": {"weights_retrain_algo": "arq"}}, "arq_retrain, ulq_retrain"),
        ({"retrain_weight_config": {"dst_type": "INT16"}}, "retrain_weight_config.dst_type"),
    ],
)
def test_bad_values_are_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Conv2dQAT(2, 3, 1, config=config)


def test_all_bad_values_are_named_at_once() -> None:
    config = {
        "retrain_data_config": {"batch_num": -1, "fixed_min": 3},
        "retrain_weight_config": {"dst_type": "INT2"},
    }
    with pytest.raises(ValueError, match=r"(?s)batch_num.*fixed_min.*INT2"):
        Conv2dQAT(2, 3, 1, config=config)


def test_none_means_unset_and_the_dictionary_is_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config: dict[str, Any] = {
        "retrain_data_config": {"clip_max": None, "clip_min": None, "dst_type": None},
        "retrain_weight_config": None,
        "retrain_enabel": True,
    }
    before = copy.deepcopy(config)
    with caplog.at_level(logging.WARNING):
        operator = Conv2dQAT(2, 3, 1, config=config)
    assert "retrain_enabel" in caplog.text
    assert config == before
    assert not operator.initialised("acts_")
    operator = Conv2dQAT(2, 3, 1, config={"retrain_data_config": {"clip_max": 2}})
    assert operator.initialised("acts_")
    assert [float(c.detach()) for c in operator.clips("acts_")] == [2.0, -1.0]
    only_low = Conv2dQAT(2, 3, 1, config={"retrain_data_config": {"clip_min": -2.0}})
    assert not only_low.initialised("acts_")


@pytest.mark.parametrize("config", [3, [], {"retrain_data_config": []}])
def test_what_is_no_dictionary(config: Any) -> None:
    with pytest.raises(TypeError, match="dict"):
        LinearQAT(2, 3, config=config)


def test_what_cannot_be_quantised() -> None:
    with pytest.raises(ValueError, match="padding_mode"):
        Conv1dQAT(2, 3, 3, padding_mode="circular")
    with pytest.raises(RuntimeError, match="padding_mode"):
        Conv3dQAT(2, 3, 3, padding_mode="circular")
    with pytest.raises(RuntimeError, match="dilation"):
        Conv3dQAT(2, 3, 3, dilation=2)
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match="channel_wise"):
            LinearQAT(2, 3, config={"retrain_weight_config": {"channel_wise": True}})
    for settings in ({"num_layers": 2}, {"bidirectional": True}, {"proj_size": 2}):
        with pytest.raises(RuntimeError, match=next(iter(settings))):
            LSTMQAT(3, 4, **settings)
    with pytest.raises(ValueError, match="INT8"):
        MatMulQAT(config={"retrain_data_config": {"dst_type": "INT16"}})


@pytest.mark.parametrize("error", [TypeError, RuntimeError])
def test_from_float_takes_its_own_layer_only(error: type[Exception]) -> None:
    with pytest.raises(error, match=r"torch\.nn\.Conv2d"):
        Conv2dQAT.from_float(nn.Conv1d(2, 3, 1))
    with pytest.raises(error, match="Conv2dQAT"):
        Conv2dQAT.from_float(Conv2dQAT(2, 3, 1))
    with pytest.raises(error, match="parametrisation"):
        Conv2dQAT.from_float(weight_norm(nn.Conv2d(2, 3, 1)))
    with pytest.raises(error, match="forward of its own"):
        Conv2dQAT.from_float(Standardised(2, 3, 1))
    with pytest.raises(error, match="shape"):
        Conv2dQAT.from_float(nn.LazyConv2d(3, 1))


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight / self.weight.std(), self.bias)


def test_wrong_inputs() -> None:
    with pytest.raises(RuntimeError, match="3 axes; allowed: 4"):
        Conv2dQAT(2, 3, 1)(random(2, 4, 4))
    with pytest.raises(RuntimeError, match="1 axes"):
        MatMulQAT()(random(3), random(3))
    for error in (ValueError, TypeError):
        with pytest.raises(error, match="int64"):
            LinearQAT(2, 3)(torch.ones(1, 2, dtype=torch.int64))
    gru = GRUQAT(3, 4)
    with pytest.raises(RuntimeError, match="hx has shape"):
        gru(random(2, 1, 3), random(1, 2, 4))
    packed = nn.utils.rnn.pack_padded_sequence(random(2, 1, 3), torch.tensor([2]))
    with pytest.raises(RuntimeError, match="PackedSequence"):
        gru(packed)


def test_matmul_is_symmetric_and_survives_a_move() -> None:
    config: dict[str, Any] = {"retrain_data_config": {"batch_num": 2}}
    operator = MatMulQAT(config=config)
    left, right = random(2, 3, 4).requires_grad_(), random(2, 4, 5, seed=1)
    for _ in range(2):
        assert torch.equal(operator(left, right), left @ right)
    operator.to(torch.float32)
    operator._apply(lambda t: t.clone())
    out = operator(left, right)
    grids = [
        torch.fake_quantize_per_tensor_affine(
            x, float(operator.get_buffer(f"{prefix}_scale")), 0, -128, 127
        )
        for prefix, x in (("input", left), ("other", right))
    ]
    torch.testing.assert_close(out, grids[0] @ grids[1])
    out.sum().backward()
    assert left.grad is not None
    names = ("clip_max", "clip_min", "clip_max_pre", "clip_min_pre", "scale", "offset_deploy")
    wanted = {f"{prefix}_{name}" for prefix in ("input", "other") for name in names}
    assert set(operator.state_dict()) == wanted | {"cur_batch"}
    assert config == {"retrain_data_config": {"batch_num": 2}}  # S11
    assert not hasattr(MatMulQAT, "from_float")


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [LSTMQAT, GRUQAT])
def test_recurrent_layers_quantise_every_step(kind: type[Any], batch_first: bool) -> None:
    plain = kind.float_class(3, 4, batch_first=batch_first)
    operator = kind.from_float(plain, {"retrain_weight_config": {"channel_wise": False}})
    x = random(2, 3, 3).requires_grad_()
    steps = x.transpose(0, 1) if batch_first else x
    batch = steps.shape[1]
    states = tuple(random(1, batch, 4, seed=s).tanh() for s in (1, 2))
    hx = states if kind is LSTMQAT else states[0]
    operator(x, hx)
    out, last = operator(x, hx)
    assert out.shape == plain(x, hx)[0].shape

    def grid(prefix: str, value: Tensor) -> Tensor:
        scale = float(operator.get_buffer(f"{prefix}_scale"))
        offset = int(operator.get_buffer(f"{prefix}_offset_deploy"))
        return torch.fake_quantize_per_tensor_affine(value, scale, offset, -128, 127)

    gates = 4 if kind is LSTMQAT else 3
    weights = []
    for name in ("weight_ih_l0", "weight_hh_l0"):
        weight = plain.get_parameter(name).detach()
        parts = [arq_weight(part, 8, channel_axis=None)[0] for part in weight.chunk(gates)]
        weights.append(torch.cat(parts))
    cell = (nn.LSTMCell if kind is LSTMQAT else nn.GRUCell)(3, 4)
    cell.load_state_dict(
        {
            "weight_ih": weights[0],
            "weight_hh": weights[1],
            "bias_ih": plain.bias_ih_l0,
            "bias_hh": plain.bias_hh_l0,
        }
    )
    hidden, memory = (state[0] for state in states)
    for t, step in enumerate(steps):
        if kind is LSTMQAT:
            hidden, memory = cell(grid("acts", step), (grid("h", hidden), memory))
        else:
            hidden = cell(grid("acts", step), grid("h", hidden))
        found = out[:, t] if batch_first else out[t]
        torch.testing.assert_close(found, hidden, atol=1e-6, rtol=1e-5)
    final = last[0] if kind is LSTMQAT else last
    torch.testing.assert_close(final[0], hidden, atol=1e-6, rtol=1e-5)
    out.square().sum().backward()
    for name, parameter in operator.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name  # S10
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0


def test_a_recurrent_state_and_trained_scales() -> None:
    operator = GRUQAT(3, 4, config=ULQ)
    keys = {f"{p}{s}" for p in ("wts_", "recurrence_wts_") for s in ("scales", "offsets")}
    assert keys | {"h_clip_max", "h_scale", "h_offset_deploy"} <= set(operator.state_dict())
    assert operator.state_dict()["wts_scales"].shape == (12,)
    operator(random(2, 1, 3))
    out, _ = operator(random(2, 1, 3))  # without a state: from zeros
    out.sum().backward()
    for name in ("wts_scales", "recurrence_wts_scales"):
        gradient = operator.get_parameter(name).grad
        assert gradient is not None
        assert float(gradient.abs().sum()) > 0


class Unexportable(nn.Module):
    """The number of steps depends on the values: no graph holds this model."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        while float(y.detach().abs().mean()) < 1.0:
            y = y * 1.5
        return self.head(y.mean((2, 3)))


def test_a_model_without_a_graph_is_trained() -> None:
    torch.manual_seed(0)
    model = Unexportable()
    model.conv = Conv2dQAT.from_float(model.conv, ULQ)
    model.head = LinearQAT.from_float(model.head)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x = random(16, 1, 6, 6)
    target = (x.mean((1, 2, 3)) > 0).long()
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[1]


def test_a_trained_operator_compiles_to_one_graph() -> None:
    operator = Conv2dQAT(2, 3, 3, config=ULQ)
    x = random(1, 2, 6, 6)
    operator(x)
    expected = operator(x)
    expected.square().sum().backward()
    gradients = {name: p.grad for name, p in operator.named_parameters()}
    operator.zero_grad()
    found = torch.compile(operator, backend="eager", fullgraph=True)(x)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected)
    for name, parameter in operator.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


def test_inference_mode_finds_the_bounds_and_training_goes_on() -> None:
    operator = Conv2dQAT(2, 3, 1, config={"retrain_data_config": {"batch_num": 2}})
    with torch.inference_mode():
        operator(random(1, 2, 4, 4))
    operator(random(1, 2, 4, 4, seed=1))
    assert operator.initialised("acts_")
    operator(random(1, 2, 4, 4)).sum().backward()
    assert operator.weight.grad is not None
