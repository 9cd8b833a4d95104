"""The whole flow: configuration, student, training. The export is in ``test_distill_save``."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from distill_case import Golden, loader, pictures, plain_cnn, settled
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from workbench.engine import (
    Cancelled,
    CancelToken,
    DistillSampleBase,
    Event,
    create_distill_config,
    create_distill_model,
    distill,
)
from workbench.engine.errors import TrainingDiverged, WorkbenchError
from workbench.engine.events import (
    DistillGroupFinished,
    DistillGroupStarted,
    DistillStep,
    Notice,
    Progress,
)
from workbench.engine.flows.distill_blocks import choose_input
from workbench.engine.flows.distill_optimiser import GroupOptimiser, Rates
from workbench.engine.modules.qat.convolutions import Conv2dQAT
from workbench.engine.modules.qat.linear import LinearQAT

X = pictures()
EXAMPLE = (X[:2],)
FOUR_BITS = (
    "distill_data_quant_config { ulq_quantize { dst_type: INT4 } } "
    "distill_weight_quant_config { arq_distill { dst_type: INT4 } } "
)


def make_config(
    model: nn.Module, file: Path, cfg: str = "", example: Any = EXAMPLE, **options: Any
) -> str:
    text = file.with_suffix(".cfg")
    text.write_text(cfg)
    create_distill_config(str(file), model, example, str(text), **options)
    return str(file)


@pytest.fixture(scope="module")
def golden() -> nn.Module:
    torch.manual_seed(0)
    return settled(Golden())


@pytest.fixture(scope="module")
def golden_file(golden: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_config(golden, tmp_path_factory.mktemp("golden") / "c.json")


@pytest.fixture(scope="module")
def golden_student(golden: nn.Module, golden_file: str) -> nn.Module:
    """Not calibrated; tests take copies."""
    return create_distill_model(golden_file, golden, EXAMPLE)


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, nn.Module, str]:
    """Four convolutions of 8 channels with 4 bits throughout: teacher, student, configuration."""
    torch.manual_seed(3)
    teacher = settled(plain_cnn())
    skip = 'distill_override_layers { layer_name: "0" } distill_override_layers { layer_name: "3" }'
    file = make_config(teacher, tmp_path_factory.mktemp("coarse") / "c.json", FOUR_BITS + skip)
    return teacher, create_distill_model(file, teacher, EXAMPLE), file


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor], *ignored: str) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[n].nan_to_num(1e9), other[n].nan_to_num(1e9))
        for n in one
        if not n.endswith(ignored or ("\n",))
    )


def calls_of(model: nn.Module) -> list[int]:
    count = [0]

    def counted(module: nn.Module, args: Any) -> None:
        count[0] += 1

    model.register_forward_pre_hook(counted)
    return count


# --- configuration -----------------------------------------------------------------------------


def test_the_file_of_the_golden_network(golden_file: str) -> None:
    data = json.loads(Path(golden_file).read_text())
    assert list(data) == [
        *("version", "batch_num", "group_size", "data_dump", "distill_group"),
        *("c1", "c2", "c3", "fc"),
    ]
    assert data["distill_group"] == [
        ["c1", "b1", "r"],
        ["c2", "b2", "r"],
        ["c3", "b3"],
        ["fc", "sm"],
    ]
    assert data["c1"] == {
        "quant_enable": True,
        "distill_data_config": {"algo": "ulq_quantize", "dst_type": "INT8"},
        "distill_weight_config": {
            "algo": "arq_distill",
            "channel_wise": True,
            "dst_type": "INT8",
        },
    }
    assert data["fc"]["distill_weight_config"]["channel_wise"] is False
    assert oct(Path(golden_file).stat().st_mode)[-3:] == "640"


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(self.once(x)))


def test_a_layer_that_is_called_twice_stays_float(tmp_path: Path) -> None:
    model = settled(Reused())
    file = make_config(model, tmp_path / "c.json")
    assert "twice" not in json.loads(Path(file).read_text())
    student = create_distill_model(file, model, EXAMPLE)
    assert type(student.get_submodule("twice")) is nn.Conv2d
    assert type(student.get_submodule("once")) is Conv2dQAT


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"config_file": ""}, ValueError),
        ({"config_file": "folder/"}, ValueError),
        ({"config_file": "a" * 255}, ValueError),
        ({"config_file": 1}, TypeError),
        ({"model": "net"}, TypeError),
        ({"config_defination": "no.cfg"}, FileNotFoundError),
        ({"config_defination": 1}, TypeError),
        ({"input_data": torch.randn(2, 7)}, RuntimeError),
        ({"model": nn.Sequential(nn.ReLU())}, ValueError),
    ],
)
def test_create_distill_config_refuses(
    golden: nn.Module, tmp_path: Path, arguments: dict[str, Any], error: type[Exception]
) -> None:
    given = {"config_file": str(tmp_path / "c.json"), "model": golden, "input_data": EXAMPLE}
    with pytest.raises(error) as caught:
        create_distill_config(**(given | arguments))
    assert isinstance(caught.value, WorkbenchError)
    assert not (tmp_path / "c.json").exists()


# --- student -----------------------------------------------------------------------------------


def test_the_student_is_a_copy_with_quantised_layers(
    golden: nn.Module, golden_student: nn.Module
) -> None:
    student = golden_student
    names = [name for name, _ in golden.named_modules()]
    assert [name for name, _ in student.named_modules()] == names
    kinds = {name: type(m) for name, m in student.named_modules() if hasattr(m, "weight")}
    assert kinds["c1"] is Conv2dQAT
    assert kinds["fc"] is LinearQAT
    assert kinds["b1"] is nn.BatchNorm2d
    shared = {id(p) for p in golden.parameters()} & {id(p) for p in student.parameters()}
    assert not shared
    # Channels that a batch norm turns over are turned twice: the function is the same.
    plain = copy.deepcopy(student)
    for module in plain.modules():
        if isinstance(module, Conv2dQAT | LinearQAT):
            module.enabled = False
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight >= 0).all())
    torch.testing.assert_close(plain(X), golden(X))


def test_the_lower_bound_after_a_relu(golden: nn.Module, tmp_path: Path) -> None:
    """``fixed_min`` absent: true where the input cannot be negative; in ``compat`` never (D20)."""
    for compat, expected in ((False, [False, True, True, True]), (True, [False] * 4)):
        file = make_config(golden, tmp_path / f"{compat}.json", compat=compat)
        student = create_distill_model(file, golden, EXAMPLE)
        layers = [student.get_submodule(n) for n in ("c1", "c2", "c3", "fc")]
        assert [layer.activation_settings("acts_").fixed_min for layer in layers] == expected


def test_create_distill_model_refuses(
    golden: nn.Module, golden_file: str, golden_student: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="c1 → Conv2dQAT"):
        create_distill_model(golden_file, golden_student, EXAMPLE)
    with pytest.raises(RuntimeError, match="c1 → Conv2dQAT"):
        create_distill_config(str(tmp_path / "c.json"), golden_student, EXAMPLE)
    with pytest.raises(OSError, match="does not exist"):
        create_distill_model(str(tmp_path / "no.json"), golden, EXAMPLE)
    wrong = tmp_path / "wrong.json"
    wrong.write_text(Path(golden_file).read_text().replace('"c1":{', '"c11":{'))
    with pytest.raises(ValueError, match="such as c1"):
        create_distill_model(str(wrong), golden, EXAMPLE)
    data = json.loads(Path(golden_file).read_text())
    data["distill_group"] = [["c1", "c2"]]
    (tmp_path / "gap.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="not a chain"):
        create_distill_model(str(tmp_path / "gap.json"), golden, EXAMPLE)
    with pytest.raises(ValueError, match="contradicts"):
        create_distill_model(golden_file, golden, EXAMPLE, compat=True)
    uncopyable = copy.deepcopy(golden)
    uncopyable.lock = __import__("threading").Lock()
    with pytest.raises(RuntimeError, match="cannot be copied"):
        create_distill_model(golden_file, uncopyable, EXAMPLE)


# --- calibration and inputs --------------------------------------------------------------------


def grid(x: Tensor, high: float, low: float) -> Tensor:
    """Section 7.1 for 8 bits, written out."""
    scale = (high - low) / 255
    offset = round(-128 - low / scale)
    return (torch.clamp(torch.round(x / scale) + offset, -128, 127) - offset) * scale


def rounded(weight: Tensor) -> Tensor:
    """ARQ for 8 bits, one scale an output channel."""
    rows = weight.detach().reshape(weight.shape[0], -1)
    divisor = torch.where(rows.amin(1).abs() > rows.amax(1).abs(), 128.0, 127.0)
    scale = (rows.abs().amax(1) / divisor)[:, None]
    return (torch.round(rows / scale).clamp(-128, 127) * scale).reshape(weight.shape)


@pytest.mark.parametrize("clips", [False, True])
def test_as_many_batches_calibrate_as_the_file_says(tmp_path: Path, clips: bool) -> None:
    teacher = settled(nn.Sequential(nn.Conv2d(3, 4, 3)))
    given = "{ clip_max_min { clip_max: 0.5 clip_min: -0.25 } }" if clips else "{ }"
    cfg = f"batch_num: 3 distill_data_quant_config {{ ulq_quantize {given} }}"
    file = make_config(teacher, tmp_path / "c.json", cfg)
    student = create_distill_model(file, teacher, EXAMPLE)
    weight, bias = (student.get_parameter(f"0.{n}").detach().clone() for n in ("weight", "bias"))
    outputs: list[Tensor] = []
    counted: list[int] = []
    calls = calls_of(student)
    handle = student.register_forward_hook(lambda m, a, output: outputs.append(output.detach()))

    def watch(event: Event) -> None:
        if isinstance(event, Progress) and event.what == "calibrate":
            counted.append(calls[0])
            if event.done == event.total:
                handle.remove()

    distill(teacher, student, file, loader(X[:16]), on_event=watch)
    assert counted == [1, 2, 3]
    for number, output in enumerate(outputs):
        x = X[8 * (number % 2) :][:8]
        seen = grid(x, 0.5, -0.25) if clips else x
        expected = F.conv2d(seen, rounded(weight), bias)
        torch.testing.assert_close(output, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("share", "expected"), [(0.49, False), (0.51, True)])
def test_which_input_is_used(share: float, expected: bool) -> None:
    teacher = torch.tensor([1.0, -1.0, 1.0, -1.0])
    # Turned by an angle towards a vector of the same length: both mean squares stay 1, and the
    # mean squared difference is 2 - 2 cos(angle).
    angle = torch.acos(torch.tensor(1 - share / 2))
    student = torch.cos(angle) * teacher + torch.sin(angle) * torch.ones(4)
    assert torch.isclose((teacher - student).square().mean(), torch.tensor(share))
    assert choose_input(teacher, student) is expected


# --- training ----------------------------------------------------------------------------------


def trained(
    coarse: tuple[nn.Module, nn.Module, str], **options: Any
) -> tuple[nn.Module, list[dict[str, Any]]]:
    teacher, student, file = coarse
    student = copy.deepcopy(student)
    distill(teacher, student, file, loader(X), report=True, **options)
    return student, student.distill_report_


def test_every_group_learns(coarse: tuple[nn.Module, nn.Module, str]) -> None:
    teacher, student, _ = coarse
    before = copy.deepcopy(student)
    with torch.no_grad():
        before(X[:8])
    after, reports = trained(coarse, epochs=5)
    assert [report["names"] for report in reports] == [
        *(("0", "1", "2"), ("3", "4"), ("5", "6"), ("7",))
    ]
    assert all(report["loss_after"] <= report["loss_before"] for report in reports)
    assert sum(r["loss_after"] < 0.9 * r["loss_before"] for r in reports) >= 2
    with torch.no_grad():
        error = [F.mse_loss(model(X), teacher(X)) for model in (before, after)]
    assert error[1] < 0.8 * error[0]


def codes(layer: Any) -> Tensor:
    weight = layer.weight.detach()
    scales = layer.weight_factors("wts_", weight).reshape(-1, 1, 1, 1)
    return torch.round(weight / scales)


def test_small_steps_are_not_lost(coarse: tuple[nn.Module, nn.Module, str], tmp_path: Path) -> None:
    """With the reference's write-back an update below half a step is erased (D1)."""
    teacher, _, _ = coarse
    changed = {}
    for compat in (False, True):
        file = make_config(teacher, tmp_path / f"{compat}.json", FOUR_BITS_LATE, compat=compat)
        student = create_distill_model(file, teacher, EXAMPLE)
        layer = student.get_submodule("7")
        with torch.no_grad():
            student(X[:8])
            if compat:
                layer.weight.copy_(layer.quantise_weight("wts_", layer.weight))
        start = codes(layer)
        distill(teacher, student, file, loader(X[:8]), epochs=40, lr=1e-5, keep_best=False)
        changed[compat] = int((codes(layer) != start).sum())
    assert changed[True] == 0
    assert changed[False] > 0


