"""Names that a project gives the graph of its files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from workbench.engine.errors import WorkbenchError
from workbench.studio import Project, Session
from workbench.studio.graph_names import GraphNames, as_graph_names


def test_windows_share_the_names_and_the_script_has_them(
    prepared: Callable[..., Project],
) -> None:
    project = prepared()
    project.store.put(figures={"inputs": ["x", "mask"]})
    session, other = Session(project), Session(project)
    session.name_graph(["image"], ["logits"], "n")
    other.poll()
    assert other.graph_names == GraphNames(("image",), ("logits",), "n")
    assert other.input_names == ("x", "mask")
    assert (
        "input_names=['image'], output_names=['logits'], dynamic_axes={'image': {0: 'n'}}"
        in other.script()
    )
    session.name_graph(batch="n")
    assert "dynamic_axes={'x': {0: 'n'}}" in session.script()
    session.name_graph()
    assert "_names=[" not in session.script()
    with pytest.raises(ValueError, match="3 names .a, b, c.; the model has 2 inputs: x, mask"):
        session.name_graph(["a", "b", "c"])
    assert session.graph_names == GraphNames()


@pytest.mark.parametrize(
    "wrong",
    [
        {"inputs": "x"}, {"inputs": [1]}, {"outputs": [""]}, {"outputs": ["b "]},
        {"inputs": ["a"], "outputs": ["a"]}, {"batch": None}, {"batch": "a\nb"},
        {"inputs": ["x" * 1001]},
    ],
)  # fmt: skip
def test_what_cannot_be_a_name(session: Session, wrong: dict[str, Any]) -> None:
    with pytest.raises(WorkbenchError, match=r"allowed|twice"):
        session.name_graph(**wrong)
    assert session.graph_names == GraphNames()


def test_more_names_than_inputs_and_a_file_from_elsewhere() -> None:
    with pytest.raises(ValueError, match="2 names .a, b.; the model has 1 inputs: x"):
        GraphNames(("a", "b")).arguments(["x"])
    for stored in ("x", {"inputs": 3}, {"batch": ["n"]}, {"inputs": ["a", "a"]}):
        assert as_graph_names(stored) == GraphNames()
