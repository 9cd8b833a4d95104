"""One calm look: system fonts, hairlines, a single accent colour, tabular figures."""

from __future__ import annotations

from typing import Any

import panel as pn

from workbench.charts.theme import DARK, FONT, LIGHT, PAPER, Palette, palette

NARROW = "@media (max-width: 860px)"
NARROWER = "@media (max-width: 720px)"
NARROWEST = "@media (max-width: 500px)"

CONTROL = 32
"""Pixels that every control in a row is high."""

_HIGH = {"minHeight": CONTROL}

BAR = {False: "#f6f8fa", True: "#191f26"}


def _palette(colours: Palette, dark: bool) -> dict[str, Any]:
    icons = {"styleOverrides": {"root": {"& .MuiIconButton-root": {"color": colours.muted}}}}
    return {
        "palette": {
            "primary": {"main": colours.accent, "contrastText": PAPER[dark]},
            "error": {"main": colours.bad},
            "success": {"main": colours.good},
            "background": {"default": PAPER[dark], "paper": PAPER[dark]},
            "text": {"primary": colours.text, "secondary": colours.muted},
            "divider": colours.grid,
        },
        "typography": {
            "fontFamily": FONT,
            "fontSize": 12.5,
            "button": {"textTransform": "none", "fontWeight": 500},
        },
        "shape": {"borderRadius": 4},
        # Chinese may break between any two letters.
        "components": {
            # The keyboard's place; the theme's own is a faint ripple.
            "MuiButtonBase": {
                "styleOverrides": {
                    "root": {
                        "&.Mui-focusVisible": {
                            "outline": f"2px solid {colours.accent}",
                            "outlineOffset": 2,
                        }
                    }
                }
            },
            # Room for the outline alone: its input is three times as wide, over what is beside it.
            "MuiSwitch": {
                "styleOverrides": {"root": {"overflow": "clip", "overflowClipMargin": "4px"}}
            },
            "MuiToggleButton": {
                "styleOverrides": {"root": {"whiteSpace": "nowrap", "fontSize": 12, **_HIGH}}
            },
            "MuiButton": {
                "styleOverrides": {
                    "sizeSmall": {"fontSize": 12, "lineHeight": 1.5, "minWidth": 0, **_HIGH}
                }
            },
            # Menus, numbers and texts are of three heights otherwise.
            "MuiOutlinedInput": {
                "styleOverrides": {
                    "root": {
                        "&.MuiInputBase-sizeSmall:not(.MuiInputBase-multiline)": {
                            **_HIGH,
                            "& > .MuiOutlinedInput-input": {"paddingTop": 6, "paddingBottom": 6},
                        }
                    }
                }
            },
            "MuiChip": {"styleOverrides": {"root": {"height": 22, "fontSize": 12}}},
            # Plus and minus of a number, and the cross of a dialog, are nearly the ground's colour
            # in the dark otherwise.
            "MuiInputAdornment": icons,
            "MuiDialog": icons,
            "MuiDialogTitle": {"styleOverrides": {"root": {"padding": "14px 16px 8px"}}},
            "MuiInputLabel": {
                "styleOverrides": {
                    # A menu's label is not told that it is small.
                    "outlined": {
                        "&:not(.MuiInputLabel-shrink):is(.MuiInputLabel-sizeSmall, "
                        ":has(+ .MuiInputBase-sizeSmall))": {
                            "transform": "translate(14px, 7px) scale(1)"
                        }
                    }
                }
            },
        },
    }


_ALIGNED = {"align-items": "center", "gap": "8px", "flex-wrap": "wrap"}
# Panel gives each child an align-self of its own, which is the start.
_CENTRED = ":host > * { align-self: center !important; }"


class Wrapping(pn.Row):
    """A row that may be narrower than all its children beside each other, so that it wraps."""

    def _compute_sizing_mode(self, children: Any, props: Any) -> Any:
        found = super()._compute_sizing_mode(children, props)
        return {name: value for name, value in found.items() if name != "min_width"}


def aligned(*controls: Any, css: str = "", **layout: Any) -> Any:
    """A row of controls on one line of sight, which wraps in a narrow window."""
    styles = {**_ALIGNED, **layout.pop("styles", {})}
    sheets = [_CENTRED, css] if css else [_CENTRED]
    return Wrapping(*controls, styles=styles, stylesheets=sheets, **{"margin": 0, **layout})


BESIDE = {"flex-wrap": "wrap"}
"""Styles of charts side by side; one below the other in a narrow window."""

