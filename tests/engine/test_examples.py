"""Every example model through the whole flow: the three files compute what torch computes."""

import numpy as np
import onnxruntime as ort
import pytest
import torch

from workbench import zoo
from workbench.engine import create_quant_config, quantize_model, save_model, verify_export
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.record import read_record
from workbench.zoo.unbalance import HARD_LAYERS

SUBSET = 256


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def outputs(path, data):
    run = session(path)
    name = run.get_inputs()[0].name
    return np.concatenate([run.run(None, {name: x.numpy()})[0] for x in data.split(256)])


def metric(example, got):
    if example.metric == "top1":
        return float((got.argmax(1) == example.data.labels.numpy()).mean())
    error = np.mean((got - example.data.targets.numpy()) ** 2)
    return 10 * np.log10(1.0 / error)


@pytest.fixture(scope="module", params=zoo.names())
def exported(request, tmp_path_factory):
    example = zoo.load(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    config, modified, record, prefix = (
        str(folder / n) for n in ("config.json", "modified.onnx", "record.txt", "net")
    )
    batch = example.data.calibration
    create_quant_config(config, example.model, (batch[:2],))
    calibrating = quantize_model(config, modified, record, example.model, (batch[:2],))
    calibrating(batch)
    save_model(modified, record, prefix)
    quantized = to_fake_quant(calibrating.calibration.folded, read_record(record))
    return example, quantized, prefix


def test_the_deploy_file_computes_what_the_others_compute(exported):
    example, quantized, prefix = exported
    batches = [(x,) for x in example.data.evaluation[:SUBSET].split(128)]
    parities = verify_export(quantized, prefix, batches)
    assert len(parities) == 3
    for parity in parities:
        assert parity.ok, parity
    exact = parities[1]
    assert (exact.left, exact.right) == ("ONNX fake-quant", "deploy (integer simulation)")
    assert exact.share_beyond_one_step <= 0.001, exact


def test_onnx_runtime_measures_what_torch_measures(exported):
    example, quantized, prefix = exported
    with torch.no_grad():
        wanted = torch.cat([quantized(x) for x in example.data.evaluation.split(256)]).numpy()
    got = outputs(f"{prefix}_fake_quant_model.onnx", example.data.evaluation)
    # A value on a rounding border may take the neighbouring code; the rest is equal.
    differing = np.abs(got - wanted) > 1e-4 * np.abs(wanted).max()
    assert differing.mean() < 0.05
    allowed = 0.0 if example.metric == "top1" else 1e-3
    assert metric(example, got) == pytest.approx(metric(example, wanted), abs=allowed)


def test_the_integer_file_keeps_the_metric(exported):
    example, _, prefix = exported
    fake = metric(example, outputs(f"{prefix}_fake_quant_model.onnx", example.data.evaluation))
    qdq = metric(example, outputs(f"{prefix}_qdq_model.onnx", example.data.evaluation))
    # Outputs are quantised as well there, so it may lose more; in decibel for the autoencoder.
    assert qdq >= fake - (0.03 if example.metric == "top1" else 1.0)


def test_what_a_rolled_back_layer_reads_stays_float_in_the_integer_file(tmp_path):
    example = zoo.load("digits-mobilenet-hard")
    config, modified, record, prefix = (
        str(tmp_path / n) for n in ("config.json", "modified.onnx", "record.txt", "net")
    )
    batch = example.data.calibration
    create_quant_config(config, example.model, (batch[:2],), skip_layers=list(HARD_LAYERS))
    quantize_model(config, modified, record, example.model, (batch[:2],))(batch)
    save_model(modified, record, prefix)
    fake, qdq = (
        metric(example, outputs(f"{prefix}_{kind}_model.onnx", example.data.evaluation))
        for kind in ("fake_quant", "qdq")
    )
    float_metric = 0.98166
    assert fake >= float_metric - 0.005
    assert qdq >= float_metric - 0.005
