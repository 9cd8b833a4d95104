"""The page in a language that marks every text: whatever shows without a mark bypassed it."""

from __future__ import annotations

import gettext
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import history_case
import pruning_case
import pytest
import training_project
from bokeh.document import Document
from marked import OPEN, Marked, panel_texts, unmarked
from panel.io.state import set_curdoc
from studio_samples import make_layers

from workbench.app import i18n
from workbench.app.page import WorkbenchPage
from workbench.app.project_picker import ProjectPicker
from workbench.app.window import WindowState
from workbench.charts import text
from workbench.charts.spoken import error_text, said
from workbench.charts.text import _, ngettext, speaking
from workbench.charts.words import parity_text
from workbench.engine.errors import WrongValue
from workbench.engine.graph.layers import LayerInfo
from workbench.studio.project import Project
from workbench.studio.pruning_state import as_stored, store_pruning
from workbench.studio.session import Session
from workbench.studio.store import write_measurements

TABS = (
    "model", "layers", "inspect", "search", "train", "formats", "export", "history", "code",
)  # fmt: skip
PARTS = ("prune", "decompose")

NAMES = """
    1−cos cos SQNR MAC MACs DMQ IFMR HFMG ARQ ADA GBOP MBOP kBOP BOP kB MB GB dB ms min s
    Conv2d Linear AvgPool2d top-1 top-5 PSNR cosine net log.py ptq.json .npz .pt2 .onnx psnr top1
    Recover BinarySearch BinarySearchVerified Greedy Pareto CosineSimilarity SQNR MSE EndToEnd top5
    AdamW SGD English 中文
    int8 int4 float8 mxfp4 mxfp8 float4 hifloat8 int16 minmax smoothquant awq gptq float
    digits-resnet digits-mobilenet digits-mobilenet-hard digits-vit digits-autoencoder
    """
"""Names, units and formats: the same in every language."""


def page_in(
    texts: gettext.NullTranslations, folder: Path, layers: list[LayerInfo] | None = None
) -> WorkbenchPage:
    layers = layers or make_layers(14)
    project = Project.create(folder / "net", layers=layers)
    with project.store.write() as connection:
        write_measurements(
            connection,
            [(x.name, 0.999 - 0.004 * x.order, 20.0, 0.99) for x in layers if x.eligible],
        )
    with speaking(texts):
        return WorkbenchPage(Session(project), WindowState())


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkbenchPage]:
    page = page_in(Marked(), tmp_path_factory.mktemp("marked"))
    yield page
    page.dispose()


def known_of(page: WorkbenchPage) -> frozenset[str]:
    layers = page.session.layers
    names = {str(name) for name in layers["name"]} | {str(kind) for kind in layers["type"]}
    short = {part for name in names for part in name.split(".")} | {
        str(page.session.project.folder)
    }
    return frozenset(NAMES.split()) | names | short


def bypassed(page: WorkbenchPage, view: object) -> list[str]:
    known = known_of(page)
    shown = list(panel_texts(view))
    assert any(OPEN in text_ for _where, text_ in shown), "nothing is shown"
    return [
        f"{where}: {words} in {re.sub('<[^>]*>', ' ', text_).strip()[:300]!r}"
        for where, text_ in shown
        if (words := unmarked(text_, known))
    ]


HELP = "these texts reach the page without _(…) of workbench.app.i18n:\n  "


@pytest.mark.parametrize("tab", [*TABS, *PARTS, "topbar", "actions"])
def test_every_text_of_a_tab_goes_through_the_catalogue(marked: WorkbenchPage, tab: str) -> None:
    with speaking(Marked()):
        marked.window.param.update(tab=TABS.index(tab) if tab in TABS else 1, selected=())
        if tab == "layers":
            marked.window.selected = (str(marked.session.layers["name"].iloc[0]),)
        view = getattr(marked, tab)
        found = bypassed(marked, view)
    assert not found, HELP + "\n  ".join(found)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkbenchPage]:
    """Trials, an export, plans of a pruning, a finished training, and a job that failed."""
    page = page_in(Marked(), tmp_path_factory.mktemp("busy"), pruning_case.layers())
    project = page.session.project
    project.store.put(figures={"metric_name": "top1", "metric_float": 0.98})
    search = history_case.add_job(project, "search")
    names = [str(name) for name in page.session.layers["name"]]
    for floats, metric in ((names[:1], 0.9), (names[:2], 0.97), ([], 0.95)):
        history_case.add_trial(project, search, tuple(floats), metric)
    history_case.add_export(project, project.exports, floats=(names[0],))
    store_pruning(project.store, pruning_case.pruning())
    project.store.put(decomposition=as_stored(pruning_case.decomposition()))
    job = training_project.begin(project)
    training_project.keep_checkpoint(project, job, 10)
    training_project.report(project, job, 1, 20)
    training_project.finish(project, job)
    history_case.add_job(project, "analyse", "failed")
    with speaking(Marked()):
        page.poll()
    yield page
    page.dispose()