LEGIBLE = {"min-width": "min(340px, 100%)"}
"""Styles of each of them: narrower than this they wrap."""

THEME = {"light": _palette(LIGHT, False), "dark": _palette(DARK, True)}


def page_sx(dark: bool) -> dict[str, Any]:
    """The page's frame: a flat bar with a hairline under it instead of a coloured banner."""
    colours = palette(dark)
    return {
        "& .MuiAppBar-root.header": {
            "backgroundColor": BAR[dark],
            "backgroundImage": "none",
            "color": colours.text,
            "boxShadow": "none",
            "borderBottom": f"1px solid {colours.grid}",
        },
        "& .MuiToolbar-root": {"minHeight": "54px !important", "paddingRight": "12px !important"},
        # Figures that find no room scroll; the buttons beside them stay in reach.
        "& .MuiToolbar-root > .MuiBox-root": {"minWidth": 0},
        # They have a line of their own there (topbar.py); what lies below makes room for it.
        NARROW: {"& .MuiToolbar-root": {"minHeight": "98px !important"}},
        NARROWER: {"& .MuiToolbar-root": {"minHeight": "116px !important"}},
        NARROWEST: {"& .MuiToolbar-root": {"minHeight": "184px !important"}},
    }


# panel-material-ui sets these on the document, so our HTML follows the theme in the browser.
VARIABLES = """
:host {
  --wb-text: var(--panel-on-background-color); --wb-muted: var(--panel-on-secondary-color);
  --wb-grid: color-mix(in srgb, var(--panel-on-background-color) 14%, transparent);
  --wb-accent: var(--panel-primary-color);
  --wb-good: var(--success-bg-color); --wb-bad: var(--danger-bg-color);
  --wb-bar: color-mix(in srgb, var(--panel-on-background-color) 4%, transparent);
  color: var(--wb-text); font-family: var(--bokeh-base-font); font-size: 13px;
}
"""

CSS = """
.wb-muted { color: var(--wb-muted); }
.wb-good { color: var(--wb-good); }
.wb-bad { color: var(--wb-bad); }
.wb-name { font-weight: 600; font-size: 14px; margin: 0; white-space: nowrap; overflow: hidden;
           text-overflow: ellipsis; }
.wb-line { color: var(--wb-muted); font-size: 12px; white-space: nowrap; overflow: hidden;
           text-overflow: ellipsis; }
.wb-readouts { display: flex; flex-wrap: wrap; gap: 6px 0; margin: 0;
               font-variant-numeric: tabular-nums; }
.wb-readouts.wb-one-line { flex-wrap: nowrap; }
.wb-readout { flex: none; padding: 0 14px; border-left: 1px solid var(--wb-grid); min-width: 96px; }
.wb-readout dt { color: var(--wb-muted); font-size: 11px; margin: 0; white-space: nowrap; }
.wb-readout dd { margin: 1px 0 0; font-size: 14px; white-space: nowrap; }
.wb-readout .wb-from { color: var(--wb-muted); font-size: 12px; }
.wb-readout .wb-delta { font-size: 12px; margin-left: 4px; }
h2.wb { font-size: 14px; font-weight: 600; margin: 4px 0 6px; }
table.wb { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
table.wb th { text-align: left; color: var(--wb-muted); font-weight: 500; font-size: 12px; }
table.wb th, table.wb td { padding: 5px 16px 5px 0; border-bottom: 1px solid var(--wb-grid);
                           vertical-align: top; }
table.wb td.wb-number, table.wb th.wb-number { text-align: right; }
table.wb td.wb-number { white-space: nowrap; }
table.wb + h2.wb { margin-top: 18px; }
table.wb-reasons td { overflow-wrap: anywhere; }
a { color: var(--wb-accent); }
pre.wb { background: var(--wb-bar); border: 1px solid var(--wb-grid); border-radius: 4px;
         padding: 12px 14px; margin: 0; overflow: auto; font-size: 12.5px; line-height: 1.5;
         font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.wb-whole { white-space: nowrap; }
.wb-fit { font-size: 12px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
details summary { cursor: pointer; color: var(--wb-muted); }
.wb-notice { border-left: 3px solid var(--wb-bad); background: var(--wb-bar); padding: 8px 12px; }
.wb-info { border-left: 3px solid var(--wb-accent); background: var(--wb-bar); padding: 8px 12px; }
.wb-info + .wb-info { margin-top: 6px; }
.wb-info + table.wb { margin-top: 10px; }
.wb-empty { color: var(--wb-muted); padding: 18px 0; }
.wb-building { color: var(--wb-muted); animation: wb-appear .4s ease-out; }
.wb-building i { display: block; height: 14px; margin-top: 14px; border-radius: 4px;
  background: var(--wb-bar); }
.wb-building i:nth-of-type(2) { height: 180px; }
.wb-building i:nth-of-type(4) { width: 60%; }
@keyframes wb-appear { from { opacity: 0; } }
@media (prefers-reduced-motion: reduce) { .wb-building { animation: none; } }
iframe.wb { border: 1px solid var(--wb-grid); border-radius: 4px; width: 100%; height: 100%; }
"""

