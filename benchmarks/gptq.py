"""GPTQ int4 of one 4096×4096 Linear on 128 samples of 512 tokens, and what it cannot do without.

Its floor: the Gram matrix of all tokens, a Cholesky factorisation with the inverse of the factor,
and the matrix products that carry the errors from each block of columns to those behind it.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from benchmarks.harness import Row, report, threads
from workbench.engine.algorithms.gptq import solve_gptq
from workbench.engine.algorithms.tokens import InputGram
from workbench.engine.algorithms.weight_formats import WeightFormat

SIDE = 4096
SAMPLES, TOKENS = 128, 512
BLOCK = 128
TARGET_SECONDS = 60.0


def sample(number: int, mixing: Tensor) -> Tensor:
    """[1, TOKENS, SIDE]: neighbouring channels hang together."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(1, TOKENS, SIDE, generator=generator)
    return x * mixing + x.roll(1, -1)


def floor(hessian: Tensor, weight: Tensor) -> float:
    """Seconds of the factorisation and of the products, as plain library calls."""
    damped = hessian.clone()
    damped.diagonal().add_(0.01 * float(hessian.diagonal().mean()))
    columns, errors = weight.t().contiguous(), weight[:, :BLOCK].t().contiguous()
    start = time.perf_counter()
    lower = torch.linalg.cholesky(damped)
    inverse = torch.linalg.solve_triangular(lower, torch.eye(SIDE), upper=False).t()
    for column in range(BLOCK, SIDE, BLOCK):
        columns[column:].addmm_(inverse[:BLOCK, column:].t(), errors, alpha=-1.0)
    return time.perf_counter() - start


if __name__ == "__main__":
    torch.set_num_threads(threads())
    weight = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.02
    mixing = torch.logspace(-1, 1, SIDE)
    gram = InputGram(SIDE)
    gram_seconds = product_seconds = 0.0
    for number in range(SAMPLES):
        x = sample(number, mixing)
        start = time.perf_counter()
        gram.update(x)
        middle = time.perf_counter()
        # One in eight stands for all: the same product of the same sizes.
        if number % 8 == 0:
            x[0].t() @ x[0]
            product_seconds += 8 * (time.perf_counter() - middle)
        gram_seconds += middle - start
    number_format = WeightFormat("int4")
    start = time.perf_counter()
    hessian = gram.hessian
    result = solve_gptq(weight, hessian, number_format)
    solve_seconds = time.perf_counter() - start
    needed = floor(hessian, weight)

    def objective(rounded: Tensor) -> float:
        delta = rounded - weight
        return float(((delta @ hessian) * delta).sum())

    nearest = objective(number_format.fake_quantize(weight))
    report(
        [
            Row(
                f"GPTQ int4, {SIDE}×{SIDE}, {SAMPLES} × {TOKENS} tokens",
                threads(),
                gram_seconds + solve_seconds,
                "s",
                TARGET_SECONDS,
                f"Gram matrix {gram_seconds:.1f} s, solving {solve_seconds:.1f} s; output error "
                f"{objective(result.weight) / nearest:.2f} of nearest rounding's",
            ),
            Row(
                "… ÷ Cholesky and the matrix products it needs",
                threads(),
                (gram_seconds + solve_seconds) / (product_seconds + needed),
                "×",
                note=f"Gram {gram_seconds / product_seconds:.2f} of XᵀX (it is symmetric), "
                f"solving {solve_seconds / needed:.1f} of factorisation and products",
            ),
        ]
    )