@pytest.mark.parametrize("tab", ["layers", "search", "train", "export", "history", *PARTS])
def test_results_and_failures_do_too(busy: WorkbenchPage, tab: str) -> None:
    with speaking(Marked()):
        busy.window.tab = TABS.index(tab) if tab in TABS else TABS.index("search")
        found = bypassed(busy, getattr(busy, tab))
    assert not found, HELP + "\n  ".join(found)


def test_the_tab_bar_and_the_dialog_do_too(marked: WorkbenchPage) -> None:
    with speaking(Marked()):
        picker = ProjectPicker()
        found = bypassed(marked, marked.tabs) + bypassed(marked, picker.fill())
    assert not found, HELP + "\n  ".join(found)


def test_notices_of_the_studio_are_said_in_the_readers_language(tmp_path: Path) -> None:
    page = page_in(text.catalogue("zh"), tmp_path)
    with speaking(text.catalogue("zh")):
        page.session.notice = "3 of 4 changes were overtaken by another window, whose values stay"
        assert page.window.notice == "4 处修改中有 3 处已被其他窗口抢先修改，保留其值"
        page.act(lambda: page.session.train(epochs="x"))
        assert page.window.notice
    page.dispose()


def test_each_window_has_its_own_language_whoever_calls() -> None:
    """Two documents, as two browsers have: in callbacks, and from a thread of a job."""
    documents = {"en": Document(), "zh": Document()}
    for code, document in documents.items():
        with set_curdoc(document):
            i18n.speak(code)
    seen: list[tuple[str, str]] = []

    def call(code: str) -> None:
        with set_curdoc(documents[code]):
            seen.append((code, _("Export")))
            seen.append((code, ngettext("{n} bit", "{n} bits", 8).format(n=8)))

    for code in ("zh", "en", "zh"):
        call(code)
        thread = threading.Thread(target=call, args=(code,))
        thread.start()
        thread.join()
    assert set(seen) == {("zh", "导出"), ("zh", "8 位"), ("en", "Export"), ("en", "8 bits")}
    assert _("Export") == "Export"


@pytest.mark.parametrize(
    ("asked", "cookie", "header", "expected"),
    [
        ("", "", "", "en"),
        ("zh", "en", "en", "zh"),
        ("xx", "zh", "en", "zh"),
        ("", "zh", "en-GB,en;q=0.9", "zh"),
        ("", "", "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("", "", "de-DE, de;q=0.9, zh-TW;q=0.5, en;q=0.7", "en"),
        ("", "", "fr, zh;q=0", "en"),
        ("", "", "zh;q=bad, en", "en"),
        ("", "", "../../etc;q=1", "en"),
    ],
)
def test_which_language_a_request_gets(asked: str, cookie: str, header: str, expected: str) -> None:
    cookies = {i18n.COOKIE: cookie} if cookie else {}
    assert i18n.preferred(asked, cookies, {"Accept-Language": header}) == expected


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("calibrating", "正在校准"),
        (
            "evaluating net_qdq_model.onnx in ONNX Runtime",
            "正在 ONNX Runtime 中评估 net_qdq_model.onnx",
        ),
        ("trial 12: 3 layers float", "试验 12：3 层浮点"),
        ("cancelling, waiting for: capturing the graph", "正在取消，等待：正在捕获计算图"),
        ("its weight is shared with head.weight", "权重与 head.weight 共享"),
        ("some text of a library", "some text of a library"),
        ("a is b; allowed: " * 5000, "a is b; allowed: " * 5000),
        ("", ""),
    ],
)
def test_words_of_jobs_and_layers_are_translated_where_they_are_shown(
    english: str, chinese: str
) -> None:
    with speaking(text.catalogue("zh")):
        assert said(english) == chinese
    assert said(english) == english


def test_a_parity_line_keeps_its_names_and_figures() -> None:
    line = (
        "torch ≈ deploy: 0.01% of the values differ by more than one step, "
        "largest difference 3 (2 steps)"
    )
    with speaking(text.catalogue("zh")):
        assert parity_text(line) == (
            "torch ≈ deploy: 0.01% 的值相差超过一个量化步长, 最大差异 3（2 个量化步长）"
        )
    assert parity_text(line) == line


def test_an_error_is_said_as_a_whole() -> None:
    error = WrongValue("there is no metric x", where="metric", hint="Leave it out.")
    plain = WrongValue("something of the engine.", hint="Do this.")
    with speaking(text.catalogue("zh")):
        assert error_text(error) == "metric: 没有指标 x. 请省略。"
        assert error_text(WrongValue("the file is not there", hint="Check the path.")) == (
            "文件不存在。请检查路径。"
        )
        assert error_text(plain) == "something of the engine. Do this."
    for one in (error, plain, WrongValue("no hint")):
        assert error_text(one) == str(one)


def test_a_language_without_a_catalogue_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_chosen", [])
    with pytest.raises(ValueError, match=r"'xx'.*Allowed: en, zh"):
        text.use_language("xx")
    text.use_language("zh_CN.UTF-8")
    assert _("Export") == "导出"
