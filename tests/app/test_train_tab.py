"""The Train tab on the server's side: its states in words, and what may be pressed when."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import training_project as training
from sample_layers import layer

from workbench.app.layer_table import menu
from workbench.app.page import WorkbenchPage
from workbench.app.window import EXPORT_TAB, LAYERS_TAB, TRAIN_TAB
from workbench.studio import ErrorText, jobtable
from workbench.studio.masks import masks_file
from workbench.studio.project import Project, SourceSpec
from workbench.studio.session import Session
from workbench.studio.training_state import METHODS

NAMES = ("stem", "body.a", "body.b", "head")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[WorkbenchPage]:
    layers = [dataclasses.replace(layer(i), name=name) for i, name in enumerate(NAMES)]
    project = Project.create(tmp_path / "net", layers=layers)
    project.store.put(figures={"metric_name": "top1", "metric_float": 0.98})
    page = WorkbenchPage(Session(project))
    page.window.tab = TRAIN_TAB
    yield page
    page.dispose()


def pressable(page: WorkbenchPage) -> set[str]:
    tab = page.train
    buttons = {
        "train": tab.start, "stop": tab.stop, "resume": tab.resume, "export": tab.export
    }  # fmt: skip
    return {name for name, button in buttons.items() if not button.disabled}


def test_a_model_that_came_as_a_file_says_what_to_do(page: WorkbenchPage) -> None:
    page.session.project.update_settings(source=SourceSpec("pt2", "net.pt2"))
    page.train.update()
    assert not pressable(page)
    assert "an exported program (.pt2) cannot be trained. Open it from Python" in (
        page.train.text.object
    )


def test_from_nothing_to_a_finished_training(page: WorkbenchPage) -> None:
    tab, project = page.train, page.session.project
    assert pressable(page) == {"train"}
    assert "4 layers are ticked for it" in tab.text.object
    assert "appears here" in tab.loss.figure

    job = training.begin(project)
    training.keep_checkpoint(project, job, 10)
    training.report(project, job, 1, 12)
    page.poll()
    assert pressable(page) == {"stop"}
    assert "Step 12 of 20" in tab.text.object
    assert "digits, 100 samples · cross-entropy" in tab.text.object
    assert "step-00000010.pt" in tab.checkpoints.object
    assert "91.0 %" in tab.checkpoints.object, "the metric measured at that step"
    assert tab.layers.value == ["stem", "head"]
    assert "appears here" not in tab.loss.figure

    training.report(project, job, 13, 20)
    training.finish(project, job)
    page.poll()
    assert pressable(page) == {"train", "export"}
    assert "Done" in tab.text.object
    assert "top-1 97.5 % (−0.5 % against float)" in tab.text.object
    assert "1 min 23 s" in tab.text.object


def test_stopped_and_failed(page: WorkbenchPage) -> None:
    tab, project = page.train, page.session.project
    job = training.begin(project)
    training.report(project, job, 1, 12)
    jobtable.finish(project.store, job, "cancelled")
    page.poll()
    assert pressable(page) == {"train"}, "there is no checkpoint to go on from"
    job = training.begin(project)
    training.report(project, job, 1, 12)
    training.keep_checkpoint(project, job, 12)
    jobtable.finish(project.store, job, "cancelled")
    page.poll()
    assert pressable(page) == {"train", "resume"}
    assert "Resume goes on after step 12" in tab.text.object
    assert "cancelled. What was finished is kept" in tab.state.pane.object

    again = training.begin(project, jobs=(job,))
    error = ErrorText("stem: step 15 broke", "Try a lower learning rate", "Traceback <x>")
    jobtable.finish(project.store, again, "failed", error)
    page.poll()
    assert pressable(page) == {"train", "resume"}
    assert "stem: step 15 broke" in tab.state.pane.object
    assert "<x>" not in tab.state.pane.object, "escaped"


def test_a_resumed_training_is_one_curve(page: WorkbenchPage) -> None:
    session, project = page.session, page.session.project
    first = training.begin(project)
    training.report(project, first, 1, 15)
    jobtable.finish(project.store, first, "failed")
    second = training.begin(project, jobs=(first,))
    training.report(project, second, 11, 18)
    page.poll()
    assert session.curves.steps["step"].tolist() == list(range(1, 19))
    fresh = Session(Project.open(project.folder))
    assert fresh.curves.steps.equals(session.curves.steps), "read at once or as it came"
    assert fresh.curves.clips.equals(session.curves.clips)
    fresh.dispose()
    jobtable.finish(project.store, second, "cancelled")
    third = training.begin(project)
    training.report(project, third, 1, 2)
    page.poll()
    assert session.curves.steps["step"].tolist() == [1, 2], "another training begins anew"


def test_settings_are_what_train_takes(page: WorkbenchPage) -> None:
    settings = page.train.settings
    assert settings.arguments()["learning_rate"] == 3e-4
    assert settings.arguments()["method"] == METHODS[0]
    settings.method = "distill"
    arguments = settings.arguments()
    assert set(arguments) == {"method", "epochs", "learning_rate", "batch_size", "seed"}
    assert arguments["learning_rate"] == 1e-3
    settings.learning_rate = 0.5
    settings.method = "qat"
    assert settings.arguments()["learning_rate"] == 0.5, "what was chosen stays"
    page.train.start.clicks += 1
    assert "cannot start jobs" in page.window.notice


def test_each_method_has_its_settings(page: WorkbenchPage) -> None:
    settings, session = page.train.settings, page.session
    usual = set(settings.arguments())
    assert "clip_rate" in usual and "sparsity" not in usual
    controls = page.train.compression
    shown = {}
    for method in METHODS:
        settings.method = method
        shown[method] = {control.label for control in controls.objects if control.visible}
    assert shown == {
        "qat": set(), "distill": set(), "finetune": set(), "sparse": {"new masks every, steps"},
        "compressed": {"pruning", "new masks every, steps", "quantise"},
    }  # fmt: skip
    assert settings.arguments()["sparsity"] == "2:4" and settings.arguments()["quantise"] is True
    settings.sparsity = "channels"
    arguments = settings.arguments()
    assert {"prune_ratio", "ascend_optimized"} <= set(arguments)
    assert "update_freq" not in arguments and "clip_rate" in arguments
    settings.quantise = False
    assert "clip_rate" not in settings.arguments()
    assert not page.train.clips.visible, "there will be no clip bounds"
    assert "All layers that can be pruned are." in page.train.text.object
    session.set_flag(["stem", "head"], True, "prune_enable")
    assert "Only the 2 layers ticked" in page.train.text.object
    settings.sparsity = "none"
    page.train.start.clicks += 1
    assert "one of the two" in page.window.notice, "the session refuses it in words"
    settings.method = "finetune"
    assert "Trains the float model as it is" in page.train.text.object
    assert set(settings.arguments()) == usual - {"clip_rate"}


MASKS = [
    {"layer": "stem", "density": 1.0, "reason": "it is not ticked for pruning <b>"},
    {"layer": "head", "density": 0.5, "reason": ""},
]


def test_masks_and_weights_of_a_sparse_training(page: WorkbenchPage) -> None:
    tab, project = page.train, page.session.project
    assert not tab.masks.body.visible
    tab.settings.method = "sparse"
    with masks_file(project, "sparse").open("wb") as file:
        weight = np.arange(1.0, 9.0, dtype=np.float32).reshape(2, 4)
        np.savez(file, before_1=weight, after_1=weight * (weight % 2 == 0))
    job = training.begin(project, method="sparse", masks=MASKS, metric_before=0.31)
    training.report(project, job, 1, 12)
    page.poll()
    assert tab.masks.body.visible
    assert tab.masks.layer.options == ["head"] and tab.masks.layer.value == "head"
    table = tab.masks.table.object
    assert "1 of 2 layers have a mask" in table and "50 %" in table
    assert "&lt;b&gt;" in table, "escaped"
    assert "50 % are not 0" in tab.masks.plot.figure + tab.masks.plot.texts
    assert "31.0 %" in tab.metric.figure, "the masked network before its training"
    assert not tab.use.visible
    training.finish(project, job)
    page.poll()
    assert "31.0 % before the training" in tab.text.object
    assert "1 with a 2:4 mask" in tab.text.object
    assert tab.use.visible and not tab.use.disabled and not tab.back.visible
    tab.use.clicks += 1
    assert "cannot start jobs" in page.window.notice

    kept = {"file": "0123456789abcdef.safetensors", "method": "sparse", "metric": 0.975}
    project.store.put(weights=[kept], training=None)
    page.poll()
    assert not tab.use.visible and tab.back.visible
    assert "weights of a training (2:4 sparsity, 97.5 %)" in tab.text.object
    assert not tab.masks.body.visible


def test_the_bounds_of_other_layers(page: WorkbenchPage) -> None:
    project = page.session.project
    training.report(project, training.begin(project), 1, 3)
    page.poll()
    page.train.layers.value = ["head"]
    assert '"head"' in page.train.clips.figure
    assert '"stem"' not in page.train.clips.figure


def test_export_goes_to_its_tab(page: WorkbenchPage) -> None:
    page.train.export.clicks += 1
    assert page.window.tab == TRAIN_TAB, "there is no training"
    project = page.session.project
    training.finish(project, training.begin(project))
    page.poll()
    page.train.export.clicks += 1
    assert page.window.tab == EXPORT_TAB or "cannot start jobs" in page.window.notice


def test_layers_are_ticked_for_training(page: WorkbenchPage) -> None:
    page.window.tab = LAYERS_TAB
    table = page.layers.table
    assert table.table.value["retrain_enable"].all()
    table._clicked(type("Click", (), {"column": "retrain_enable", "row": 1})())
    assert table.table.value["retrain_enable"].tolist() == [True, False, True, True]
    assert page.session.layers["quant_enable"].all(), "the other tick is another one"
    page.window.selected = NAMES[:3]
    chosen = menu("retrain_enable")
    page.session.set_option(page.window.selected, "retrain_enable", chosen["do not train"])
    assert table.table.value["retrain_enable"].tolist() == [False, False, False, True]
    page.session.undo()
    assert table.table.value["retrain_enable"].tolist() == [True, False, True, True]
