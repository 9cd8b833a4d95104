"""One page: the bar across the top, the tabs, and the poll that keeps them current."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import panel as pn
import panel_material_ui as pmui
from panel.io import hold

from workbench.app.actions import Actions
from workbench.app.code_tab import CodeTab, ScriptView
from workbench.app.decompose_tab import DecomposeTab
from workbench.app.export_tab import ExportTab
from workbench.app.formats_tab import FormatsTab
from workbench.app.frame import Frame
from workbench.app.history_tab import HistoryTab
from workbench.app.html import ThemedHTML, building, escape
from workbench.app.i18n import _, error_text, said
from workbench.app.inspect_tab import InspectTab
from workbench.app.layers_tab import LayersTab
from workbench.app.model_tab import ModelTab
from workbench.app.project_picker import ProjectPicker
from workbench.app.prune_tab import PruneTab
from workbench.app.search_parts import SearchParts
from workbench.app.search_settings import SearchSettings
from workbench.app.search_tab import SearchTab
from workbench.app.style import aligned, page_sx
from workbench.app.tab_bar import TabBar, TabPanel
from workbench.app.topbar import TopBar
from workbench.app.train_tab import TrainTab
from workbench.app.view import View, when_drawn
from workbench.app.window import WindowState
from workbench.engine.errors import WorkbenchError
from workbench.studio.session import Session

log = logging.getLogger("workbench.app.page")

Part = TypeVar("Part", bound=View)

POLL_MS = 220  # at most five updates a second: with more, clicks get lost


class WorkbenchPage(View):
    """Everything one browser window shows of one session.

    A ``frame`` that is given stays as it is: ``topbar`` and ``content`` are for whoever gave it.
    """

    def __init__(
        self, session: Session, window: WindowState | None = None, frame: Frame | None = None
    ) -> None:
        super().__init__(session, window or WindowState())
        window = self.window
        self.settings = window.settings(SearchSettings)
        self.picker = ProjectPicker()
        self.script = ScriptView(session, window, height="420px")
        self.script_dialog = pmui.Dialog(  # filled when it is first opened
            title=_("The same in Python"), title_variant="h5", width_option="md",
            close_on_click=True, show_close_button=True, sizing_mode="stretch_width",
        )  # fmt: skip
        self.topbar = TopBar(session, window, on_open=self.picker.show, on_code=self.show_script)
        self.actions = Actions(session, window, self.settings)
        self.parts = [self.topbar, self.actions, self.script]
        self.notice = ThemedHTML(visible=False, margin=(6, 14, 0, 14))
        self.tabs = TabBar(
            [
                _("Model"),
                _("Layers"),
                _("Inspect"),
                _("Search"),
                _("Train"),
                _("Formats"),
                _("Export"),
                _("History"),
                _("Code"),
            ],
            active=window.tab,
        )
        # A tab is built when it is first looked at: all nine would double the first paint. From
        # then on it is only hidden: a Tabulator that is built anew misses what changes meanwhile.
        self._places = [
            TabPanel(name, sizing_mode="stretch_width", margin=0, visible=False)
            for name in self.tabs.names
        ]
        self._show_tab()
        self.content = self._main()
        self.page = frame or Frame(window.dark)
        if frame is None:
            self.page.param.update(header=[self.topbar], main=[self.content])
        self.watch(self.tabs, self._tab_chosen, "active")
        self.watch(window, self._follow_tab, "tab")
        self.watch(self.page, self._theme_chosen, "dark_theme")
        self.watch(window, self._update_notice, "notice")
        self.watch(session, self._session_notice, "notice")

    def _main(self) -> Any:
        return pn.Column(
            aligned(
                self.tabs,
                self.actions,
                sizing_mode="stretch_width",
                styles={"gap": "6px 0"},
            ),
            self.notice,
            *self._places,
            self.picker.dialog,
            self.script_dialog,
            sizing_mode="stretch_width",
            margin=0,
        )

    def show_script(self) -> None:
        self.script.refresh()
        if not len(self.script_dialog):
            self.script_dialog.objects = [self.script]
        self.script_dialog.open = True

    @cached_property
    def model(self) -> ModelTab:
        return self._part(ModelTab(self.session, self.window))

    @cached_property
    def layers(self) -> LayersTab:
        return self._part(LayersTab(self.session, self.window))

    @cached_property
    def inspect(self) -> InspectTab:
        return self._part(InspectTab(self.session, self.window))

    @cached_property
    def search(self) -> SearchTab:
        return self._part(SearchTab(self.session, self.window, self.settings))

    @cached_property
    def prune(self) -> PruneTab:
        return self._part(PruneTab(self.session, self.window))

    @cached_property
    def decompose(self) -> DecomposeTab:
        return self._part(DecomposeTab(self.session, self.window))

    @cached_property
    def search_parts(self) -> SearchParts:
        parts: dict[str, Callable[[], View]] = {
            "quantise": lambda: self.search,
            "channels": lambda: self.prune,
            "decompose": lambda: self.decompose,
        }
        return self._part(SearchParts(self.session, self.window, parts))

    @cached_property
    def train(self) -> TrainTab:
        return self._part(TrainTab(self.session, self.window))

    @cached_property
    def formats(self) -> FormatsTab:
        return self._part(FormatsTab(self.session, self.window))

    @cached_property
    def export(self) -> ExportTab:
        return self._part(ExportTab(self.session, self.window))

    @cached_property
    def history(self) -> HistoryTab:
        return self._part(HistoryTab(self.session, self.window))

    @cached_property
    def code(self) -> CodeTab:
        return self._part(CodeTab(self.session, self.window))

    def _part(self, part: Part) -> Part:
        self.parts.append(part)
        return part

    def _show_tab(self) -> None:
        """Bring the tab in front; one that was never there is built, and says so meanwhile."""
        tab = self.window.tab
        place = self._places[tab]
        for other in self._places:
            other.visible = other is place
        if len(place):
            return
        document = pn.state.curdoc
        if document is None or not pn.state.loaded:
            self._build_tab(tab)
        else:
            place.objects = [building()]
            document.add_next_tick_callback(
                lambda: self._follow(lambda: self._build_tab(tab), "tab")
            )

    def _build_tab(self, tab: int) -> None:
        names = (
            "model", "layers", "inspect", "search_parts", "train", "formats", "export",
            "history", "code",
        )  # fmt: skip
        with hold():
            self._places[tab].objects = [getattr(self, names[tab])]

    def poll(self) -> None:
        """Apply what other windows and the worker did; a failure must not end the polling."""
        try:
            with hold():
                self.session.poll()
        except WorkbenchError as error:  # a full disk, a project that was deleted
            self.window.notice = error_text(error)
        except Exception:
            log.exception("the session could not be polled")

    def _tab_chosen(self) -> None:
        when_drawn(self._take_tab)

    def _take_tab(self) -> None:
        with hold():
            if self.window.tab != self.tabs.active:  # what was said belongs to the tab before
                self.window.param.update(tab=self.tabs.active, notice="")

    def _follow_tab(self) -> None:
        self._show_tab()
        self.tabs.active = self.window.tab

    def _theme_chosen(self) -> None:
        self.page.sx = page_sx(self.page.dark_theme)
        self.window.dark = self.page.dark_theme

    def _session_notice(self) -> None:
        self.window.notice = said(self.session.notice)

    def _update_notice(self) -> None:
        text = self.window.notice
        self.notice.fill(
            f'<div class="wb-notice" role="alert">{escape(text)}</div>' if text else ""
        )
        self.notice.visible = bool(text)

    def __panel__(self) -> Any:
        return self.page

    def dispose(self) -> None:
        super().dispose()
        self.session.dispose()
