"""Which operators of an exported program are a torch layer, and that layer built again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTIONS: Mapping[str, Callable[..., nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}
_TRANSPOSED: Mapping[str, Callable[..., nn.Module]] = {
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}
_NORMS: Mapping[int, Callable[..., nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: its path, the value it reads, its tensors by role, its settings."""

    kind: str
    path: str
    input: str = field(compare=False)
    tensors: Mapping[str, str]
    settings: Mapping[str, Any]


def layer_call(
    node: Mapping[str, Any],
    given: Mapping[str, Any],
    names: Mapping[str, str],
    rank: Callable[[str], int],
) -> LayerCall | None:
    """The layer that a node is, or None.

    ``given``: the node's arguments by name; ``names``: graph input -> path of its tensor; ``rank``:
    dimensions of a value.
    """
    kind = node["target"].split(".")[-2]
    plain = {name: _plain(argument) for name, argument in given.items()}
    roles: tuple[str, ...]
    if kind in _CONVOLUTIONS or kind in _TRANSPOSED or kind == "linear":
        roles = ("weight", "bias")
        settings = {key: value for key, value in plain.items() if key not in ("input", *roles)}
    elif kind == "batch_norm":
        roles = ("weight", "bias", "running_mean", "running_var")
        if plain.get("training") or given.get("running_mean", {}).get("as_tensor") is None:
            return None
        settings = {"eps": plain["eps"], "momentum": plain["momentum"]}
        settings["rank"] = rank(given["input"]["as_tensor"]["name"])
        if settings["rank"] not in _NORMS:
            return None
    elif kind == "avg_pool2d":
        return _pooling(node, given, plain)
    else:
        return None
    tensors: dict[str, str] = {}
    for role in roles:
        argument = given.get(role, {"as_none": True})
        tensor = argument.get("as_tensor") or (argument.get("as_optional_tensor") or {}).get(
            "as_tensor"
        )
        if tensor is None:
            continue
        path = names.get(tensor["name"], "")
        if not path.endswith(f".{role}"):
            return None
        tensors[role] = path
    paths = {path.rpartition(".")[0] for path in tensors.values()}
    if len(paths) != 1 or ("weight" not in tensors and kind != "batch_norm"):
        return None
    return LayerCall(kind, paths.pop(), given["input"]["as_tensor"]["name"], tensors, settings)


def _pooling(
    node: Mapping[str, Any], given: Mapping[str, Any], settings: Mapping[str, Any]
) -> LayerCall | None:
    """A pooling has no tensor to be known by; the node's scopes name the module it ran in."""
    scopes = str(node.get("metadata", {}).get("nn_module_stack", "")).split(";")
    parts = scopes[-1].split(",")
    if len(parts) != 3 or parts[2] != "torch.nn.modules.pooling.AvgPool2d":
        return None
    kept = {key: value for key, value in settings.items() if key != "self"}
    return LayerCall("avg_pool2d", parts[1], given["self"]["as_tensor"]["name"], {}, kept)


def build_layer(call: LayerCall, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module of a call with its tensors, in evaluation mode."""
    with torch.device("meta"):
        layer = _empty(call, tensors)
    for role in ("weight", "bias"):
        if role in tensors:
            setattr(layer, role, nn.Parameter(tensors[role]))
    for role in ("running_mean", "running_var"):
        if role in tensors:
            layer.register_buffer(role, tensors[role])
    if call.kind == "batch_norm":
        layer.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))
    return layer.eval()


def _empty(call: LayerCall, tensors: Mapping[str, Tensor]) -> nn.Module:
    settings = dict(call.settings)
    if call.kind == "avg_pool2d":
        return nn.AvgPool2d(**settings)
    if call.kind == "batch_norm":
        dims, channels = settings.pop("rank"), tensors["running_mean"].shape[0]
        return _NORMS[dims](channels, affine="weight" in tensors, **settings)
    weight, bias = tensors["weight"], "bias" in tensors
    if call.kind == "linear":
        return nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    groups = settings.get("groups", 1)
    kernel = tuple(weight.shape[2:])
    if call.kind in _CONVOLUTIONS:
        return _CONVOLUTIONS[call.kind](
            weight.shape[1] * groups, weight.shape[0], kernel, bias=bias, **settings
        )
    return _TRANSPOSED[call.kind](
        weight.shape[0], weight.shape[1] * groups, kernel, bias=bias, **settings
    )


def _plain(argument: Mapping[str, Any]) -> Any:
    """A constant argument; lists become tuples, as layers hold them."""
    ((kind, value),) = argument.items()
    if kind == "as_none":
        return None
    return tuple(value) if isinstance(value, list) else value
