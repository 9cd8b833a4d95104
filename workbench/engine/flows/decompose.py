"""Tensor decomposition: ``auto_decomposition`` and ``decompose_network``.

Source: specification chapter 60.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from workbench.engine.algorithms.tensor_decomposition import (
    METHODS,
    Decomposition,
    Method,
    decompose_weight,
)
from workbench.engine.errors import WrongValue
from workbench.engine.events import CancelToken, OnEvent, Progress, check, emit
from workbench.engine.files.atomic import ensure_writable
from workbench.engine.files.decompose_info import (
    DecomposedConv,
    read_decompose_info,
    write_decompose_info,
)
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.flows.arguments import check_model, check_names, check_path, check_type
from workbench.engine.flows.decompose_modules import PairBuilder, put_in_place
from workbench.engine.flows.decompose_plan import (
    Candidate,
    describe,
    find_candidates,
    mac_ratio,
)
from workbench.engine.flows.decompose_ranks import RankRule

logger = logging.getLogger("workbench.engine.flows")

Changes = dict[str, list[str]]


@dataclass(frozen=True)
class LayerReport:
    """One convolution: what was done with it, or would be.

    ``mode`` is ``UNCHANGE`` for a layer that stays; ``L`` and ``M`` are the sizes of its unfolded
    kernel, ``EV`` the number of singular values above the noise (None when the rule did not ask).
    ``macs`` are multiply-accumulates at one position of the layer's output. ``skipped``: why it
    stays a convolution, None when it does not.
    """

    name: str
    mode: str
    L: int
    M: int
    EV: int | None
    rank: int | None
    relative_error: float | None
    parameters: int
    parameters_after: int
    macs: int
    macs_after: int
    seconds: float
    skipped: str | None


def auto_decomposition(
    model: nn.Module,
    decompose_info_path: str | os.PathLike[str] | None = None,
    *,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    rank_rule: str | int | Mapping[str, int] = "compat",
    energy: float = 0.9,
    max_error: float | None = None,
    min_gain: float = 0.0,
    method: Method = "gram",
    balance: bool = False,
    dry_run: bool = False,
    compat: bool = False,
    seed: int = 0,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> tuple[nn.Module, Changes]:
    """Replace large convolutions of ``model``, in place, by pairs of smaller ones.

    Returns the model and ``{"a.conv": ["a.conv.0", "a.conv.1"]}`` for what was replaced. A bare
    ``Conv2d`` is not changed; its pair is returned. Call it before an optimiser or DDP sees the
    parameters: they are new ones. ``decompose_info_path``: what ``decompose_network`` reads.
    ``model.decomposition_report_`` then holds a dict for every ``Conv2d`` (see ``LayerReport``).

    ``include``, ``exclude``: patterns of layer names. ``rank_rule``: ``compat`` (the reference's),
    ``scale_free`` (the same for any scale of the weights), ``energy`` (keep that share of the
    squares), a rank, or ranks by name. Layers stay whose relative error would exceed ``max_error``
    or whose pair would not save more than ``min_gain`` of the multiply-accumulates; ``compat`` asks
    for no gain. ``balance`` shares the singular values between the two layers, which suits later
    quantisation per tensor. ``dry_run`` only reports. ``seed``: of the ``randomised`` method.

    Errors, all before anything is changed: ``TypeError``; ``ValueError`` for inf or NaN in a weight
    and for options out of range; ``OSError`` for a file that cannot be written; ``Cancelled``.

    Source: specification chapter 60 sections 1.1, 9 and 10.
    """
    function = "auto_decomposition"
    check_model(function, model)
    check_type(
        function, "decompose_info_path", decompose_info_path, str, os.PathLike, optional=True
    )
    rule = check_options(function, include, exclude, rank_rule, energy, max_error, min_gain, method)
    if compat and rank_rule != "compat":
        raise WrongValue(
            f"rank_rule is {rank_rule!r}; allowed with compat: 'compat'", where=f"{function}()"
        )
    path = None
    if decompose_info_path is not None:
        check_path(function, "decompose_info_path", os.fspath(decompose_info_path))
        path = Path(decompose_info_path).absolute()
        ensure_writable(path)
    candidates = find_candidates(model, include, exclude)
    rule.check(candidates)
    for candidate in candidates:
        if candidate.unusual:
            logger.warning("layer %s is not decomposed: %s", candidate.label, candidate.skipped)

    job = _Job(rule, method, max_error, -math.inf if compat else min_gain, balance, dry_run, seed)
    done = job.run(candidates, on_event, cancel)
    report = [asdict(_row(candidate, done[candidate.name])) for candidate in candidates]
    pairs, infos = _pairs(candidates, done)
    if infos and path is not None:
        write_decompose_info(path, infos, compat=compat)
    result, changes = put_in_place(model, pairs)
    result.decomposition_report_ = report  # type: ignore[assignment]
    if not changes and not dry_run:
        _say_why_nothing(report)
    return result, changes


def decompose_network(
    model: nn.Module, decompose_info_path: str | os.PathLike[str]
) -> tuple[nn.Module, Changes]:
    """Give ``model``, in place, the pairs that ``auto_decomposition`` recorded in the file.

    No weight is computed: the new layers start at random, biases included, for the state dict that
    is loaded next. Returns what ``auto_decomposition`` returned.

    Errors, all before anything is changed: ``TypeError``; ``FileNotFoundError``; ``ValueError``
    for what is wrong in the file and for every layer that is not in the model, is no ``Conv2d`` or
    differs from the file's.

    Source: specification chapter 60 sections 1.2 and 10 (D7).
    """
    function = "decompose_network"
    check_model(function, model)
    check_type(function, "decompose_info_path", decompose_info_path, str, os.PathLike)
    infos = read_decompose_info(decompose_info_path)
    modules = dict(model.named_modules(remove_duplicate=False))
    problems: list[Problem] = []
    builder = PairBuilder()
    layers: list[tuple[DecomposedConv, nn.Conv2d]] = []
    for info in infos:
        layer = modules.get(info.name)
        if layer is None:
            problems.append(Problem(info.name, "name", repr(info.name), "a module of the model"))
        elif not isinstance(layer, nn.Conv2d):
            problems.append(Problem(info.name, "type", type(layer).__name__, "Conv2d"))
        else:
            problems.extend(_differences(info, layer))
            layers.append((info, layer))
    raise_problems(problems, source=str(decompose_info_path))
    pairs = {layer: builder.build(layer, info, None) for info, layer in layers}
    return put_in_place(model, pairs)


def _differences(info: DecomposedConv, layer: nn.Conv2d) -> list[Problem]:
    found = describe(info.name, layer, info.rank, None)
    keys = ["in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups"]
    keys += [key for key in ("padding", "has_bias") if getattr(info, key) is not None]
    return [
        Problem(info.name, key, str(getattr(info, key)), f"{getattr(found, key)}, the model's")
        for key in keys
        if getattr(info, key) != getattr(found, key)
    ]


@dataclass(frozen=True)
class _Outcome:
    """What came out for one layer; ``skipped`` empty: it is decomposed."""

    skipped: str = ""
    result: Decomposition | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class _Job:
    rule: RankRule
    method: Method
    max_error: float | None
    min_gain: float
    balance: bool
    dry_run: bool
    seed: int

    def run(
        self, candidates: Sequence[Candidate], on_event: OnEvent | None, cancel: CancelToken | None
    ) -> dict[str, _Outcome]:
        """The outcome of every layer by name; a weight that several share is done once."""
        groups: dict[int, list[Candidate]] = {}
        for candidate in candidates:
            if not candidate.skipped:
                groups.setdefault(id(candidate.weight), []).append(candidate)
        costs = {key: _cost(group[0]) for key, group in groups.items()}
        total = sum(costs.values())
        done = {c.name: _Outcome(c.skipped) for c in candidates}
        finished = 0
        for key, group in groups.items():
            check(cancel)
            emit(on_event, Progress("decomposition", finished, total))
            outcome = self._decompose(group)
            for number, candidate in enumerate(group):
                seconds = 0.0 if number else outcome.seconds
                done[candidate.name] = _Outcome(outcome.skipped, outcome.result, seconds)
            finished += costs[key]
        check(cancel)
        emit(on_event, Progress("decomposition", total, total))
        return done

    def _decompose(self, group: Sequence[Candidate]) -> _Outcome:
        first = group[0]
        if reason := self._no_gain(group, self.rule.least(first)):
            return _Outcome(reason)
        start = time.perf_counter()
        choose, method = self.rule.chooser(first, self.method)
        result = decompose_weight(
            first.weight.detach().cpu(),
            choose,
            method=method,
            balance=self.balance,
            max_error=self.max_error,
            only_error=self.dry_run,
            seed=self.seed,
        )
        if result.choice.estimated == 0:
            logger.warning("layer %s: no singular value stands out of the noise", first.label)
        skipped = self._no_gain(group, result.choice.rank)
        if not skipped and self.max_error is not None and result.relative_error > self.max_error:
            skipped = f"its relative error is {result.relative_error:.3g}, above max_error"
        return _Outcome(skipped, result, time.perf_counter() - start)

    def _no_gain(self, group: Sequence[Candidate], rank: int) -> str:
        ratio = max(mac_ratio(candidate.layer, rank) for candidate in group)
        if ratio < 1 - self.min_gain:
            return ""
        return f"the pair would take {ratio:.3g} of its multiply-accumulates (rank {rank})"


def _cost(candidate: Candidate) -> int:
    """Estimated work in millions of multiplications, for the progress."""
    split = candidate.split
    rows, columns = split.rows, split.columns
    return 1 + int(rows**2 * (columns + 4 * rows / 3 + rows / 2) / 1e6)


def _pairs(
    candidates: Sequence[Candidate], done: Mapping[str, _Outcome]
) -> tuple[dict[nn.Conv2d, nn.Sequential], list[DecomposedConv]]:
    builder = PairBuilder()
    pairs: dict[nn.Conv2d, nn.Sequential] = {}
    infos: list[DecomposedConv] = []
    for candidate in candidates:
        outcome = done[candidate.name]
        result = outcome.result
        if outcome.skipped or result is None or result.first is None or result.last is None:
            continue
        error = result.relative_error
        info = describe(candidate.name, candidate.layer, result.choice.rank, error)
        kernels = (result.first, result.last)
        pairs[candidate.layer] = builder.build(candidate.layer, info, kernels)
        infos.append(info)
    return pairs, infos


def _row(candidate: Candidate, outcome: _Outcome) -> LayerReport:
    split, layer, result = candidate.split, candidate.layer, outcome.result
    weights = math.prod(split.shape)
    bias = split.shape[0] if layer.bias is not None else 0
    weights_after = macs_after = weights
    if result is not None and not outcome.skipped:
        rank = result.choice.rank
        weights_after = split.multiply_accumulates(rank, (1, 1))
        macs_after = split.multiply_accumulates(rank, (layer.stride[0], layer.stride[1]))
    return LayerReport(
        name=candidate.name,
        mode="UNCHANGE" if outcome.skipped else split.mode,
        L=split.rows,
        M=split.columns,
        EV=result.choice.estimated if result else None,
        rank=result.choice.rank if result else None,
        relative_error=result.relative_error if result else None,
        parameters=weights + bias,
        parameters_after=weights_after + bias,
        macs=weights,
        macs_after=macs_after,
        seconds=outcome.seconds,
        skipped=outcome.skipped or None,
    )


def _say_why_nothing(report: Sequence[Mapping[str, Any]]) -> None:
    reasons = Counter(row["skipped"] for row in report)
    text = "; ".join(f"{reason} ({count})" for reason, count in reasons.items())
    logger.warning("nothing was decomposed: %s", text or "the model has no Conv2d")


def check_options(
    function: str,
    include: Any,
    exclude: Any,
    rank_rule: Any,
    energy: Any,
    max_error: Any,
    min_gain: Any,
    method: Any,
) -> RankRule:
    """Errors: ``TypeError`` and ``ValueError``, without a look at a model."""
    check_names(function, "include", include)
    check_names(function, "exclude", exclude)
    for argument, value in (("energy", energy), ("min_gain", min_gain), ("max_error", max_error)):
        check_type(function, argument, value, float, int, optional=argument == "max_error")
    problems = []
    if not 0 < energy <= 1:
        problems.append(f"energy is {energy}; allowed: above 0, at most 1")
    if not min_gain < 1:
        problems.append(f"min_gain is {min_gain}; allowed: below 1")
    if max_error is not None and not max_error >= 0:
        problems.append(f"max_error is {max_error}; allowed: 0 or more, or None")
    if method not in METHODS:
        problems.append(f"method is {method!r}; allowed: {', '.join(METHODS)}")
    if problems:
        raise WrongValue("; ".join(problems), where=f"{function}()")
    return RankRule(rank_rule, energy)
