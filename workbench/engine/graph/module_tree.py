"""Building a module from a graph: real layers at their paths, every other operator as a call."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from workbench.engine.errors import WrongValue

_PART = re.compile(r"[A-Za-z0-9_]+")


class ModuleTree:
    """A root module that grows at dotted paths, and the graph that will be its forward.

    ``fx`` turns the graph into Python source, so every name is checked: a file's names are not
    trusted.
    """

    def __init__(self, where: str) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self._where = where

    def input(self, name: str) -> fx.Node:
        if not name.isidentifier():
            raise self._wrong(f"input {name[:80]!r} is no name")
        return self.graph.placeholder(name)

    def add_tensor(self, path: str, tensor: Tensor, *, trained: bool) -> fx.Node:
        """A parameter (``trained``) or buffer at ``path``, and the node that reads it."""
        owner, name = self._owner(path)
        if trained and tensor.is_floating_point():
            owner.register_parameter(name, nn.Parameter(tensor))
        else:
            owner.register_buffer(name, tensor)
        return self.graph.get_attr(path)

    def add_module(self, path: str, module: nn.Module) -> None:
        owner, name = self._owner(path)
        owner.add_module(name, module)

    def call_module(self, path: str, argument: fx.Node) -> fx.Node:
        return self.graph.call_module(path, (argument,))

    def call(
        self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> fx.Node:
        return self.graph.call_function(target, args, dict(kwargs))

    def finish(self, output: Any) -> fx.GraphModule:
        """The module in evaluation mode; what no output needs is left out."""
        self.graph.output(output)
        module = fx.GraphModule(self.root, self.graph)
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.recompile()
        return module.eval()

    def _owner(self, path: str) -> tuple[nn.Module, str]:
        *parents, name = path.split(".")
        if not all(_PART.fullmatch(part) for part in (*parents, name)):
            raise self._wrong(f"{path[:80]!r} is no path of a module")
        owner = self.root
        for part in parents:
            child = owner._modules.get(part)
            if child is None:
                child = nn.Module()
                owner.add_module(part, child)
            owner = child
        if hasattr(owner, name):
            raise self._wrong(f"{path!r} is there twice, or is a name torch keeps for itself")
        return owner, name

    def _wrong(self, message: str) -> WrongValue:
        return WrongValue(message, where=self._where, hint="Rename it where the file is made.")
