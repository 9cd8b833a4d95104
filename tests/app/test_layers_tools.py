"""Tools of the Layers tab, as the browser would use them: variants, what-if, groups, presets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sample_layers import layer

from workbench.app import rows
from workbench.app.layers_tab import LayersTab
from workbench.app.model_tab import model_summary
from workbench.app.what_if import what_if_text
from workbench.app.window import WindowState
from workbench.studio import Project, Session, SourceSpec
from workbench.studio.abilities import obstacles
from workbench.studio.jobs import WorkerManager
from workbench.studio.measuring import Measuring

NAMES = ("stem", "a.conv1", "b.conv1", "a.conv2", "head")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Layers of module a lie before and behind one of b; the head has few parameters."""
    layers = [dataclasses.replace(layer(i), name=name) for i, name in enumerate(NAMES)]
    layers[-1] = dataclasses.replace(layers[-1], parameters=10)
    made = Project.create(tmp_path / "net", layers=layers, float_bytes=10_000)
    made.store.write_measurements([(x, 1 - 0.01 * i, 30.0, 0.99) for i, x in enumerate(NAMES)])
    made.store.put(figures={"metric_name": "top1", "metric_float": 0.98, "metric_all": 0.9})
    return made


@pytest.fixture
def tab(project: Project) -> Iterator[LayersTab]:
    session = Session(project)
    tab = LayersTab(session, WindowState())
    yield tab
    tab.dispose()
    session.dispose()


def press(button: Any) -> None:
    assert not button.disabled
    button.clicks += 1


def agree(tab: LayersTab) -> list[str]:
    """The order of the layers, which chart and table share."""
    names = list(tab.table.table.value["name"])
    assert json.loads(tab.chart.plot.texts)[0]["customdata"] == names
    flags = tab.session.layers.set_index("name")["quant_enable"]
    assert tab.table.table.value["quant_enable"].tolist() == [flags[name] for name in names]
    return names


def test_a_variant_from_its_name_to_its_end(tab: LayersTab) -> None:
    bar, session = tab.variants, tab.session
    bar.opener.value = True
    assert bar.panel.visible
    assert bar.save.disabled
    bar.title.value_input = " first "
    press(bar.save)
    assert bar.variant.options == ["first"]
    assert bar.opener.label == "Variants (1)"
    session.toggle("stem")
    press(bar.compare)
    assert "1 layer differs" in bar.compared.object
    assert "as it is now" in bar.compared.object
    assert "≈ " in bar.compared.object

    # The name is taken: nothing is lost before somebody says so.
    bar.title.value_input = "first"
    press(bar.save)
    assert bar.dialog.open
    assert "“first”" in bar.question.object
    press(bar.keep)
    assert not bar.dialog.open
    press(bar.use)
    assert session.layers["quant_enable"].all()
    session.undo()
    press(bar.save)
    press(bar.confirm)
    session.undo()
    press(bar.use)
    assert not session.layers["quant_enable"].iloc[0]
    assert not bar.compared.visible, "what it says does not hold any more"

    bar.title.value_input = "<b>best</b>"
    press(bar.rename)
    assert bar.variant.value == "<b>best</b>"
    press(bar.remove)
    assert "&lt;b&gt;best" in bar.question.object
    press(bar.confirm)
    assert len(session.variants) == 0
    assert bar.use.disabled


def test_a_variant_of_another_model_says_so(tab: LayersTab, project: Project) -> None:
    tab.session.variants.save("old")
    project.store.write_layers([layer(7)], project.source)
    tab.session.poll()
    press(tab.variants.use)
    assert "made for other layers" in tab.window.notice


def test_layers_of_a_module_stand_together_in_chart_and_table(tab: LayersTab) -> None:
    assert agree(tab) == list(NAMES)
    assert tab.table.table.groupby == []
    tab.grouped.value = True
    together = ["stem", "head", "a.conv1", "a.conv2", "b.conv1"]  # the top is a module too
    assert agree(tab) == together
    assert tab.table.table.groupby == ["module"]
    assert tab.table.table.value["module"].tolist() == ["top level"] * 2 + ["a"] * 2 + ["b"]
    tab.session.toggle("a.conv2")
    assert agree(tab) == together
    tab.window.order = "sorted"  # modules by their worst layer
    assert agree(tab) == ["head", "stem", "a.conv2", "a.conv1", "b.conv1"]
    tab.window.pattern = "conv1"
    assert agree(tab) == ["b.conv1", "a.conv1"]
    tab.window.param.update(pattern="", order="execution", grouped=False)
    assert agree(tab) == list(NAMES)


def test_how_deep_modules_go() -> None:
    """As deep as a module has a few layers on average: a module for each layer helps nobody."""
    names = ["stem.conv", *(f"blocks.{i}.{x}.conv" for i in range(3) for x in "ab"), "fc"]
    found = rows.modules(names)
    assert [found[n] for n in names] == ["stem", *(f"blocks.{i}" for i in (0, 0, 1, 1, 2, 2)), ""]
    assert rows.modules(["a", "b"]) == {"a": "", "b": ""}
    assert rows.modules([]) == {}
    assert set(rows.modules([f"only.{i}.conv" for i in range(5)]).values()) == {"only"}


