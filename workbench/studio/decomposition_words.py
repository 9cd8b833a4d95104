"""What a dry run of a decomposition found, in figures and in words, for the page and the widgets.

Source: specification chapter 60.
"""

from __future__ import annotations

import math

from workbench.charts import formats
from workbench.charts.spoken import said
from workbench.charts.text import _, ngettext
from workbench.studio.pruning_state import DecomposedLayer, DecompositionState
from workbench.studio.pruning_words import Figure


def invitation() -> str:
    """What a decomposition is, before one was tried."""
    return _(
        "A wide convolution is replaced by a vertical and a horizontal one with fewer channels "
        "between them: about a third of its weights. Kernels of 3×3 need 64 channels on both "
        "sides. The dry run says what would become of each layer."
    )


def outcome(found: DecompositionState) -> str:
    """How many layers would be decomposed, in one sentence."""
    count = len(found.layers)
    if not count:
        return _("The model has no Conv2d.")
    if not found.changed:
        return ngettext(
            "The one convolution would stay as it is; the table says why.",
            "None of {count} convolutions would be decomposed; the table says why.",
            count,
        ).format(count=count)
    return ngettext(
        "{changed} of {count} convolution would be decomposed.",
        "{changed} of {count} convolutions would be decomposed.",
        count,
    ).format(changed=found.changed, count=count)


def figures(found: DecompositionState) -> tuple[Figure, ...]:
    """The cost of the whole model before and after; empty when no layer would change."""
    if not found.changed:
        return ()
    rows = (
        (_("multiply-accumulates"), found.macs, found.macs_after),
        (_("parameters"), found.parameters, found.parameters_after),
    )
    return tuple(
        Figure(title, formats.count(before), formats.count(after), formats.ratio(before, after))
        for title, before, after in rows
    )


def heads() -> tuple[str, ...]:
    """Titles of ``row``; those in ``NUMBERS`` stand over numbers."""
    return (
        _("layer"), _("kernel"), _("rank"), "MAC", _("parameters"), _("error"),
        _("stays, because"),
    )  # fmt: skip


NUMBERS = range(2, 6)


def row(layer: DecomposedLayer) -> tuple[str, ...]:
    """A convolution: kernel, rank, cost before and after, error, or why it stays."""
    return (
        layer.name,
        layer.kernel,
        f"{layer.rank:.0f}" if math.isfinite(layer.rank) else formats.UNKNOWN,
        _pair(layer.macs, layer.macs_after),
        _pair(layer.parameters, layer.parameters_after),
        formats.percent(layer.error, 1),
        said(layer.skipped),
    )


def _pair(before: int, after: int) -> str:
    texts = formats.count(before), formats.count(after)
    return texts[0] if before == after else " → ".join(texts)
