"""Every public signature of the specification's chapters, against what this version has."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from workbench.amct.absent import ABSENT

# Copied from the chapters: 10 section 3, 20 section 1, 25, 30, 40, 50, 60.
FUNCTIONS = """
create_quant_config(config_file, model, input_data, skip_layers=None, batch_num=1,
    activation_offset=True, config_defination=None)
quantize_preprocess(config_file, record_file, model, input_data)
quantize_model(config_file, modfied_onnx_file, record_file, model, input_data, input_names=None,
    output_names=None, dynamic_axes=None)
save_model(modfied_onnx_file, record_file, save_path)
accuracy_based_auto_calibration(model, model_evaluator, config_file, record_file, save_dir,
    input_data, input_names=None, output_names=None, dynamic_axes=None, strategy='BinarySearch',
    sensitivity='CosineSimilarity')
ModelEvaluator(data_dir, input_shape, data_types)
quantize(model, config=None)
convert(model)
algorithm_register(name, src_op, quant_op, deploy_op=None)
create_quant_cali_config(config_file, model, quant_layers=None, config_defination=None)
create_quant_cali_model(config_file, record_file, model)
nn.module.quantization.quant_calibration_op.QuantCalibrationOp(record_file,
    quant_algo_params=None, quant_method='kv_cache_quant')
create_quant_retrain_config(config_file, model, input_data, config_defination=None)
create_quant_retrain_model(config_file, model, record_file, input_data)
restore_quant_retrain_model(config_file, model, record_file, input_data, pth_file,
    state_dict_name=None)
save_quant_retrain_model(config_file, model, record_file, save_path, input_data, input_names=None,
    output_names=None, dynamic_axes=None)
create_prune_retrain_model(model, input_data, config_defination, record_file)
restore_prune_retrain_model(model, input_data, record_file, config_defination, pth_file,
    state_dict_name=None)
save_prune_retrain_model(model, save_path, input_data, input_names=None, output_names=None,
    dynamic_axes=None)
create_compressed_retrain_model(model, input_data, config_defination, record_file)
restore_compressed_retrain_model(model, input_data, config_defination, record_file, pth_file,
    state_dict_name=None)
save_compressed_retrain_model(model, record_file, save_path, input_data, input_names=None,
    output_names=None, dynamic_axes=None)
auto_channel_prune_search(model, config, input_data, output_cfg,
    sensitivity='TaylorLossSensitivity', search_alg='GreedySearch')
create_distill_config(config_file, model, input_data, config_defination=None)
create_distill_model(config_file, model, input_data)
distill(model, compress_model, config_file, train_loader, epochs=1, lr=1e-3, sample_instance=None,
    loss=None, optimizer=None)
save_distill_model(model, save_path, input_data, record_file=None, input_names=None,
    output_names=None, dynamic_axes=None)
common.auto_channel_prune.sensitivity_base.SensitivityBase(loss_func=None)
common.auto_channel_prune.sensitivity_base.SensitivityBase.setup_initialization(self, graph_tuple,
    input_data, test_iteration, output_nodes=None)
common.auto_channel_prune.sensitivity_base.SensitivityBase.get_sensitivity(self, search_records)
common.auto_channel_prune.search_channel_base.SearchChannelBase.channel_prune_search(self,
    graph_info, search_records, prune_config)
common.auto_channel_prune.search_channel_base.SearchChannelBase.update_graph(self,
    prune_channel_num, graph_info, search_records)
common.auto_channel_prune.search_channel_base.GreedySearch(search_step=100)
tensor_decompose.auto_decomposition(model, decompose_info_path=None)
tensor_decompose.decompose_network(model, decompose_info_path)
common.auto_calibration.AutoCalibrationEvaluatorBase()
common.auto_calibration.AutoCalibrationEvaluatorBase.calibration(self, model)
common.auto_calibration.AutoCalibrationEvaluatorBase.evaluate(self, model)
common.auto_calibration.AutoCalibrationEvaluatorBase.metric_eval(self, original_metric, new_metric)
common.auto_calibration.AutoCalibrationStrategyBase()
common.auto_calibration.AutoCalibrationStrategyBase.initialize(self, ranking)
common.auto_calibration.SensitivityBase()
common.auto_calibration.SensitivityBase.compare(self, data, other)
common.auto_calibration.BinarySearchStrategy()
common.auto_calibration.CosineSimilaritySensitivity()
common.auto_calibration.CosineSimilaritySensitivity.compare(self, data, other)
nn.module.quantization.conv1d.Conv1dQAT(in_channels, out_channels, kernel_size, stride=1,
    padding=0, dilation=1, groups=1, bias=True, padding_mode='zeros', device=None, dtype=None,
    config=None)
nn.module.quantization.conv2d.Conv2dQAT(in_channels, out_channels, kernel_size, stride=1,
    padding=0, dilation=1, groups=1, bias=True, padding_mode='zeros', device=None, dtype=None,
    config=None)
