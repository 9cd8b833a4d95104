"""Deploy modules from what was stored of them, without the layer they once replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from workbench.engine.errors import WrongValue
from workbench.engine.modules.quantize.cast_deployed import NpuHIF8CastLinear
from workbench.engine.modules.quantize.conv_deployed import NpuQuantizationConv2d
from workbench.engine.modules.quantize.deployed import DeployModule
from workbench.engine.modules.quantize.full import NpuQuantizationLinear
from workbench.engine.modules.quantize.microscaled import NpuMXQuantizationLinear
from workbench.engine.modules.quantize.weight_only import NpuWeightQuantizedLinear

_CLASSES = (
    NpuHIF8CastLinear,
    NpuMXQuantizationLinear,
    NpuQuantizationConv2d,
    NpuQuantizationLinear,
    NpuWeightQuantizedLinear,
)
_BY_NAME: Mapping[str, type[DeployModule]] = {cls.__name__: cls for cls in _CLASSES}
_PLAIN = (str, int, float, bool, type(None))


def describe_deployed(module: nn.Module) -> dict[str, Any] | None:
    """Class and plain attributes, as JSON holds them; None for modules that cannot be rebuilt."""
    if type(module) not in _CLASSES:
        return None
    attributes = {
        key: value
        for key, value in vars(module).items()
        if key not in vars(nn.Module()) and key != "training"
    }
    if not all(isinstance(value, _PLAIN) for value in attributes.values()):
        return None
    return {
        "class": type(module).__name__,
        "attributes": attributes,
        "buffers": sorted(key for key, value in module._buffers.items() if value is not None),
        "without": sorted(key for key, value in module._buffers.items() if value is None),
    }


def rebuild_deployed(
    described: Mapping[str, Any], buffers: Mapping[str, Tensor], *, where: str
) -> DeployModule:
    """The module of ``describe_deployed`` with these tensors; ``ValueError`` naming ``where``."""
    cls = _BY_NAME.get(described["class"])
    if cls is None:
        raise WrongValue(
            f"the class is {described['class']!r}; allowed: {', '.join(_BY_NAME)}", where=where
        )
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    for key, value in described["attributes"].items():
        if not isinstance(value, _PLAIN) or hasattr(nn.Module, key):
            raise WrongValue(f"the attribute {key} cannot be set", where=where)
        setattr(module, key, value)
    for key in described["without"]:
        module.register_buffer(key, None)
    for key in described["buffers"]:
        module.register_buffer(key, buffers[key])
    return module
