"""An ONNX file as a module tree of real layers (index decision 10).

``Conv``, ``ConvTranspose``, ``Gemm``, ``MatMul`` by a constant, ``BatchNormalization`` and
two-dimensional ``AveragePool`` become torch modules, named by their weights or nodes; every other
operator becomes a torch function. What computes a shape is followed as a list of numbers.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from workbench.engine.graph import onnx_layers, onnx_math, onnx_shapes
from workbench.engine.graph.onnx_builder import HANDLERS, OnnxBuilder
from workbench.engine.graph.onnx_source import read_onnx, refuse_operators

OPERATOR_FILES = (onnx_layers, onnx_math, onnx_shapes)
"""Importing them fills the table of handlers."""


def load_onnx_model(path: str | Path) -> nn.Module:
    """The float model of an ONNX file, in evaluation mode.

    Errors: those of ``read_onnx``, and ``WrongValue`` for operators that are not read, listed with
    their counts, and for settings of one that are not.
    """
    source = read_onnx(path)
    refuse_operators(source, HANDLERS)
    return OnnxBuilder(source).model()
