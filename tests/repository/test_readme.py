"""What the README shows runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readme_has_code():
    assert len(BLOCKS) == 3


QUICK = {"epochs=2": "epochs=1, samples=256", '"distill")': '"distill", samples=64)'}
"""A training takes minutes: the test shows that it runs, not what it reaches."""


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_runs(number, tmp_path):
    script = tmp_path / "script.py"
    block = BLOCKS[number]
    for shown, quick in QUICK.items():
        block = block.replace(shown, quick)
    script.write_text(block)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("*_model.onnx"))) >= 3


def test_pictures_exist():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / path).is_file(), path
