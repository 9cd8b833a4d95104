"""``python -m benchmarks [NAME…]``: all figures, or some; a table, and JSON in ``bench.json``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.harness import in_child

ON_ONE_AND_TWO_THREADS = ("calibration", "similarity", "latency")
ON_TWO_THREADS = ("ptq", "memory", "search", "page")


def main() -> None:
    chosen = sys.argv[1:]
    rows = []
    console = Console()
    for name in (*ON_ONE_AND_TWO_THREADS, *ON_TWO_THREADS):
        if chosen and name not in chosen:
            continue
        for threads in (1, 2) if name in ON_ONE_AND_TWO_THREADS else (2,):
            console.print(f"[dim]{name}, {threads} thread(s) …")
            rows += in_child(f"benchmarks.{name}", threads)
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
    Path("bench.json").write_text(
        json.dumps([{**asdict(r), "verdict": r.verdict} for r in rows], indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
