"""The text configuration (``.cfg``) of retraining, as protobuf reads it.

One schema serves quantisation-aware training, pruning and combined compression; each flow takes
its own part of the message. Source: specification chapter 30 section 3.2.
"""

from __future__ import annotations

import os
from typing import Any

from workbench.engine.files.proto_schema import message_class
from workbench.engine.files.reading import read_text
from workbench.engine.files.text_message import merge_text


def load_retrain_text_config(path: str | os.PathLike[str]) -> Any:
    """The ``AMCTRetrainConfig`` message of a ``.cfg`` file, before any model is looked at.

    Errors: ``FileNotFoundError``; ``TextConfigError`` (``ParseError``, ``ValueError``) naming the
    line. Required fields that are missing are left to ``text_message.required_problems``.
    """
    return parse_retrain_text_config(
        read_text(path, what="text configuration"), source=os.fspath(path)
    )


def parse_retrain_text_config(text: str, *, source: str) -> Any:
    """``load_retrain_text_config`` of a text."""
    message = message_class("retrain_config_pytorch.proto", "AMCTPytorchProto.AMCTRetrainConfig")()
    merge_text(text, message, source=source)
    return message
