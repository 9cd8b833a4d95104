"""The dialog that opens another project or starts from an example."""

from __future__ import annotations

from functools import cached_property
from typing import Any
from urllib.parse import urlencode

import panel as pn
import panel_material_ui as pmui

from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _, language
from workbench.app.language import LanguageSwitch
from workbench.app.new_project import NewProject
from workbench.app.projects import example_names, project_names


def picker_html(projects: list[str], examples: tuple[str, ...]) -> str:
    """Plain links, so that a project can be opened in a new window too."""

    def links(names: list[str]) -> str:
        return "".join(
            f'<li><a href="?{escape(urlencode({"project": name}))}">{escape(name)}</a></li>'
            for name in names
        )

    fresh = [name for name in examples if name not in projects]
    text = ""
    if projects:
        text += f'<h2 class="wb">{escape(_("Your projects"))}</h2><ul>{links(projects)}</ul>'
    if fresh:
        text += (
            f'<h2 class="wb">{escape(_("Start from an example, trained, with data"))}</h2>'
            f"<ul>{links(fresh)}</ul>"
        )
    return text


class ProjectPicker:
    """``show`` fills the list and opens the dialog; the same content serves an empty page."""

    def __init__(self) -> None:
        self.content = ThemedHTML()
        self.dialog = pmui.Dialog(  # filled when it is first opened
            title=_("Open a project"), title_variant="h5", close_on_click=True,
            show_close_button=True, width_option="md", sizing_mode="stretch_width",
        )  # fmt: skip

    @cached_property
    def form(self) -> NewProject:
        return NewProject()

    def fill(self) -> Any:
        self.content.fill(picker_html(project_names(), example_names()))
        self.form.fill()
        return pn.Column(self.content, self.form, margin=0)

    def show(self) -> None:
        filled = self.fill()
        if not len(self.dialog):
            self.dialog.objects = [filled]
        self.dialog.open = True

    def alone(self, message: str, hint: str) -> Any:
        """The list as a page of its own, under a sentence that says why."""
        top = ThemedHTML(
            '<div class="wb-notice" role="alert">'
            f"<b>✕ {escape(message)}</b><br>{escape(hint)}</div>"
        )
        switch = LanguageSwitch(language(), align="end")
        return pn.Column(switch, top, self.fill(), width=640, margin=(24, 24))
