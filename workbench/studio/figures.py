"""The figures at the top: measured or predicted metric, size, bit-operations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.engine.analysis.cost import Cost, model_cost
from workbench.engine.errors import WorkbenchError
from workbench.engine.graph.layers import LayerInfo
from workbench.studio import ptq
from workbench.studio.project import Project
from workbench.studio.results import Trial
from workbench.studio.state import NAN, Summary

if TYPE_CHECKING:
    from workbench.engine.files.config import QuantConfig

TRAIN_NOTICES = "train_notices"
"""What is to be known of the training data, among what a project keeps of its model and data."""


@dataclass(frozen=True)
class Judged:
    """What is known of a configuration: what it costs, its metric as predicted and as measured.

    Units as in ``Summary``; ``metric`` is NaN where it was never evaluated.
    """

    config_hash: str
    size: float
    bops: float
    predicted: float
    metric: float


class Figures:
    """Keeps the configuration in the engine's form, edit by edit, and what is known of it.

    Rebuilding a thousand layers at each click would cost more than a click may.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._infos: Sequence[LayerInfo] = ()
        self._by_name: dict[str, LayerInfo] = {}
        self._columns: dict[str, list[Any]] = {}
        self._config: QuantConfig | None = None
        self._measured: dict[str, tuple[bool, float]] = {}
        self._evaluated: dict[str, float] = {}
        self._known: Mapping[str, Any] = {}
        self._float_bytes = 0
        self._plain = self._cost = Cost(0, 0)
        self._rows: list[str] = []
        self._batch_num = project.settings.data.calibration_batches

    @property
    def batch_num(self) -> int:
        return self._batch_num

    def reset(self, infos: Sequence[LayerInfo], table: pd.DataFrame) -> None:
        self._infos = infos
        self._by_name = {layer.name: layer for layer in infos}
        self._columns = ptq.columns_of(table)
        self._float_bytes = int(self._project.store.get("float_bytes", 0))
        settings = self._project.settings
        self._batch_num = int(
            self._project.store.get("batch_num", settings.data.calibration_batches)
        )
        self.forget()
        self._config = None
        if any(layer.eligible for layer in infos):
            self._config = ptq.from_columns(infos, self._columns, self.batch_num)
        self._plain = model_cost(self._by_name, None, self._float_bytes)
        self._cost = model_cost(self._by_name, self._config, self._float_bytes)
        self._rows = [ptq.row_text(x, self._columns, i) for i, x in enumerate(infos)]

    def edit(self, table: pd.DataFrame, rows: Sequence[int]) -> None:
        if self._config is None:
            return
        for column, values in self._columns.items():
            array = table[column].to_numpy()
            for row in rows:
                value = array[row]
                values[row] = value.item() if hasattr(value, "item") else value
        names = [self._infos[row].name for row in rows]
        self._add_cost(names, -1)
        self._config = ptq.with_rows(self._config, self._infos, self._columns, rows)
        self._add_cost(names, 1)
        for row in rows:
            self._rows[row] = ptq.row_text(self._infos[row], self._columns, row)

    def _add_cost(self, names: Sequence[str], sign: int) -> None:
        """Costs add up layer by layer, so an edit only needs those of the layers it changes."""
        part = model_cost({name: self._by_name[name] for name in names}, self._config, 0)
        self._cost = Cost(
            self._cost.size_bytes + sign * part.size_bytes,
            self._cost.bit_operations + sign * part.bit_operations,
        )

    def generated_columns(self) -> dict[str, list[Any]]:
        """The settings that a generated configuration has, by column and row."""
        return ptq.generated_columns(self._infos)

    def learn(self, trials: Iterable[Trial]) -> None:
        """A trial's metric counts for its configuration; a real calibration outranks a probe."""
        for trial in trials:
            if trial.metric is None or trial.kind == "float":
                continue
            real = trial.kind in ("final", "all")
            if real or not self._measured.get(trial.config_hash, (False, NAN))[0]:
                self._measured[trial.config_hash] = (real, trial.metric)

    def learn_evaluations(self, found: Mapping[str, float]) -> None:
        """Metrics that were measured in the background, by configuration hash."""
        self._evaluated.update(found)

    def forget(self) -> None:
        """What ``learn`` and ``learn_evaluations`` were told of may be gone."""
        self._measured, self._evaluated = {}, {}

    def known(self, values: Mapping[str, Any]) -> None:
        self._known = values

    @property
    def measured_float(self) -> float:
        return _number(self._known.get("metric_float"))

    def config(self) -> QuantConfig:
        if self._config is None:
            raise WorkbenchError(
                "the model's layers are not known yet, or none of them can be quantised",
                where=self._project.name,
                hint="Wait until the project is open; the Model page gives each layer's reason.",
            )
        return self._config

    def hash(self) -> str:
        return ptq.hash_of(self._rows, self.batch_num)

    def summary(self, table: pd.DataFrame) -> Summary:
        settings, known = self._project.settings, self._known
        metric, predicted = self._metric(table)
        size_float = bops_float = size = bops = NAN
        if self._infos and self._float_bytes:
            size_float = float(self._plain.size_bytes)
            bops_float = float(self._plain.bit_operations)
            size, bops = float(self._cost.size_bytes), float(self._cost.bit_operations)
        empty = table.empty
        return Summary(
            model=str(known.get("model") or settings.source.name or settings.name),
            data=str(known.get("data") or settings.data.name or settings.data.kind),
            metric_name=str(known.get("metric_name") or settings.metric),
            metric_float=self.measured_float,
            metric_current=metric,
            metric_is_prediction=predicted,
            size_float=size_float,
            size_current=size,
            bops_float=bops_float,
            bops_current=bops,
            quantized=0 if empty else int((table["quant_enable"] & table["eligible"]).sum()),
            eligible=0 if empty else int(table["eligible"].sum()),
            notices=tuple(map(str, (*known.get("notices", ()), *known.get(TRAIN_NOTICES, ())))),
        )

    @property
    def analysed(self) -> bool:
        """Is there what predictions and cheap evaluations need?"""
        return not math.isnan(self.measured_float - _number(self._known.get("metric_all")))

    def judge(self, table: pd.DataFrame) -> Judged:
        """What is known of the configuration that ``table`` holds, whether it is the current one.

        Errors: ``WorkbenchError`` while the layers are not known.
        """
        self.config()
        columns = ptq.columns_of(table)
        config = ptq.from_columns(self._infos, columns, self.batch_num)
        cost = model_cost(self._by_name, config, self._float_bytes)
        config_hash = ptq.config_hash(self._infos, columns, self.batch_num)
        known = bool(self._float_bytes)
        return Judged(
            config_hash,
            float(cost.size_bytes) if known else NAN,
            float(cost.bit_operations) if known else NAN,
            self._prediction(table),
            self.measured(table, config_hash),
        )

    def _metric(self, table: pd.DataFrame) -> tuple[float, bool]:
        """(metric, is it a prediction): measured if this configuration was."""
        if table.empty:
            return NAN, False
        measured = self.measured(table, self.hash())
        if not math.isnan(measured):
            return measured, False
        predicted = self._prediction(table)
        return predicted, not math.isnan(predicted)

    def measured(self, table: pd.DataFrame, config_hash: str) -> float:
        """The metric of a configuration if it was evaluated, else NaN."""
        if not table["quant_enable"].to_numpy().any():
            return self.measured_float
        found = self._measured.get(config_hash)
        if found is not None:
            return found[1]
        return self._evaluated.get(config_hash, NAN)

    def _prediction(self, table: pd.DataFrame) -> float:
        """Decision 18: the drop of everything quantised, by each layer's share of the error."""
        drop = self.measured_float - _number(self._known.get("metric_all"))
        if math.isnan(drop):
            return NAN
        quantized = table["quant_enable"].to_numpy()
        errors = table["error"].to_numpy()
        eligible = table["eligible"].to_numpy()
        total = float(np.sum(errors[eligible]))
        chosen = float(np.sum(errors[eligible & quantized]))
        share = chosen / total if total > 0 else float(quantized.sum() / max(1, eligible.sum()))
        return self.measured_float - drop * share


def _number(value: Any) -> float:
    return NAN if value is None else float(value)
