"""Keep torch's exporters from writing to the terminal of whoever calls the engine."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO, cast

from torch.fx import config as fx_config

_LOCK = threading.RLock()
_LOGGERS = (
    "torch.export",
    "torch.fx",
    "torch.onnx",
    "torch.onnx._internal.exporter._registration",
    "torch.onnx._internal.exporter._core",
    "torch._dynamo",
    "torch.__trace",
    "onnxscript",
    "onnxscript.optimizer",
    "onnx_ir",
)


class _Muted:
    """A stream that drops what one thread writes and passes on everything else."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            return len(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back warnings and log lines of the exporters; one export at a time in a process.

    torch's exporter keeps state in globals, so the lock is needed for its own sake as well. A
    failing export prints its partial graph to stderr whatever the settings: it is dropped too.
    So are the stack traces of the graph's nodes, which nothing here reads and which take a tenth
    of the time.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers = [logging.getLogger(name) for name in _LOGGERS]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        stream = sys.stderr
        muted = cast(TextIO, _Muted(stream))
        sys.stderr = muted
        traces_off = fx_config.do_not_emit_stack_traces
        fx_config.do_not_emit_stack_traces = True
        try:
            yield
        finally:
            fx_config.do_not_emit_stack_traces = traces_off
            if sys.stderr is muted:
                sys.stderr = stream
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
