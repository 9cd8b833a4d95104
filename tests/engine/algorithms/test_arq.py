import pytest
import torch

from workbench.engine.algorithms.arq import (
    arq_scale,
    fake_quantize_weight,
    from_channel_first,
    quantize_weight,
    to_channel_first,
)

W = torch.tensor([[0.5, -1, 0.3], [0.25, 0.75, -0.1]])


@pytest.mark.parametrize(
    ("bits", "scales", "codes"),
    [
        (8, [0.0078125, 0.0059055118], [[64, -128, 38], [42, 127, -17]]),
        (7, [0.015625, 0.01190476], [[32, -64, 19], [21, 63, -8]]),
        (6, [0.03125, 0.02419355], None),
        (4, [0.125, 0.10714286], [[4, -8, 2], [2, 7, -1]]),
    ],
)
def test_channel_wise_table(bits: int, scales: list[float], codes: list[list[int]] | None) -> None:
    scale = arq_scale(W, bits, 0)
    assert scale.tolist() == pytest.approx(scales, rel=1e-6)
    if codes is not None:
        assert quantize_weight(W, scale, bits, 0).tolist() == codes


def test_per_tensor_table() -> None:
    scale = arq_scale(W, 8, None)
    assert scale.tolist() == [0.0078125]
    assert quantize_weight(W, scale, 8, None).tolist() == [[64, -128, 38], [32, 96, -13]]
    assert fake_quantize_weight(W, scale, 8, None)[0, 1] == -1.0


def test_zero_channels_inf_and_nan() -> None:
    assert arq_scale(torch.zeros(2, 3), 8, 0).tolist() == [1.0, 1.0]
    silent = torch.tensor([[127.0], [0.0], [12.7]])  # its bias is rounded no worse than the others'
    assert arq_scale(silent, 8, 0)[:2].tolist() == [1.0, 1.0]
    assert arq_scale(silent / 127, 8, 0)[1] == arq_scale(silent / 127, 8, 0)[0] < 0.01
    assert arq_scale(silent / 127, 8, 0, compat=True)[1] == 1.0
    for bad in (float("inf"), float("nan")):
        with pytest.raises(RuntimeError):
            arq_scale(torch.tensor([[1.0, bad]]), 8, 0)
    with pytest.raises(TypeError):
        arq_scale(torch.ones(2, 2, dtype=torch.int32), 8, 0)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_transposed_weights_map_each_element_to_its_output_channel(groups: int) -> None:
    cin, cout = 6, 12
    conv = torch.nn.ConvTranspose1d(cin, cout, 2, groups=groups, bias=False)
    rows = to_channel_first(conv.weight, True, groups)
    assert rows.shape == (cout, cin // groups, 2)
    assert torch.equal(from_channel_first(rows, True, groups), conv.weight)
    # An impulse on one input channel shows which weights make each output channel.
    for channel in range(cin):
        x = torch.zeros(1, cin, 1)
        x[0, channel] = 1
        y = conv(x)[0]
        group = channel // (cin // groups)
        for out in range(cout):
            if out // (cout // groups) == group:
                assert torch.allclose(y[out], rows[out, channel % (cin // groups)])
            else:
                assert not y[out].any()


def test_plain_weights_are_not_rearranged() -> None:
    assert to_channel_first(W, False, 1) is W
