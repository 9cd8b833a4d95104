"""The fields for a model and data that Python code makes, where the server may load code."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.i18n import _
from workbench.app.style import aligned
from workbench.app.uploads import WEIGHTS, files_folder, offered
from workbench.studio.code import check_reference, code_allowed
from workbench.studio.factory import Factory, read_arguments


class CodeSource:
    """``column`` is for a server that was started with ``--allow-code``; others never see it."""

    def __init__(self) -> None:
        small: dict[str, Any] = {"size": "small", "margin": 0}
        self.factory = pmui.TextInput(
            label=_("or Python code: package.module:factory"), width=420, **small
        )
        self.arguments = pmui.TextInput(label=_("its arguments, JSON"), width=200, **small)
        self.weights = pmui.Select(label=_("weights"), options=[""], width=200, **small)
        self.loader = pmui.TextInput(
            label=_("data by Python code: package.module:loader"), width=420, **small
        )
        self.column = pn.Column(
            aligned(self.factory, self.arguments, self.weights),
            self.loader,
            margin=(0, 0, 12, 0),
            styles={"gap": "12px"},
            visible=code_allowed(),
        )

    def fill(self) -> None:
        """Offer the files of weights that are in the folder now."""
        self.weights.options = {_("as the code makes them"): "", **{n: n for n in offered(WEIGHTS)}}
        if self.weights.value not in self.weights.options.values():
            self.weights.value = ""

    @property
    def model(self) -> Factory | None:
        """What was filled in; None: a file is the model. Errors: those of its parts."""
        name = (self.factory.value or "").strip()
        if not name:
            return None
        weights = self.weights.value
        return Factory(
            name,
            read_arguments(self.arguments.value or ""),
            files_folder().resolve() / weights if weights else "",
        )

    @property
    def data(self) -> str:
        """``package.module:loader``, or empty: a file or folder has the data."""
        name = (self.loader.value or "").strip()
        if name:
            check_reference(name, what="data")
        return name
