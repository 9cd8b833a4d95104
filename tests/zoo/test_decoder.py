import pytest
import torch

from workbench.zoo.decoder import Decoder, DecoderConfig
from workbench.zoo.sorting import (
    LENGTH,
    SEPARATOR,
    grow_outliers,
    sequences,
    sorting_accuracy,
    train_sorter,
    trained_sorter,
)


def test_sequences_hold_numbers_and_their_order():
    tokens = sequences(20, 3)
    assert tokens.shape == (20, 2 * LENGTH + 1)
    for row in tokens.tolist():
        assert row[LENGTH] == SEPARATOR and row[LENGTH + 1 :] == sorted(row[:LENGTH])


def test_a_token_knows_nothing_of_later_ones():
    model = Decoder().eval()
    tokens = sequences(2, 0)
    changed = tokens.clone()
    changed[:, 9:] = 1
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_the_order_of_tokens_matters():
    """Rotary positions: a sequence and its reverse give the last token different logits."""
    model = trained_sorter()
    tokens = sequences(1, 0)[:, :8]
    turned = torch.cat([tokens[:, :7].flip(1), tokens[:, 7:]], 1)
    with torch.no_grad():
        assert not torch.allclose(model(tokens)[:, -1], model(turned)[:, -1], atol=1e-3)


def test_the_shipped_weights_sort():
    assert sorting_accuracy(trained_sorter(), 500) > 98


def test_training_learns_and_repeats():
    first, second = train_sorter(25, seed=1), train_sorter(25, seed=1)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    # A guess is right once in sixteen.
    assert sorting_accuracy(first, 200) > 20


def test_outliers_leave_the_function_alone():
    model = trained_sorter()
    tokens = sequences(8, 0)
    seen = []
    with torch.no_grad():
        before = model(tokens)
        grow_outliers(model)
        model.model.layers[1].mlp.up_proj.register_forward_pre_hook(
            lambda _module, args: seen.append(args[0])
        )
        torch.testing.assert_close(model(tokens), before, rtol=1e-4, atol=1e-4)
    largest = seen[0].abs().flatten(0, 1).amax(0)
    assert float(largest.max() / largest.median()) > 10


@pytest.mark.parametrize("tied", [True, False])
def test_sizes_and_tied_weights(tied):
    config = DecoderConfig(vocabulary=30, width=32, layers=3, heads=4, kv_heads=1, tied=tied)
    model = Decoder(config)
    assert len(model.model.layers) == 3
    assert model.model.layers[0].self_attn.k_proj.out_features == 8
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert "model.rotary_emb.frequencies" not in model.state_dict()
