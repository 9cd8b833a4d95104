"""Module-level quantisation as a user of a session asks for it; part of a session."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from workbench.engine.errors import WrongState, WrongType, WrongValue
from workbench.studio import edits
from workbench.studio.format_choices import check_way, configs_of, default_way, dtype_note
from workbench.studio.formats_state import FLOAT_TYPES, graph_is_missing, stored_profiles

if TYPE_CHECKING:
    from workbench.engine.analysis.module_layers import ChannelProfile
    from workbench.studio.project import Project


class Formatted(Protocol):
    """Of a session, what choosing formats needs."""

    formats: pd.DataFrame
    layers: Any
    ways: dict[str, str]
    project: Project

    def start(self, kind: str, *, wait: bool = False, **args: Any) -> None: ...
    def poll(self) -> bool: ...
    def layer_ways(self) -> dict[str, str]: ...
    def format_configs(self) -> tuple[dict[str, Any], ...]: ...
    def _kinds(self) -> dict[str, str]: ...


class FormatsControl:
    """Compare number formats, choose one for each layer, quantise the modules."""

    @property
    def without_graph(self: Formatted) -> bool:
        """The model runs, but cannot be captured: only its modules can be quantised."""
        return graph_is_missing(self.project.store, self.layers)

    def compare_formats(
        self: Formatted, formats: Sequence[str] | None = None, *, wait: bool = True
    ) -> None:
        """Measure every Linear and Conv2d layer alone in each format; ``formats`` is the table.

        ``formats``: of int8, int4, int4 g32, int4 g64, float8, hifloat8, mxfp8, mxfp4, float4;
        None: all. Also found are the input channels (``channel_profiles``) and the output error
        with int8 inputs and weights, by minmax and by smoothquant.
        """
        from workbench.engine.analysis.module_formats import WEIGHTS

        chosen = list(WEIGHTS if formats is None else formats)
        unknown = [key for key in chosen if key not in WEIGHTS]
        if unknown or not chosen:
            raise WrongValue(
                f"formats is {formats!r}",
                where="compare_formats",
                hint=f"Allowed: one or more of {', '.join(WEIGHTS)}.",
            )
        self.start("formats", wait=wait, formats=chosen)

    def choose_way(self: Formatted, names: str | Iterable[str], way: str) -> None:
        """Quantise these layers this way: "float", or formats and algorithm.

        For example "int4 g32 · gptq" (weights alone) or "int8/int8 · smoothquant" (inputs/weights);
        all ways: ``workbench.engine.analysis.module_formats.WAYS``. Errors: ``WrongValue`` for an
        unknown way or layer, and for a way that does not take the layer; nothing is changed then.
        One step for ``undo``.
        """
        kinds = self._kinds()
        chosen: dict[str, str] = {}
        for name in [names] if isinstance(names, str) else names:
            if name not in kinds:
                raise WrongValue(
                    f"there is no layer {name!r}", where="choose_way", hint="See session.formats."
                )
            chosen[name] = check_way(name, kinds[name], way)
        one = next(iter(chosen)) if len(chosen) == 1 else f"{len(chosen)} layers"
        edits.choose_ways(self.project.store, chosen, label=f"{one}: {way}")
        self.poll()

    def layer_ways(self: Formatted) -> dict[str, str]:
        """How each layer is to be quantised, chosen or by default (int8 weights, minmax)."""
        return {
            name: self.ways.get(name, default_way(name, kind))
            for name, kind in self._kinds().items()
        }

    def format_configs(self: Formatted) -> tuple[dict[str, Any], ...]:
        """The choices as configurations of ``quantize``, one an algorithm; empty: all float."""
        return configs_of(self.layer_ways(), _batches(self.project))

    def format_obstacles(self: Formatted) -> dict[str, list[str]]:
        """Chosen ways that the float type of their layers is in the way of, and these layers.

        They stay float unless ``quantize_modules`` casts the weights or takes any float type.
        """
        table = self.formats
        dtypes = dict(zip(table["name"], table["dtype"], strict=True))
        return dtype_note(self.layer_ways(), dtypes)

    def channel_profiles(self: Formatted, names: Iterable[str]) -> tuple[ChannelProfile, ...]:
        """Input channels of those layers that ``compare_formats`` saw inputs of."""
        return stored_profiles(self.project.store, list(names))

    def quantize_modules(
        self: Formatted,
        config: str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        float_type: str = "keep",
        wait: bool = True,
    ) -> None:
        """Quantise a copy of the model, layer for layer, measure and write it; see ``quantized``.

        ``config``: the name of a preset, a dict that ``workbench.engine.quantize`` takes, several
        of them to be applied one after the other, or None: what ``choose_way`` chose. Presets look
        at all calibration batches. ``float_type``: "keep"; "any": also where a format was made for
        another float type; "bfloat16" or "float16": weights and inputs are cast first. The result
        is in ``exports/<project>_quantized``, which ``load_quantized_folder`` reads.
        """
        if float_type not in FLOAT_TYPES:
            raise WrongValue(
                f"float_type is {float_type!r}",
                where="quantize_modules",
                hint=f"Allowed: {', '.join(FLOAT_TYPES)}.",
            )
        if config is None:
            configs = list(self.format_configs())
            if not configs:
                raise WrongState(
                    "no layer is to be quantised",
                    where="quantize_modules",
                    hint="Call compare_formats() and choose_way(), or give a configuration.",
                )
        elif isinstance(config, str):
            configs = [_preset(config, _batches(self.project))]
        elif isinstance(config, Mapping):
            configs = [_checked(config)]
        elif isinstance(config, Sequence) and config:
            configs = [_checked(one) for one in config]
        else:
            raise WrongType(
                f"config is {config!r}",
                where="quantize_modules",
                hint="Give a preset's name, a dict, or a list of dicts.",
            )
        self.start("quantize", wait=wait, configs=configs, float_type=float_type)

    def _kinds(self: Formatted) -> dict[str, str]:
        table = self.formats
        return dict(zip(table["name"], table["type"], strict=True))


def _batches(project: Project) -> int:
    """Calibration batches, as they were counted or as they were asked for."""
    return int(project.store.get("batch_num") or project.settings.data.calibration_batches)


def _preset(name: str, batches: int) -> dict[str, Any]:
    from workbench.engine.flows.module_quantize_presets import PRESETS

    if name not in PRESETS:
        raise WrongValue(
            f"there is no preset {name!r}",
            where="quantize_modules",
            hint=f"Allowed: {', '.join(PRESETS)}.",
        )
    return _checked({**PRESETS[name], "batch_num": batches})


def _checked(config: Any) -> dict[str, Any]:
    """A copy that JSON can hold, after the engine's check."""
    from workbench.engine.flows.module_quantize_config import parse_config
    from workbench.engine.flows.module_quantize_selection import check_algorithms

    check_algorithms(parse_config(config))
    plain = copy.deepcopy(dict(config))
    for key in ("algorithm", "skip_layers"):
        if isinstance(plain.get(key), set | frozenset | tuple):
            plain[key] = sorted(plain[key])
    return plain
