"""Netron in a page of a real Panel server, seen through a real browser."""

from __future__ import annotations

import datetime
import re
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import pytest

from workbench.netron_server import routes

pytestmark = pytest.mark.browser

LISTEN = """
window.heard = [];
window.addEventListener('message', (event) => {
    if (event.data && String(event.data.type).startsWith('workbench-')) {
        window.graph = event.source;
        window.heard.push(event.data);
    }
});
"""
# Panel's shadow DOM hides the frame from window.frames; its messages say where it is.
SEND = "message => window.graph.postMessage(message, location.origin)"


@pytest.fixture
def opened(browser: Any) -> Any:
    context = browser.new_context(viewport={"width": 1000, "height": 700})
    page = context.new_page()
    page.requests = []
    page.on("request", lambda request: page.requests.append(request.url))
    page.add_init_script(LISTEN)
    yield page
    context.close()


def show(page: Any, url: str) -> Any:
    page.goto(url)
    frame = page.frame_locator("#graph")
    frame.locator('[id="node-name-features.0.conv"]').wait_for(state="visible", timeout=30000)
    page.wait_for_function("window.heard.some(m => m.type === 'workbench-ready')")
    return frame


def outside(page: Any, url: str) -> list[str]:
    here = urlsplit(url).netloc
    return [
        u
        for u in page.requests
        if urlsplit(u).scheme not in ("data", "blob") and urlsplit(u).netloc != here
    ]


def inside(frame: Any, locator: str) -> bool:
    """Whether the element's middle lies within the visible part of the frame."""
    box = frame.locator(locator).bounding_box()
    whole = frame.locator("body").bounding_box()
    middle = box["y"] + box["height"] / 2
    return bool(whole["y"] <= middle <= whole["y"] + whole["height"])


def test_shows_the_graph_and_links_both_ways(panel_url: str, opened: Any) -> None:
    frame = show(opened, panel_url)
    ready = opened.evaluate("window.heard.find(m => m.type === 'workbench-ready')")
    assert ready == {"type": "workbench-ready", "nodes": 12, "linked": True}
    assert frame.locator(".graph-node").count() == 12

    far = '[id="node-name-features.11.conv"]'
    assert not inside(frame, far)
    opened.evaluate(SEND, {"type": "workbench-select", "name": "features.11.conv"})
    frame.locator(far + ".select").wait_for()
    opened.wait_for_timeout(300)
    assert inside(frame, far)
    assert frame.locator("#sidebar").get_by_text("features.11.conv").count() > 0

    frame.locator('[id="node-name-features.10.conv"] .node-item-type').click()
    opened.wait_for_function("window.heard.some(m => m.type === 'workbench-node')")
    chosen = opened.evaluate("window.heard.filter(m => m.type === 'workbench-node')")
    assert chosen == [{"type": "workbench-node", "name": "features.10.conv"}]

    opened.evaluate(
        SEND, {"type": "workbench-colors", "colors": {"features.10.conv": "rgb(1, 2, 3)"}}
    )
    title = frame.locator('[id="node-name-features.10.conv"] .node-item-type > path')
    opened.wait_for_timeout(200)
    # Netron replaces window.eval, so styles are read through attributes, not evaluate.
    assert "rgb(1, 2, 3)" in (title.get_attribute("style") or "")

    assert outside(opened, panel_url) == []
    assert not frame.locator("body.notification").count()


def test_dark_and_light(panel_url: str, opened: Any) -> None:
    frame = show(opened, panel_url)

    def pixel() -> int:
        from io import BytesIO

        from PIL import Image

        shot = opened.locator("#graph").screenshot()
        return int(Image.open(BytesIO(shot)).convert("L").getpixel((880, 300)))  # type: ignore[arg-type]

    assert pixel() > 200
    opened.evaluate(SEND, {"type": "workbench-theme", "dark": True})
    opened.wait_for_timeout(300)
    assert pixel() < 80
    opened.evaluate(SEND, {"type": "workbench-theme", "dark": False})
    opened.wait_for_timeout(300)
    assert pixel() > 200
    assert frame.locator(".graph-node").count() == 12


def test_a_package_two_years_old_still_shows(panel_url: str, opened: Any) -> None:
    """The same as a clock two years ahead: without our patch Netron would refuse to start."""
    old = datetime.date.today() - datetime.timedelta(days=730)
    page = (routes.netron_folder() / "index.html").read_text(encoding="utf-8")
    aged = re.sub(r'(<meta name="date" content=")[^"]*', rf"\g<1>{old} 00:00:00", page)
    assert str(old) in aged

    def patched(route: Any) -> None:
        for pattern, replacement in routes._PATCHES:
            nonlocal aged
            aged = re.sub(pattern, replacement, aged)
        route.fulfill(
            body=aged,
            content_type="text/html",
            headers={"Set-Cookie": "consent=1", "Content-Security-Policy": routes.POLICY},
        )

    opened.route(re.compile(r"/netron/\?"), patched)
    frame = show(opened, panel_url)
    assert not frame.locator("body.notification").count()
    assert outside(opened, panel_url) == []


def test_works_under_a_prefix(panel_serve: Any, opened: Any) -> None:
    with panel_serve("--prefix", "/tools/wb", prefix="/tools/wb") as url:
        show(opened, url)
        assert outside(opened, url) == []
        assert any("/tools/wb/netron/data/" in u for u in opened.requests)


def test_nothing_without_login(panel_serve: Any, opened: Any) -> None:
    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args: Any, **kwargs: Any) -> None:
            return None

    opener = urllib.request.build_opener(NoRedirect)
    with panel_serve("--basic-auth", "sesame", "--cookie-secret", "salt") as url:
        opened.goto(url)
        opened.locator("input[type=password]").fill("sesame")
        opened.locator("input[name=username], input[type=text]").first.fill("ann")
        opened.locator("input[type=password]").press("Enter")
        frame = opened.frame_locator("#graph")
        frame.locator('[id="node-name-features.0.conv"]').wait_for(timeout=30000)
        ours = sorted({u.split("?")[0] for u in opened.requests if "/netron/" in u})
        assert any("/netron/data/" in u for u in ours)
        assert any(u.endswith("/netron/bridge.js") for u in ours)
        for address in ours:
            for method in ("GET", "HEAD"):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    opener.open(urllib.request.Request(address, method=method))
                assert refused.value.code in (302, 403, 405), address


def test_refuses_what_is_not_netrons(panel_url: str) -> None:
    base = panel_url.removesuffix("/page") + "/netron/"
    assert urllib.request.urlopen(base + "view.js").status == 200
    for path in (
        "server.py",
        "__init__.py",
        "../panel/config.py",
        "..%2f..%2fpyproject.toml",
        "data/",
        "data/" + "0" * 40 + "/net.onnx",
        "data/../../etc/passwd",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(base + path)
        assert refused.value.code in (403, 404), path
