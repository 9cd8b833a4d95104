"""A fake-quant ONNX file as a torch module, so that evaluators need not know the difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.export.segments import array_of, session
from workbench.engine.export.verify import ALLOWED_SNR_DB

AGREEMENT = 1e-4
"""Largest difference of the two backends, relative to the largest output (section 10, row 6)."""


class OnnxModule(nn.Module):
    """Calls ONNX Runtime with the tensors of the arguments, in the order of the file's inputs.

    ``spec`` is how the outputs are put together again: a torch pytree specification.
    """

    def __init__(self, data: bytes, spec: Any) -> None:
        super().__init__()
        self._session = session(data, threads=torch.get_num_threads())
        self._inputs = self._session.get_inputs()
        self._spec = spec

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if len(tensors) != len(self._inputs):
            raise WrongValue(
                f"the model was called with {len(tensors)} tensors; the exported file has the "
                f"inputs {', '.join(meta.name for meta in self._inputs)}",
                where="evaluate_backend='onnx'",
                hint="Call it as the example input does, or use evaluate_backend='torch'.",
            )
        feed = {
            meta.name: array_of(x, meta.type) for meta, x in zip(self._inputs, tensors, strict=True)
        }
        device = tensors[0].device if tensors else torch.device("cpu")
        outputs = [torch.from_numpy(y).to(device) for y in self._session.run(None, feed)]
        if self._spec.num_leaves == len(outputs):
            return pytree.tree_unflatten(outputs, self._spec)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def require_agreement(
    torch_module: nn.Module, onnx_module: nn.Module, batch: tuple[tuple[Any, ...], dict[str, Any]]
) -> None:
    """Raise ``RuntimeError`` when the two disagree on ``batch``: beyond ``AGREEMENT`` and 60 dB."""
    args, kwargs = batch
    with torch.no_grad():
        left, right = torch_module(*args, **kwargs), onnx_module(*args, **kwargs)
    pairs = zip(_arrays(left), _arrays(right), strict=True)
    for number, (a, b) in enumerate(pairs):
        largest = float(np.abs(a - b).max(initial=0.0))
        allowed = AGREEMENT * float(np.abs(a).max(initial=0.0))
        # LayerNorm and the like round differently, and a rounding border spreads that: verify.py.
        noise = float(np.square(a - b).sum()) * 10 ** (ALLOWED_SNR_DB / 10)
        if not (largest <= allowed or noise <= float(np.square(a).sum())):
            raise WrongState(
                f"output {number} of the torch module and of the ONNX file differ by "
                f"{largest:.3g}; allowed: {allowed:.3g}",
                where="evaluate_backend='onnx'",
                hint="Compare the exported files with verify_export, or evaluate with 'torch'.",
            )


def _arrays(output: Any) -> Sequence[np.ndarray[Any, np.dtype[np.float64]]]:
    leaves = (x for x in pytree.tree_leaves(output) if isinstance(x, Tensor))
    return [x.detach().cpu().double().numpy() for x in leaves]
