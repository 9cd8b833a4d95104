import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.engine.numerics.packing import pack_bytes, pack_words, unpack_bytes, unpack_words

PAIRS = list(itertools.product(range(16), range(16)))


def as_signed(nibble: int) -> int:
    return nibble - 16 if nibble >= 8 else nibble


def test_all_pairs_in_bytes() -> None:
    unsigned = torch.tensor(PAIRS, dtype=torch.uint8)
    packed = pack_bytes(unsigned)
    assert packed.dtype == torch.uint8
    assert packed.flatten().tolist() == [low + 16 * high for low, high in PAIRS]
    assert torch.equal(unpack_bytes(packed), unsigned)

    signed = torch.tensor([[as_signed(a), as_signed(b)] for a, b in PAIRS], dtype=torch.int32)
    packed = pack_bytes(signed)
    assert packed.dtype == torch.int8
    assert [v % 256 for v in packed.flatten().tolist()] == [a + 16 * b for a, b in PAIRS]
    assert unpack_bytes(packed).dtype == torch.int32
    assert torch.equal(unpack_bytes(packed), signed)


@pytest.mark.parametrize("place", range(7))
def test_all_pairs_at_every_place_of_a_word(place: int) -> None:
    codes = torch.zeros(256, 8, dtype=torch.int32)
    codes[:, place : place + 2] = torch.tensor([[as_signed(a), as_signed(b)] for a, b in PAIRS])
    words = pack_words(codes)
    assert words.dtype == torch.int32 and words.shape == (256, 1)
    expected = [(a << 4 * place) + (b << 4 * place + 4) for a, b in PAIRS]
    assert [w % 2**32 for w in words.flatten().tolist()] == expected
    assert torch.equal(unpack_words(words, signed=True), codes)
    unsigned = (codes & 15).to(torch.uint8)
    assert torch.equal(pack_words(unsigned), words)
    assert torch.equal(unpack_words(words, signed=False), unsigned)


@given(
    rows=st.integers(0, 5),
    groups=st.integers(0, 4),
    axis=st.sampled_from([0, 1, -1, -2]),
    signed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_packing_along_any_axis(rows: int, groups: int, axis: int, signed: bool, seed: int) -> None:
    low = -8 if signed else 0
    array = np.random.default_rng(seed).integers(low, low + 16, (rows, 8 * groups))
    codes = torch.from_numpy(array).to(torch.int32 if signed else torch.uint8)
    if axis in (0, -2):
        codes = codes.T
    halves, words = pack_bytes(codes, axis), pack_words(codes, axis)
    assert halves.shape[axis] == 4 * groups and words.shape[axis] == groups
    assert halves.is_contiguous() and words.is_contiguous()
    assert torch.equal(unpack_bytes(halves, axis), codes)
    assert torch.equal(unpack_words(words, axis, signed=signed), codes)
    for j in range(groups):
        column = words.select(axis, j).tolist()
        parts = [codes.select(axis, 8 * j + i).tolist() for i in range(8)]
        for r in range(rows):
            assert column[r] % 2**32 == sum((parts[i][r] % 16) << 4 * i for i in range(8))


def test_what_cannot_be_packed() -> None:
    with pytest.raises(RuntimeError, match="3 codes along axis -1"):
        pack_bytes(torch.zeros(2, 3, dtype=torch.int8))
    with pytest.raises(RuntimeError, match="multiple of 8"):
        pack_words(torch.zeros(2, 4, dtype=torch.int8))
    for codes in (torch.tensor([8, 0]), torch.tensor([0, -9])):
        with pytest.raises(ValueError, match="-8…7"):
            pack_bytes(codes.int())
    with pytest.raises(ValueError, match="0…15"):
        pack_bytes(torch.tensor([16, 0], dtype=torch.uint8))
    with pytest.raises(ValueError, match="axis 2"):
        pack_bytes(torch.zeros(2, 2, dtype=torch.int8), axis=2)
    with pytest.raises(TypeError):
        pack_bytes(torch.zeros(2))
    with pytest.raises(TypeError):
        unpack_bytes(torch.zeros(2, dtype=torch.int32))
    with pytest.raises(TypeError):
        unpack_words(torch.zeros(2, dtype=torch.int8), signed=True)
