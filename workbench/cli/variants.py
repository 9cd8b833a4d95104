"""The command for named variants of the configuration: list, save, take up, compare, delete."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from workbench.cli.command import Command, Option, Result

if TYPE_CHECKING:
    from workbench.studio.session import Session


def _vary(session: Session, given: argparse.Namespace) -> None:
    variants = session.variants
    if given.save is not None:
        variants.save(given.save, overwrite=given.overwrite)
    if given.use is not None:
        variants.use(given.use)
        session.flush()
    if given.delete is not None:
        variants.delete(given.delete)


def _varied(session: Session, given: argparse.Namespace) -> Result:
    table = session.variants.table
    found: Result = {
        "ok": True,
        "metric": session.summary.metric_name,
        "variants": table.astype(object).to_dict("records"),
    }
    if given.compare is not None:
        compared = session.variants.compare(given.compare)
        found["compared"] = [
            {"what": what, "name": name, "variant": one, "current": other}
            for (what, name), (one, other) in zip(
                compared.index, compared.itertuples(index=False), strict=True
            )
        ]
    return found


def _words(found: Result) -> str:
    from workbench.charts import formats

    metric = found["metric"]

    def figure(row: dict[str, Any]) -> str:
        measured = row["metric"] == row["metric"]
        value = row["metric"] if measured else row["predicted"]
        about = "" if measured or value != value else "≈ "
        return (
            f"{about}{formats.metric(value, metric)}, {formats.size(row['size'])}, "
            f"{formats.bit_operations(row['bops'])}, {row['n_float']} layers in float"
        )

    lines = [found["project"]]
    lines += [f"  {row['name']}: {row['problem'] or figure(row)}" for row in found["variants"]]
    if not found["variants"]:
        lines.append("  no variants yet")
    lines += [
        f"    {row['name']}: {row['variant']} | now: {row['current']}"
        for row in found.get("compared", ())
        if row["what"] == "layer"
    ]
    return "\n".join(lines)


VARIANTS = {
    "variants": Command(
        "list the named variants of the configuration; keep, take up, compare or delete one",
        _vary,
        _varied,
        (
            Option("--save", {"metavar": "NAME", "help": "keep the configuration as it is"}),
            Option("--overwrite", {"action": "store_true", "help": "what --save finds there"}),
            Option("--use", {"metavar": "NAME", "help": "make a variant the configuration"}),
            Option(
                "--compare",
                {"metavar": "NAME", "help": "layers in which it differs from what is there now"},
            ),
            Option("--delete", {"metavar": "NAME", "help": "delete a variant for good"}),
        ),
        _words,
    )
}
