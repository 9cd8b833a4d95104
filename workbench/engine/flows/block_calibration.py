"""Calibration one block after the other, so that only one block's statistics are in memory.

Source: issue "Module-level quantisation", item 4; GPTQ's own order, Frantar et al.,
arXiv:2210.17323, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from workbench.engine.errors import WrongState, WrongType, WrongValue
from workbench.engine.events import CancelToken, OnEvent, Progress, check, emit
from workbench.engine.flows.activation_store import ActivationStore
from workbench.engine.flows.arguments import check_model, check_type
from workbench.engine.flows.module_quantize import REPORT, convert
from workbench.engine.graph.inputs import split_inputs
from workbench.engine.modules.quantize.base import BaseQuantizeModule

Prepare = Callable[[str, nn.Module], None]


def calibrate_by_block(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    blocks: str | None = None,
    convert_blocks: bool = False,
    memory_budget_mb: int = 1024,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """Calibrate a model after ``quantize`` block by block instead of by forwards of the whole.

    All batches go through block 0, whose layers are calibrated on them; its answers, then already
    quantised, are what block 1 sees, and so on: later blocks make good what earlier ones lost. In
    memory are one block's statistics and one block's answers, of which up to ``memory_budget_mb``
    MB stay there and the rest go to temporary files. ``convert_blocks``: each block is converted
    as soon as it is calibrated, so that its float weights can go.

    ``batches``: each a tensor, a tuple of arguments (a dict at its end holds keyword ones) or a
    dict of keyword arguments; as many as ``batch_num`` says. ``blocks``: path of the ``ModuleList``
    (or ``Sequential``) of the blocks; None: the longest list of modules of one class that lies in
    no other. Layers outside of the blocks are calibrated, too. A model that fills a cache must be
    told not to (``use_cache=False``).

    Returns ``model``, changed in place. Errors: ``TypeError`` for one batch instead of several;
    ``ValueError`` when there are no blocks; ``RuntimeError`` before ``quantize``, for too few
    batches, and when the forward does not call the blocks in order.
    When cancelled, blocks so far stay calibrated.
    """
    function = "calibrate_by_block"
    check_model(function, model)
    check_type(function, "memory_budget_mb", memory_budget_mb, int)
    if not any(isinstance(module, BaseQuantizeModule) for module in model.modules()):
        raise WrongState(
            "the model has no layer to calibrate",
            where=f"{function}()",
            hint="Call quantize() first.",
        )
    path, found = find_blocks(model, blocks)
    given = list_batches(function, batches)

    def finished(name: str, block: nn.Module) -> None:
        if convert_blocks:
            convert_block(model, name, block)

    run = BlockRun(model, [(f"{path}.{name}", block) for name, block in found], given)
    run.run(
        calibrated=finished,
        memory_budget_mb=memory_budget_mb,
        on_event=on_event,
        cancel=cancel,
    )
    return model


def find_blocks(model: nn.Module, path: str | None) -> tuple[str, list[tuple[str, nn.Module]]]:
    """Path and (name, module) of the blocks; ``ValueError`` when there are none.

    None: of all lists of at least two modules of one class that lie in no other the longest.
    """
    lists = {
        name: [(key, child) for key, child in module._modules.items() if child is not None]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and name
    }
    if path is not None:
        if not isinstance(path, str):
            raise WrongType(f"blocks must be str or None, it is {type(path).__name__}")
        if not lists.get(path):
            raise WrongValue(
                f"blocks is {path!r}; allowed: paths of module lists that are not empty",
                hint=f"This model has {', '.join(lists) or 'none'}.",
            )
        found = path
    else:
        alike = {
            name: children
            for name, children in lists.items()
            if len(children) > 1 and len({type(child) for _, child in children}) == 1
        }
        if not alike:
            raise WrongValue(
                "the model has no list of two or more modules of one class",
                hint="Name its blocks: blocks='path.of.the.ModuleList'.",
            )
        # The experts of a layer are no blocks, however many they are.
        outermost = [
            name for name in alike if not any(name.startswith(f"{other}.") for other in alike)
        ]
        found = max(outermost, key=lambda name: len(alike[name]))
    children = lists[found]
    if len({id(child) for _, child in children}) < len(children):
        raise WrongValue(
            f"{found} holds a module twice", hint="Calibrate the model by plain forwards instead."
        )
    return found, children


def convert_block(model: nn.Module, name: str, block: nn.Module) -> None:
    """``convert`` of one block, told in the report of the whole model.

    A block that is itself a calibration module is left for ``convert`` of the model.
    """
    if isinstance(block, BaseQuantizeModule):
        return
    start = f"{name}."
    report = {entry.name: entry for entry in vars(model).get(REPORT, ())}
    within = [
        replace(entry, name=entry.name.removeprefix(start))
        for entry in report.values()
        if entry.name.startswith(start)
    ]
    setattr(block, REPORT, tuple(within))
    convert(block)
    for entry in vars(block).pop(REPORT):
        report[start + entry.name] = replace(entry, name=start + entry.name)
    setattr(model, REPORT, tuple(report.values()))


def list_batches(
    function: str, batches: Iterable[Any]
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of the model's forward for each batch; ``TypeError`` for one batch alone."""
    if isinstance(batches, torch.Tensor | Mapping):
        kind = type(batches).__name__
        raise WrongType(
            f"batches must be a list or an iterator of batches, it is {kind}",
            where=f"{function}()",
            hint="Give one batch as [batch].",
        )
    return [model_arguments(batch) for batch in batches]


