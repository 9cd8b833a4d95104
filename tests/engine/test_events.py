"""The token that stops and holds long calls."""

import threading

import pytest

from workbench.engine.errors import Cancelled
from workbench.engine.events import CancelToken


def start(token):
    done = threading.Event()
    outcome = []

    def work():
        try:
            token.check()
            outcome.append("went on")
        except Cancelled:
            outcome.append("cancelled")
        done.set()

    threading.Thread(target=work, daemon=True).start()
    return done, outcome


def test_a_paused_call_waits_until_it_is_resumed():
    token = CancelToken()
    token.check()
    token.pause()
    assert token.paused
    done, outcome = start(token)
    assert not done.wait(0.1)
    token.resume()
    assert done.wait(10) and outcome == ["went on"] and not token.paused


def test_a_paused_call_can_be_cancelled():
    token = CancelToken()
    token.pause()
    done, outcome = start(token)
    token.cancel()
    assert done.wait(10) and outcome == ["cancelled"]
    token.pause()
    with pytest.raises(Cancelled):
        token.check()
