"""Message classes from our ``.proto`` files, without generated code and without the global pool.

A descriptor pool of our own keeps a user's schema of the same package and file name, which would
collide in the process-wide pool, apart from ours. The reader below knows the part of the proto2
language that our schemas use: messages and enums (nested too), oneofs, defaults, imports.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TOKEN = re.compile(r"\s+|//[^\n]*|/\*.*?\*/|(\"[^\"\n]*\"|[\w.+-]+|[{}\[\]=;])", re.DOTALL)
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name.removeprefix("TYPE_").lower(): number
    for name, number in _Field.Type.items()
    if name not in ("TYPE_MESSAGE", "TYPE_ENUM", "TYPE_GROUP")
}
_LABELS = {
    "optional": _Field.LABEL_OPTIONAL,
    "required": _Field.LABEL_REQUIRED,
    "repeated": _Field.LABEL_REPEATED,
}


@cache
def message_class(file: str, name: str) -> Any:
    """The class of message ``name`` (with its package) of ``schema/<file>``."""
    pool = _pool(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


@cache
def _pool(file: str) -> Any:
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(name: str) -> None:
        if name not in added:
            added.add(name)
            text = (resources.files(__package__) / "schema" / name).read_text("utf-8")
            described = parse_proto(text, name)
            for dependency in described.dependency:
                add(dependency)
            pool.Add(described)

    add(file)
    return pool


def parse_proto(text: str, name: str) -> Any:
    """The ``FileDescriptorProto`` of a proto2 file; ``SyntaxError`` for what we do not use."""
    tokens = _Tokens(text, name)
    file = descriptor_pb2.FileDescriptorProto(name=name)
    while (word := tokens.next()) is not None:
        if word == "syntax":
            tokens.expect("=", '"proto2"', ";")
        elif word == "package":
            file.package = tokens.word()
            tokens.expect(";")
        elif word == "import":
            file.dependency.append(tokens.word().strip('"'))
            tokens.expect(";")
        elif word == "message":
            _message(tokens, file.message_type.add())
        elif word == "enum":
            _enum(tokens, file.enum_type.add())
        elif word != ";":
            raise tokens.error(word)
    return file


class _Tokens:
    def __init__(self, text: str, name: str) -> None:
        self._matches = (m for m in _TOKEN.finditer(text) if m.group(1))
        self._name = name

    def next(self) -> str | None:
        match = next(self._matches, None)
        return None if match is None else match.group(1)

    def word(self) -> str:
        word = self.next()
        if word is None:
            raise self.error("end of file")
        return word

    def expect(self, *words: str) -> None:
        for wanted in words:
            if (found := self.word()) != wanted:
                raise self.error(f"{found}, expected {wanted}")

    def error(self, what: str) -> SyntaxError:
        return SyntaxError(f"{self._name}: unexpected {what}")


def _message(tokens: _Tokens, message: Any) -> None:
    message.name = tokens.word()
    tokens.expect("{")
    while (word := tokens.word()) != "}":
        if word == "message":
            _message(tokens, message.nested_type.add())
        elif word == "enum":
            _enum(tokens, message.enum_type.add())
        elif word == "oneof":
            message.oneof_decl.add(name=tokens.word())
            tokens.expect("{")
            while (kind := tokens.word()) != "}":
                field = _field(tokens, message, "optional", kind)
                field.oneof_index = len(message.oneof_decl) - 1
        elif word in _LABELS:
            _field(tokens, message, word, tokens.word())
        elif word != ";":
            raise tokens.error(word)


def _field(tokens: _Tokens, message: Any, label: str, kind: str) -> Any:
    field = message.field.add(label=_LABELS[label], name=tokens.word())
    tokens.expect("=")
    field.number = int(tokens.word())
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        # The pool finds out whether the name is a message or an enum.
        field.type_name = kind
    word = tokens.word()
    if word == "[":
        while word != "]":
            option = tokens.word()
            tokens.expect("=")
            value = tokens.word()
            if option == "default":
                field.default_value = value.strip('"')
            elif option in ("packed", "deprecated"):
                setattr(field.options, option, value == "true")
            else:
                raise tokens.error(option)
            word = tokens.word()
        word = tokens.word()
    if word != ";":
        raise tokens.error(word)
    return field


def _enum(tokens: _Tokens, enum: Any) -> None:
    enum.name = tokens.word()
    tokens.expect("{")
    while (word := tokens.word()) != "}":
        tokens.expect("=")
        enum.value.add(name=word, number=int(tokens.word(), 0))
        tokens.expect(";")
