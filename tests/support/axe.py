"""What axe-core finds on a page, shadow roots included."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.sync_playwright import Axe

TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice")
_FAULTS = """
async (node, only) => {
  // In the middle of a fade a colour is neither the old nor the new one.
  const roots = (root) => [root, ...[...root.querySelectorAll('*')]
    .filter((child) => child.shadowRoot).flatMap((child) => roots(child.shadowRoot))];
  const fades = new Set(roots(document).flatMap((root) => root.getAnimations())
    .filter((fade) => fade.effect.getComputedTiming().endTime !== Infinity));
  await Promise.allSettled([...fades].map((fade) => fade.finished));
  // Of all roots' style sheets, parsed anew each time, only experimental rules want to know.
  const options = { resultTypes: ['violations'], runOnly: only, iframes: false, preload: false };
  const found = await axe.run(node, options);
  return found.violations.flatMap((fault) => fault.nodes.map((node) =>
    `${fault.id}: ${node.html.slice(0, 160)} (${node.failureSummary.slice(0, 200)})`));
}
"""


class AxeWalk:
    """``check(what)`` looks at the page as it is; ``faults`` has what was found, by ``what``.

    With ``part``, a locator, it looks at that alone: the whole page takes seconds.
    """

    def __init__(self, page: Any) -> None:
        self._page = page
        self.faults: dict[str, list[str]] = {}
        page.evaluate(Axe().axe_script)

    def check(self, what: str, only: tuple[str, ...] = TAGS, part: Any = None) -> None:
        self._page.wait_for_timeout(300)  # what is drawn after the tab itself
        part = part or self._page.locator("html")
        if faults := part.evaluate(_FAULTS, list(only)):
            self.faults[what] = faults

    def __str__(self) -> str:
        return "\n".join(f"{k}\n  " + "\n  ".join(v) for k, v in self.faults.items())
