"""Named variants of the configuration: saved, switched, compared; opened by a button."""

from __future__ import annotations

from typing import Any

import panel as pn
import panel_material_ui as pmui

from workbench.app.html import ThemedHTML, escape
from workbench.app.i18n import _
from workbench.app.style import aligned
from workbench.app.trial_table import comparison
from workbench.app.view import View
from workbench.app.window import TABS, WindowState
from workbench.studio.session import Session

CURRENT_KEY = "now"
"""Of a menu; names of variants have a sign in front there, so that none can be mistaken for it."""


class VariantsBar(View):
    """``opener`` shows and hides ``panel``, which is built when it is first opened."""

    def __init__(self, session: Session, window: WindowState, tab: int) -> None:
        super().__init__(session, window, tab)
        self.opener = pmui.Toggle(
            label=_("Variants"), variant="outlined", size="small", margin=0, align="center",
            sx={"padding": "3px 9px"},
        )  # fmt: skip
        self.panel = pn.Column(visible=False, margin=0, sizing_mode="stretch_width")
        small = {"size": "small", "margin": 0}
        self.title = pmui.TextInput(label=_("name"), width=170, max_length=80, **small)
        self.variant = pmui.Select(label=_("variant"), options=[], width=190, **small)
        self.other = pmui.Select(label=_("compare with"), options={}, width=190, **small)
        self.save = self._button(_("Save"), self.save_variant)
        self.use = self._button(_("Switch to it"), self.use_variant)
        self.compare = self._button(_("Compare"), self.show_comparison)
        self.rename = self._button(_("Rename"), self.rename_variant)
        self.remove = self._button(_("Delete …"), self.ask_deletion, color="error")
        self.compared = ThemedHTML(visible=False, margin=(4, 0, 8, 0))
        self.question = ThemedHTML()
        self.confirm = pmui.Button(color="error", variant="contained", size="small")
        self.keep = pmui.Button(label=_("Keep"), variant="outlined", size="small")
        self.press(self.confirm, self._confirmed)
        self.press(self.keep, self._close)
        self.dialog = pmui.Dialog(
            self.question,
            pn.Row(self.keep, self.confirm, margin=0),
            title=_("Variants"), title_variant="h5", width_option="sm",
        )  # fmt: skip
        self._wanted = ""
        window.keep(f"{TABS[tab]}.variants", self.opener)
        self.watch(self.opener, self._opened, "value")
        self.watch(session, self.update, "kept_variants", "layers")
        self.watch(session, self._hide_comparison, "kept_variants", "layers", "trials", "measuring")
        self.watch(self.variant, self.update, "value")
        self.watch(self.title, self.update, "value_input", "value")
        self._opened()
        self.update()

    def _button(self, label: str, action: Any, **look: Any) -> Any:
        button = pmui.Button(
            label=label, size="small", variant="outlined", margin=0, disabled=True, **look
        )
        self.press(button, lambda: action())
        return button

    def _opened(self) -> None:
        if self.opener.value and not len(self.panel):
            self.panel.objects = [
                aligned(
                    self.title, self.save,
                    self.variant, self.use, self.other, self.compare, self.rename, self.remove,
                    margin=(6, 0),
                ),
                self.compared,
                self.dialog,
            ]  # fmt: skip
        self.panel.visible = self.opener.value

    @property
    def typed(self) -> str:
        """The name as it is in the field, entered or not."""
        return str(self.title.value_input or self.title.value or "").strip()

    def update(self) -> None:
        names = list(self.session.variants)
        count = f" ({len(names)})" if names else ""
        self.opener.label = _("Variants") + count
        if names != self.variant.options:
            chosen = self.variant.value if self.variant.value in names else None
            self.variant.param.update(options=names, value=chosen or (names[-1] if names else None))
        others = {_("as it is now"): CURRENT_KEY, **{n: f"={n}" for n in names}}
        if others != self.other.options:
            known = self.other.value in others.values()
            self.other.param.update(
                options=others, value=self.other.value if known else CURRENT_KEY
            )
        locked = self.session.read_only
        known = bool(len(self.session.layers)) or self.session.without_graph
        self.save.disabled = locked or not self.typed or not known
        chosen = self.variant.value is not None
        self.use.disabled = self.remove.disabled = locked or not chosen
        self.rename.disabled = self.use.disabled or not self.typed
        self.compare.disabled = not chosen

    def _hide_comparison(self) -> None:
        """What it says may not hold any more."""
        self.compared.visible = False

    def save_variant(self) -> None:
        name = self.typed
        if name in self.session.variants:
            text = _(
                "There is a variant “{name}” already. The configuration as it is now would take "
                "its place; this cannot be undone."
            ).format(name=name)
            self._ask(name, text, _("Overwrite"))
        elif self.act(lambda: self.session.variants.save(name)):
            self._saved(name)

    def _saved(self, name: str) -> None:
        self.title.param.update(value="", value_input="")
        self.window.notice = ""
        self.variant.value = name

    def use_variant(self) -> None:
        if self.act(lambda: self.session.variants.use(str(self.variant.value))):
            self.window.notice = ""

    def rename_variant(self) -> None:
        name, new = str(self.variant.value), self.typed
        if self.act(lambda: self.session.variants.rename(name, new)):
            self._saved(new)

    def ask_deletion(self) -> None:
        name = str(self.variant.value)
        text = _("“{name}” is deleted for good. The configuration stays as it is.")
        self._ask("", text.format(name=name), _("Delete for good"))

    def _ask(self, wanted: str, text: str, action: str) -> None:
        """Ask before something is gone; ``wanted`` is the variant to overwrite, else deleted."""
        self._wanted = wanted
        self.confirm.label = action
        self.question.fill(f"<p>{escape(text)}</p>")
        self.dialog.open = True

    def _close(self) -> None:
        self.dialog.open = False

    def _confirmed(self) -> None:
        self._close()
        variants, name = self.session.variants, self._wanted
        if not name:
            self.act(lambda: variants.delete(str(self.variant.value)))
        elif self.act(lambda: variants.save(name, overwrite=True)):
            self._saved(name)

    def show_comparison(self) -> None:
        other = str(self.other.value)
        second = None if other == CURRENT_KEY else other.removeprefix("=")
        found: list[Any] = []
        name = str(self.variant.value)
        if self.act(lambda: found.append(self.session.variants.compare(name, second))):
            table = found[0]
            table.columns = [name, _("as it is now") if second is None else second]
            self.compared.fill(comparison(table, self.session.summary.metric_name))
            self.compared.visible = True

    def __panel__(self) -> Any:
        return self.panel
