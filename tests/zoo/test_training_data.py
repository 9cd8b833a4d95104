from __future__ import annotations

import pytest
import torch

from workbench import zoo
from workbench.zoo.data import split


def test_an_epoch_is_its_number_and_seed() -> None:
    loader = zoo.TrainingDigits("digits-resnet", batch_size=100, copies=1, seed=3)
    first = list(loader)
    assert len(first) == len(loader) == 11
    loader.set_epoch(1)
    second = list(loader)
    assert not torch.equal(first[0][0], second[0][0])
    loader.set_epoch(0)
    again = list(loader)
    for (x, y), (x_again, y_again) in zip(first, again, strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)
    other = next(iter(zoo.TrainingDigits("digits-resnet", batch_size=100, copies=1, seed=4)))
    assert not torch.equal(first[0][1], other[1])


def test_every_training_digit_comes_once_and_no_other() -> None:
    loader = zoo.TrainingDigits("digits-resnet", batch_size=63, copies=1)  # 1,197 = 19 * 63
    labels = torch.cat([y for _, y in loader])
    assert torch.equal(
        labels.bincount(minlength=10), torch.from_numpy(split()[0].labels).bincount(minlength=10)
    )
    pictures = next(iter(loader))[0]
    assert pictures.shape == (63, 1, 32, 32)
    assert pictures.min() >= 0 and pictures.max() <= 1


def test_an_autoencoder_learns_its_input() -> None:
    x, y = next(iter(zoo.TrainingDigits("digits-autoencoder", batch_size=8, copies=1)))
    assert torch.equal(x, y)
    with pytest.raises(ValueError, match="batch_size"):
        zoo.TrainingDigits("digits-resnet", batch_size=5000)
