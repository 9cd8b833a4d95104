"""Formats by layer and module-level quantisation: the jobs, what they keep, what they refuse."""

from __future__ import annotations

import ast
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import warm
from format_models import OUTLIER, make_branching_net, make_linear_data, make_linear_net

from workbench.engine import load_quantized_folder, quantize
from workbench.engine.errors import WrongType, WrongValue
from workbench.engine.files.tensor_folder import TensorFolder
from workbench.engine.flows.module_quantize import quantization_report
from workbench.studio import Session, open_session
from workbench.studio.errors import JobFailed
from workbench.studio.format_choices import config_text, configs_of, program_text
from workbench.studio.formats_state import error_series, format_columns


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("formats") / "p"
    session = open_session(
        make_linear_net(), data=make_linear_data(), metric="cosine", project=folder, threads=1
    )
    session.compare_formats()
    yield session
    session.dispose()


def test_the_table_and_the_channels_are_kept(live: Session) -> None:
    table = live.formats.set_index("name")
    assert list(table.index) == ["conv", "fc", "block.fc", "lm_head"]
    assert table.loc["fc", "shape"] == (64, 64)
    assert table.loc["fc", "int8"] < table.loc["fc", "int4 g32"] < table.loc["fc", "int4"]
    assert table.loc["fc", "outliers"] >= 1
    assert math.isnan(table.loc["conv", "int8"])
    assert set(format_columns(live.formats)) >= {"int8", "int4", "mxfp4", "hifloat8"}
    series = error_series(live.formats, ("int8", "float8"))
    assert [e.name for e in series["int8"]] == ["fc", "block.fc", "lm_head"]
    assert len(series["float8"]) == 4
    (profile,) = live.channel_profiles(["conv", "fc"])
    assert OUTLIER in profile.outliers
    assert profile.factors is not None
    other = Session(live.project)
    assert other.formats.equals(live.formats), "read from the project"
    other._disposed = True


def test_choices_become_exact_configurations(live: Session) -> None:
    live.choose_way(["fc", "block.fc"], "int8/int8 · smoothquant")
    live.choose_way("lm_head", "int4 g32 · gptq")
    assert live.layer_ways() == {
        "conv": "float",
        "fc": "int8/int8 · smoothquant",
        "block.fc": "int8/int8 · smoothquant",
        "lm_head": "int4 g32 · gptq",
    }
    configs = live.format_configs()
    assert [list(config["algorithm"]) for config in configs] == [["smoothquant"], ["gptq"]]
    live.choose_way(["block.fc"], "float")
    net = make_linear_net()
    for config in live.format_configs():
        quantize(net, json.loads(json.dumps(config)), any_dtype=True)
    became = {e.name: (e.algorithm, e.formats) for e in quantization_report(net)}
    assert became["fc"] == ("smoothquant", "int8/int8")
    assert became["block.fc"] == ("", ""), "its name ends like that of a layer that is quantised"
    assert became["lm_head"] == ("gptq", "–/int4")


@pytest.mark.parametrize(
    "ways",
    [
        {"fc": "int8 · gptq", "block.fc": "int4 · gptq", "lm_head": "float"},
        {"fc": "float", "block.fc": "int4 · gptq", "lm_head": "int4 · gptq"},
        {"fc": "int8/int8 · minmax", "block.fc": "int8/int8 · minmax", "lm_head": "int4 · minmax"},
        {"fc": "int8 · minmax", "block.fc": "int8 · awq", "lm_head": "mxfp4 · awq"},
        {"fc": "float", "block.fc": "float", "lm_head": "int8 · minmax"},
    ],
)
def test_any_mixture_is_what_quantize_does(ways: dict[str, str]) -> None:
    net = make_linear_net()
    for config in configs_of({"conv": "float", **ways}, 2):
        assert ast.literal_eval(config_text((config,)).removeprefix("config = ")) == config
        quantize(net, config, any_dtype=True)
    became = {
        e.name: f"{e.formats.removeprefix('–/')} · {e.algorithm}" if e.algorithm else "float"
        for e in quantization_report(net)
    }
    shown = {name: way.replace("mxfp4", "mxfp4_e2m1") for name, way in ways.items()}
    assert became == {"conv": "float", **shown}


@pytest.mark.parametrize("float_type", ["any", "bfloat16"])
def test_the_program_runs_as_it_stands(live: Session, float_type: str) -> None:
    ways = {"conv": "float", "fc": "int8/int8 · smoothquant", "block.fc": "float"}
    dtype = torch.bfloat16 if float_type == "bfloat16" else torch.float32
    batches = [(x.to(dtype),) for x, _ in make_linear_data()]
    for head in ("float", "int4 · minmax"):
        configs = configs_of({**ways, "lm_head": head}, 2)
        assert len(configs) == (1 if head == "float" else 2)
        known = {"model": make_linear_net(), "batches": batches}
        exec(program_text(configs, float_type), known)
        became = {e.name: e.action for e in quantization_report(known["model"])}
        assert became["fc"] == "converted"
        assert became["block.fc"] == "float"
        assert became["lm_head"] == ("float" if head == "float" else "converted")
    assert program_text((), float_type) == ""


