"""A search for the Pareto front from a session: its trials' costs, and its answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from studio_models import counted_metric, make_chain, make_data

from workbench.engine.files.record import read_record
from workbench.studio import Session, open_session


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("WORKBENCH_TEST_CALLS", str(tmp_path / "calls"))
    return open_session(
        make_chain(), data=make_data(), metric=counted_metric, project=tmp_path / "p", threads=1
    )


def test_bits_and_algorithms_become_the_configuration(chain: Session) -> None:
    before = chain.layers.copy()
    chain.auto_calibrate(max_loss=300.0, strategy="Pareto", objective="bops", pareto_trials=12)
    trials = chain.trials
    probes = trials[trials["kind"] == "probe"]
    assert len(probes) >= 10
    # Every configuration has its own name and cost, though all layers may be quantised in many.
    assert probes["config_hash"].nunique() == len(probes)
    assert probes["size"].nunique() > 4

    config = chain.config
    final = trials[trials["kind"] == "final"].iloc[-1]
    assert final["satisfied"]
    satisfied = trials[trials["satisfied"] & (trials["kind"] != "float")]
    assert final["bops"] == satisfied["bops"].min()
    record = read_record(chain.project.record_path)
    assert {name for name in config if config[name].quant_enable} == set(record.layers)
    assert any(layer.wts_bits == 4 for layer in record.layers.values())
    for name, layer in record.layers.items():
        assert config[name].wts_bits == layer.wts_bits

    chain.undo()
    for column in ("quant_enable", "wts_bits", "act_algo"):
        assert (chain.layers[column] == before[column]).all()
    # The cheapest passing trial and any other can be taken, with bits and algorithms.
    floats = chain.accept_best()
    assert set(chain.layers[~chain.layers["quant_enable"]]["name"]) == set(floats)
    assert chain.summary.bops_current == satisfied["bops"].min()
    for row in probes.iloc[:5].itertuples():
        chain.use_trial(int(row.trial))
        assert (chain.summary.size_current, chain.summary.bops_current) == (row.size, row.bops)
    table = chain.compare(*probes["trial"].iloc[:2])
    assert len(table.loc["layer"]), "two configurations differ in some layer"
    while chain.can_undo:
        chain.undo()
    assert (chain.layers["wts_bits"] == before["wts_bits"]).all()
