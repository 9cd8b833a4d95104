"""Accuracy of pruning, 2:4 sparsity and quantisation, each alone and combined, in ONNX Runtime."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.harness import Row, report, threads
from workbench import zoo
from workbench.engine import (
    TrainingSettings,
    create_compressed_retrain_model,
    fit,
    save_compressed_retrain_model,
)
from workbench.zoo.score import top1
from workbench.zoo.training_data import TrainingDigits

NAME = "digits-resnet"
EPOCHS = 4

QUANTISE = (
    "retrain_data_quant_config { ulq_quantize { } } "
    "retrain_weight_quant_config { arq_retrain { channel_wise: true } } "
)
CHANNELS = (
    "prune_config { filter_pruner { balanced_l2_norm_filter_prune "
    "{ prune_ratio: 0.3 ascend_optimized: false } } } "
)
SPARSE = "prune_config { n_out_of_m_pruner { l1_selective_prune { update_freq: 10 } } } "
LINEAR_SPARSE = f'override_layer_types {{ layer_type: "Linear" {SPARSE} }} '

CASES = {
    "INT8": QUANTISE,
    "channels 0.3": CHANNELS,
    "channels 0.3 + INT8": QUANTISE + CHANNELS,
    "2:4": SPARSE,
    "2:4 + INT8": QUANTISE + SPARSE,
    "channels 0.3 + 2:4 of Linear + INT8": QUANTISE + CHANNELS + LINEAR_SPARSE,
}


def compressed(
    model: nn.Module, text: str, data: zoo.DigitsData, folder: Path
) -> tuple[float, int]:
    """Accuracy of the fake-quant file after a short training, and bytes of the deploy file."""
    config, record, prefix = (folder / n for n in ("c.cfg", "r.txt", "net"))
    config.write_text(text)
    example = (data.calibration[:2],)
    created = create_compressed_retrain_model(
        model, example, str(config), str(record), channel_wise_linear=True
    )
    settings = TrainingSettings(epochs=EPOCHS, learning_rate=2e-3)
    fit(created, TrainingDigits(NAME), loss=F.cross_entropy, settings=settings)
    with torch.no_grad():
        created(data.calibration[:128])
    save_compressed_retrain_model(created, str(record), str(prefix), example)
    session = onnxruntime.InferenceSession(f"{prefix}_fake_quant_model.onnx")
    feed = session.get_inputs()[0].name
    found = [session.run(None, {feed: b.numpy()})[0].argmax(1) for b in data.evaluation.split(128)]
    size = Path(f"{prefix}_deploy_model.onnx").stat().st_size
    return float(np.mean(np.concatenate(found) == data.targets.numpy())), size


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads())
    example = zoo.load(NAME)
    rows = [Row(f"top-1, {NAME}, float", threads(), 100 * top1(example.model, example.data), "%")]
    for title, text in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            accuracy, size = compressed(
                copy.deepcopy(example.model), text, example.data, Path(folder)
            )
        note = f"{EPOCHS} epochs, deploy file {size / 1000:.0f} kB"
        rows.append(Row(f"top-1, {NAME}, {title}", threads(), 100 * accuracy, "%", note=note))
    report(rows)


if __name__ == "__main__":
    main()
