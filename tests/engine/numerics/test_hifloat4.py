import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.numerics.element import Blocks
from workbench.engine.numerics.hifloat4 import HIFLOAT4
from workbench.engine.numerics.packing import pack_bytes

F = np.float32


def bf(value: float) -> float:
    """float32, then bfloat16 by round half to even on the bits."""
    (bits,) = struct.unpack("<I", struct.pack("<f", F(value)))
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def reference(block: list[float]) -> tuple[list[int], list[int], list[float]]:
    """Codes, four scale bytes and values of 64 numbers, element by element."""
    if not all(map(math.isfinite, block)):
        return [0] * 64, [255, 0, 0, 0], [math.nan] * 64
    sizes = [abs(v) for v in block]
    first = min(max(bf(F(max(sizes)) * F(bf(1 / 7))), 2.0**-48), 1.5 * 2**15)
    e = math.frexp(first)[1] - 1
    quarters = round(first / 2.0**e * 4)  # 4…8, half to even
    first = quarters / 4 * 2.0**e
    e, m = (e + 1, 0) if quarters == 8 else (e, quarters - 4)
    inverse = bf(1 / first)
    two = [int(F(max(sizes[8 * i : 8 * i + 8])) * F(inverse) >= 4) for i in range(8)]
    three = [
        int(F(max(sizes[4 * i : 4 * i + 4])) * F(inverse) * F(2.0 ** -two[i // 2]) >= 2)
        for i in range(16)
    ]
    codes, values = [], []
    for i, v in enumerate(block):
        level = two[i // 8] + three[i // 4]
        scaled = bf(F(sizes[i]) * F(inverse) * F(2.0**-level))
        code = min(max(math.floor(F(scaled) * 4 + F(0.5)), 0), 7)
        negative = math.copysign(1, v) < 0
        codes.append(code + 8 * negative)
        values.append((-1 if negative else 1) * code / 4 * 2**level * first)

    def byte(flags: list[int]) -> int:
        return int("".join(map(str, flags)), 2)

    return codes, [(e + 48) * 4 + m, byte(two), byte(three[:8]), byte(three[8:])], values


def check(block: list[float]) -> None:
    x = torch.tensor(block, dtype=torch.float32)
    codes, scales, values = reference(x.tolist())
    blocks = HIFLOAT4.encode(x)
    assert blocks.scales.tolist() == [scales]
    assert blocks.codes.tolist() == codes
    np.testing.assert_array_equal(HIFLOAT4.decode(blocks).numpy(), np.array(values, F))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_against_a_scalar_reference(data: st.DataObject) -> None:
    top = float(F(data.draw(st.sampled_from([1e-20, 1e-14, 0.1, 1.0, 7.0, 1e4, 3e5, 1e38]))))
    seed, shape = data.draw(st.tuples(st.integers(0, 10**6), st.sampled_from([1, 3, 8])))
    random = np.random.default_rng(seed)
    block = (random.uniform(-1, 1, 64) ** shape * top).astype(F)
    for i, v in data.draw(
        st.dictionaries(st.integers(0, 63), st.floats(-top, top, width=32))
    ).items():
        block[i] = v
    check(block.tolist())


def test_every_scale_byte() -> None:
    for byte in range(255):
        first = 2.0 ** (byte // 4 - 48) * (1 + byte % 4 / 4)
        factor = (7.0, 6.7, 7.9, -7.35)[(byte + byte // 4) % 4]
        check([first * factor, first] + [first / 3] * 20 + [0.0] * 42)


def test_the_documented_block() -> None:
    x = torch.zeros(1, 64)
    x[0, :9] = torch.tensor([7, -3.3, 0, 0, 1, 0, 0, 0, 0.3])
    blocks = HIFLOAT4.encode(x)
    assert blocks.scales.flatten().tolist() == [0xC0, 0x80, 0x80, 0x00]
    assert pack_bytes(blocks.codes)[0, :5].tolist() == [0xB7, 0x00, 0x02, 0x00, 0x01]
    assert HIFLOAT4.decode(blocks)[0, :9].tolist() == [7, -3, 0, 0, 1, 0, 0, 0, 0.25]


def test_the_ends_of_the_range() -> None:
    assert HIFLOAT4.largest == 344064
    assert HIFLOAT4.round(torch.full((64,), 1e30)).tolist() == [344064.0] * 64
    assert HIFLOAT4.round(torch.full((64,), 3e5, dtype=torch.bfloat16)).isfinite().all()
    zeros = HIFLOAT4.encode(torch.zeros(64))
    assert zeros.scales.tolist() == [[0, 0, 0, 0]]
    assert HIFLOAT4.bits == 4.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_block_with_nan_or_inf_is_nan_and_its_neighbour_is_not(bad: float) -> None:
    x = torch.ones(2, 128)
    x[1, 70] = bad
    blocks = HIFLOAT4.encode(x)
    assert blocks.scales[1, 1].tolist() == [255, 0, 0, 0]
    values = HIFLOAT4.decode(blocks)
    assert values[1, 64:].isnan().all()
    assert values[0].isfinite().all() and values[1, :64].isfinite().all()


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_blocks_along_any_axis(axis: int) -> None:
    shape = [3, 2, 5]
    shape[axis] = 128
    x = torch.randn(shape, generator=torch.Generator().manual_seed(axis))
    blocks = HIFLOAT4.encode(x, axis)
    moved = HIFLOAT4.encode(x.movedim(axis, -1))
    assert torch.equal(blocks.codes.movedim(axis, -1), moved.codes)
    place = axis if axis >= 0 else axis - 1
    assert torch.equal(blocks.scales.movedim(place, -2), moved.scales)
    values = HIFLOAT4.decode(blocks)
    assert torch.equal(values.movedim(axis, -1), HIFLOAT4.decode(moved))
    assert torch.equal(HIFLOAT4.round(x, axis), values)


def test_wrong_sizes_and_types() -> None:
    with pytest.raises(RuntimeError, match="multiple of 64"):
        HIFLOAT4.encode(torch.ones(2, 96))
    with pytest.raises(ValueError, match="axis"):
        HIFLOAT4.encode(torch.ones(64), 1)
    with pytest.raises(TypeError):
        HIFLOAT4.encode(torch.ones(64, dtype=torch.float64))
    blocks = HIFLOAT4.encode(torch.ones(64))
    with pytest.raises(ValueError, match="uint8"):
        HIFLOAT4.decode(Blocks(blocks.codes, blocks.scales[..., :3]))
