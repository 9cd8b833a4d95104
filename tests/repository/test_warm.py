"""A fork of the warm process is to its program what a new interpreter is."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import warm


def test_a_script_sees_its_arguments_folder_and_environment_and_ends_with_its_code(
    tmp_path: Path,
) -> None:
    (tmp_path / "there.py").write_text("VALUE = 7")
    (tmp_path / "script.py").write_text(
        "import os, sys, there\n"
        "print(__name__, sys.argv, there.VALUE, os.getcwd(), sorted(os.environ))\n"
        "print('words', file=sys.stderr)\n"
        "sys.exit(there.VALUE)\n"
    )
    done = warm.run(["script.py", "one"], cwd=tmp_path, env={"ONLY": "this"})
    assert done.stdout == f"__main__ ['script.py', 'one'] 7 {tmp_path} ['ONLY']\n"
    assert (done.stderr, done.returncode) == ("words\n", 7)


def test_it_knows_nothing_of_others_and_draws_numbers_of_its_own() -> None:
    program = (
        "assert not [name for name in globals() if name[:2] != '__']\n"
        "import random, numpy, torch\n"
        "print(random.random(), numpy.random.rand(), torch.rand(1).item())"
    )
    first, second = (warm.run(["-c", program]) for _ in range(2))
    assert (first.returncode, first.stderr) == (0, "")
    assert not set(first.stdout.split()) & set(second.stdout.split())


def test_an_error_is_told_as_python_does() -> None:
    done = warm.run(["-c", "1 / 0"])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert warm.run(["-c", "raise SystemExit('why')"]).stderr == "why\n"


def test_it_can_be_killed_and_leads_a_group_of_its_own() -> None:
    process = warm.Process(["-c", "import time; time.sleep(60)"])
    assert process.poll() is None
    assert os.getpgid(process.pid) == process.pid
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=10) == process.poll() == -signal.SIGKILL
