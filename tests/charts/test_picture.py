"""A still picture has what the figure has, where plotly puts it."""

from __future__ import annotations

import base64
import io
import math
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image

from workbench.charts import sensitivity_chart
from workbench.charts.picture import figure_svg
from workbench.charts.theme import DARK, LIGHT, base_figure

SVG = "{http://www.w3.org/2000/svg}"


def drawn(figure: go.Figure, **options: Any) -> ET.Element:
    return ET.fromstring(figure_svg(figure, **options))


def boxes(picture: ET.Element, fill: str) -> list[tuple[float, ...]]:
    return [
        tuple(float(box.get(key, "nan")) for key in ("x", "y", "width", "height"))
        for box in picture.iter(f"{SVG}rect")
        if box.get("fill") == fill
    ]


def texts(picture: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]


def figure(**layout: Any) -> go.Figure:
    plain = {"margin": {"l": 100, "r": 100, "t": 50, "b": 50}, "height": 300, **layout}
    return base_figure(dark=False).update_layout(plain)


def test_bars_stand_where_they_are_and_as_high_as_they_are() -> None:
    shown = figure(yaxis={"range": [0, 4]}, bargap=0.0)
    shown.add_bar(x=["a", "b"], y=[1, 4], marker={"color": ["#111111", "#222222"]})
    picture = drawn(shown, width=1000)
    assert boxes(picture, "#111111") == [(100, 200, 400, 50)]
    assert boxes(picture, "#222222") == [(500, 50, 400, 200)]
    assert {"a", "b", "0", "2", "4"} <= set(texts(picture))


def test_on_a_logarithmic_axis_a_decade_is_as_high_as_the_next() -> None:
    shown = figure(yaxis={"type": "log", "range": [-3, 0]}, bargap=0.0)
    shown.add_bar(x=[0, 1, 2], y=[1e-3, 1e-2, 1e-1], marker={"color": "#111111"})
    shown.add_hline(y=0.1, line={"color": "#333333"})
    picture = drawn(shown, width=1000)
    heights = [height for *_rest, height in boxes(picture, "#111111")]
    assert heights == pytest.approx([0, 200 / 3, 400 / 3], abs=0.11)
    (line,) = [p.get("d") for p in picture.iter(f"{SVG}path") if p.get("stroke") == "#333333"]
    assert line == "M100.0 116.7L900.0 116.7"
    assert "10⁻²" in texts(picture)


def test_stacked_bars_and_those_with_a_base() -> None:
    shown = figure(barmode="stack", yaxis={"range": [0, 10]}, bargap=0.0)
    shown.add_bar(x=["a"], y=[4], marker={"color": "#111111"}, name="one")
    shown.add_bar(x=["a"], y=[6], marker={"color": "#222222"}, name="two")
    picture = drawn(shown, width=1000)
    assert boxes(picture, "#111111")[0] == (100, 170, 800, 80)
    assert boxes(picture, "#222222")[0] == (100, 50, 800, 120)
    assert {"one", "two"} <= set(texts(picture))  # the legend
    beside = shown.update_layout(barmode="group")
    assert boxes(drawn(beside, width=1000), "#111111")[0] == (100, 170, 400, 80)
    assert boxes(drawn(beside, width=1000), "#222222")[0] == (500, 130, 400, 120)
    lifted = figure(xaxis={"range": [0, 10]}, bargap=0.0)
    lifted.add_bar(y=["a"], x=[3], base=[5], orientation="h", marker={"color": "#111111"})
    assert boxes(drawn(lifted, width=1000), "#111111") == [(500, 50, 240, 200)]


def test_lines_break_where_nothing_is_known() -> None:
    shown = figure(xaxis={"range": [0, 4]}, yaxis={"range": [0, 4]})
    shown.add_scatter(
        x=[0, 1, 2, 3, 4], y=[0, 1, None, 3, math.nan], mode="lines", line={"color": "#111111"}
    )
    shown.add_scatter(x=[2], y=[2], mode="markers", marker={"color": "#222222", "size": 8})
    picture = drawn(shown, width=1000)
    ways = [p.get("d") for p in picture.iter(f"{SVG}path") if p.get("stroke") == "#111111"]
    assert ways == ["M100.0 250.0L300.0 200.0", "M700.0 100.0"]
    (point,) = picture.iter(f"{SVG}circle")
    assert (point.get("cx"), point.get("cy"), point.get("r")) == ("500.0", "150.0", "4.0")


def test_a_heat_map_has_its_colours_in_its_cells() -> None:
    shown = figure(yaxis={"autorange": "reversed"})
    shown.add_heatmap(
        z=[[0.0, 1.0, None], [1.0, 0.5, 0.0]], zmin=0, zmax=1,
        colorscale=[[0, "#000000"], [1, "#ff0000"]],
    )  # fmt: skip
    (image,) = drawn(shown, width=1000).iter(f"{SVG}image")
    data = base64.b64decode(image.get("href", "").partition("base64,")[2])
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    assert pixels.shape == (2, 3, 4)
    assert pixels[0].tolist() == [[0, 0, 0, 255], [255, 0, 0, 255], [0, 0, 0, 0]]
    assert pixels[1, 1, 0] in (127, 128) and pixels[1, 2].tolist() == [0, 0, 0, 255]
    shown.data[0].colorscale = [[0, "#000000"], [1, "rgba(255, 0, 0, 0.5)"]]
    (image,) = drawn(shown, width=1000).iter(f"{SVG}image")
    data = base64.b64decode(image.get("href", "").partition("base64,")[2])
    assert np.asarray(Image.open(io.BytesIO(data)))[0, 1].tolist() == [255, 128, 128, 255]
    shown.data[0].colorscale = [[0, "#000000"], [1, "#ff0000"]]
    shown.update_yaxes(autorange=True)  # upwards, as without a word
    (image,) = drawn(shown, width=1000).iter(f"{SVG}image")
    data = base64.b64decode(image.get("href", "").partition("base64,")[2])
    assert np.asarray(Image.open(io.BytesIO(data)))[1].tolist() == pixels[0].tolist()


def test_a_chart_of_layers_in_both_schemes(layers: pd.DataFrame) -> None:
    for dark, colours in ((False, LIGHT), (True, DARK)):
        picture = drawn(sensitivity_chart(layers, dark=dark), dark=dark, label="Layers <1>")
        assert picture.findtext(f"{SVG}title") == "Layers <1>"
        fills = {box.get("fill") for box in picture.iter(f"{SVG}rect")}
        wanted = [tuple(bytes.fromhex(c[1:])) for c in (colours.quantised, colours.worse)]
        assert {f"rgb({r},{g},{b})" for r, g, b in wanted} <= fills


def test_hostile_names_and_a_chart_without_anything_are_drawn() -> None:
    shown = figure(xaxis={"title": {"text": "<script>x</script>"}})
    shown.add_bar(x=['"><img src=x onerror=1>', "b & c"], y=[1, 2], name="<svg onload=1>")
    shown.update_layout(showlegend=True)
    text = figure_svg(shown, label="</title><script>")
    ET.fromstring(text)
    assert "<script" not in text and "<img" not in text and "onload" not in text
    assert "b & c" in texts(drawn(shown))
    assert drawn(go.Figure()) is not None
    assert "nothing yet" in texts(
        drawn(figure().add_annotation(text="nothing yet", xref="paper", yref="paper", x=0.5, y=0.5))
    )


def test_very_many_points_stay_small() -> None:
    generator = np.random.default_rng(0)
    shown = figure().add_scatter(x=np.arange(50_000), y=generator.normal(size=50_000))
    assert len(figure_svg(shown)) < 60_000
