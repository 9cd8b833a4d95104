"""The checks of a record that need no graph (chapter 10 section 12.4)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from workbench.engine.errors import WorkbenchError, WrongValue
from workbench.engine.files.record import LayerRecord, Record, RecordError
from workbench.engine.numerics.integer import FLT_EPSILON, int_range

logger = logging.getLogger("workbench.engine.files")

_TYPES = {
    "dst_type": ("INT8", "INT4"),
    "act_type": ("INT4", "INT8", "INT16"),
    "wts_type": ("INT4", "INT6", "INT7", "INT8"),
    "fakequant_precision_mode": ("DEFAULT", "FORCE_FP16_QUANT"),
}


class RecordFieldsError(RecordError):
    """A record with missing fields or unknown types: ``RuntimeError``."""


class RecordValueError(WrongValue):
    """A record with numbers out of their range: ``ValueError``."""


class RecordFieldsAndValueError(RecordFieldsError, RecordValueError):
    """A record with both."""


def check_record(record: Record, source: str) -> None:
    """Raise one error with everything that is wrong with the entries of ``record``.

    ``RuntimeError`` for an empty record, missing factors, lengths and unknown types; ``ValueError``
    for numbers out of range; an error that is both when both occur. Lengths against Cout and Cin
    need the graph and are the exporter's to check.
    """
    if not record.names() and not record.prune:
        raise RecordFieldsError(
            "the record holds no entry.", where=source, hint="Run the calibration to its end."
        )
    fields: list[str] = []
    values: list[str] = []
    for name, layer in record.layers.items():
        fields += [f"{problem} (layer {name})" for problem in _field_problems(layer)]
        values += [f"{problem} (layer {name})" for problem in _value_problems(layer)]
        if layer.dst_type is None:
            _warn_of_absent_types(name, layer)
    problems = fields + values
    if not problems:
        return
    error_class: type[WorkbenchError] = RecordFieldsError if fields else RecordValueError
    if fields and values:
        error_class = RecordFieldsAndValueError
    text = problems[0] if len(problems) == 1 else "\n- ".join(["", *problems])
    raise error_class(text, where=source)


def _field_problems(layer: LayerRecord) -> Iterator[str]:
    for name in ("scale_d", "offset_d"):
        if getattr(layer, name) is None:
            yield f"{name} is missing; run all calibration batches through the model"
    for name in ("scale_w", "offset_w"):
        if not getattr(layer, name):
            yield f"{name} is missing; run quantize_model again"
    if layer.scale_w and layer.offset_w and len(layer.scale_w) != len(layer.offset_w):
        yield f"scale_w has {len(layer.scale_w)} values, offset_w {len(layer.offset_w)}"
    for name, allowed in _TYPES.items():
        value = getattr(layer, name)
        if value is not None and value not in allowed:
            yield f"{name} is {value!r}; allowed: {', '.join(allowed)}"


def _value_problems(layer: LayerRecord) -> Iterator[str]:
    low, high = int_range(16 if layer.dst_type is None and layer.act_type == "INT16" else 8)
    for name in ("offset_d", "offset_h"):
        offset = getattr(layer, name)
        if offset is not None and not low <= offset <= high:
            yield f"{name} is {offset}; allowed: {low} to {high}"
    for name in ("offset_w", "offset_r"):
        if any(getattr(layer, name)):
            yield f"{name} holds values other than 0; allowed: 0"
    for name in ("scale_d", "scale_h", "scale_w", "scale_r"):
        given = getattr(layer, name)
        scales = given if isinstance(given, tuple) else () if given is None else (given,)
        for index, scale in enumerate(scales):
            if not (math.isfinite(scale) and scale > 0):
                position = f"[{index}]" if isinstance(given, tuple) else ""
                yield f"{name}{position} is {scale}; allowed: finite and above 0"
    for index, factor in enumerate(layer.tensor_balance_factor):
        if not FLT_EPSILON <= factor <= 1 / FLT_EPSILON:
            yield (
                f"tensor_balance_factor[{index}] is {factor}; "
                f"allowed: {FLT_EPSILON:g} to {1 / FLT_EPSILON:g}"
            )


def _warn_of_absent_types(name: str, layer: LayerRecord) -> None:
    if layer.act_type is None:
        logger.warning("layer %s has no act_type in the record; 8 bits are taken", name)
    # A pooling layer has no weight: its entry is scale_w 1 and no wts_type, on purpose.
    if layer.wts_type is None and layer.scale_w != (1.0,):
        logger.warning("layer %s has no wts_type in the record; 8 bits are taken", name)