nn.module.quantization.conv3d.Conv3dQAT(in_channels, out_channels, kernel_size, stride=1,
    padding=0, dilation=1, groups=1, bias=True, padding_mode='zeros', device=None, dtype=None,
    config=None)
nn.module.quantization.conv_transpose_1d.ConvTranspose1dQAT(in_channels, out_channels,
    kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True, padding_mode='zeros',
    device=None, dtype=None, config=None)
nn.module.quantization.conv_transpose_2d.ConvTranspose2dQAT(in_channels, out_channels,
    kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True, padding_mode='zeros',
    device=None, dtype=None, config=None)
nn.module.quantization.linear.LinearQAT(in_features, out_features, bias=True, device=None,
    dtype=None, config=None)
nn.module.quantization.lstm.LSTMQAT(input_size, hidden_size, num_layers=1, bias=True,
    batch_first=False, dropout=0.0, bidirectional=False, proj_size=0, device=None, dtype=None,
    config=None)
nn.module.quantization.gru.GRUQAT(input_size, hidden_size, num_layers=1, bias=True,
    batch_first=False, dropout=0.0, bidirectional=False, device=None, dtype=None, config=None)
nn.module.quantization.matmul.MatMulQAT(device=None, config=None)
nn.module.quantization.conv2d.Conv2dQAT.from_float(mod, config=None)
"""

TODAY = {
    "create_compressed_retrain_model",
    "restore_compressed_retrain_model",
    "save_compressed_retrain_model",
    "create_quant_config",
    "quantize_preprocess",
    "quantize_model",
    "save_model",
    "create_quant_retrain_config",
    "create_quant_retrain_model",
    "restore_quant_retrain_model",
    "save_quant_retrain_model",
    "accuracy_based_auto_calibration",
    "ModelEvaluator",
    "create_quant_cali_config",
    "create_quant_cali_model",
    "quantize",
    "convert",
    "algorithm_register",
    "INT8_MINMAX_WEIGHT_QUANT_CFG",
    "create_distill_config",
    "create_distill_model",
    "distill",
    "save_distill_model",
    "create_prune_retrain_model",
    "restore_prune_retrain_model",
    "save_prune_retrain_model",
    "auto_channel_prune_search",
}


def table() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    text = " ".join(line.strip() for line in FUNCTIONS.splitlines())
    while "(" in text:
        name, _, rest = text.strip().partition("(")
        arguments, _, text = rest.partition(")")
        found.append((name, arguments))
    return found


def resolve(path: str) -> Any:
    """The object at a dotted path below the package, importing packages on the way."""
    value: Any = importlib.import_module("workbench.amct")
    place = "workbench.amct"
    for part in path.split("."):
        place = f"{place}.{part}"
        if not hasattr(value, part) and inspect.ismodule(value):
            importlib.import_module(place)
        value = getattr(value, part)
    return value


def shape(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("name", "arguments"), table())
def test_signature(name: str, arguments: str) -> None:
    first = name.partition(".")[0]
    if f"workbench.amct.{first}" in ABSENT:
        with pytest.raises(ImportError, match=r"comes with .* not in this version"):
            exec(f"from workbench.amct import {first}")
        return
    namespace: dict[str, Any] = {}
    exec(f"def wanted({arguments}): ...", namespace)
    wanted = shape(namespace["wanted"])
    found = shape(resolve(name))
    assert found[: len(wanted)] == wanted
    # What is ours comes after, by keyword only, and may be left out.
    for _, kind, default in found[len(wanted) :]:
        assert kind is inspect.Parameter.KEYWORD_ONLY
        assert default is not inspect.Parameter.empty


def test_the_flows_of_this_version_are_all_there() -> None:
    import workbench.amct as amct

    assert set(amct.__all__) >= TODAY
    for name in amct.__all__:
        assert f"workbench.amct.{name}" not in ABSENT
        value = getattr(amct, name)
        # The presets of quantize are dicts.
        assert isinstance(value, dict) or value.__module__.startswith("workbench.engine.")


def test_flat_names_are_in_the_engine_too() -> None:
    import workbench.amct as amct
    import workbench.amct.common.auto_calibration as bases
    import workbench.engine as engine

    for name in amct.__all__:
        assert getattr(engine, name) is getattr(amct, name)
    assert engine.AutoCalibrationEvaluatorBase is bases.AutoCalibrationEvaluatorBase


def test_the_package_of_samplers_leaves_the_function_in_its_place() -> None:
    import workbench.amct as amct

    samplers = importlib.import_module("workbench.amct.distill.distill_sample")
    assert callable(amct.distill)
    image, label = object(), object()
    with pytest.raises(ValueError, match="begins with a object"):
        samplers.ModelSingleTensorInput.get_model_input_data((image, label))