def test_quantise_measure_and_write(live: Session) -> None:
    live.choose_way(["fc", "block.fc"], "int8/int8 · smoothquant")
    live.choose_way(["lm_head"], "float")
    assert live.format_obstacles() == {"int8/int8 · smoothquant": ["fc", "block.fc"]}
    with pytest.raises(JobFailed, match="the weight is float32"):
        live.quantize_modules()
    assert live.quantized is None
    before = {k: v.clone() for k, v in live._manager.workspace.source.model.state_dict().items()}
    live.quantize_modules(float_type="bfloat16")
    found = live.quantized
    assert found is not None
    assert found.quantized == 2
    assert [layer.name for layer in found.left] == ["conv", "lm_head"]
    assert found.metric_float == pytest.approx(1.0)
    assert 0.97 < found.metric_converted <= 1.0
    assert found.metric_calibrated == pytest.approx(found.metric_converted, abs=0.01)
    assert found.bytes_converted < 0.4 * found.bytes_float
    model = live._manager.workspace.source.model
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), "only read"

    loaded = load_quantized_folder(found.folder, model=make_linear_net())
    x = make_linear_data()[0][0]
    with torch.no_grad():
        answer, exact = loaded(x.bfloat16()).float(), make_linear_net()(x)
    assert loaded.get_submodule("fc").quantized_weight.dtype == torch.int8
    assert torch.cosine_similarity(answer.flatten(), exact.flatten(), dim=0) > 0.97
    asked = json.loads(Path(found.config_path).read_text())
    assert asked["configs"] == list(live.format_configs())
    assert asked["float_type"] == "bfloat16"

    live.quantize_modules("INT8_MINMAX_WEIGHT_QUANT_CFG", float_type="any")
    again = live.quantized
    assert again is not None
    assert again.quantized == 2
    assert {layer.formats for layer in again.layers if layer.formats} == {"–/int8"}
    assert (again.folder, again.float_type) == (found.folder, "any")
    assert load_quantized_folder(again.folder, model=make_linear_net())(x).dtype == torch.float32


def run_script(script: str, folder: Path, model: str) -> Path:
    """The folder of the quantised modules that it writes; ``model``: what it is to fill in."""
    blank = re.compile(r"^model = \.\.\. .*$", re.MULTILINE)
    filled, count = blank.subn(f"from format_models import {model}; model = {model}()", script)
    assert count == 1
    (folder / "log.py").write_text(filled)
    support = str(Path(__file__).parents[1] / "support")
    done = warm.run(["log.py"], cwd=folder, env={**os.environ, "PYTHONPATH": support})
    assert done.returncode == 0, done.stderr
    (written,) = (folder / "reproduced").rglob("*_quantized")
    return written


def same_tensors(one: str | Path, other: str | Path) -> bool:
    first, second = TensorFolder(one), TensorFolder(other)
    names = sorted(first.tensors)
    if not names or names != sorted(second.tensors):
        return False
    a, b = first.load(names), second.load(names)
    return all(torch.equal(a[name], b[name]) for name in names)


def test_the_script_does_it_again(live: Session, tmp_path: Path) -> None:
    before = live.quantized
    assert before is not None
    written = run_script(live.script(), tmp_path, "make_linear_net")
    assert same_tensors(before.folder, written)


def test_choices_are_undone_and_done_again(live: Session) -> None:
    before, revision = dict(live.ways), live.revision
    live.choose_way(["fc", "block.fc"], "int8 · awq")
    live.toggle("fc")
    live.choose_way("fc", "float")
    live.choose_way("fc", "float")
    live.undo()
    assert live.ways == {**before, "fc": "int8 · awq", "block.fc": "int8 · awq"}
    live.undo()
    assert live.layers.set_index("name").loc["fc", "quant_enable"]
    live.undo()
    assert live.ways == before
    assert live.revision == revision + 2, "only edits of the table count as such"
    live.redo()
    assert live.ways["block.fc"] == "int8 · awq"
    assert live.can_redo
    live.undo()


