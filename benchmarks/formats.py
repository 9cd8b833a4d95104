"""Number formats: time to encode and to round 4M numbers ÷ torch's own cast to float8."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import Row, ratio, report, threads
from workbench.engine.numerics.formats import BLOCK_FORMATS, ELEMENT_FORMATS

SHAPE = (2048, 2048)
TARGETS = {"hifloat8": 20.0, "mxfp8_e4m3fn": 20.0, "mxfp4_e2m1": 20.0}


def against_cast(
    figure: str, x: Tensor, function: Callable[[Tensor], object], target: float
) -> Row:
    times, own, cast = ratio(lambda: function(x), lambda: x.to(torch.float8_e4m3fn), repeats=7)
    return Row(
        f"{figure} ÷ to(float8_e4m3fn), {str(x.dtype).removeprefix('torch.')}",
        threads(),
        times,
        "×",
        target,
        f"{own / x.numel() * 1e9:.1f} ns a number, the cast {cast / x.numel() * 1e9:.1f}",
    )


if __name__ == "__main__":
    torch.set_num_threads(threads())
    numbers = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, number_format in {**ELEMENT_FORMATS, **BLOCK_FORMATS}.items():
        for x in (numbers, numbers.bfloat16()):
            target = TARGETS.get(name, 0.0)
            rows.append(against_cast(f"encode {name}", x, number_format.encode, target))
        rows.append(against_cast(f"round {name}", numbers, number_format.round, 0.0))
    report(rows)