def model_arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the model's forward that a batch stands for."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return split_inputs(batch)


class BlockRun:
    """Runs a model's own forward up to each block in turn.

    Blocks that are done answer from the store, whatever they are given; the forward ends behind the
    block in question. So every block gets exactly the arguments that the model gives it.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[tuple[str, nn.Module]],
        batches: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
    ) -> None:
        if not batches:
            raise WrongState("there is no batch", where="calibrate_by_block() batches")
        self._model, self._blocks, self._batches = model, blocks, batches
        self._batch = 0

    @torch.no_grad()
    def run(
        self,
        *,
        prepare: Prepare | None = None,
        calibrated: Prepare | None = None,
        done: Prepare | None = None,
        memory_budget_mb: int,
        on_event: OnEvent | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        """``prepare`` a block, calibrate it, ``calibrated``, compute its answers, ``done``.

        The model is in eval mode meanwhile.
        """
        total = len(self._blocks)
        with (
            ExitStack() as replaced,
            ActivationStore(memory_budget_mb << 20) as store,
            _in_eval_mode(self._model),
        ):
            for number, (name, block) in enumerate(self._blocks):
                if prepare is not None:
                    prepare(name, block)
                if _waiting(block):
                    for _ in self._through(name, block, cancel):
                        pass
                    self._require(block)
                if calibrated is not None:
                    calibrated(name, block)
                for batch, answer in enumerate(self._through(name, block, cancel)):
                    store.put(batch, answer)
                if done is not None:
                    done(name, block)
                replaced.enter_context(_answering(block, lambda: store.get(self._batch)))
                emit(on_event, Progress("blocks", number + 1, total))
            if _waiting(self._model):
                for batch, (args, kwargs) in enumerate(self._batches):
                    check(cancel)
                    self._batch = batch
                    self._model(*args, **kwargs)
                self._require(self._model)

    def _through(self, name: str, block: nn.Module, cancel: CancelToken | None) -> Iterator[Any]:
        """What ``block`` answers to each batch; the rest of the model is not computed."""
        for batch, (args, kwargs) in enumerate(self._batches):
            check(cancel)
            self._batch = batch
            with _stopping_behind(block):
                try:
                    self._model(*args, **kwargs)
                except _Behind as stop:
                    yield stop.answer
                    continue
            raise WrongState(
                f"the model's forward does not call {name}",
                hint="Blocks must be called one after the other; name others with blocks=.",
            )

    def _require(self, owner: nn.Module) -> None:
        names = [
            f"{module.layer_name} ({module.cur_batch} of {module.batch_num} calls)"
            for module in _waiting(owner)
        ]
        if names:
            raise WrongState(
                f"after {len(self._batches)} batches these layers are not calibrated: "
                f"{', '.join(names[:10])}",
                where="calibrate_by_block() batches",
                hint="Give as many batches as batch_num, and data that reaches every layer.",
            )


class _Behind(Exception):
    """Ends a forward behind the block whose answer is wanted."""

    def __init__(self, answer: Any) -> None:
        super().__init__("a block's answer")
        self.answer = answer


def _waiting(owner: nn.Module) -> list[BaseQuantizeModule]:
    return [
        module
        for module in owner.modules()
        if isinstance(module, BaseQuantizeModule) and module.calls_missing()
    ]


@contextmanager
def _answering(block: nn.Module, answer: Callable[[], Any]) -> Iterator[None]:
    """``block`` answers without computing; its attributes stay readable."""
    with _forward(block, lambda *_args, **_kwargs: answer()):
        yield


@contextmanager
def _stopping_behind(block: nn.Module) -> Iterator[None]:
    compute = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        raise _Behind(compute(*args, **kwargs))

    with _forward(block, forward):
        yield


@contextmanager
def _forward(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    # By name: the list of modules would keep the float weights of those that are converted.
    training = {name for name, module in model.named_modules() if module.training}
    model.eval()
    try:
        yield
    finally:
        for name, module in model.named_modules():
            module.training = name in training
