"""How the inputs, the outputs and the batch dimension of exported files are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from workbench.engine.errors import WrongType, WrongValue
from workbench.studio.store import Store

KEY = "graph_names"
LONGEST = 1_000


@dataclass(frozen=True)
class GraphNames:
    """Names in call order, as many as are given; nothing means as in the model.

    ``batch`` is the name of dimension 0 where it may vary ('batch' if empty).
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    batch: str = ""

    @classmethod
    def checked(cls, inputs: Any, outputs: Any, batch: Any) -> GraphNames:
        """Errors: ``WrongType`` and ``WrongValue`` for what cannot be names in an ONNX file."""
        for where, names in (("inputs", inputs), ("outputs", outputs)):
            if isinstance(names, str) or not isinstance(names, Sequence):
                raise WrongType(f"is {names!r}; allowed: a list of names", where=where)
            for name in names:
                _check_name(name, where)
        if batch != "":
            _check_name(batch, "batch")
        names = [*inputs, *outputs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise WrongValue(
                f"the name {', '.join(twice)} is given twice", where="name_graph",
                hint="Give each input and output a name of its own.",
            )  # fmt: skip
        return cls(tuple(inputs), tuple(outputs), batch)

    def arguments(self, known: Sequence[str]) -> dict[str, Any]:
        """``input_names``, ``output_names`` and ``dynamic_axes`` of the engine's exports.

        ``known``: the model's own names of its inputs. Error: ``WrongValue`` if there are fewer.
        """
        if len(self.inputs) > len(known):
            raise WrongValue(
                f"{len(self.inputs)} names ({', '.join(self.inputs)}); the model has "
                f"{len(known)} inputs: {', '.join(known)}",
                where="inputs",
                hint="Take names away, or call name_graph() for the model's own.",
            )
        first = (*self.inputs, *known[len(self.inputs) :])[0]
        return {
            "input_names": list(self.inputs) or None,
            "output_names": list(self.outputs) or None,
            "dynamic_axes": {first: {0: self.batch}} if self.batch else None,
        }


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str):
        raise WrongType(f"is {name!r}; allowed: a list of names", where=where)
    if not name or len(name) > LONGEST or not name.isprintable() or name != name.strip():
        raise WrongValue(
            f"is {name[:40]!r}; allowed: 1 to {LONGEST:,} printable characters, no space around "
            "them",
            where=where,
        )


def as_graph_names(value: Any) -> GraphNames:
    """The stored value, checked: a project may come from anywhere."""
    if not isinstance(value, Mapping):
        return GraphNames()
    try:
        return GraphNames.checked(
            value.get("inputs", ()), value.get("outputs", ()), value.get("batch", "")
        )
    except (WrongType, WrongValue):
        return GraphNames()


def read_graph_names(store: Store) -> GraphNames:
    return as_graph_names(store.get(KEY))


def write_graph_names(store: Store, names: GraphNames) -> None:
    store.put(**{KEY: asdict(names)})


def graph_arguments(store: Store) -> str:
    """Further arguments of ``engine.quantize_model`` in a script; '' where all names are usual."""
    names = read_graph_names(store)
    if names == GraphNames():
        return ""
    known = (store.get("figures") or {}).get("inputs") or ["x"]
    return "".join(f", {name}={value!r}" for name, value in names.arguments(known).items() if value)


def graph_lines(store: Store) -> list[str]:
    """The statement that gives a session the names; none where all are usual."""
    names = read_graph_names(store)
    if names == GraphNames():
        return []
    given = {
        "inputs": list(names.inputs), "outputs": list(names.outputs), "batch": names.batch
    }  # fmt: skip
    return [f"session.name_graph({', '.join(f'{k}={v!r}' for k, v in given.items() if v)})"]
