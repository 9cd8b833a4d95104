"""environment.yml and pyproject.toml name the same dependencies."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


USED = ("app", "jupyter", "search", "distributed", "hf", "docs", "dev")


def test_environment_lists_what_pyproject_lists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = set(project["dependencies"]).union(*(extras[e] for e in USED))
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    listed = next(entry["pip"] for entry in environment if isinstance(entry, dict))
    assert set(listed) == wanted
    assert len(listed) == len(set(listed))
    assert f"python{project['requires-python']}" in environment


def test_every_dependency_is_pinned():
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().split()
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = {
        d.split(">")[0].split("[")[0].lower()
        for d in set(project["dependencies"]).union(*(extras[e] for e in USED))
    }
    assert names <= pinned