CSS += (
    NARROW
    + """ {
  .wb-readout { min-width: 0; padding: 0 9px; }
  .wb-readout:first-child { border: none; padding-left: 0; }
}
"""
    + NARROWER
    + """ {
  .wb-readout .wb-from { display: block; }
}
"""
    + NARROWEST
    + """ {
  .wb-readouts.wb-one-line { display: grid; grid-template-columns: 1fr 1fr; }
  .wb-readout:nth-child(odd) { border: none; padding-left: 0; }
}
"""
)

TABLE_CSS = """
:host { font-variant-numeric: tabular-nums; }
.tabulator { font-size: 12.5px !important; background: transparent; border: none; }
.tabulator-row, .tabulator-header, .tabulator-col { font-size: 12.5px !important; }
.tabulator .tabulator-header .tabulator-col { font-weight: 500; }
.tabulator .tabulator-row .tabulator-cell { padding: 4px 8px !important; height: 28px;
  min-height: 28px !important; box-sizing: border-box; }
.tabulator .tabulator-header .tabulator-col .tabulator-col-content { padding: 6px 8px !important; }
.tabulator .tabulator-tableholder .tabulator-table .tabulator-row { min-height: 28px !important; }
.tabulator-row .tabulator-cell[tabulator-field="selected"],
.tabulator-row .tabulator-cell[tabulator-field="quant_enable"],
.tabulator-row .tabulator-cell[tabulator-field="retrain_enable"],
.tabulator-row .tabulator-cell[tabulator-field="prune_enable"],
.tabulator-row .tabulator-cell[tabulator-field="channel_wise"] { cursor: pointer; }
.tabulator-row .tabulator-cell[tabulator-field="name"] { cursor: pointer; direction: rtl;
  text-align: left !important; text-overflow: ellipsis; }
.tabulator-row .tabulator-cell[tabulator-field="name"]:hover { text-decoration: underline; }
.tabulator .tabulator-row.tabulator-selectable:hover:not(.tabulator-selected) {
  color: var(--panel-on-background-color) !important;
  background: color-mix(in srgb, var(--panel-on-background-color) 9%, transparent) !important; }
.tabulator-row .tabulator-cell:focus { outline: none; }
.tabulator-row .tabulator-cell:focus-visible { outline: 2px solid var(--panel-primary-color);
  outline-offset: -2px; }
.tabulator-row .tabulator-cell[tabulator-field="selected"] { font-size: 15px; line-height: 1; }
.tabulator .tabulator-row.tabulator-group { box-sizing: border-box; height: 28px;
  padding: 0 8px !important; line-height: 27px; font-weight: 600; cursor: pointer;
  color: var(--panel-on-background-color);
  background: color-mix(in srgb, var(--panel-on-background-color) 6%, transparent) !important;
  border: 0 !important; }
.tabulator-row.tabulator-group span.wb-group { margin-left: 4px; padding: 2px 4px;
  color: inherit; }
.tabulator .tabulator-popup-container { font-size: 12.5px; border-radius: 4px;
  color: var(--panel-on-background-color); background: var(--panel-background-color);
  border: 1px solid color-mix(in srgb, var(--panel-on-background-color) 30%, transparent); }
.tabulator .tabulator-tooltip { max-width: 260px; padding: 4px 8px; white-space: normal; }
.tabulator .tabulator-edit-list .tabulator-edit-list-item { color: inherit; padding: 4px 8px; }
.tabulator .tabulator-edit-list .tabulator-edit-list-item:is(.active, :hover) {
  color: var(--panel-on-primary-color); background: var(--panel-primary-color); }
.tabulator .tabulator-edit-list .tabulator-edit-list-item.focused {
  outline: 1px solid var(--panel-primary-color); }
.wb-group:focus { outline: none; }
.wb-group:focus-visible { outline: 2px solid var(--panel-primary-color); }
"""
