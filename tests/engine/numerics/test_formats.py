import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.engine.numerics.formats import BLOCK_FORMATS, ELEMENT_FORMATS, number_format


def test_the_names_of_configurations() -> None:
    assert list(ELEMENT_FORMATS) == ["int8", "int4", "float8_e4m3fn", "float4_e2m1", "hifloat8"]
    assert list(BLOCK_FORMATS) == ["mxfp8_e4m3fn", "mxfp4_e2m1", "hifloat4"]
    for name in (*ELEMENT_FORMATS, *BLOCK_FORMATS):
        assert number_format(name).name == name
    with pytest.raises(ValueError, match=r"'fp8'; allowed: int8, int4"):
        number_format("fp8")


def test_what_scales_aim_at() -> None:
    aims = {name: (f.scale_target, f.dynamic_target) for name, f in ELEMENT_FORMATS.items()}
    assert aims == {
        "int8": (127.0, 127.0),
        "int4": (7.0, 7.0),
        "float8_e4m3fn": (448.0, 448.0),
        "float4_e2m1": (6.0, 6.0),
        "hifloat8": (16.0, 15.0),
    }


@pytest.mark.parametrize("name", ELEMENT_FORMATS)
@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_rounding_is_a_round_trip_and_idempotent(name: str, values: list[float]) -> None:
    element = ELEMENT_FORMATS[name]
    x = torch.tensor(values)
    codes = element.encode(x)
    assert codes.dtype == element.storage and codes.shape == x.shape
    rounded = element.decode(codes)
    assert torch.equal(element.round(x), rounded)
    assert torch.equal(element.round(rounded), rounded)


@pytest.mark.parametrize("name", [*ELEMENT_FORMATS, *BLOCK_FORMATS])
def test_formats_travel_with_modules_and_leave_gradients_alone(name: str) -> None:
    kept = number_format(name)
    assert copy.deepcopy(kept) == kept
    x = torch.randn(2, 64, requires_grad=True)
    with torch.inference_mode():
        first = kept.round(x)
    assert torch.equal(kept.round(x), first)
    assert not kept.round(x).requires_grad


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float4_e2m1", "hifloat8", "mxfp8_e4m3fn"])
def test_a_traced_graph_leaves_real_tables_behind(name: str) -> None:
    class Rounded(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return number_format(name).round(x)

    x = torch.randn(2, 64, dtype=torch.bfloat16)
    program = torch.export.export(Rounded(), (x,)).module()
    expected = number_format(name).round(x)
    assert type(expected) is torch.Tensor
    assert torch.equal(program(x), expected)
