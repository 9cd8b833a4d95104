"""Draw the diagrams in ``docs/images``: plain SVG, readable on light and dark pages."""

from __future__ import annotations

import html
import math
import sys
from pathlib import Path

IMAGES = Path(__file__).resolve().parent / "images"
INK, SOFT, LINE, PAPER = "#1c2733", "#5b6875", "#9aa6b2", "#ffffff"
TEAL, PALE, RED, AMBER = "#0b6e8f", "#e3f1f5", "#c8352b", "#fbf1da"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


class Drawing:
    """Shapes on a white sheet of a given size, in the order in which they are drawn."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size = (width, height)
        self.title = title
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, words: str, *, size: int = 14, colour: str = INK,
        anchor: str = "middle", bold: bool = False,
    ) -> None:  # fmt: skip
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" '
            f'text-anchor="{anchor}"{weight}>{html.escape(words)}</text>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, lines: list[str], *,
        fill: str = PALE, edge: str = TEAL,
    ) -> None:  # fmt: skip
        """A rounded box; the first line is its title."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" '
            f'fill="{fill}" stroke="{edge}"/>'
        )
        top = y + height / 2 - (len(lines) - 1) * 9 + 5
        for i, words in enumerate(lines):
            size, colour = (14, INK) if i == 0 else (12, SOFT)
            self.text(x + width / 2, top + 18 * i, words, size=size, colour=colour, bold=i == 0)

    def arrow(self, x0: float, y0: float, x1: float, y1: float, words: str = "") -> None:
        self.parts.append(
            f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" stroke="{SOFT}" '
            'stroke-width="1.5" marker-end="url(#tip)"/>'
        )
        if words:
            self.text((x0 + x1) / 2, (y0 + y1) / 2 - 7, words, size=12, colour=SOFT)

    def line(self, points: list[tuple[float, float]], colour: str, *, dashed: bool = False) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        )

    def svg(self) -> str:
        width, height = self.size
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" font-family="{FONT}">\n'
            f"<title>{html.escape(self.title)}</title>\n"
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="{SOFT}"/></marker>'
            f'</defs>\n<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def which_flow() -> Drawing:
    d = Drawing(860, 330, "Which flow to take")
    d.box(20, 24, 180, 52, ["A trained model", "and a few batches"], fill=AMBER, edge=LINE)
    d.box(250, 24, 190, 52, ["Calibrate to INT8", "seconds, no labels"])
    d.arrow(200, 50, 250, 50)
    d.box(650, 24, 190, 52, ["Export", "files that agree"], fill=AMBER, edge=LINE)
    d.arrow(440, 50, 650, 50, "accurate enough")
    d.text(355, 108, "not enough", size=12, colour=SOFT, anchor="start")
    d.arrow(345, 76, 345, 134)
    rows = [
        ("A few layers are to blame", "Tune, DMQ, auto-calibration"),
        ("All layers, no labels", "Distillation"),
        ("All layers, a training set", "Quantisation-aware training"),
    ]
    for i, (left, right) in enumerate(rows):
        y = 134 + 44 * i
        d.box(250, y, 220, 34, [left], fill=AMBER, edge=LINE)
        d.box(530, y, 240, 34, [right])
        d.arrow(470, y + 17, 530, y + 17)
    d.arrow(805, 151, 805, 78)
    d.line([(770, 151), (805, 151)], SOFT)
    d.line([(770, 195), (805, 195), (805, 151)], SOFT)
    d.line([(770, 239), (805, 239), (805, 195)], SOFT)
    d.text(20, 300, "Fewer operations, too:", size=13, bold=True, anchor="start")
    d.text(
        20, 318, "channel pruning · 2:4 sparsity · tensor decomposition · or all in one training",
        size=13, colour=SOFT, anchor="start",
    )  # fmt: skip
    d.box(20, 134, 180, 78, ["A transformer", "Linear layers and caches:", "quantize, convert"])
    d.arrow(110, 76, 110, 134)
    return d


