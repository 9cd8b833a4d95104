"""Exported programs become module trees again; what is hostile or foreign is refused in words."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workbench.engine.errors import MissingFile, WorkbenchError, WrongValue
from workbench.engine.graph.capture import capture
from workbench.engine.graph.pt2_archive import read_pt2
from workbench.engine.graph.pt2_model import load_exported_program
from workbench.zoo import load


class Mixed(nn.Module):
    """Layers of most kinds, one used twice, a tied weight, split, a buffer, a symbolic size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.twice = nn.Conv2d(4, 4, 3, padding="same", groups=2, bias=False)
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2)
        self.pool = nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.head.weight
        self.line = nn.Conv1d(3, 5, 3, dilation=2)
        self.line_norm = nn.BatchNorm1d(5)
        self.register_buffer("shift", torch.linspace(0, 1, 6))

    def forward(self, x: Tensor, gain: Tensor) -> dict[str, Any]:
        y = self.stem(x)
        y = self.up(self.twice(torch.relu(self.twice(y))))
        y = self.norm(self.pool(y).flatten(2).transpose(1, 2)) + self.shift
        a, b = self.head(y).chunk(2, dim=-1)
        z = self.line_norm(self.line((a * b * gain).transpose(1, 2)))
        return {"z": z.reshape(z.shape[0], -1), "rest": [self.tied(y).amax(1), b]}


INPUTS = (torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(1)), torch.tensor(0.7))


def exported(model: nn.Module, inputs: tuple[Any, ...], path: Path, **options: Any) -> Path:
    torch.export.save(torch.export.export(model.eval(), inputs, **options), path)
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = Mixed()
    with torch.no_grad():
        for norm in (model.stem[1], model.line_norm):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
    batch = {"x": {0: torch.export.Dim("batch")}, "gain": None}
    path = tmp_path_factory.mktemp("pt2") / "mixed.pt2"
    return model, exported(model, INPUTS, path, dynamic_shapes=batch)


def test_it_computes_the_same_for_any_batch(mixed: tuple[nn.Module, Path]) -> None:
    model, path = mixed
    built = load_exported_program(path)
    more = (torch.cat([INPUTS[0]] * 2), INPUTS[1])
    for inputs in (INPUTS, more):
        with torch.no_grad():
            want, got = model(*inputs), built(*inputs)
        assert got.keys() == want.keys() and isinstance(got["rest"], list)
        assert torch.equal(got["z"], want["z"])
        assert all(map(torch.equal, got["rest"], want["rest"]))


def test_layers_are_the_modules_they_were(mixed: tuple[nn.Module, Path]) -> None:
    model, path = mixed
    built = load_exported_program(path)
    state, own = built.state_dict(), model.state_dict()
    assert len(state) >= len(own) - 1  # of the two names of the tied weight one is enough
    assert all(torch.equal(tensor, own[name]) for name, tensor in state.items())
    for name in ("stem.0", "stem.1", "twice", "up", "pool", "line", "line_norm"):
        assert type(built.get_submodule(name)) is type(model.get_submodule(name))
    kept, known = capture(built, INPUTS).layers, capture(model, INPUTS).layers
    for name in ("stem.0", "twice", "up", "pool", "line"):
        assert replace(kept[name], order=0) == replace(known[name], order=0), name
    assert not kept["twice"].eligible and kept["twice"].calls == 2
    # A weight that two layers read is no layer's own: the rebuilt network keeps both as calls.
    assert "head" not in kept and not known["head"].eligible


def test_a_decomposed_program_keeps_its_convolutions(tmp_path: Path) -> None:
    example = load("digits-mobilenet")
    x = example.data.calibration[:2]
    program = torch.export.export(example.model.eval(), (x,)).run_decompositions({})
    torch.export.save(program, tmp_path / "flat.pt2")
    built = load_exported_program(tmp_path / "flat.pt2")
    with torch.no_grad():
        assert torch.allclose(built(x), example.model(x), atol=1e-5)


@pytest.fixture
def altered(
    mixed: tuple[nn.Module, Path], tmp_path: Path
) -> Callable[[Callable[[str, bytes], tuple[str, bytes]]], Path]:
    """The archive with its members changed by a function."""

    def make(change: Callable[[str, bytes], tuple[str, bytes]], **options: Any) -> Path:
        target = tmp_path / "altered.pt2"
        with zipfile.ZipFile(mixed[1]) as source, zipfile.ZipFile(target, "w", **options) as out:
            for member in source.infolist():
                out.writestr(*change(member.filename, source.read(member)))
        return target

    return make


def edit_program(change: Callable[[dict[str, Any]], None]) -> Callable[..., tuple[str, bytes]]:
    def apply(name: str, content: bytes) -> tuple[str, bytes]:
        if "/models/" in name and name.endswith(".json"):
            program = json.loads(content)
            change(program)
            content = json.dumps(program).encode()
        return name, content

    return apply


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_in_it_are_never_loaded(altered: Callable[..., Path]) -> None:
    path = altered(
        lambda name, content: (
            (name, pickle.dumps(Bomb())) if "sample_inputs" in name else (name, content)
        )
    )
    assert isinstance(load_exported_program(path), nn.Module)


def first_weight(entry: dict[str, Any]) -> Callable[..., tuple[str, bytes]]:
    def apply(name: str, content: bytes) -> tuple[str, bytes]:
        if name.endswith("_weights_config.json"):
            data = json.loads(content)
            data["config"]["stem.0.weight"] |= entry
            content = json.dumps(data).encode()
        return name, content

    return apply


