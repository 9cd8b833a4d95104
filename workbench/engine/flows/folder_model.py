"""A model without weights, and the weights of a folder put into its parts and taken out again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from workbench.engine.errors import MissingFile, WorkbenchError, WrongState, WrongValue
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.files.reading import read_text
from workbench.engine.files.tensor_folder import TensorFolder

CONFIG = "config.json"


class MissingPackage(WorkbenchError, ImportError):
    """An optional package that a call needs is not installed."""


@contextmanager
def empty_weights() -> Iterator[None]:
    """Modules made inside have their parameters on the meta device: shapes without memory.

    Buffers are real, so that tables computed at construction (rotary frequencies) are there.
    """

    def to_meta(_module: nn.Module, _name: str, parameter: Any) -> Any:
        # A parameter that is there already may be shared: it must stay the same object.
        if parameter is None or parameter.device.type == "meta":
            return parameter
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)
    try:
        yield
    finally:
        handle.remove()


def model_of_folder(folder: Path) -> nn.Module:
    """The model that ``config.json`` describes, from ``transformers``, without weights.

    Code that lies in the folder is never run. Errors: ``FileNotFoundError``; ``ImportError`` with
    what to install; ``ValueError`` for a model that transformers does not know.
    """
    if not (folder / CONFIG).is_file():
        raise MissingFile(
            f"there is no {CONFIG} that describes the model",
            where=str(folder),
            hint="Give the model itself: model=...",
        )
    text = read_text(folder / CONFIG, what="model configuration")
    try:
        import transformers
    except ImportError:
        raise MissingPackage(
            "a model from a folder needs the package transformers",
            where=str(folder),
            hint="Install compression-workbench[hf], or give the model: model=...",
        ) from None
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        # Names in a file choose among the package's own model classes, and nothing else of it.
        named = [getattr(transformers, name, None) for name in config.architectures or []]
        base = transformers.PreTrainedModel
        known = [cls for cls in named if isinstance(cls, type) and issubclass(cls, base)]
        with empty_weights():
            if known:
                return known[0](config).eval()  # type: ignore[no-any-return]
            auto = transformers.AutoModelForCausalLM
            return auto.from_config(config, trust_remote_code=False).eval()  # type: ignore[no-any-return]
    except (ValueError, KeyError, OSError) as error:
        model_type = _model_type(text)
        raise WrongValue(
            f"transformers cannot build a model of type {model_type!r}: {error}",
            where=str(folder / CONFIG),
            hint="Code in the folder is not run; give the model yourself: model=...",
        ) from error


class FolderWeights:
    """Fills parts of a model from a folder and empties them again."""

    def __init__(self, model: nn.Module, tensors: TensorFolder) -> None:
        self._tensors = tensors
        self._source: dict[tuple[nn.Module, str], str] = {}
        self._check(model)

    def fill(self, part: nn.Module, *, without: Iterable[nn.Module] = ()) -> None:
        """Load the parameters and persistent buffers of ``part``, those of ``without`` left out."""
        left_out = {module for root in without for module in root.modules()}
        places = [
            (module, name)
            for module in part.modules()
            if module not in left_out
            for name in (*module._parameters, *module._buffers)
            if (module, name) in self._source
        ]
        loaded = self._tensors.load({self._source[place] for place in places})
        shared: dict[str, nn.Parameter] = {}
        for module, name in places:
            source = self._source[module, name]
            if name in module._buffers:
                module._buffers[name] = loaded[source]
            else:
                if source not in shared:
                    shared[source] = nn.Parameter(loaded[source], requires_grad=False)
                module._parameters[name] = shared[source]

    def _check(self, model: nn.Module) -> None:
        """Find the stored tensor of every place; refuse a folder that does not fit.

        Places take the dtype of what is stored, so that rules on types see the real ones.
        """
        stored = self._tensors.tensors
        problems: list[Problem] = []
        by_object: dict[int, list[tuple[nn.Module, str, str]]] = {}
        persistent = set(model.state_dict())
        for path, module in model.named_modules(remove_duplicate=False):
            for name, value in (*module._parameters.items(), *module._buffers.items()):
                full = f"{path}.{name}" if path else name
                if value is not None and full in persistent:
                    by_object.setdefault(id(value), []).append((module, name, full))
        for places in by_object.values():
            module, name, full = places[0]
            source = next((place[2] for place in places if place[2] in stored), None)
            value = getattr(module, name)
            if source is None:
                if name in module._parameters:
                    problems.append(Problem("", full, "missing", "a tensor of the folder"))
                continue
            found = stored[source]
            if found.shape != tuple(value.shape):
                allowed = str(list(value.shape))
                problems.append(Problem("", source, f"of shape {list(found.shape)}", allowed))
                continue
            typed: Tensor = torch.empty(found.shape, dtype=found.dtype, device="meta")
            fresh = nn.Parameter(typed, requires_grad=False)
            for owner, key, _ in places:
                self._source[owner, key] = source
                if key in owner._parameters:
                    owner._parameters[key] = fresh
        raise_problems(problems, source=str(self._tensors.folder))


def state_of(model: nn.Module, part: str, *, without: Iterable[str] = ()) -> dict[str, Tensor]:
    """Tensors below the path ``part`` ('': all) by full name, each object once."""
    start = f"{part}." if part else ""
    left_out = tuple(f"{path}." for path in without)
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not name.startswith(start) or name.startswith(left_out or ("\0",)):
            continue
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if tensor.device.type == "meta":
            raise WrongState(f"{name} was not loaded", where="quantize_folder()")
        found[name] = tensor
    return found


def empty(part: nn.Module) -> None:
    """Let go of the memory of ``part``: its tensors become shapes."""
    for module in part.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to("meta")


def _model_type(text: str) -> str:
    try:
        return str(json.loads(text).get("model_type"))
    except (ValueError, AttributeError):
        return "unknown"
