"""What a channel search can be given: sensitivities and search algorithms.

Source: specification chapter 40 sections 6.4, 6.5 and 6.7.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.analysis.channel_sensitivity import Loss, taylor_sensitivity
from workbench.engine.errors import WrongState, WrongType
from workbench.engine.events import CancelToken, Notice, OnEvent, emit
from workbench.engine.graph.channel_groups import ChannelGroup
from workbench.engine.search.channel_greedy import CompatGreedy, greedy
from workbench.engine.search.channel_records import (
    AttrProtoHelper,
    read_sensitivity,
    write_sensitivity,
)
from workbench.engine.search.channel_space import SearchSpace

log = logging.getLogger("workbench.engine.search")


@dataclass
class SearchGraph:
    """The searched model: ``model`` is a copy in eval mode, ``groups`` go with the records."""

    model: nn.Module
    groups: tuple[ChannelGroup, ...]
    compat: bool = False
    on_event: OnEvent | None = None
    cancel: CancelToken | None = None


class SensitivityBase:
    """Base of sensitivities: how much it costs to lose a channel."""

    def __init__(self, loss_func: Callable[[Any, Any], Any] | None = None) -> None:
        self.loss_func = loss_func

    def setup_initialization(
        self,
        graph_tuple: tuple[Any, Any],
        input_data: Any,
        test_iteration: int,
        output_nodes: Any = None,
    ) -> None:
        """``graph_tuple``: (graph, graph_info), where ``graph.model`` is a copy of the model."""
        self.graph, self.graph_info = graph_tuple
        self.input_data = input_data
        self.test_iteration = test_iteration
        self.output_nodes = output_nodes

    def get_sensitivity(self, search_records: Any) -> None:
        """Set the attribute ``sensitivity`` (FLOATS) on ``producer[0]`` of every record."""
        raise NotImplementedError


class TaylorLossSensitivity(SensitivityBase):
    """Sum of \\|weight · gradient of the loss\\| over the weights of a channel.

    The loss is ``torch.nn.L1Loss()`` unless ``set_loss_func`` gave another; without a label it is
    the mean square of the output. ``include_consumers``: weights that read the channel count, too
    (None: unless ``compat``). ``absolute``: sum of the absolute values of the batches instead of
    the absolute value of their sum (None: unless ``compat``). ``batch_size``: samples of a batch.
    """

    def __init__(
        self,
        *,
        include_consumers: bool | None = None,
        absolute: bool | None = None,
        batch_size: int = 1,
    ) -> None:
        super().__init__()
        self.include_consumers = include_consumers
        self.absolute = absolute
        self.batch_size = batch_size
        self.loss_func = torch.nn.L1Loss()

    def set_loss_func(self, loss_func: Loss) -> None:
        """``loss_func(output, label)`` gives one number."""
        if not callable(loss_func):
            raise WrongType(
                f"loss_func is {type(loss_func).__name__}; allowed: a function of output and label",
                where="set_loss_func()",
            )
        self.loss_func = loss_func

    def get_sensitivity(self, search_records: Any) -> None:
        graph = self.graph
        self._warn_of_classes()
        counted, absolute = self.include_consumers, self.absolute
        values = taylor_sensitivity(
            graph.model,
            graph.groups,
            self._batches(),
            self._loss,
            include_consumers=not graph.compat if counted is None else counted,
            absolute=not graph.compat if absolute is None else absolute,
            total=-(-self.test_iteration // self.batch_size),
            on_event=graph.on_event,
            cancel=graph.cancel,
        )
        for record, group, one in zip(search_records, graph.groups, values, strict=True):
            write_sensitivity(record, group, one)

    def _batches(self) -> Iterator[tuple[tuple[Any, ...], Any]]:
        data, label = self.input_data
        inputs = data if isinstance(data, tuple) else (data,)
        device = next((p.device for p in self.graph.model.parameters()), torch.device("cpu"))
        for start in range(0, self.test_iteration, self.batch_size):
            end = min(start + self.batch_size, self.test_iteration)
            batch = tuple(x[start:end].to(device) for x in inputs)
            yield batch, None if label is None else label[start:end].to(device)

    def _warn_of_classes(self) -> None:
        label = self.input_data[1]
        numbers = isinstance(label, Tensor) and not label.is_floating_point()
        if not numbers or type(self.loss_func) is not torch.nn.L1Loss:
            return
        message = (
            f"the labels are {str(label.dtype).removeprefix('torch.')}, the loss is L1Loss, which "
            "takes them for outputs. For numbers of classes give a TaylorLossSensitivity on which "
            "set_loss_func(torch.nn.CrossEntropyLoss()) was called."
        )
        log.warning(message)
        emit(self.graph.on_event, Notice(message))

    def _loss(self, output: Any, label: Any) -> Tensor:
        if label is None and isinstance(output, Tensor):
            return output.float().square().mean()
        assert self.loss_func is not None
        loss: Tensor = self.loss_func(output, label)
        return loss


class SearchChannelBase(ABC):
    """Base of search algorithms: which channels stay."""

    space: SearchSpace | None = None
    graph: SearchGraph | None = None

    @abstractmethod
    def channel_prune_search(
        self,
        graph_info: dict[str, dict[str, Any]],
        search_records: Any,
        prune_config: tuple[float, bool, float],
    ) -> dict[str, list[int]]:
        """Producer -> one number a channel of its whole length, 1 to keep it and 0 to remove it.

        ``prune_config``: (compress_ratio, ascend_optimized, max_prune_ratio). All producers of a
        record must lose the same number of channels.
        """

    def update_graph(
        self,
        prune_channel_num: Mapping[int, int],
        graph_info: dict[str, dict[str, Any]],
        search_records: Any,
    ) -> None:
        """Scale ``graph_info`` and the records' ``bitops`` after channels were removed.

        ``prune_channel_num``: position of a record -> channels that it loses.
        """
        for position, count in prune_channel_num.items():
            for nodes, key in (
                (search_records[position].producer, "cout"),
                (search_records[position].consumer, "cin"),
            ):
                for name in dict.fromkeys(node.name for node in nodes):
                    if name in graph_info:
                        info = graph_info[name]
                        info["bitops"] *= (info[key] - count) / info[key]
                        info[key] -= count
        for record in search_records:
            cost = sum(
                graph_info[name]["bitops"] / graph_info[name][key]
                for nodes, key in ((record.producer, "cout"), (record.consumer, "cin"))
                for name in dict.fromkeys(node.name for node in nodes)
                if name in graph_info
            )
            AttrProtoHelper(record.producer[0]).set_attr_value("bitops", "FLOAT", cost)


class GreedySearch(SearchChannelBase):
    """Take the channels of least sensitivity per bit-operation until the target is met.

    The ratio is looked at after every removal; ``search_step`` (channels between two looks) counts
    with ``compat`` only.
    """

    def __init__(self, search_step: int = 100) -> None:
        if isinstance(search_step, bool) or not isinstance(search_step, int) or search_step < 1:
            raise WrongType(
                f"search_step is {search_step!r}; allowed: a whole number above 0",
                where="GreedySearch()",
            )
        self.search_step = search_step

    def channel_prune_search(
        self,
        graph_info: dict[str, dict[str, Any]],
        search_records: Any,
        prune_config: tuple[float, bool, float],
    ) -> dict[str, list[int]]:
        if self.space is None or self.graph is None:
            raise WrongState(
                "needs what auto_channel_prune_search gives it", where="GreedySearch()"
            )
        target = prune_config[0]
        sensitivity = [
            read_sensitivity(record, group, author="sensitivity")
            for record, group in zip(search_records, self.space.groups, strict=True)
        ]
        if self.graph.compat:
            gone = CompatGreedy(self.space, sensitivity, self.search_step).run(target)
        else:
            gone = greedy(self.space, sensitivity, target, cancel=self.graph.cancel)
        keep: dict[str, list[int]] = {}
        for group, units in zip(self.space.groups, gone, strict=True):
            for member in group.producers:
                flags = keep.setdefault(member.module, [1] * len(member.units))
                for channel in member.channels(units):
                    flags[channel] = 0
        return keep
