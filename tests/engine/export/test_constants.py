"""Constants that are computed when they are written (chapter 10 section 13.1, D24)."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from workbench.engine.export.constants import derived
from workbench.engine.export.external import externalize


def stored(folder: Path) -> tuple[ir.ExternalTensor, np.ndarray]:
    numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
    (folder / "w.bin").write_bytes(numbers.tobytes())
    tensor = ir.ExternalTensor(
        "w.bin", 0, 48, ir.DataType.FLOAT, shape=ir.Shape((3, 4)), name="w", base_dir=folder
    )
    return tensor, numbers


def test_it_is_made_when_read_and_its_source_is_unmapped(tmp_path):
    source, numbers = stored(tmp_path)
    calls = []

    def double(array):
        calls.append(array.shape)
        return array * 2

    tensor = derived(source, double, (3, 4), ir.DataType.FLOAT)
    assert (tensor.nbytes, tensor.shape.numpy()) == (48, (3, 4))
    assert calls == []
    assert np.array_equal(tensor.numpy(), numbers * 2)
    assert tensor.tobytes() == (numbers * 2).tobytes()
    assert len(calls) == 2
    assert source.raw is None


def test_a_view_of_the_source_outlives_it(tmp_path):
    source, numbers = stored(tmp_path)
    turned = derived(source, np.transpose, (4, 3), ir.DataType.FLOAT)
    codes = derived(turned, partial(np.add, 1), (4, 3), ir.DataType.FLOAT)
    result = codes.numpy()
    assert source.raw is None
    assert np.array_equal(result, numbers.T + 1)
    assert np.array_equal(turned.numpy(), numbers.T)


def test_files_keep_the_name_of_their_initializer(tmp_path, monkeypatch):
    """Only what no file name can hold is replaced, and never so that two fall together."""
    monkeypatch.setattr("workbench.engine.export.external.MINIMUM_BYTES", 0)
    names = ["onnx::MatMul_12", "a/b", "a_b", "n" * 300]
    values = [
        ir.Value(name=n, const_value=ir.tensor(np.full(2, i, np.float32)), shape=ir.Shape([2]))
        for i, n in enumerate(names)
    ]
    graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 18})
    written = externalize(ir.Model(graph, ir_version=10), tmp_path, "_deploy.external")
    assert [p.name for p in written[1:2]] == ["a_b_deploy.external"]
    assert len({p.name for p in written}) == len(names)
    assert max(len(os.fsencode(p.name)) for p in written) <= 255
    for index, path in enumerate(written):
        assert np.frombuffer(path.read_bytes(), "<f4").tolist() == [index, index]
        assert np.array_equal(values[index].const_value.numpy(), np.full(2, index, np.float32))


@pytest.mark.skipif(os.name == "nt", reason="a colon is not allowed there")
def test_a_colon_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.engine.export.external.MINIMUM_BYTES", 0)
    value = ir.Value(name="onnx::W", const_value=ir.tensor(np.zeros(2, np.float32)))
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 18})
    (path,) = externalize(ir.Model(graph, ir_version=10), tmp_path, ".external")
    assert path.name == "onnx::W.external"
