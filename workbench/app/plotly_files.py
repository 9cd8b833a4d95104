"""The two plotly.js of the page: a small one for nearly all charts, and Panel's with every trace.

The small one (``vendor``, unmodified) is plotly's own distribution of cartesian charts, 1.3 MB
instead of 4.8: what a browser compiles before it draws anything. It has the version of Panel's.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import panel as pn
from bokeh.embed.bundle import extension_dirs

FOLDER = Path(__file__).with_name("vendor")
_FULL = "bundled/plotlyplot"

extension_dirs["workbench"] = FOLDER  # Bokeh serves these folders under static/extensions


def version(script: Path) -> str:
    """The version that a plotly.js says it has, in its first lines."""
    with script.open(encoding="utf-8") as lines:
        found = re.search(r"plotly\.js (?:\(.+\) )?v([\d.]+)", lines.read(200))
    if found is None:
        raise ValueError(f"{script} does not begin with the name and version of plotly.js")
    return found[1]


# Both are relative to the page; a browser keeps what has its version in its address.


@cache
def cartesian_address() -> str:
    """Bars, scatters, heat maps and whatever else has an x and a y axis."""
    script = FOLDER / "plotly-cartesian.min.js"
    return f"./static/extensions/workbench/{script.name}?v={version(script)}"


@cache
def full_address() -> str:
    """The plotly.js that Panel brings along."""
    (script,) = (Path(pn.__file__).parent / "dist" / _FULL).glob("plotly-*.min.js")
    return f"./static/extensions/panel/{_FULL}/{script.name}?v={pn.__version__}"
