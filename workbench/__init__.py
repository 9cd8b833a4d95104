"""Compression Workbench: make a neural network small, and see what happens while doing it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import nn

    from workbench.studio.factory import Factory
    from workbench.studio.image_folder import ImageFolder
    from workbench.studio.session import Session
    from workbench.widgets import Workbench

__all__ = ["charts", "engine", "open", "studio", "use_language", "widgets", "zoo"]

_PACKAGES = frozenset({"amct", "amct_onnx", "app", "charts", "engine", "studio", "widgets", "zoo"})


def open(
    source: str | Path | nn.Module | Factory,
    data: Iterable[Any] | str | Path | ImageFolder | None = None,
    metric: str | Callable[..., float] | None = None,
    project: str | Path | None = None,
    *,
    train: Iterable[Any] | str | None = None,
) -> Session:
    """Open a model or a project for work in this process: a notebook or a script.

    ``source``: the name of an example (``workbench.zoo.names()``), an ``nn.Module``, a file or
    folder of one, ``package.module:factory`` or a ``studio.Factory`` with its arguments (where code
    is allowed), or an existing project folder. ``data``: a loader whose batches are inputs or
    (inputs, labels), the path of an ``.npz`` or of a folder of pictures, or a
    ``studio.ImageFolder``; an example brings its own. ``metric``: a name or
    ``function(model, batches)``, higher is better.
    ``project``: the folder that keeps everything (default ``runs/<name>``). ``train``: a loader
    of training batches, with labels or without; an example brings its own.
    """
    from workbench.studio import open_session

    session = open_session(source, data, metric, project, in_process=True, train=train)
    # A session knows nothing of the windows onto it, so the notebook's is attached from here.
    setattr(session, "widget", functools.partial(_widget, weakref.ref(session)))  # noqa: B010
    if _in_notebook():
        from workbench.widgets import show_jobs

        show_jobs(session)
    return session


def use_language(language: str) -> None:
    """Show widgets, charts and messages in ``language`` ("en", "zh") from here on.

    Without this, ``WORKBENCH_LANGUAGE`` and the locale decide. Errors: ``ValueError`` for a
    language that there is no text for.
    """
    from workbench.charts.text import use_language as choose

    choose(language)


def _widget(session: weakref.ref[Session], **options: Any) -> Workbench:
    """The whole workbench of a session in a cell."""
    from workbench.widgets import Workbench

    found = session()
    assert found is not None
    return Workbench(found, **options)


def _in_notebook() -> bool:
    """Whether a Jupyter kernel with widgets runs this; never imports IPython itself."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return (
        getattr(shell, "kernel", None) is not None
        and importlib.util.find_spec("ipywidgets") is not None
        and importlib.util.find_spec("anywidget") is not None
    )


def __getattr__(name: str) -> Any:
    # `import workbench` stays fast: torch, plotly and widgets load when they are first used.
    if name in _PACKAGES and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES})
