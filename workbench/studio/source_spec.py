"""Where a project's model comes from, and what that rules out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.engine.errors import WrongState

SOURCE_KINDS = ("zoo", "live", "python", "pt2", "onnx", "hf", "shrunk", "none")


@dataclass(frozen=True)
class SourceSpec:
    """Where the model comes from: ``kind`` and a name, path or ``package.module:factory``.

    A ``shrunk`` one has among its arguments the ``base`` that it was made of and the ``steps``.
    """

    kind: str = "none"
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""

    @property
    def base(self) -> SourceSpec:
        """The source of the model before any step: this one, unless it is a shrunk one."""
        return SourceSpec(**self.arguments["base"]) if self.kind == "shrunk" else self

    @property
    def steps(self) -> tuple[str, ...]:
        """What was done to the base, one after the other: prune, decompose."""
        return tuple(self.arguments["steps"]) if self.kind == "shrunk" else ()

    @property
    def no_training(self) -> WrongState | None:
        """Why the model cannot be trained, and what to do; None: it can be.

        The one place that decides it: a graph that was read from a file is for quantisation,
        search and export (specification index, decision 10).
        """
        kind = self.base.kind
        if kind not in ("pt2", "onnx"):
            return None
        message = (
            "a model that was opened from an exported program (.pt2) cannot be trained"
            if kind == "pt2"
            else "a model that was opened from an ONNX file cannot be trained"
        )
        return WrongState(
            message,
            where="train",
            hint="Open it from Python: wb.open(model, data=…, train=loader), "
            "package.module:factory, or its Hugging Face folder. Quantisation without training "
            "works as it is.",
        )

    @property
    def trainable(self) -> bool:
        """Whether the model can be trained."""
        return self.no_training is None
