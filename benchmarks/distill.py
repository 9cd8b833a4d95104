"""Distillation of ``digits-mobilenet-hard``, 500 unlabelled pictures: what it recovers and costs.

The pictures are drawn as the calibration set is, from digits the network was trained with; labels
are not used. The loss that is recovered is that of post-training quantisation on the example's own
calibration set.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness import Row, report, threads
from workbench import zoo
from workbench.engine import create_distill_config, create_distill_model, distill
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.config import default_config
from workbench.engine.flows.ptq import calibrate
from workbench.engine.graph.capture import capture
from workbench.zoo.data import NOISE, augment, split
from workbench.zoo.score import top1

NAME = "digits-mobilenet-hard"
PICTURES = 500
BATCH = 32


def unlabelled() -> Tensor:
    """Pictures of training digits, placed at random."""
    digits = split()[0].images[:PICTURES]
    generator = np.random.Generator(np.random.PCG64(PICTURES))
    return torch.from_numpy(augment(digits, generator, noise=NOISE)).unsqueeze(1)


def count_calls(model: nn.Module) -> list[int]:
    count = [0]

    def counted(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        count[0] += 1

    model.register_forward_pre_hook(counted)
    return count


def rows() -> list[Row]:
    example = zoo.load(NAME)
    data, inputs, pictures = example.data, zoo.example_input(NAME), unlabelled()
    batches = -(-PICTURES // BATCH)
    captured = capture(example.model, inputs)
    ptq = calibrate(captured, default_config(captured.layers), [data.calibration])
    plain = top1(example.model, data)
    quantised = top1(to_fake_quant(ptq.folded, ptq.finalize()), data)
    found = []
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        cfg, config = Path(folder) / "d.cfg", str(Path(folder) / "d.json")
        cfg.write_text(f"batch_num: {batches}")
        create_distill_config(config, example.model, inputs, str(cfg))
        for epochs in (1, 10):
            teacher = zoo.load(NAME).model
            student = create_distill_model(config, teacher, inputs)
            of_teacher, of_student = count_calls(teacher), count_calls(student)
            loader = DataLoader(TensorDataset(pictures), batch_size=BATCH)
            start = time.perf_counter()
            distill(teacher, student, config, loader, epochs, report=True)
            seconds[epochs] = time.perf_counter() - start
            groups = len(student.distill_report_)
            calls = (of_teacher[0], of_student[0])
            score = top1(student.eval(), data)
            share = (score - quantised) / (plain - quantised)
            found.append(
                Row(
                    f"share of the INT8 loss not recovered, {epochs} epoch(s)",
                    threads(),
                    1 - share,
                    "",
                    0.5,
                    f"float {plain:.2%}, PTQ {quantised:.2%}, distilled {score:.2%}",
                )
            )
            found.append(
                Row(
                    f"teacher's forwards ÷ batches, {epochs} epoch(s)",
                    threads(),
                    calls[0] / batches,
                    "×",
                    1.0,
                    f"{calls[0]} forwards, {batches} batches, {groups} groups",
                )
            )
            found.append(
                Row(
                    f"student's parts of forwards ÷ (groups × batches), {epochs} epoch(s)",
                    threads(),
                    (calls[1] - batches) / (groups * batches),
                    "×",
                    1.0,
                    f"{calls[1] - batches}, and {batches} to calibrate",
                )
            )
    note = f"{seconds[1]:.1f} s and {seconds[10]:.1f} s"
    found.append(Row("time of 10 epochs ÷ 1", threads(), seconds[10] / seconds[1], "×", note=note))
    return found


if __name__ == "__main__":
    torch.set_num_threads(threads())
    report(rows())
