import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.algorithms.tokens import ChannelRanges, InputGram, TokenSample


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), batches=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_running_statistics_equal_those_of_all_tokens(seed, batches):
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(size, 5, 7, generator=generator) for size in batches]
    everything = torch.cat(inputs).reshape(-1, 7)
    ranges, gram = ChannelRanges(7), InputGram(7)
    for x in inputs:
        ranges.update(x)
        gram.update(x)
    assert torch.equal(ranges.low, everything.amin(0))
    assert torch.equal(ranges.high, everything.amax(0))
    assert torch.equal(ranges.magnitude, everything.abs().amax(0))
    torch.testing.assert_close(ranges.mean_magnitude, everything.abs().mean(0))
    double = everything.double()
    expected = (2 / sum(batches) * double.T @ double).float()
    torch.testing.assert_close(gram.hessian, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(gram.hessian, gram.hessian.T)


def test_the_blocks_of_a_wide_gram_matrix_meet():
    x = torch.randn(3, 1100, generator=torch.Generator().manual_seed(0))
    gram = InputGram(1100)
    gram.update(x)
    assert gram.samples == 1
    torch.testing.assert_close(gram.hessian, 2 * x.T @ x, rtol=1e-4, atol=1e-4)


def test_a_sample_is_a_fair_choice_of_all_tokens():
    sample = TokenSample(1, 200, generator=torch.Generator().manual_seed(0))
    for start in range(0, 4000, 400):
        sample.update(torch.arange(start, start + 400.0).reshape(2, 200, 1))
    kept = sample.values[:, 0]
    assert len(kept) == len(kept.unique()) == 200
    # 20 of each batch expected, standard deviation 4.2.
    counts = torch.histc(kept, 10, 0, 4000)
    assert counts.min() >= 5 and counts.max() <= 38


def test_few_tokens_are_all_kept():
    sample = TokenSample(3, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 4, 3)
    sample.update(x)
    ordered, expected = (rows[rows[:, 0].argsort()] for rows in (sample.values, x.reshape(-1, 3)))
    assert torch.equal(ordered, expected)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_what_is_not_finite_is_refused(bad):
    x = torch.ones(2, 4)
    x[1, 2] = bad
    for watcher in (ChannelRanges(4), InputGram(4)):
        with pytest.raises(RuntimeError, match="inf or NaN"):
            watcher.update(x)


def test_wrong_shapes_and_types_and_nothing_seen():
    watchers = (
        ChannelRanges(4),
        InputGram(4),
        TokenSample(4, generator=torch.Generator()),
    )
    for watcher in watchers:
        with pytest.raises(ValueError, match=r"\(..., 4\)"):
            watcher.update(torch.ones(2, 3))
        with pytest.raises(TypeError, match="int64"):
            watcher.update(torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="no batch"):
        _ = watchers[0].mean_magnitude
    with pytest.raises(RuntimeError, match="no batch"):
        _ = watchers[1].hessian
    with pytest.raises(RuntimeError, match="no batch"):
        _ = watchers[2].values
