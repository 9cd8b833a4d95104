"""Pruning and decomposition of a project: the search, the columns, the smaller project, scripts."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import shrink_models
import torch
import warm
from job_waiting import wait
from safetensors.torch import load_file
from studio_samples import make_layers

from workbench.engine.errors import MissingFile, WrongState, WrongType, WrongValue
from workbench.engine.files.prune_config import resolve_prune_config
from workbench.engine.files.record import read_record
from workbench.engine.files.retrain_text import load_retrain_text_config
from workbench.engine.flows.prune_layers import prune_layers
from workbench.engine.graph.capture import capture
from workbench.studio import Project, Session, SourceSpec, open_session
from workbench.studio.errors import JobFailed
from workbench.studio.project import read_settings
from workbench.studio.pruning_state import PruningState, Shrunk

SUPPORT = str(Path(shrink_models.__file__).parent)


def open_wide(folder: Path, name: str = "net", **options: Any) -> Session:
    data = folder / "data.npz"
    if not data.exists():
        shrink_models.write_data(data, batches=4, seed=4)
        shrink_models.write_data(folder / "train.npz", batches=6, seed=9)
    options = {"train": folder / "train.npz", **options}
    return open_session(
        options.pop("source", "shrink_models:make_wide"), options.pop("data", data),
        project=folder / name, batch_size=8, threads=1, **options,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def code_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_ALLOW_CODE", "1")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """After a search by the loss over three batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_ALLOW_CODE", "1")
        patch.setattr("workbench.studio.pruning.MEASURED", (2.0,))
        session = open_wide(tmp_path_factory.mktemp("searched"))
        session.search_pruning(batches=3, max_ratio=0.35)
    yield session
    session.dispose()


