from __future__ import annotations

import importlib

import pytest

import workbench
import workbench.amct as amct
from workbench.amct.absent import ABSENT


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "from workbench.amct.pruning import prune_diagnose",
            "structured pruning on live modules",
        ),
    ],
)
def test_an_import_says_why_it_is_absent(statement: str, words: str) -> None:
    with pytest.raises(ImportError, match=rf"{words}.*not in this version"):
        exec(statement)


def test_an_attribute_says_it_too() -> None:
    with pytest.raises(AttributeError, match="structured pruning on live modules"):
        workbench.amct.prune  # noqa: B018


def test_other_names_fail_as_ever() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'create_quant_confg'"):
        amct.create_quant_confg  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name"):
        exec("from workbench.amct import create_quant_confg")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("workbench.amct.nothing")


def test_what_is_said_to_be_absent_is_not_there() -> None:
    # The day a flow arrives its lines have to go: the finder would hide the new module.
    for path in ABSENT:
        package, _, name = path.rpartition(".")
        assert name not in vars(importlib.import_module(package))
