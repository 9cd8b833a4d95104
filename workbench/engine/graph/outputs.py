"""A module's output as one vector, however many tensors it holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def flat_output(output: Any) -> Tensor:
    """Every tensor of an output, flat, in float32: of an LSTM the sequence and both states."""
    leaves = [x.detach() for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]
    parts = [leaf.reshape(-1).float() for leaf in leaves]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