def scale_offset() -> Drawing:
    d = Drawing(760, 260, "A distribution, its clip bounds, and the steps between them")
    left, right, base = 60, 700, 190
    curve = []
    for i in range(161):
        t = i / 160
        x = left + (right - left) * t
        curve.append((x, base - 140 * math.exp(-(((t - 0.36) / 0.13) ** 2))))
    low, high = 150, 520
    d.parts.append(
        f'<rect x="{low}" y="34" width="{high - low}" height="{base - 34}" fill="{PALE}"/>'
    )
    for i in range(19):
        x = low + (high - low) * i / 18
        d.line([(x, base), (x, base + 8)], TEAL)
    d.line(curve, INK)
    d.line([(left, base), (right, base)], LINE)
    for x, name, code in ((low, "lower bound", "−128"), (high, "upper bound", "127")):
        d.line([(x, 34), (x, base)], RED, dashed=True)
        d.text(x, 26, name, size=12, colour=RED)
        d.text(x, base + 26, code, size=13)
    zero = low + (high - low) * 5 / 18
    d.line([(zero, 60), (zero, base)], SOFT, dashed=True)
    d.text(zero, 54, "zero", size=12, colour=SOFT)
    d.text(zero, base + 26, "offset", size=13, bold=True)
    step = (high - low) / 18
    d.text(high - 6 * step, base + 26, "one step = scale", size=12, colour=TEAL)
    d.text(610, base - 14, "cut off", size=12, colour=RED)
    d.text(380, 248, "whole numbers below, values above", size=12, colour=SOFT)
    return d


def three_files() -> Drawing:
    d = Drawing(860, 330, "One layer in each of the three files")
    columns = [
        (20, "Fake-quant", "ONNX Runtime, to measure",
         ["divide, round, clip", "Conv on whole numbers", "multiply by scales"], "all in float"),
        (306, "Deploy", "the accelerator",
         ["AscendQuant", "Conv, int8 × int8", "AscendDequant"], "int8 inside"),
        (592, "QDQ", "ONNX Runtime, TensorRT",
         ["QuantizeLinear", "Conv between Q/DQ pairs", "DequantizeLinear"], "fused to int8"),
    ]  # fmt: skip
    for x, name, use, steps, note in columns:
        d.text(x + 124, 34, name, size=16, bold=True)
        d.text(x + 124, 54, use, size=12, colour=SOFT)
        for i, step in enumerate(steps):
            y = 72 + 66 * i
            d.box(x, y, 248, 42, [step], fill=PALE if i != 1 else AMBER)
            if i:
                d.arrow(x + 124, y - 24, x + 124, y)
        d.text(x + 124, 274, note, size=12, colour=SOFT)
    d.text(430, 312, "the same scales, the same weight codes, and a check that they agree", size=13)
    return d


def config_record() -> Drawing:
    d = Drawing(860, 210, "Configuration, record and files")
    d.box(20, 24, 180, 56, ["Model", "yours, not changed"], fill=AMBER, edge=LINE)
    d.box(20, 122, 180, 56, ["Configuration", "what shall be done"])
    d.box(270, 70, 180, 60, ["Calibrate or train", "on your data"], fill=AMBER, edge=LINE)
    d.box(520, 70, 140, 60, ["Record", "what was found"])
    d.box(720, 24, 120, 44, ["fake-quant"])
    d.box(720, 80, 120, 44, ["deploy"])
    d.box(720, 136, 120, 44, ["QDQ"])
    d.arrow(200, 52, 270, 90)
    d.arrow(200, 150, 270, 112)
    d.arrow(450, 100, 520, 100)
    for y in (46, 102, 158):
        d.arrow(660, 100, 720, y)
    return d


def project_worker() -> Drawing:
    d = Drawing(860, 270, "Windows, the project folder, and its worker")
    for i, name in enumerate(("The page", "A second browser", "Notebook, script", "Command line")):
        d.box(20, 20 + 60 * i, 170, 44, [name])
        d.arrow(190, 42 + 60 * i, 320, 106 + 16 * i)
    d.box(
        320, 74, 230, 116,
        ["The project folder", "project.toml · ptq.json · record", "project.sqlite: edits, jobs,",
         "measurements, trials", "exports · checkpoints · log.py"],
        fill=AMBER, edge=LINE,
    )  # fmt: skip
    d.box(670, 84, 170, 96, ["Worker process", "holds the model,", "runs one job at a time"])
    d.arrow(550, 112, 670, 112, "jobs, cancel")
    d.arrow(670, 156, 550, 156, "numbered events")
    d.text(255, 262, "edits and requests; events since n", size=12, colour=SOFT)
    d.text(755, 210, "if it dies, the project is safe", size=12, colour=SOFT)
    return d


DIAGRAMS = {
    "which-flow": which_flow,
    "scale-offset": scale_offset,
    "three-files": three_files,
    "config-record": config_record,
    "project-worker": project_worker,
}


def main(folder: Path = IMAGES) -> None:
    for name, draw in DIAGRAMS.items():
        (folder / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