def test_every_way_to_choose_layers(tab: LayersTab) -> None:
    """Presets, the filter by name and by type; what is chosen is changed in one step."""
    labels = {button.label: button for button in tab.presets}

    def chosen(label: str) -> tuple[str, ...]:
        press(labels[label])
        return tuple(tab.window.selected)

    assert set(chosen("first + last")) == {"stem", "head"}
    tab.worst_k.value = 2
    assert chosen("worst k") == ("head", "a.conv2")
    tab.window.threshold = 0.985
    assert set(chosen("below line")) == {"b.conv1", "a.conv2", "head"}
    tab.parameters.value = 11
    assert chosen("under N parameters") == ("head",)
    tab.parameters.value = 10
    assert chosen("under N parameters") == ()
    tab.pattern.value = "^a[.]"
    assert chosen("all shown") == ("a.conv1", "a.conv2")
    tab.pattern.value = ""
    kind = tab.session.layers["type"].iloc[1]
    tab.type.value = kind
    own = tab.session.layers
    assert chosen("all shown") == tuple(own[own["type"] == kind]["name"])
    press(tab.skip)
    assert not tab.session.layers[own["type"] == kind]["quant_enable"].any()
    tab.session.undo()
    assert tab.session.layers["quant_enable"].all()
    assert chosen("none") == ()
    grouped = [x.name for x in tab.session.project.store.layers() if x.depthwise]
    assert set(chosen("depthwise")) == set(grouped)


@pytest.mark.parametrize(
    ("measuring", "on", "words"),
    [
        (None, True, "measured when edits rest"),
        (None, False, "Predicted."),
        (Measuring("a", "running"), True, "measuring …"),
        (Measuring("a", "declined", 75.0), True, "about 1 min 15 s"),
        (Measuring("a", "declined"), True, "nobody knows"),
        (Measuring("a", "failed", error="it broke"), True, "it broke"),
    ],
)
def test_words_about_a_prediction(measuring: Measuring | None, on: bool, words: str) -> None:
    assert words in what_if_text(measuring, True, on)
    assert what_if_text(measuring, False, on) == ""


def test_measure_now_is_offered_where_nobody_does_by_himself(
    project: Project,
) -> None:
    calls: list[bool] = []

    class Manager(WorkerManager):
        def measure(self, config_hash: str, *, asked: bool = False) -> None:
            calls.append(asked)

    project.update_settings(source=SourceSpec("zoo", "digits-resnet"))
    session = Session(project, Manager(project.folder))
    tab = LayersTab(session, WindowState())
    what_if = tab.what_if
    assert what_if.row.visible
    session.toggle("stem")
    assert not what_if.now.visible
    what_if.switch.value = False
    assert session.background is False
    assert what_if.now.visible
    press(what_if.now)
    assert calls == [True]
    Project.open(project.folder).store.put(background=True)  # another window
    session.poll()
    assert what_if.switch.value
    tab.dispose()


def test_the_model_tab_counts_what_can_be_done_and_says_why_not(project: Project) -> None:
    layers = project.store.layers()
    pool = dataclasses.replace(
        layers[1], type="AvgPool2d", weight_shape=(), parameters=0, name="pool", has_bias=False
    )
    shared = dataclasses.replace(layers[2], eligible=False, reason="its weight is shared")
    project.store.write_layers([layers[0], pool, shared], project.source)
    session = Session(project)
    found = obstacles(session)
    assert list(found["quantised"]) == [shared.name]
    assert list(found["trained"]) == ["pool", shared.name]
    project.store.put(figures={"notices": ["one <b>"], "train_notices": ["two"]})
    session.poll()
    text = model_summary(session.layers, session.summary, found)
    assert text.index("one &lt;b&gt;") < text.index("two") < text.index("AvgPool2d")
    assert text.count("its weight is shared") == 2
    assert "AvgPool2d cannot be trained for quantisation" in text
    assert "Layers that keep all their channels" in text


def test_a_model_that_came_as_a_file_is_not_offered_to_training(tab: LayersTab) -> None:
    project = tab.session.project
    tab.session.variants.save("old")  # of a version that ticked what could not be trained
    project.update_settings(source=SourceSpec("onnx", "net.onnx"))
    session = Session(Project.open(project.folder))
    reasons = obstacles(session)["trained"]
    assert set(reasons) == set(NAMES)
    assert "an ONNX file cannot be trained" in next(iter(reasons.values()))
    assert not session.layers["retrain_enable"].any()
    assert session.variants.compare("old").loc["figure"].shape == (5, 2)
    session.variants.use("old")
    assert not session.can_undo, "nothing of it is new"
    own = LayersTab(session, WindowState(selected=(NAMES[0],)))
    assert "Open it from Python" in own.table.table.formatters["retrain_enable"].js_code
    assert [c.label for c in own.bulk][:2] == ["Inspect", "act"]
    own.table._clicked(SimpleNamespace(column="retrain_enable", row=0))
    assert "an ONNX file cannot be trained. Open it from Python" in own.window.notice
    own.dispose()
    session.dispose()
