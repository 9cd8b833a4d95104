"""What a log of a command without a terminal holds."""

from __future__ import annotations

from types import SimpleNamespace

import param
import pytest

from workbench.cli.progress import Terminal


class Working(param.Parameterized):
    """A session as far as the terminal sees one."""

    job = param.Parameter()
    project = SimpleNamespace(name="net")

    def at(self, message: str, done: int, total: int) -> None:
        self.job = SimpleNamespace(message=message, done=done, total=total)


def test_a_log_has_a_line_a_kind_of_step_and_a_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    session = Working()
    with Terminal(session, "train"):  # type: ignore[arg-type]
        session.at("opening the model", 0, 1000)
        for step in range(1, 401):
            loss = 2.5 / step
            session.at(f"step {step} of 400: loss {loss:.4f}", 2 * step, 1000)
        session.at("evaluating", 801, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "net: opening the model" and lines[-1] == "net: evaluating"
    assert [line.split()[2] for line in lines[1:-1]] == ["1", *map(str, range(50, 401, 50))]