FOUR_BITS_LATE = FOUR_BITS + (
    'quant_skip_layers: "0" quant_skip_layers: "3" quant_skip_layers: "5" '
    'distill_group { start_layer_name: "7" end_layer_name: "7" } '
)


def test_learned_scales_are_other_scales(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    scales, moved = {}, {}
    for algorithm in ("arq", "ulq"):
        cfg = f"distill_weight_quant_config {{ {algorithm}_distill {{ }} }}"
        file = make_config(teacher, tmp_path / f"{algorithm}.json", cfg)
        student = create_distill_model(file, teacher, EXAMPLE)
        layer = student.get_submodule("0")
        distill(teacher, student, file, loader(X), epochs=3, keep_best=False)
        weight = layer.weight.detach()
        own = (weight.reshape(4, -1).abs().amax(1) / 127.5).tolist()
        scales[algorithm] = layer.weight_factors("wts_", weight).tolist()
        moved[algorithm] = max(abs(a / b - 1) for a, b in zip(scales[algorithm], own, strict=True))
    assert moved["arq"] < 0.005
    assert moved["ulq"] > 0.01
    assert min(scales["ulq"]) > 0


def test_what_it_costs(golden: nn.Module, golden_file: str, golden_student: nn.Module) -> None:
    """Batches forwards of the teacher, batches times groups parts of the student's (D4)."""
    batches, groups = 4, 4
    counts = {}
    for epochs in (1, 4):
        teacher, student = copy.deepcopy(golden), copy.deepcopy(golden_student)
        of_teacher, of_student = calls_of(teacher), calls_of(student)
        distill(teacher, student, golden_file, loader(X), epochs=epochs)
        counts[epochs] = (of_teacher[0], of_student[0])
    assert counts[1] == counts[4]
    assert counts[1][0] == batches
    # One calibrates, all find ranges at the end; two groups begin where the one before ends.
    assert counts[1][1] == 1 + batches + batches * (groups - 2)


@pytest.fixture(scope="module")
def in_memory(golden: nn.Module, golden_file: str, golden_student: nn.Module) -> dict[str, Tensor]:
    student = copy.deepcopy(golden_student)
    distill(golden, student, golden_file, loader(X), epochs=2, keep_best=False, cache="memory")
    return state(student)


@pytest.mark.parametrize(
    "options",
    [{"cache": "disk"}, {"cache": "none"}, {"cache_budget_mb": 0}, {"cache_budget_mb": 1}],
)
def test_where_blocks_are_kept_changes_nothing(
    golden: nn.Module,
    golden_file: str,
    golden_student: nn.Module,
    in_memory: dict[str, Tensor],
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    student = copy.deepcopy(golden_student)
    files: list[int] = []

    def watch(event: Event) -> None:
        if isinstance(event, DistillGroupStarted):
            files.append(len(list(tmp_path.rglob("*.bin"))))

    distill(
        golden,
        student,
        golden_file,
        loader(X),
        epochs=2,
        keep_best=False,
        cache_dir=str(tmp_path),
        on_event=watch,
        **options,
    )
    # Only how often a layer was called depends on it.
    assert same(state(student), in_memory, "cur_batch")
    assert list(tmp_path.iterdir()) == []
    on_disk = options.get("cache") == "disk" or options.get("cache_budget_mb") == 0
    assert (files[0] > 0) == on_disk


def test_a_disk_that_is_too_small(
    golden: nn.Module,
    golden_file: str,
    golden_student: nn.Module,
    in_memory: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    student = copy.deepcopy(golden_student)
    options: dict[str, Any] = {"epochs": 2, "keep_best": False, "cache_dir": str(tmp_path)}
    with pytest.raises(RuntimeError, match="the cache does not fit"):
        distill(golden, student, golden_file, loader(X), cache="disk", **options)
    notices: list[Event] = []
    distill(
        golden,
        student,
        golden_file,
        loader(X),
        cache_budget_mb=0,
        on_event=lambda e: notices.append(e) if isinstance(e, Notice) else None,
        **options,
    )
    assert "computed anew for each step" in str(notices)
    assert same(state(student), in_memory, "cur_batch")
    assert list(tmp_path.iterdir()) == []


class Failing(nn.Module):
    def __init__(self, after: int, action: Callable[[], None]) -> None:
        super().__init__()
        self.left, self.action = after, action

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.left -= 1
        if not self.left:
            self.action()
        return F.mse_loss(output, target)


def test_after_an_error_or_a_cancel_nothing_is_left(
    golden: nn.Module, golden_file: str, golden_student: nn.Module, tmp_path: Path
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    token = CancelToken()
    # Four losses before training and four steps and four losses an epoch: in the second group.
    for action, error in ((fail, ZeroDivisionError), (token.cancel, Cancelled)):
        student = copy.deepcopy(golden_student)
        kept: list[dict[str, Tensor]] = []

        def watch(event: Event, student: nn.Module = student, kept: Any = kept) -> None:
            if isinstance(event, DistillGroupFinished):
                kept.append(state(student))

        with pytest.raises(error):
            distill(
                golden,
                student,
                golden_file,
                loader(X),
                loss=Failing(12 + 4 + 3, action),
                cache="disk",
                cache_dir=str(tmp_path),
                on_event=watch,
                cancel=token,
            )
        assert len(kept) == 1
        # What was trained stays; the group that was being trained is as it was before.
        assert same(state(student), kept[0], "cur_batch")
        assert list(tmp_path.iterdir()) == []


def test_the_teacher_and_all_modes_stay_as_they_were(
    golden: nn.Module, golden_file: str, golden_student: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    teacher, student = copy.deepcopy(golden).train(), copy.deepcopy(golden_student).train()
    teacher.get_submodule("b2").eval()
    statistics = student.get_buffer("b1.running_mean").clone()
    before = state(teacher)
    modes = [[m.training for m in model.modules()] for model in (teacher, student)]
    returned = distill(teacher, student, golden_file, loader(X))
    assert returned is student
    assert same(state(teacher), before)
    assert [[m.training for m in model.modules()] for model in (teacher, student)] == modes
    assert torch.equal(student.get_buffer("b1.running_mean"), statistics)
    assert "training mode" in caplog.text
    assert all(p.grad is None for p in (*teacher.parameters(), *student.parameters()))


def test_it_can_be_distilled_again(
    golden: nn.Module, golden_file: str, golden_student: nn.Module
) -> None:
    student = copy.deepcopy(golden_student)
    distill(golden, student, golden_file, loader(X), epochs=2, report=True)
    first = student.distill_report_[0]
    distill(golden, student, golden_file, loader(X), report=True)
    # New ranges, or a weight that was rounded in between, would give another loss.
    assert student.distill_report_[0]["loss_before"] == first["loss_after"]


def test_events_tell_the_story(
    golden: nn.Module, golden_file: str, golden_student: nn.Module
) -> None:
    events: list[Event] = []
    student = copy.deepcopy(golden_student)
    distill(golden, student, golden_file, loader(X), 2, report=True, on_event=events.append)
    started = [e for e in events if isinstance(e, DistillGroupStarted)]
    finished = [e for e in events if isinstance(e, DistillGroupFinished)]
    steps = [e for e in events if isinstance(e, DistillStep)]
    assert [e.names for e in started] == [e.names for e in finished]
    assert [(e.group, e.groups) for e in started] == [(n, 4) for n in range(4)]
    assert [(e.group, e.epoch, e.step, e.steps) for e in steps] == [
        (group, epoch, step, 4) for group in range(4) for epoch in range(2) for step in range(4)
    ]
    for event, report in zip(finished, student.distill_report_, strict=True):
        assert event.loss_before == report["loss_before"]
        assert (
            event.loss_after
            == report["loss_after"]
            == min(report["loss_before"], *report["epoch_losses"])
        )
        assert report["teacher_share"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    captured = [e for e in events if isinstance(e, Progress) and e.what == "capture"]
    assert [(e.done, e.total) for e in captured] == [(n, 4) for n in range(1, 5)]


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 4, 1)
        self.act, self.head = nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        joint = self.act(self.left(x) + self.right(y))
        return self.head(joint), joint


class LeftAndRight(DistillSampleBase):
    @staticmethod
    def get_model_input_data(samples: Any) -> Any:
        left, right, _label = samples
        return left, right.float()


class Bad(DistillSampleBase):
    result: Any = None

    @classmethod
    def get_model_input_data(cls, samples: Any) -> Any:
        return cls.result


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    model = settled(TwoInputs())
    x, y = X, torch.rand(len(X), 2, 8, 8, dtype=torch.float64)
    file = make_config(model, tmp_path / "c.json", example=(x[:2], y[:2].float()))
    # A group that begins with an activation in place: what it reads must survive (D21).
    data = json.loads(Path(file).read_text())
    assert data["distill_group"] == [["left"], ["right"], ["head"]]
    data["distill_group"] = [["left"], ["right"], ["act", "head"]]
    Path(file).write_text(json.dumps(data))
    results = []
    for cache in ("memory", "none"):
        student = create_distill_model(file, model, (x[:2], y[:2].float()))
        data_loader = loader(x, y, torch.zeros(len(x)))
        distill(model, student, file, data_loader, 3, sample_instance=LeftAndRight(), cache=cache)
        results.append(state(student))
    assert same(*results, "cur_batch")
    for wrong in ({"x": x}, (1, 2), [x, None], ()):
        Bad.result = wrong
        with pytest.raises(RuntimeError, match="get_model_input_data gave"):
            distill(model, student, file, data_loader, sample_instance=Bad())
    with pytest.raises(NotImplementedError):
        distill(model, student, file, data_loader, sample_instance=DistillSampleBase())


def test_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settled(plain_cnn(4)).to(torch.bfloat16)
    x = X.to(torch.bfloat16)
    file = make_config(model, tmp_path / "c.json", FOUR_BITS_OPEN, example=(x[:2],))
    student = create_distill_model(file, model, (x[:2],))
    distill(model, student, file, loader(x), epochs=4, report=True)
    assert student.get_parameter("5.weight").dtype == torch.bfloat16
    assert student.get_parameter("5.acts_clip_max").dtype == torch.float32
    assert student(x).dtype == torch.bfloat16
    gains = [r["loss_after"] / r["loss_before"] for r in student.distill_report_]
    assert max(gains) <= 1
    assert min(gains) < 0.99


FOUR_BITS_OPEN = (
    "distill_override_layers { layer_name: '5' "
    + FOUR_BITS
    + "} distill_override_layers { layer_name: '7' "
    + FOUR_BITS
    + "}"
)


class SharedReLU(nn.Module):
    """The second group reads the ReLU's second call; the first group ends with its first."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.r = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.r(self.c1(x))
        return self.c2(self.r(y + x))


def test_a_shared_activation_is_no_link_between_groups(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settled(SharedReLU())
    file = make_config(model, tmp_path / "c.json")
    assert json.loads(Path(file).read_text())["distill_group"] == [["c1", "r"], ["c2"]]
    results = []
    for cache in ("memory", "none"):
        student = create_distill_model(file, model, EXAMPLE)
        distill(model, student, file, loader(X), keep_best=False, cache=cache)
        results.append(state(student))
    assert same(*results, "cur_batch")


# --- optimiser, loss, bad input ----------------------------------------------------------------


def test_the_users_optimiser_is_a_template(
    golden: nn.Module, golden_file: str, golden_student: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[torch.optim.Optimizer] = []
    own = [nn.Parameter(torch.ones(1))]

    class Kept(torch.optim.SGD):
        def __init__(self, params: Any, lr: float = 1.0, momentum: float = 0.0, **kw: Any) -> None:
            super().__init__(params, lr=lr, momentum=momentum, **kw)
            built.append(self)

    template = Kept(own, lr=0.02, momentum=0.7)
    distill(golden, copy.deepcopy(golden_student), golden_file, loader(X), optimizer=template)
    # The template, one that shows what reaches the groups, and one for each group.
    assert len(built) == 2 + 4
    for optimizer in built[2:]:
        weights, clips = optimizer.param_groups
        assert (weights["lr"], weights["momentum"]) == (0.02, 0.7)
        # The range decides: 0.1 for bounds of 6 and more.
        assert 0 < clips["lr"] < 0.1
        assert len(clips["params"]) == 2
        assert clips["weight_decay"] == 0.0
    assert own[0].item() == 1.0

    class Demanding(torch.optim.SGD):
        def __init__(self, params: Any, secret: int) -> None:
            super().__init__(params, lr=0.1)

    student = copy.deepcopy(golden_student)
    with pytest.raises(ValueError, match="Demanding cannot be built"):
        distill(golden, student, golden_file, loader(X), optimizer=Demanding(own, 1))


def test_what_learns_how_fast(tmp_path: Path, golden: nn.Module) -> None:
    cfg = (
        "distill_weight_quant_config { ulq_distill { } } distill_data_quant_config "
        "{ ulq_quantize { clip_max_min { clip_max: 3 clip_min: -3 } } }"
    )
    student = create_distill_model(make_config(golden, tmp_path / "c.json", cfg), golden, EXAMPLE)
    student(X[:2])
    modules = [student.get_submodule(name) for name in ("c1", "b1", "r")]
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5, momentum=0.9)

    def groups(rates: Rates) -> list[tuple[int, float, float]]:
        optimizer = GroupOptimiser(modules, rates)._optimizer
        return [(len(g["params"]), g["lr"], g["weight_decay"]) for g in optimizer.param_groups]

    # Weight, bias and the batch norm's two; two bounds, at half of the full range; the scales.
    assert groups(Rates(1e-3)) == [(4, 1e-3, 0.01), (2, 0.05, 0.0), (1, 1e-4, 0.0)]
    assert groups(Rates(1e-3, compat=True)) == [(4, 1e-3, 0.01), (2, 0.1, 0.01), (1, 1e-4, 0.01)]
    assert groups(Rates(1e-3, sgd)) == [(4, 0.5, 0.0), (2, 0.05, 0.0), (1, 1e-4, 0.0)]
    assert groups(Rates(1e-3, sgd, compat=True)) == [(7, 0.5, 0.0)]


def test_every_optimiser_of_torch_that_takes_parameters_works(
    golden: nn.Module, golden_file: str, golden_student: nn.Module
) -> None:
    own = [nn.Parameter(torch.ones(1))]
    for kind in (torch.optim.AdamW, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad):
        student = copy.deepcopy(golden_student)
        template = kind(own, lr=1e-3, weight_decay=0.1)
        distill(golden, student, golden_file, loader(X[:8]), optimizer=template)


def test_data_that_is_not_finite_is_no_broken_group(
    golden: nn.Module, golden_file: str, golden_student: nn.Module
) -> None:
    broken = X[:8].clone()
    broken[3, 0, 0, 0] = math.nan
    student = copy.deepcopy(golden_student)
    with pytest.raises(RuntimeError, match="the float model computes there holds inf or NaN"):
        distill(golden, student, golden_file, loader(broken))


def test_a_loss_that_is_not_finite_stops(
    golden: nn.Module, golden_file: str, golden_student: nn.Module
) -> None:
    student = copy.deepcopy(golden_student)
    with torch.no_grad():
        student(X)
    before = state(student)

    class Exploding(nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return 1e38 * F.mse_loss(output, target) * (1e10 if output.requires_grad else 1)

    with pytest.raises(TrainingDiverged, match=r"group 1 \(c1 to r\).*epoch 1, step 1"):
        distill(golden, student, golden_file, loader(X), loss=Exploding())
    assert same(state(student), before, "cur_batch")

    sgd = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=float("inf"))
    with pytest.raises(TrainingDiverged, match="went first"):
        distill(golden, student, golden_file, loader(X), optimizer=sgd)
    assert same(state(student), before, "cur_batch")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": 1}, TypeError, "model"),
        ({"compress_model": None}, TypeError, "compress_model"),
        ({"config_file": 1}, TypeError, "config_file"),
        ({"train_loader": [X]}, TypeError, "DataLoader"),
        ({"epochs": 0}, ValueError, "epochs is 0"),
        ({"epochs": 1.5}, TypeError, "epochs"),
        ({"lr": "fast"}, TypeError, "lr"),
        ({"lr": -1}, ValueError, "lr is -1"),
        ({"sample_instance": 1}, TypeError, "sample_instance"),
        ({"loss": 1}, TypeError, "loss"),
        ({"optimizer": torch.optim.SGD}, TypeError, "optimizer"),
        ({"cache": "tape"}, ValueError, "auto, memory, disk, none"),
        ({"cache_budget_mb": -1}, ValueError, "cache_budget_mb"),
        ({"config_file": "no.json"}, OSError, "does not exist"),
        ({"train_loader": loader(X[:0])}, ValueError, "no batches"),
    ],
)
def test_distill_refuses(
    golden: nn.Module,
    golden_file: str,
    golden_student: nn.Module,
    change: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    given: dict[str, Any] = {
        "model": golden,
        "compress_model": golden_student,
        "config_file": golden_file,
        "train_loader": loader(X),
    }
    with pytest.raises(error, match=words) as caught:
        distill(**(given | change))
    assert isinstance(caught.value, WorkbenchError)


def test_teacher_and_student_must_be_what_they_are(
    golden: nn.Module, golden_file: str, golden_student: nn.Module
) -> None:
    with pytest.raises(RuntimeError, match="no quantised layer"):
        distill(golden, golden, golden_file, loader(X))
    with pytest.raises(RuntimeError, match="c1 → Conv2dQAT"):
        distill(golden_student, golden_student, golden_file, loader(X))
    other = nn.Sequential(Conv2dQAT(3, 3, 1))
    with pytest.raises(RuntimeError, match="the student has no module c1"):
        distill(golden, other, golden_file, loader(X))
    rows = DataLoader([{"x": row} for row in X], batch_size=8)  # type: ignore[arg-type, var-annotated]
    with pytest.raises(ValueError, match="an item of the loader begins with a dict"):
        distill(golden, golden_student, golden_file, rows)


class Stream(torch.utils.data.IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(X)


def test_a_loader_that_does_not_know_its_length(
    golden: nn.Module, golden_file: str, golden_student: nn.Module, in_memory: dict[str, Tensor]
) -> None:
    student = copy.deepcopy(golden_student)
    stream = DataLoader(Stream(), batch_size=8)
    distill(golden, student, golden_file, stream, epochs=2, keep_best=False)
    assert same(state(student), in_memory, "cur_batch")


class Empty(torch.utils.data.IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(())


def test_a_loader_that_yields_nothing(
    golden: nn.Module, golden_file: str, golden_student: nn.Module
) -> None:
    with pytest.raises(ValueError, match="yields nothing"):
        distill(golden, golden_student, golden_file, DataLoader(Empty()))


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([["c1", "r"]], "not a chain"),
        ([["c2", "c1"]], "not a chain"),
        ([["r"]], "no parameter that can be trained"),
    ],
)
def test_a_group_is_checked_before_it_is_trained(
    golden: nn.Module,
    golden_file: str,
    golden_student: nn.Module,
    tmp_path: Path,
    groups: list[list[str]],
    words: str,
) -> None:
    data = json.loads(Path(golden_file).read_text())
    data["distill_group"] = groups
    file = tmp_path / "c.json"
    file.write_text(json.dumps(data))
    student = copy.deepcopy(golden_student)
    before = state(student)
    with pytest.raises(ValueError, match=words):
        distill(golden, student, str(file), loader(X))
    # Going into eval mode brings what is derived from the weights up to date.
    assert same(state(student), before, "wts_scales")


def test_without_groups_it_calibrates(
    golden: nn.Module, golden_file: str, golden_student: nn.Module, tmp_path: Path
) -> None:
    data = json.loads(Path(golden_file).read_text())
    data["distill_group"] = []
    file = tmp_path / "c.json"
    file.write_text(json.dumps(data))
    student = copy.deepcopy(golden_student)
    weight = student.get_parameter("c1.weight").detach().clone()
    distill(golden, student, str(file), loader(X), report=True)
    assert student.distill_report_ == []
    assert bool(torch.isfinite(student.get_buffer("c1.acts_scale")).all())
    assert torch.equal(student.get_parameter("c1.weight"), weight)


def test_an_own_learning_rate_beside_an_optimiser_is_said(
    golden: nn.Module,
    golden_file: str,
    golden_student: nn.Module,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1e-3)
    with caplog.at_level(logging.WARNING):
        distill(
            golden,
            copy.deepcopy(golden_student),
            golden_file,
            DataLoader(TensorDataset(X[:8]), batch_size=8),
            lr=1,
            optimizer=sgd,
        )
    assert "lr=1 is ignored" in caplog.text
    assert "do not reach" not in caplog.text


def test_settings_of_an_optimiser_that_reach_no_group_are_said(
    golden: nn.Module,
    golden_file: str,
    golden_student: nn.Module,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Narrow(torch.optim.SGD):
        def __init__(self, params: Any, lr: float = 1e-3, **kw: Any) -> None:
            super().__init__(params, lr=lr, **kw)

    groups = [{"params": [nn.Parameter(torch.ones(1))]} for _ in range(2)]
    groups[0]["weight_decay"] = 0.5  # type: ignore[assignment]
    template = Narrow(groups, momentum=0.7)
    with caplog.at_level(logging.WARNING):
        distill(
            golden, copy.deepcopy(golden_student), golden_file, loader(X[:8]), optimizer=template
        )
    assert (
        "do not reach the groups: momentum=0.7, weight_decay=0.5 of its parameter group, "
        "1 more parameter groups"
    ) in caplog.text
    # The reference takes its learning rate alone.
    sgd = torch.optim.SGD(groups[0]["params"], lr=0.1, momentum=0.7)
    assert Rates(1e-3, sgd, compat=True).ignored() == ["momentum=0.7"]
    assert Rates(1e-3, sgd).ignored() == Rates(1e-3).ignored() == []
    adam = torch.optim.AdamW(groups[0]["params"], lr=0.1, betas=(0.5, 0.9))
    assert Rates(1e-3, adam).ignored() == []


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_batches_that_the_model_does_not_take_are_named(
    golden: nn.Module, golden_file: str, golden_student: nn.Module, cache: Any
) -> None:
    rows = [X[:8], X[:8, :2]]
    batches: Any = DataLoader(rows, batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError,
        match=r"train_loader: the model does not take batch 1: x \[8, 2, 8, 8\]; "
        r"create_distill_model was given x \[2, 3, 8, 8\] \(Given groups=1",
    ) as caught:
        distill(golden, copy.deepcopy(golden_student), golden_file, batches, cache=cache)
    assert isinstance(caught.value, WorkbenchError)


def test_another_network_as_teacher_is_found_before_any_work(
    golden: nn.Module, golden_file: str, golden_student: nn.Module
) -> None:
    class Untouched(torch.utils.data.IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            raise AssertionError("the loader was read")

    other = copy.deepcopy(golden)
    inner = next(name for name, module in other.named_modules() if isinstance(module, nn.Linear))
    layer = other.get_submodule(inner)
    wider = nn.Linear(layer.in_features, layer.out_features + 1)
    other.set_submodule(inner, wider)
    with pytest.raises(RuntimeError, match=rf"different networks: {inner}\.weight is \["):
        distill(other, golden_student, golden_file, DataLoader(Untouched()))


# --- interruptions, processes ------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_an_interrupted_run_goes_on_to_the_same_result(
    golden: nn.Module,
    golden_file: str,
    golden_student: nn.Module,
    in_memory: dict[str, Tensor],
    tmp_path: Path,
    cache: Any,
) -> None:
    file = tmp_path / "folder" / "distill.pt"
    options: dict[str, Any] = {"epochs": 2, "keep_best": False, "checkpoint": str(file)}

    def interrupt(event: Event) -> None:
        # In the middle of the third group.
        if isinstance(event, DistillStep) and event.group == 2 and event.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(
            golden,
            copy.deepcopy(golden_student),
            golden_file,
            loader(X),
            on_event=interrupt,
            **options,
        )
    assert file.is_file()
    with pytest.raises(RuntimeError, match="another distillation: epochs was 2, is 3"):
        distill(
            golden, copy.deepcopy(golden_student), golden_file, loader(X), **options | {"epochs": 3}
        )
    # Of the first run only the file is left, as after a SIGKILL.
    student = copy.deepcopy(golden_student)
    events: list[Event] = []
    distill(
        golden,
        student,
        golden_file,
        loader(X),
        cache=cache,
        report=True,
        on_event=events.append,
        **options,
    )
    assert same(state(student), in_memory, "cur_batch")
    assert [e.group for e in events if isinstance(e, DistillGroupStarted)] == [2, 3]
    assert [report["names"][0] for report in student.distill_report_] == ["c1", "c2", "c3", "fc"]
    assert list(file.parent.iterdir()) == []


def test_a_damaged_checkpoint(
    golden: nn.Module, golden_file: str, golden_student: nn.Module, tmp_path: Path
) -> None:
    file = tmp_path / "distill.pt"
    file.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        distill(golden, golden_student, golden_file, loader(X), checkpoint=str(file))


@pytest.fixture
def one_process(tmp_path: Path) -> Any:
    store = f"file://{tmp_path}/gloo"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_models_are_unwrapped(
    one_process: None, golden: nn.Module, golden_file: str, in_memory: dict[str, Tensor]
) -> None:
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(golden))
    student = create_distill_model(golden_file, wrapped, EXAMPLE)
    assert isinstance(student, nn.parallel.DistributedDataParallel)
    returned = distill(wrapped, student, golden_file, loader(X), epochs=2, keep_best=False)
    assert returned is student.module
    # With one process the means over all of them change nothing.
    assert same(state(returned), in_memory, "cur_batch")
