"""AdaRound: an iteration against one forward-backward of the layer, and INT4 weights on the zoo.

``ADA_ITERATIONS`` (2,000) is for the zoo; fewer make a quick run.
"""

from __future__ import annotations

import dataclasses
import os
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Row, report, threads
from workbench import zoo
from workbench.engine.algorithms.adaround import Samples, SoftRounding, tune
from workbench.engine.algorithms.kl import kl_scale
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.config import QuantConfig, WeightParams, default_config
from workbench.engine.files.layer_rules import weight_bits_obstacle
from workbench.engine.flows.ptq import calibrate
from workbench.engine.graph.capture import Captured, capture
from workbench.zoo.score import top1

STEPS = 5

# Cin, Cout, kernel, stride, input size: the distinct layers of ResNet-18, and its classifier.
RESNET18 = (
    (3, 64, 7, 2, 224),
    (64, 64, 3, 1, 56),
    (64, 128, 3, 2, 56),
    (64, 128, 1, 2, 56),
    (128, 128, 3, 1, 28),
    (256, 256, 3, 1, 14),
    (512, 512, 3, 1, 7),
    (512, 1000, 0, 0, 0),
)


def iteration(cin: int, cout: int, kernel: int, stride: int, size: int) -> Row:
    """Milliseconds of an iteration beyond three forward-backward passes of the same samples."""
    generator = torch.Generator().manual_seed(0)
    shape = (cout, cin, kernel, kernel) if kernel else (cout, cin)
    weight = torch.randn(shape, generator=generator) * 0.05
    inputs = torch.randn((64, cin, size, size) if kernel else (64, cin), generator=generator)

    def forward(x: Tensor, w: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, w, None, stride, kernel // 2)) if kernel else F.linear(x, w)

    axis = 0 if kernel else None
    scale = kl_scale(weight, 8, axis)
    scale = scale.reshape(-1, *[1] * (weight.dim() - 1))
    samples = [Samples(inputs, forward(inputs, weight), forward)]
    rounding = SoftRounding(weight, scale, 8)
    # Nearly all steps with the rounding loss, which is the dearer part.
    settings = WeightParams(num_iteration=STEPS, warm_start=0.01)

    def learn() -> float:
        start = time.perf_counter()
        tune(
            rounding,
            samples,
            settings,
            torch.Generator().manual_seed(0),
            where="",
            on_step=lambda step, loss: None,
        )
        return (time.perf_counter() - start) / STEPS * 1e3

    leaf = weight.clone().requires_grad_()
    batch = inputs[:32].clone()

    def plain() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            output = forward(batch, leaf)
            torch.autograd.grad(output, leaf, torch.ones_like(output))
        return (time.perf_counter() - start) / STEPS * 1e3

    plain(), learn()
    pairs = [(plain(), learn()) for _ in range(3)]
    own = sorted(learned for _, learned in pairs)[1]
    base = sorted(passes for passes, _ in pairs)[1]
    # As a share of what is allowed: 1 is the target.
    return Row(
        f"ADA iteration ÷ (2 ms + 3 forward-backward), {'×'.join(map(str, shape))}",
        threads(),
        own / (2.0 + 3.0 * base),
        "×",
        1.0,
        f"{own:.1f} ms, forward-backward {base:.1f} ms; 2,000 take {own * 2:.0f} s",
    )


def four_bits(captured: Captured, algorithm: str, iterations: int) -> QuantConfig:
    """INT4 weights by ``algorithm`` where the layer allows them; activations as by default."""
    config = default_config(captured.layers)
    layers = dict(config.layers)
    for name, layer in config.layers.items():
        info = captured.layers[name]
        if layer.weight and info.has_weight and not weight_bits_obstacle(info, 4):
            weight = dataclasses.replace(
                layer.weight, num_bits=4, wts_algo=algorithm, num_iteration=iterations
            )
            layers[name] = dataclasses.replace(layer, weight=weight)
    return dataclasses.replace(config, layers=layers)


def recovered(name: str, iterations: int) -> Row:
    """Loss of top-1 that is left of the loss of rounding to nearest (ARQ)."""
    example = zoo.load(name)
    data = example.data
    captured = capture(example.model, (data.calibration[:2],))

    def measure(algorithm: str, count: int) -> tuple[float, float]:
        start = time.perf_counter()
        config = four_bits(captured, algorithm, count)
        done = calibrate(captured, config, [(data.calibration,)])
        spent = time.perf_counter() - start
        module = to_fake_quant(done.folded, done.finalize(), weights=done.fake_weights)
        return top1(module, data), spent

    plain = top1(example.model, data)
    nearest, _ = measure("arq_quantize", 0)
    at_kl, _ = measure("ada_quantize", 0)
    learned, spent = measure("ada_quantize", iterations)
    return Row(
        f"INT4 weights, loss with ADA ÷ loss of nearest rounding, {name}",
        threads(),
        (plain - learned) / max(plain - nearest, 1e-9),
        "×",
        0.5,
        f"top-1 float {plain:.2%}, nearest {nearest:.2%} (at the KL scale {at_kl:.2%}), ADA "
        f"{learned:.2%}; {iterations} iterations, 256 pictures, {spent:.0f} s",
    )


if __name__ == "__main__":
    torch.set_num_threads(threads())
    iterations = int(os.environ.get("ADA_ITERATIONS", "2000"))
    rows = [iteration(*layer) for layer in RESNET18]
    report(rows + [recovered(name, iterations) for name in ("digits-resnet", "digits-mobilenet")])