def test_a_variant_has_the_ways_and_the_table_as_one_edit(live: Session) -> None:
    start = dict(live.ways)
    live.choose_way(["fc"], "int4 g32 · gptq")
    small = dict(live.ways)
    live.variants.save("small")
    live.choose_way(["fc", "block.fc"], "float")
    live.set_flag(["block.fc"], False)
    other = dict(live.ways)
    differs = live.variants.compare("small")
    assert differs.loc[("layer", "fc"), "small"] == "quantised: way int4 g32 · gptq"
    assert differs.loc[("layer", "fc"), "current"] == "quantised: way float"
    live.variants.use("small")
    assert live.ways == small
    assert live.layers.set_index("name").loc["block.fc", "quant_enable"]
    assert set(live.variants.compare("small").index.get_level_values("what")) == {"figure"}
    live.undo()
    assert live.ways == other
    assert not live.layers.set_index("name").loc["block.fc", "quant_enable"]
    assert "small.quantize.json" in live.script()

    # A variant of an older version knows no ways: they stay as they are.
    connection = live.project.store.connection
    (text,) = connection.execute("SELECT facts FROM variants").fetchone()
    facts = json.loads(text)

    def store(**changed: object) -> None:
        with live.project.store.write() as writing:
            writing.execute("UPDATE variants SET facts = ?", (json.dumps({**facts, **changed}),))

    store(ways=None)
    live.variants.use("small")
    assert live.ways == other
    live.undo()
    store(ways={"fc": "int9", "conv": "int8 · gptq"})
    with pytest.raises(WrongValue, match="2 places: fc: there is no way 'int9'"):
        live.variants.use("small")
    live.variants.delete("small")
    while live.ways != start:
        live.undo()


def test_a_model_without_a_graph(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = [torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    session = open_session(
        make_branching_net(), data=loader, metric="cosine", project=tmp_path / "p", threads=1
    )
    try:
        assert "cannot be captured as a graph" in caplog.text
        assert session.job.state == "failed"
        assert "quantize_modules()" in session.job.error.hint
        assert session.without_graph
        session.compare_formats(["int8", "int4"])
        assert list(session.formats["name"]) == ["first", "last"]
        session.variants.save("all")
        session.choose_way("first", "float")
        session.variants.save("last alone")
        session.variants.use("all")
        assert not session.ways
        session.variants.use("last alone")
        assert session.ways == {"first": "float"}
        found = session.variants.compare("all", "last alone")
        assert found.loc[("layer", "first"), "last alone"] == "quantised: way float"
        session.quantize_modules(float_type="any")
        assert session.quantized.quantized == 1
        assert session.quantized.metric_converted > 0.99
        with pytest.raises(JobFailed, match="cannot be captured"):
            session.analyse()
        script = session.script()
        assert "create_quant_config" not in script and "save_model" not in script
        written = run_script(script, tmp_path, "make_branching_net")
        assert same_tensors(session.quantized.folder, written)
        kept = (tmp_path / "reproduced" / "variants").glob("*")
        assert [path.name for path in kept] == ["last alone.quantize.json"], "nothing chosen in all"
    finally:
        session.dispose()


def test_bad_input(live: Session) -> None:
    with pytest.raises(WrongValue, match=r"formats is \['int3'\]"):
        live.compare_formats(["int3"])
    ways = dict(live.ways)
    with pytest.raises(WrongValue, match="no layer 'nowhere'"):
        live.choose_way(["fc", "nowhere"], "int8 · gptq")
    with pytest.raises(WrongValue, match="there is no way 'int9'"):
        live.choose_way(["fc"], "int9")
    with pytest.raises(WrongValue, match="does not take Conv2d"):
        live.choose_way(["fc", "conv"], "int8 · gptq")
    assert live.ways == ways, "all or nothing"
    with pytest.raises(WrongValue, match="no preset 'INT9'"):
        live.quantize_modules("INT9")
    with pytest.raises(WrongValue, match="float_type is 'int8'"):
        live.quantize_modules(float_type="int8")
    with pytest.raises(ValueError, match="weights.type"):
        live.quantize_modules({"quant_cfg": {"weights": {"type": "int9"}}, "algorithm": "minmax"})
    for wrong in (5, []):
        with pytest.raises(WrongType, match="config is"):
            live.quantize_modules(wrong)
    assert not live.job.active


def test_evaluation_batches_are_no_calibration(live: Session) -> None:
    weights = {"type": "int8", "symmetric": True, "strategy": "channel"}
    config = {"batch_num": 3, "quant_cfg": {"weights": weights}, "algorithm": "gptq"}
    with pytest.raises(JobFailed, match="not calibrated by 2 batches: fc has seen 2 of 3"):
        live.quantize_modules(config, float_type="any")


def test_another_model_forgets_the_results(live: Session) -> None:
    live.project.store.forget_results()
    live.poll()
    assert not len(live.formats)
    assert live.ways == {}
    assert live.quantized is None
    assert live.channel_profiles(["fc"]) == ()
