"""What every view on a session has in common: watching, muting, saying what went wrong, leaving."""

from __future__ import annotations

import contextlib
import html
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from workbench.charts.spoken import error_text
from workbench.charts.theme import DARK, LIGHT
from workbench.engine.errors import WorkbenchError, WrongType
from workbench.widgets import ground
from workbench.widgets.polling import clock

if TYPE_CHECKING:
    from workbench.studio.session import Session

logger = logging.getLogger("workbench.widgets")

STYLE = """<style>
.wb-row { display: grid; gap: 0 10px; line-height: 26px; white-space: nowrap; overflow: hidden;
  font-size: 12px; font-variant-numeric: tabular-nums; }
.wb-row > span { overflow: hidden; text-overflow: ellipsis; line-height: inherit !important; }
.wb-num { text-align: right; }
.wb-head { font-weight: 600; opacity: 0.75; }
.wb-off { opacity: 0.5; }
.wb-bad { font-weight: 600; line-height: 1.4; }
.wb-good { font-weight: 600; }
.wb-note { font-size: 12px; opacity: 0.8; line-height: 1.4; }
.wb-table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; }
.wb-table td, .wb-table th { padding: 3px 10px 3px 0; line-height: 1.4; text-align: left;
  white-space: nowrap; }
.wb-script { max-height: 320px; overflow: auto; font-size: 12px; margin: 0; }
.wb-name button, .wb-name { text-align: left; padding: 0 2px; background: transparent; }
"""
STYLE += "".join(
    f"{page} .wb-bad {{ color: {colours.bad}; }}\n{page} .wb-good {{ color: {colours.good}; }}\n"
    for page, colours in ((":root", LIGHT), ('[data-jp-theme-light="false"]', DARK))
)
STYLE += "</style>"


class SessionView(w.VBox):
    """A widget bound to a session; ``dispose()`` unbinds it and closes its parts.

    Errors: ``WrongType`` for what is no session.
    """

    _dark: bool | None = False
    """Of a view with charts; None: as the notebook is."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # A view asks its session while it is built, long before ``__init__`` below.
        check_session(args[0] if args else kwargs.get("session"))
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, session: Session, children: list[w.Widget], **kwargs: Any) -> None:
        self.session = session
        self._watchers: list[Any] = []
        self._muted = False
        self.disposed = False
        self.trouble = w.HTML()
        self.trouble.layout.display = "none"
        super().__init__([w.HTML(STYLE), *children, self.trouble], **kwargs)
        clock(session).start()
        ground.follow(self)

    @property
    def dark(self) -> bool:
        """Whether charts are drawn for dark ground."""
        return ground.dark() if self._dark is None else self._dark

    def ground_changed(self) -> None:
        if self._dark is None and not self.disposed:
            self.refresh()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and for pages without a kernel what it shows now (``still``)."""
        from workbench.widgets.still import with_still

        return with_still(self, super()._repr_mimebundle_(**kwargs))

    def refresh(self) -> None:
        """Show the session as it is now."""

    def watch(self, callback: Callable[[], None], *names: str) -> None:
        """Call ``callback`` when one of the session's params ``names`` changes."""

        def guarded(*_events: Any) -> None:
            # param runs watchers one after the other: a view that fails must not stop the rest.
            try:
                if not self.disposed:
                    callback()
            except Exception:
                logger.exception("%s could not follow %s", type(self).__name__, names)

        self._watchers.append(self.session.param.watch(guarded, list(names)))

    @contextlib.contextmanager
    def mute(self) -> Iterator[None]:
        """While the view writes its own controls, their events are not the user's."""
        before, self._muted = self._muted, True
        try:
            yield
        finally:
            self._muted = before

    def act(self, action: Callable[[], Any]) -> Any:
        """Run a command of the user and say in words what was wrong, if it was."""
        try:
            result = action()
        except WorkbenchError as error:
            self.say(error_text(error))
            return None
        except Exception as error:
            logger.exception("a command of %s failed", type(self).__name__)
            self.say(f"{type(error).__name__}: {error}")
            return None
        self.say("")
        return result

    def say(self, text: str) -> None:
        self.trouble.value = f'<span class="wb-bad">{html.escape(text)}</span>' if text else ""
        self.trouble.layout.display = "" if text else "none"

    def dispose(self) -> None:
        """Stop following the session and close all parts; safe to call twice."""
        if not self.disposed:
            self.release()
            _close(self)

    def release(self) -> None:
        """Stop following the session, but stay on the page as it is now."""
        if self.disposed:
            return
        self.disposed = True
        ground.leave(self)
        for watcher in self._watchers:
            with contextlib.suppress(Exception):
                self.session.param.unwatch(watcher)
        self._watchers.clear()
        clock(self.session).stop()


def check_session(session: Any) -> None:
    """``WrongType`` unless it is what ``workbench.open`` gives."""
    from workbench.studio.session import Session

    if not isinstance(session, Session):
        raise WrongType(
            f"{session!r} is not a session",
            where="session",
            hint='Open one first: session = workbench.open("digits-resnet").',
        )


def _close(widget: w.Widget) -> None:
    for child in getattr(widget, "children", ()):
        if isinstance(child, SessionView):
            child.dispose()
        else:
            _close(child)
    widget.close()


def button(text: str, action: Callable[[], Any], *, tip: str = "", style: str = "") -> w.Button:
    made = w.Button(description=text, tooltip=tip or text, button_style=style)
    made.layout.width = "auto"
    made.on_click(lambda _: action())
    return made


def bar(*controls: w.Widget) -> w.HBox:
    """Controls in a row, in more than one where the cell is narrow."""
    return w.HBox(list(controls), layout=w.Layout(flex_flow="row wrap"))


def table_html(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows of texts as an HTML table; empty without any."""
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    head = "".join(f"<th>{html.escape(title)}</th>" for title in heads)
    return f'<table class="wb-table"><tr>{head}</tr>{lines}</table>' if lines else ""
