"""The inspect job: what it stores, that it stays, and that its settings become the layer's."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from studio_models import make_data, make_net
from studio_samples import make_layers

from workbench.engine.errors import WrongValue
from workbench.studio import Session, SourceSpec, open_session
from workbench.studio.columns import refusal
from workbench.studio.inspections import in_use


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Session]:
    session = open_session(make_net(), data=make_data(), project=tmp_path / "p", threads=1)
    yield session
    session.dispose()


def test_a_layer_is_compared_kept_and_edited(live: Session) -> None:
    assert live.inspection("conv2") is None
    assert live.inspected == {}
    live.inspect("conv2")
    assert list(live.inspected) == ["conv2"]
    found = live.inspection("conv2")
    assert found is not None
    assert (found.batches, found.batches_known, found.ada_iterations) == (2, 2, 0)
    labels = [one.label for one in found.alternatives]
    assert labels[:3] == ["IFMR", "HFMG", "min–max"]
    live.analyse()
    table = live.layers.set_index("name").loc["conv2"]
    used = [one for one in found.alternatives if one.in_use]
    assert len(used) == 2
    for one in used:
        assert one.cosine == pytest.approx(table["cosine"], abs=1e-12)
    best = next(one for one in found.alternatives if one.label == "HFMG + DMQ 0.5")
    before = live.config_json()
    live.use("conv2", best.settings)
    assert json.loads(live.config_json())["conv2"]["dmq_balancer_param"] == 0.5
    params = json.loads(live.config_json())["conv2"]["activation_quant_params"]
    assert (params["act_algo"], "search_step" in params) == ("hfmg", False)
    row = live.layers.set_index("name").loc["conv2"]
    assert in_use(best.settings, row)
    assert row["cosine"] == best.cosine, "known without another analysis"
    live.analyse()
    again = live.layers.set_index("name").loc["conv2"]
    assert again["cosine"] == pytest.approx(best.cosine, abs=1e-12)
    live.undo()
    assert live.config_json() == before, "one step back, not two"
    live.redo()
    folder = live.project.folder
    other = Session(live.project.open(folder))
    kept = other.inspection("conv2")
    assert kept is not None
    assert kept.alternatives == found.alternatives
    assert np.array_equal(kept.profile.sample_float, found.profile.sample_float)
    assert np.array_equal(kept.profile.histogram.weight_edges, found.profile.histogram.weight_edges)
    assert other.inspected == live.inspected
    other.dispose()


def test_results_of_another_model_are_dropped(live: Session) -> None:
    live.inspect("fc", algorithms=["minmax"])
    live.project.store.forget_results()
    live.poll()
    assert live.inspected == {}
    assert live.inspection("fc") is None


def test_learning_can_be_cancelled(live: Session) -> None:
    live.inspect("conv2", algorithms=["ada_quantize"], ada_iterations=5_000_000, wait=False)
    end = time.monotonic() + 60
    while live.job is None or "comparing" not in live.job.message:
        assert time.monotonic() < end
        time.sleep(0.05)
        live.poll()
    live.cancel()
    while live.job.active:
        assert time.monotonic() < end
        time.sleep(0.05)
        live.poll()
    assert live.job.state == "cancelled"
    assert live.inspection("conv2") is None


def test_refusals_in_words(live: Session) -> None:
    with pytest.raises(WrongValue, match="no layer 'nowhere'"):
        live.inspect("nowhere")
    with pytest.raises(WrongValue, match="even number of input channels"):
        live.use("conv1", {"wts_bits": 4})
    assert not live.can_undo


@pytest.mark.parametrize(
    ("changes", "column", "value", "words"),
    [
        ({"type": "AvgPool2d", "weight_shape": ()}, "wts_bits", 4, "has no weights"),
        ({"type": "AvgPool2d", "weight_shape": ()}, "wts_algo", "ada_quantize", "has no weights"),
        ({"type": "AvgPool2d", "weight_shape": ()}, "act_bits", 16, "take 4 or 8 bits"),
        ({"type": "AvgPool2d", "weight_shape": ()}, "dmq", 0.5, "no channels to balance"),
        ({"type": "Conv3d"}, "act_bits", 16, "take 4 or 8 bits"),
        ({"type": "Conv3d"}, "wts_algo", "ada_quantize", "cannot be learned"),
        ({"type": "Conv1d"}, "wts_bits", 6, "for Conv2d only"),
        ({"type": "Linear", "has_bias": False}, "act_bits", 16, "without bias"),
        ({"type": "Linear"}, "act_bits", 16, ""),
        ({"type": "Linear"}, "wts_algo", "ada_quantize", ""),
        ({"type": "Conv2d"}, "wts_bits", 4, ""),
        ({"type": "Conv2d", "groups": 4}, "wts_bits", 4, "without groups"),
        ({"type": "Conv3d"}, "act_algo", "hfmg", ""),
    ],
)
def test_what_a_layer_cannot_have_is_refused_at_once(
    changes: dict[str, object], column: str, value: object, words: str
) -> None:
    layer = dataclasses.replace(make_layers(1)[0], **changes)  # type: ignore[arg-type]
    reason = refusal(layer, column, value, SourceSpec("python"))
    assert (words in reason) if words else reason == ""
