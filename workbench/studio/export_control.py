"""Writing the ONNX files and how their graph is called; part of a session."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

from workbench.studio.graph_names import GraphNames, write_graph_names
from workbench.studio.project import Project


class Exporting(Protocol):
    """Of a session, what exports need."""

    project: Project

    @property
    def input_names(self) -> tuple[str, ...]: ...
    def poll(self) -> bool: ...
    def start(self, kind: str, *, wait: bool = False, **args: Any) -> None: ...


class ExportControl:
    """Exports, and the names in their files."""

    def export(
        self: Exporting, prefix: str | None = None, *, method: str = "ptq", wait: bool = True
    ) -> None:
        """Write the ONNX files, measure them in ONNX Runtime and check that they agree.

        ``prefix`` is a folder and the beginning of the file names; None: ``exports/<project>`` in
        the project. ``method``: 'ptq', or that of a finished training ('qat', 'distill',
        'finetune', 'sparse', 'compressed') for the network that it trained. Inputs and outputs are
        called as ``name_graph`` said.
        """
        target = None if prefix is None else os.path.join(os.getcwd(), prefix)
        self.start("export", wait=wait, prefix=target, method=method)

    @property
    def input_names(self: Exporting) -> tuple[str, ...]:
        """What the model calls its inputs, in call order; () until the model was opened."""
        known = self.project.store.get("figures") or {}
        return tuple(str(name) for name in known.get("inputs", ()))

    def name_graph(
        self: Exporting, inputs: Sequence[str] = (), outputs: Sequence[str] = (), batch: str = ""
    ) -> None:
        """Call inputs and outputs of all files of later exports so, in call order.

        Fewer names than there are leave the others as in the model. ``batch`` is the name of the
        dimension 0 that may vary, 'batch' if empty. Errors: ``WrongType`` or ``WrongValue`` for
        what cannot be names, and for more names than the model has inputs.
        """
        names = GraphNames.checked(inputs, outputs, batch)
        if self.input_names:  # else the export looks
            names.arguments(self.input_names)
        write_graph_names(self.project.store, names)
        self.poll()
