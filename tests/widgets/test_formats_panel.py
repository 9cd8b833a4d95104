from __future__ import annotations

import json
from collections.abc import Callable

from format_models import make_linear_data, make_linear_net

from workbench.engine.analysis.module_formats import compare_formats
from workbench.studio.formats_state import (
    QuantizedLayer,
    QuantizedModel,
    store_formats,
    store_quantized,
)
from workbench.studio.session import Session
from workbench.widgets import FormatsPanel


def test_it_shows_a_measurement_and_takes_choices(
    make_session: Callable[..., Session], count_watchers: Callable[[Session], int]
) -> None:
    session = make_session()
    before = count_watchers(session)
    panel = FormatsPanel(session)
    assert "rounds each layer alone" in panel.note.value
    assert panel.start.disabled
    batches = [x for x, _ in make_linear_data()]
    store_formats(session.project.store, compare_formats(make_linear_net(), batches))
    session.poll()
    assert panel.layers.options == ("conv", "fc", "block.fc", "lm_head")
    assert "<td>block.fc</td><td>int8 · minmax</td>" in panel.table.value
    assert [trace.name for trace in panel.errors.data] == [
        "int8", "float8", "int4", "int4 g32", "mxfp4",
    ]  # fmt: skip
    assert list(panel.outliers.data[0].y) == ["fc", "block.fc", "lm_head"]
    json.dumps(panel.outliers.data[0].z.tolist(), allow_nan=False)  # as a widget sends it
    json.dumps(panel.outliers.data[0].customdata.tolist(), allow_nan=False)
    assert len(panel.smoothing.data) == 4
    assert panel.float_type.value == "bfloat16"
    assert "cast to bfloat16" in panel.note.value
    panel.float_type.value = "keep"
    assert "2 layers would stay float" in panel.note.value
    assert "&#x27;type&#x27;: &#x27;int8&#x27;" in panel.config.value

    panel.layers.value = ("lm_head",)
    panel.format.value = "int4 g32"
    assert panel.algorithm.options == ("minmax", "awq", "gptq")
    panel.algorithm.value = "awq"
    panel.apply.click()
    assert session.layer_ways()["lm_head"] == "int4 g32 · awq"
    assert session.layer_ways()["fc"] == "int8 · minmax"
    panel.layers.value = ("conv",)
    panel.apply.click()
    assert "does not take Conv2d" in panel.trouble.value
    panel.layers.value = ()
    panel.format.value = "float"
    panel.apply.click()
    assert set(session.layer_ways().values()) == {"float"}
    assert panel.start.disabled
    panel.measure.click()
    assert "cannot start jobs" in panel.trouble.value

    left = QuantizedLayer("lm_head", "float", "", "", "skip_layers has '<x>'", "")
    store_quantized(
        session.project.store,
        QuantizedModel(0.5, 0.4, 0.3, 4000, 1000, "keep", ({},), (left,), "/p/q", "/p/q.json", 1.0),
    )
    session.poll()
    assert "converted 0.3000" in panel.result.value
    assert "&lt;x&gt;" in panel.result.value
    panel.dispose()
    assert count_watchers(session) == before