def meta(**changes: Any) -> dict[str, Any]:
    known = {
        "dtype": 7, "sizes": [{"as_int": 4}], "strides": [{"as_int": 1}],
        "storage_offset": {"as_int": 0},
    }  # fmt: skip
    return {"tensor_meta": known | changes}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (first_weight({"use_pickle": True}), "'stem.0.weight' is pickled"),
        (first_weight(meta(sizes=[{"as_int": 10**12}])), "too few for its shape"),
        (first_weight(meta(storage_offset={"as_int": -9})), "too few for its shape"),
        (first_weight(meta(dtype=99)), "'stem.0.weight' is not understood"),
        (first_weight(meta(sizes=[{"as_int": -4}])), "cannot have the shape"),
        (first_weight(meta(sizes=[{"as_int": 2**64}, {"as_int": 0}])), "cannot have the shape"),
        (first_weight(meta(strides=[])), "cannot have the shape"),
        (first_weight(meta(sizes=[{"as_int": 2**40}], strides=[{"as_int": 0}])), "unfolds to more"),
        (
            lambda n, c: (n, b'{"config": []}') if n.endswith("weights_config.json") else (n, c),
            "its tensors by name",
        ),
        (first_weight({"path_name": "../../etc/passwd"}), "'stem.0.weight' is not understood"),
        (lambda n, c: (n, b"{") if n.endswith("model.json") else (n, c), "is not JSON"),
        (lambda n, c: (n, b"[]") if n.endswith("model.json") else (n, c), "must hold an object"),
        (lambda n, c: (n.replace("models/", "else/"), c), "holds 0 models"),
    ],
)
def test_what_does_not_fit_is_said(
    altered: Callable[..., Path], change: Callable[..., tuple[str, bytes]], words: str
) -> None:
    with pytest.raises(WrongValue, match=words):
        load_exported_program(altered(change))


def operator(target: str) -> Callable[..., tuple[str, bytes]]:
    return edit_program(lambda p: p["graph_module"]["graph"]["nodes"][0].update(target=target))


def renamed(old: str, new: str) -> Callable[..., tuple[str, bytes]]:
    """Another name for a value or tensor, in the program and in the list of weights."""

    def apply(name: str, content: bytes) -> tuple[str, bytes]:
        if name.endswith(".json"):
            content = content.replace(json.dumps(old).encode(), json.dumps(new).encode())
        return name, content

    return apply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (operator("os.system"), r"os\.system \(1×\)"),
        (operator("torch.ops.mine.op.default"), r"torch\.ops\.mine\.op\.default \(1×\)"),
        (renamed("gain", "gain=print(1)"), "is no name"),
        (renamed("shift", "a'),print(1),('b"), "is no path"),
        (edit_program(lambda p: p["graph_module"].pop("signature")), "not understood"),
    ],
)
def test_hostile_programs(
    altered: Callable[..., Path], change: Callable[..., tuple[str, bytes]], words: str
) -> None:
    with pytest.raises(WrongValue, match=words):
        load_exported_program(altered(change))


def test_nothing_unfolds(altered: Callable[..., Path]) -> None:
    with pytest.raises(WrongValue, match="compressed"):
        read_pt2(altered(lambda n, c: (n, c), compression=zipfile.ZIP_DEFLATED))


def test_many_tensors_of_one_member_do_not_unfold(
    altered: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def apply(name: str, content: bytes) -> tuple[str, bytes]:
        if name.endswith("_weights_config.json"):
            data = json.loads(content)
            entry = data["config"]["stem.0.weight"] | meta(
                sizes=[{"as_int": 1000}], strides=[{"as_int": 0}]
            )
            data["config"] |= {f"again{i}": entry for i in range(500)}
            content = json.dumps(data).encode()
        return name, content

    monkeypatch.setattr("workbench.engine.graph.pt2_archive.MAX_UNFOLDED", 1 << 12)
    with pytest.raises(WrongValue, match="'again.*unfolds to more"):
        read_pt2(altered(apply))


def test_any_damage_is_an_error_of_ours(mixed: tuple[nn.Module, Path], tmp_path: Path) -> None:
    good = mixed[1].read_bytes()
    random = Random(0)
    bad = tmp_path / "bad.pt2"
    for _ in range(150):
        content = bytearray(good)
        for _ in range(random.randint(1, 6)):
            content[random.randrange(len(content))] = random.randrange(256)
        bad.write_bytes(content[: random.choice((len(content), random.randrange(len(content))))])
        with suppress(WorkbenchError):
            read_pt2(bad)
    # Each member says of itself that it is encrypted.
    bad.write_bytes(
        re.sub(rb"(PK\x01\x02.{4}).", lambda found: found[1] + b"\x01", good, flags=re.DOTALL)
    )
    with pytest.raises(WrongValue, match="encrypted"):
        read_pt2(bad)


def test_what_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        read_pt2(tmp_path / "nothing.pt2")
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(WrongValue, match="not an exported program"):
        read_pt2(tmp_path / "text.pt2")
    buffer = io.BytesIO()
    torch.save({"a": 1}, buffer)
    (tmp_path / "saved.pt2").write_bytes(buffer.getvalue())
    with pytest.raises(WrongValue, match="holds 0 models"):
        read_pt2(tmp_path / "saved.pt2")


def test_control_flow_and_nested_inputs_are_refused(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return pair[0] + pair[1]

    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    pair = exported(Pair(), ((torch.ones(2), torch.ones(2)),), tmp_path / "pair.pt2")
    with pytest.raises(WrongValue, match="inputs are nested"):
        load_exported_program(pair)
    branch = exported(Branch(), (torch.ones(2),), tmp_path / "branch.pt2")
    with pytest.raises(WrongValue, match="cond"):
        load_exported_program(branch)
