"""``python -m benchmarks [NAME…]``: all figures, or some; a table, and JSON in ``bench.json``."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Row, in_child

ON_ONE_AND_TWO_THREADS = ("calibration", "similarity", "latency", "formats", "qat")
ON_TWO_THREADS = (
    "observers",
    "accuracy",
    "ptq",
    "config",
    "memory",
    "search",
    "page",
    "decompose",
    "module_quantize",
    "distill",
    "selective",
    "compressed",
)
ON_REQUEST = ("ada", "bigmodel", "qat_accuracy", "gptq", "folder", "prune", "coverage")
"""Only when named: minutes, and for one of them gigabytes of memory and disk."""

EVERYTHING = (*ON_ONE_AND_TWO_THREADS, *ON_TWO_THREADS)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the targets; prints a table and writes bench.json.",
        epilog=f"Only when named: {', '.join(ON_REQUEST)} (a model of 3 GB: about 12 GB of memory, "
        "14 GB of disk and several minutes; WORKBENCH_BIG_GB=0.5 for a small one).",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(EVERYTHING)}")
    chosen = parser.parse_args().names or EVERYTHING
    if unknown := sorted(set(chosen) - {*EVERYTHING, *ON_REQUEST}):
        parser.error(f"there is no {', '.join(unknown)}")
    rows: list[Row] = []
    console = Console()
    for name in (*EVERYTHING, *ON_REQUEST):
        if name not in chosen:
            continue
        for threads in (1, 2) if name in ON_ONE_AND_TWO_THREADS else (2,):
            console.print(f"[dim]{name}, {threads} thread(s) …")
            rows += in_child(f"benchmarks.{name}", threads)
            write(rows)
    table = Table("figure", "threads", "value", "target", "", "note")
    for row in rows:
        colour = {"met": "green", "MISSED": "red"}.get(row.verdict, "")
        target = f"≤ {row.target:g}" if row.target else "report"
        table.add_row(
            row.figure,
            str(row.threads),
            f"{row.value:.3g} {row.unit}",
            target,
            f"[{colour}]{row.verdict}[/]" if colour else "",
            row.note,
        )
    console.print(table)


def write(rows: list[Row]) -> None:
    """After each benchmark, so that a run that is stopped loses nothing it measured."""
    Path("bench.json").write_text(
        json.dumps([{**asdict(r), "verdict": r.verdict} for r in rows], indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
