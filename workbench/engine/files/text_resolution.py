"""Which settings of a text configuration a layer gets (chapter 10 sections 5.2 and 5.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from workbench.engine.files.config import LayerConfig, WeightParams
from workbench.engine.files.layer_rules import (
    LayerFacts,
    TypeRules,
    channel_wise_words,
    int16_obstacle,
    rules_for,
    rules_of_type,
    weight_bits_obstacle,
)
from workbench.engine.files.problems import Problem
from workbench.engine.files.text_blocks import Block


@dataclass(frozen=True)
class Change:
    """What a block asks for and a layer cannot have, and what it gets instead.

    ``strict``: an override must not ask for it; else, and from the common block, the layer gets
    ``instead``, with a log line of level WARNING (``warn``) or INFO.
    """

    field: str
    value: str
    allowed: str
    instead: str
    warn: bool = True
    strict: bool = True

    def problem(self, layer: str, where: str) -> Problem:
        return Problem(layer, f"{where}: {self.field}", self.value, self.allowed)


@dataclass(frozen=True)
class Resolution:
    """Everything that decides beside the chosen block: the global switches and the common one."""

    activation_offset: bool = True
    channel_wise_linear: bool = False
    common: Block | None = None

    def rules(self, layer: LayerFacts) -> TypeRules:
        return rules_for(layer, channel_wise_linear=self.channel_wise_linear)

    def resolve(
        self, layer: LayerFacts, block: Block | None, *, enabled: bool = True
    ) -> tuple[LayerConfig, list[Change]]:
        """The layer's entry, and what of ``block`` it could not have; None: no block at all."""
        chosen = block or Block()
        changes = _changes(chosen, layer.type, self.rules(layer), layer)
        fields = {change.field.rpartition(".")[2] for change in changes}
        activation = replace(chosen.activation, asymmetric=self._asymmetric(layer, chosen))
        if "dst_type" in fields:
            activation = replace(activation, num_bits=8)
        weight: WeightParams | None = replace(
            chosen.weight, channel_wise=self._channel_wise(layer, chosen)
        )
        if "ada_quantize" in fields:
            weight = None
        elif weight is not None and "quant_bits" in fields:
            weight = replace(weight, num_bits=8)
        entry = LayerConfig(
            quant_enable=enabled,
            activation=activation,
            weight=weight,
            dmq_balancer_param=None if "dmq_balancer" in fields else chosen.dmq_balancer_param,
        )
        return entry, changes

    def _asymmetric(self, layer: LayerFacts, block: Block) -> bool:
        if not self.rules(layer).asymmetric:
            return False
        own = block.activation.asymmetric
        if own is None and self.common is not None:
            shared = self.common.activation
            if shared.act_algo == block.activation.act_algo:
                own = shared.asymmetric
        return self.activation_offset if own is None else own

    def _channel_wise(self, layer: LayerFacts, block: Block) -> bool:
        possible = self.rules(layer).channel_wise
        return possible if block.channel_wise is None else possible and block.channel_wise


def type_changes(kind: str, block: Block, *, channel_wise_linear: bool) -> list[Change]:
    """What no layer of a type can have of ``block``."""
    rules = rules_of_type(kind, channel_wise_linear=channel_wise_linear)
    return _changes(block, kind, rules, None)


def _changes(block: Block, kind: str, rules: TypeRules, layer: LayerFacts | None) -> list[Change]:
    """The rows of section 5.3 that need a type, and with ``layer`` those that need a layer."""
    found: list[Change] = []
    algorithm = f"{block.activation.act_algo}_quantize"
    if block.activation.num_bits == 16:
        obstacle = int16_obstacle(layer) if layer is not None else _int16_words(kind, rules)
        if obstacle:
            found.append(Change(f"{algorithm}.dst_type", "INT16", obstacle, "8 bits"))
    if block.activation.asymmetric and not rules.asymmetric:
        name = f"{algorithm}.asymmetric"
        found.append(Change(name, "true", f"false for {kind}", "false", warn=False))
    if block.dmq_balancer_param is not None and not rules.dmq:
        value, allowed = (
            str(block.dmq_balancer_param),
            f"nothing; {kind} has no channels to balance",
        )
        found.append(Change("dmq_balancer", value, allowed, "no balancer"))
    if block.channel_wise and not rules.channel_wise:
        name = f"{block.weight.wts_algo}.channel_wise"
        found.append(Change(name, "true", channel_wise_words(kind), "false", warn=False))
    if block.weight.wts_algo == "ada_quantize" and not rules.ada:
        allowed = f"arq_quantize for {kind}"
        found.append(Change("ada_quantize", "given", allowed, "arq_quantize", warn=False))
    bits = block.weight.num_bits
    if bits in (6, 7) and not rules.six_seven_bits:
        allowed = "4, 8; 6 and 7 are for Conv2d"
        found.append(Change("arq_quantize.quant_bits", str(bits), allowed, "8 bits"))
    elif layer is not None and (words := weight_bits_obstacle(layer, bits)):
        found.append(Change("arq_quantize.quant_bits", str(bits), words, "8 bits", strict=False))
    return found


def _int16_words(kind: str, rules: TypeRules) -> str:
    return f"INT8; {kind} layers take 4 or 8 bits" if rules.int16 == "no" else ""