@pytest.fixture(scope="module")
def pruned(searched: Session) -> Session:
    """The same after a pruning to half of the bit-operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_ALLOW_CODE", "1")
        searched.use_plan(2.0)
        searched.prune()
    return searched


@pytest.fixture(scope="module")
def made(pruned: Session) -> Shrunk:
    """The smaller project of ``pruned``, whatever is made of it afterwards."""
    assert pruned.shrunk is not None
    return pruned.shrunk


def state_of(session: Session) -> PruningState:
    assert session.pruning is not None
    return session.pruning


def test_what_a_search_finds(searched: Session) -> None:
    found = state_of(searched)
    assert (found.measure, found.samples, found.batches) == ("taylor", 24, 3)
    assert found.loss == "cross-entropy with the labels"
    assert {n: len(v) for n, v in found.sensitivity.items()} == {"stem": 64, "conv": 64, "head": 12}
    assert np.array_equal(found.sensitivity["stem"], found.sensitivity["conv"])  # they are added
    assert found.coupled == {"stem": ("conv",), "conv": ("stem",)}
    assert "output of the model" in found.blocked["fc"]
    reached = [plan.reached for plan in found.plans]
    assert reached == sorted(reached) and found.plans[0].ratios == {}
    assert all(plan.reached >= plan.target for plan in found.plans[:-1])
    half = found.plan_for(2.0)
    assert half.target == 2.0 and 2.0 <= half.reached < 2.1
    assert half.macs < found.original.macs / 1.9
    assert half.ratios["stem"] == half.ratios["conv"]
    assert max(plan.ratios.get("stem", 0.0) for plan in found.plans) <= 0.35
    assert found.plan_for(99.0) is found.plans[-1] and not found.plans[-1].met
    timed = [plan.target for plan in found.plans if not math.isnan(plan.latency_ms)]
    assert 2.0 in timed and found.original.latency_ms > 0
    assert found.uniform_for(0.52).target == 0.35
    assert found.uniform_for(0.3).removed == {"stem": 19, "conv": 19, "head": 4}


def test_the_sensitivities_are_the_loss_by_brute_force(searched: Session) -> None:
    """|weight · gradient| of one batch after the other, summed here over all weights of a unit."""
    net = shrink_models.make_wide()
    arrays = np.load(searched.project.settings.train.name)
    from workbench.studio.batches import read_npz  # the training batches are shuffled
    from workbench.studio.project import DataSpec
    from workbench.studio.training_data import Shuffled

    batches = read_npz(Path(searched.project.settings.train.name), ["x"], DataSpec(batch_size=8))
    assert len(arrays["x"]) == 48
    total = torch.zeros(12)
    for number, ((x,), y) in enumerate(Shuffled(batches.evaluation, 8, 0)):
        if number == 3:
            break
        net.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        total += (net.head.weight * net.head.weight.grad).abs().sum((1, 2, 3))
        total += (net.fc.weight * net.fc.weight.grad).abs().sum(0)
    found = torch.from_numpy(state_of(searched).sensitivity["head"])
    assert torch.allclose(found.float(), total.detach(), rtol=1e-4)


def test_another_window_sees_the_same(searched: Session) -> None:
    other = Session(Project.open(searched.project.folder))
    a, b = state_of(searched), state_of(other)
    assert (a.plans[-1], a.blocked, a.coupled) == (b.plans[-1], b.blocked, b.coupled)
    assert all(np.array_equal(a.sensitivity[n], b.sensitivity[n]) for n in a.sensitivity)
    column = other.layers.set_index("name")["prune_sensitivity"]
    assert column["head"] == pytest.approx(a.sensitivity["head"].mean())
    assert math.isnan(column["fc"])
    other.dispose()


def test_a_plan_is_one_edit(searched: Session) -> None:
    before = searched.layers
    plan = searched.use_plan(1.5)
    effect = searched.prune_effect()
    assert effect is not None
    assert (effect.macs, effect.parameters, effect.removed) == (
        plan.macs, plan.parameters, plan.removed,
    )  # fmt: skip
    assert searched.prune_ratios() == plan.ratios
    searched.undo()
    columns = ["prune_enable", "prune_ratio"]
    assert searched.layers[columns].equals(before[columns])
    searched.redo()
    assert searched.prune_ratios() == plan.ratios
    searched.flush()
    captured = capture(shrink_models.make_wide(), torch.zeros(2, 3, 8, 8), dynamic=False)
    path = searched.project.prune_path
    config = resolve_prune_config(
        load_retrain_text_config(str(path)), prune_layers(captured), source=str(path)
    )
    found = {name: entry.ratio for name, entry in config.channel().items()}
    assert found == pytest.approx(plan.ratios, abs=1e-6)
    searched.undo()
    searched.flush()
    assert not path.exists()


def test_cells_of_the_table(searched: Session) -> None:
    assert searched.use_plan(99.0).reached < 3
    assert "no plan reaches 99×" in searched.notice
    searched.undo()
    for target in (1, 0.5, math.nan, math.inf):
        with pytest.raises(WrongValue, match="target is"):
            searched.use_plan(target)
    with pytest.raises(WrongValue, match="0 is not allowed") as ends:
        searched.set_option(["head"], "prune_ratio", 0)
    assert "above 0 and below 1" in str(ends.value)
    with pytest.raises(WrongValue, match="1 is not allowed"):
        searched.config["head"].prune_ratio = 1.0
    with pytest.raises(WrongType):
        searched.set_option(["head"], "prune_ratio", "much")
    searched.set_option(["head", "stem"], "prune_ratio", 0.5)
    searched.set_flag(["head", "stem"], True, "prune_enable")
    assert searched.prune_ratios() == {"stem": 0.5, "head": 0.5}
    assert searched.prune_notes() == {"stem": "its channels go with those of conv: off"}
    effect = searched.prune_effect()
    assert effect is not None and effect.removed == {"head": 6}
    for _ in range(2):
        searched.undo()
    assert searched.prune_ratios() == {}
    with pytest.raises(WrongState, match="prune_enable is off"):
        searched.prune()


def test_layers_that_cannot_take_part() -> None:
    from workbench.studio.columns import refusal

    depthwise = next(x for x in make_layers(8) if x.groups > 1)
    assert "follows its input" in refusal(depthwise, "prune_enable", True, SourceSpec())
    assert refusal(depthwise, "prune_enable", False, SourceSpec()) == ""
    ineligible = next(x for x in make_layers(30) if not x.eligible and x.groups == 1)
    # What rules it out concerns quantisation only.
    assert refusal(ineligible, "prune_enable", True, SourceSpec()) == ""


def test_the_smaller_project(pruned: Session, made: Shrunk) -> None:
    plan = state_of(pruned).plan_for(2.0)
    assert made.parameters[1] == plan.parameters and made.macs[1] == plan.macs
    assert made.layers == plan.removed and "output of the model" in made.notes["fc"]
    folder = Path(made.folder)
    assert folder == pruned.project.folder.parent / "make_wide-pruned"
    assert not list(folder.parent.glob("**/.new-*"))
    record = read_record(folder / "shrink" / "1-prune.record.txt")
    gone = {
        node.name: {i for a in node.attr if a.name == "prune_index" for i in a.ints}
        for entry in record.prune
        for node in entry.producer
    }
    weakest = np.argsort(state_of(pruned).sensitivity["head"])[: plan.removed["head"]]
    assert gone["head"] == set(weakest.tolist())
    session = open_session(folder)
    assert session.origin == made
    dense, sizes = shrink_models.make_wide(), session.layers.set_index("name")["shape"]
    left = 64 - plan.removed["stem"]
    assert sizes["conv"] == f"{left}×{left}×3×3"
    weights = load_file(folder / "weights.safetensors")
    kept = [c for c in range(64) if c not in gone["stem"]]
    assert torch.equal(weights["stem.weight"], dense.get_submodule("stem").weight[kept])
    before, after = (ort.InferenceSession(path) for path in made.onnx)
    x = np.load(folder.parent / "data.npz")["x"][:8]
    assert np.allclose(
        before.run(None, {before.get_inputs()[0].name: x})[0], dense(torch.from_numpy(x)).detach(),
        atol=1e-4,
    )  # fmt: skip
    model = session._manager.workspace.source.model  # type: ignore[union-attr]
    got = after.run(None, {after.get_inputs()[0].name: x})[0]
    assert np.allclose(got, model(torch.from_numpy(x)).detach(), atol=1e-4)
    session.evaluate()
    assert session.summary.metric_float == pytest.approx(made.metric[1])
    assert session.summary.bops_float == plan.bitops
    session.dispose()


def test_the_script_makes_the_same_record_and_weights(
    pruned: Session, made: Shrunk, tmp_path: Path
) -> None:
    folder = Path(made.folder)
    (tmp_path / "log.py").write_text(pruned.script(), encoding="utf-8")
    warm.run(["log.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": SUPPORT}, check=True)
    again = tmp_path / "reproduced" / folder.name
    for name in ("weights.safetensors", "shrink/1-prune.record.txt", "shrink/1-prune.cfg"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    pruned.toggle("head", "prune_enable")
    assert "session.prune(" not in pruned.script()
    pruned.undo()


def test_decomposing_what_was_pruned(searched: Session, tmp_path: Path) -> None:
    """First what would become, then the project; the steps of both are in it."""
    searched.decompose(dry_run=True)
    plan = searched.decomposition
    assert (plan is not None and searched.shrunk is None) or plan.changed == 1
    rows = plan.frame.set_index("name")
    assert rows.loc["conv", "rank"] == 32 and rows.loc["conv", "mode"] == "SCFK"
    assert "few" in rows.loc["stem", "skipped"] and math.isnan(rows.loc["stem", "rank"])
    assert plan.parameters - plan.parameters_after == 64 * 64 * 9 - 2 * 32 * 64 * 3
    weight = shrink_models.make_wide().get_submodule("conv").weight.detach()
    unfolded = weight.permute(1, 2, 0, 3).reshape(192, 192).double()
    sigma = torch.linalg.svdvals(unfolded)
    error = float((sigma[32:].square().sum() / sigma.square().sum()).sqrt())
    assert rows.loc["conv", "error"] == pytest.approx(error, rel=1e-6)

    searched.decompose(project="small net")
    made = searched.shrunk
    assert made is not None and (made.kind, made.layers) == ("decompose", {"conv": 32})
    assert made.parameters == (plan.parameters, plan.parameters_after)
    assert made.macs == (plan.macs, plan.macs_after)
    session = open_session(made.folder)
    assert "conv.0" in session.layers["name"].tolist()
    session.set_flag(["head"], True, "prune_enable")
    session.set_option(["head"], "prune_ratio", 0.5)
    session.prune()
    assert session.shrunk is not None
    last = open_session(session.shrunk.folder)
    assert last.project.source.steps == ("decompose", "prune")
    assert last.project.source.base == SourceSpec("python", "shrink_models:make_wide")
    shapes = last.layers.set_index("name")["shape"]
    assert (shapes["conv.0"], shapes["head"], shapes["fc"]) == ("32×64×3×1", "6×64×1×1", "4×6")
    assert "rebuild(" in last.script() and "session.decompose(" in searched.script()
    last.dispose()
    session.dispose()


def test_a_live_model_stays_with_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.studio.pruning.MEASURED", ())
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    net = shrink_models.make_wide()
    session = open_session(net, data=list(x.split(8)), project=tmp_path / "live", threads=1)
    session.search_pruning(sensitivity="l2")
    found = state_of(session)
    scores = net.head.weight.detach().flatten(1).norm(dim=1)
    wanted = (scores - scores.min()) / (scores.max() - scores.min())
    assert np.allclose(found.sensitivity["head"], wanted, atol=1e-6)
    session.set_flag(["head"], True, "prune_enable")
    session.set_option(["head"], "prune_ratio", 0.25)
    session.prune(project=tmp_path / "elsewhere" / "half")
    assert session.shrunk is not None and session.shrunk.name == "half"
    assert net.head.out_channels == 12
    smaller = open_session(session.shrunk.folder)
    smaller.evaluate()
    assert smaller.layers.set_index("name").loc["head", "shape"] == "9×64×1×1"
    smaller.dispose()
    session.dispose()
    del smaller, session
    again = open_session(net, data=list(x.split(8)), project=tmp_path / "elsewhere" / "half")
    assert again.layers.set_index("name").loc["fc", "shape"] == "4×9"
    again.dispose()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("weights", "weights.safetensors"),
        ("record", "the file of step 1"),
        ("other", "cannot find"),
        ("toml", "source.arguments.steps"),
    ],
)
def test_a_damaged_project(made: Shrunk, tmp_path: Path, damage: str, says: str) -> None:
    from workbench.studio.shrinking import fresh_copy

    folder = fresh_copy(made.folder, tmp_path / "copy")
    assert read_settings(folder / "project.toml").source.steps == ("prune",)
    record = folder / "shrink" / "1-prune.record.txt"
    if damage == "weights":
        (folder / "weights.safetensors").unlink()
    elif damage == "record":
        record.unlink()
    elif damage == "other":
        record.write_text(record.read_text().replace('"stem"', '"root"'))
    else:
        text = (folder / "project.toml").read_text()
        (folder / "project.toml").write_text(text.replace('["prune"]', '["../prune"]'))
        with pytest.raises(WrongValue, match=says):
            open_session(folder)
        return
    with pytest.raises((JobFailed, MissingFile), match=says):
        open_session(folder)


def test_refused(searched: Session, tmp_path: Path) -> None:
    for arguments in ({"sensitivity": "guess"}, {"batches": 0}, {"max_ratio": 1.0}):
        with pytest.raises(WrongValue):
            searched.search_pruning(**arguments)
    (searched.project.folder.parent / "taken").mkdir()
    with pytest.raises(WrongValue, match="something named taken already"):
        searched.decompose(project="taken")
    with pytest.raises(WrongValue, match="rank_rule"):
        searched.decompose(rank_rule="half", dry_run=True)
    with pytest.raises(JobFailed, match="no layer would be decomposed") as nothing:
        searched.decompose(exclude=["conv"], project="none")
    assert "stem: " in str(nothing.value)
    assert not (searched.project.folder.parent / "none").exists()
    searched.set_flag(list(searched.names), False, "prune_enable")
    searched.set_flag(["stem"], True, "prune_enable")
    with pytest.raises(JobFailed, match="no channel would be removed"):
        searched.prune(project="none")
    searched.undo()
    assert not list(searched.project.folder.parent.glob("**/.new-*"))
    session = open_wide(tmp_path, source="shrink_models:make_linear")
    with pytest.raises(JobFailed, match="no layer of this model can lose channels"):
        session.search_pruning()
    assert session.pruning is None
    with pytest.raises(WrongState, match="no plan yet"):
        session.use_plan(2.0)
    session.dispose()


def test_cancelled_halfway(tmp_path: Path) -> None:
    session = open_wide(tmp_path, metric="shrink_models:patient_metric")
    session.set_flag(["head"], True, "prune_enable")
    session.prune(project="never", wait=False)
    wait(session, lambda: "smaller model" in session.job.message)  # type: ignore[union-attr]
    session.cancel()
    wait(session, lambda: not session.job.active)  # type: ignore[union-attr]
    assert session.job is not None and session.job.state == "cancelled"
    assert session.shrunk is None
    assert not (tmp_path / "never").exists() and not list(tmp_path.glob("**/.new-*"))
    session.dispose()


def test_a_search_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.studio.pruning.MEASURED", ())
    data = shrink_models.write_data(tmp_path / "bare.npz", batches=2, seed=1, labels=False)
    session = open_wide(tmp_path, data=data, train=None)
    session.search_pruning(batches=1, aligned=True)
    found = state_of(session)
    assert found.loss == "the mean square of the output" and found.samples == 8
    assert {plan.removed.get("stem", 0) for plan in found.plans} <= {0, 16, 32, 48}
    assert all("head" not in plan.removed for plan in found.plans)  # it has 12 channels only
    assert found.notes({"head": 0.5}) == {
        "head": "its 12 channels stay because of the alignment to 16"
    }
    assert found.notes({"head": 0.01}) == {"head": "0.01 of 12 channels rounds to none"}
    assert json.loads(json.dumps(found.table.to_json()))["groups"]
    session.dispose()


def test_a_model_that_onnx_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its speed is not known, and all else is as usual."""

    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no such operator")

    monkeypatch.setattr("workbench.studio.pruning.to_onnx", refuse)
    monkeypatch.setattr("workbench.studio.shrinking.to_onnx", refuse)
    session = open_wide(tmp_path)
    session.search_pruning(sensitivity="l2")
    assert math.isnan(state_of(session).plan_for(2.0).latency_ms)
    session.use_plan(1.5)
    session.prune()
    assert session.shrunk is not None and session.shrunk.onnx == ("", "")
    assert math.isnan(session.shrunk.latency_ms[0]) and session.shrunk.macs[1] > 0
    notices = session.project.store.connection.execute(
        "SELECT payload FROM events WHERE kind = 'Notice'"
    ).fetchall()
    assert sum("no such operator" in row[0] for row in notices) == 2
    session.dispose()
