from __future__ import annotations

import math
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from torch import nn
from training_case import (
    SETTINGS,
    Clipped,
    Noisy,
    accuracy,
    after,
    make_loader,
    make_model,
    run,
    same,
)

from workbench.engine.errors import Cancelled, TrainingDiverged, WrongState, WrongType, WrongValue
from workbench.engine.events import CancelToken, ClipsMoved, Event, TrainStep
from workbench.engine.flows.training import fit
from workbench.engine.flows.training_checkpoint import list_checkpoints, read_checkpoint
from workbench.engine.flows.training_groups import layer_of, parameter_groups
from workbench.engine.flows.training_settings import TrainingSettings, multiplier

STEPS = 15  # 3 epochs of 40 samples in batches of 8


def steps_of(events: list[Event]) -> list[TrainStep]:
    return [event for event in events if isinstance(event, TrainStep)]


# -- what a step is ---------------------------------------------------------------------------


def test_sgd_by_hand() -> None:
    """Two steps of gradient descent with decay for the weight alone, computed in this test."""
    torch.manual_seed(0)
    layer = Clipped(3, 1)
    inner = layer.quant_module.replaced_module
    weight, bias = inner.weight.detach().clone().double(), inner.bias.detach().clone().double()
    batches = [(torch.rand(4, 3), torch.rand(4, 1)) for _ in range(2)]
    buffers = [torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
    for x, y in batches:  # all inputs are within the bounds
        error = 2 * (x.double() @ weight.T + bias - y.double()) / 4
        gradients = [error.T @ x.double() + 0.1 * weight, error.sum(dim=0)]
        for value, gradient, buffer in zip((weight, bias), gradients, buffers, strict=True):
            buffer.mul_(0.9).add_(gradient)
            value -= 0.05 * (gradient + 0.9 * buffer)
    settings = TrainingSettings(
        epochs=1, learning_rate=0.05, optimizer="sgd", weight_decay=0.1, schedule="constant"
    )
    fit(layer, batches, loss=nn.functional.mse_loss, settings=settings)
    assert torch.allclose(inner.weight.double(), weight, atol=1e-6)
    assert torch.allclose(inner.bias.double(), bias, atol=1e-6)
    assert layer.quant_module.acts_clip_max.item() == 1.5, "no gradient, and no decay either"


def test_bounds_learn_at_their_own_rate_without_decay() -> None:
    settings = TrainingSettings(learning_rate=0.01, weight_decay=0.5, clip_rate=7.0)
    groups = {group["name"]: group for group in parameter_groups(make_model(), settings)}
    assert {name: len(group["params"]) for name, group in groups.items()} == {
        "weights": 2, "biases": 4, "clips": 4,
    }  # fmt: skip
    assert groups["clips"]["lr"] == pytest.approx(0.07)
    assert [groups[n]["weight_decay"] for n in ("weights", "biases", "clips")] == [0.5, 0.0, 0.0]
    assert layer_of("a.b.quant_module.acts_clip_max") == "a.b"
    assert layer_of("a.b.quant_module.replaced_module.weight") == "a.b"


@pytest.mark.parametrize(
    ("schedule", "first", "peak_at", "last"),
    [("cosine", 1.0, 0, 0.0), ("one_cycle", 0.04, 30, 0.0), ("constant", 1.0, 0, 1.0)],
)
def test_schedules(schedule: str, first: float, peak_at: int, last: float) -> None:
    values = [multiplier(schedule, step, 100) for step in range(101)]
    assert values[0] == pytest.approx(first)
    assert values[100] == pytest.approx(last, abs=1e-9)
    assert values[peak_at] == pytest.approx(1.0) == pytest.approx(max(values))
    if schedule == "cosine":
        assert values[25] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_it_learns_and_says_so(tmp_path: Path) -> None:
    events: list[Event] = []
    model, result = run(tmp_path / "c", on_event=events.append)
    steps = steps_of(events)
    assert [event.step for event in steps] == list(range(1, STEPS + 1))
    assert steps[0].learning_rate == pytest.approx(0.02)
    assert steps[-1].learning_rate < 0.001
    assert [event.epoch for event in steps] == [0] * 5 + [1] * 5 + [2] * 5
    assert result.metric == accuracy(model)
    assert accuracy(model) > accuracy(make_model())
    moved = [event for event in events if isinstance(event, ClipsMoved)]
    assert [name for name, _, _ in moved[-1].clips] == ["0", "4"]
    bounds = model[4].quant_module
    if result.best_step == STEPS:
        assert moved[-1].clips[1][1:] == pytest.approx(
            (bounds.acts_clip_min.item(), bounds.acts_clip_max.item())
        )
    assert moved[0].clips != moved[-1].clips
    assert not model.training
    assert [file.step for file in list_checkpoints(tmp_path / "c")] == [14, 15]


def test_the_callers_randomness_stays_and_the_seed_decides() -> None:
    model = make_model()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, _ = run(None, model=model)
    assert torch.equal(torch.rand(1), expected)
    second, _ = run(None)
    other, _ = run(None, settings=TrainingSettings(**{**vars(SETTINGS), "seed": 1}))
    assert same(first, second)
    assert not same(first, other)


def test_the_best_weights_are_those_that_stay() -> None:
    scores = iter([0.1, 0.9, 0.2])
    states: list[dict[str, torch.Tensor]] = []

    def metric(model: nn.Module) -> float:
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        return next(scores)

    settings = TrainingSettings(epochs=3, learning_rate=0.02)
    model, result = run(None, settings=settings, metric=metric)
    assert (result.metric, result.best_step, result.steps) == (0.9, 10, STEPS)
    assert all(torch.equal(value, states[1][name]) for name, value in model.state_dict().items())


def test_early_stop() -> None:
    scores = iter([0.5, 0.6, 0.61, 0.605])
    settings = TrainingSettings(epochs=3, evaluate_every=2, patience=2, min_delta=0.05)
    _, result = run(None, settings=settings, metric=lambda model: next(scores))
    assert result.stopped_early
    assert (result.steps, result.best_step, result.metric) == (8, 6, 0.61)


# -- interrupted ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    """Uninterrupted, by whether the loader has a generator of its own."""
    folder = tmp_path_factory.mktemp("whole")
    return {own: run(folder / str(own), own_generator=own) for own in (False, True)}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("step", [1, 5, 7])
def test_cancelled_and_resumed_is_the_same_bit_for_bit(
    tmp_path: Path, whole: dict[bool, Any], step: int, own: bool
) -> None:
    token = CancelToken()
    with pytest.raises(Cancelled):
        run(tmp_path, own_generator=own, cancel=token, on_event=after(step, token.cancel))
    assert list_checkpoints(tmp_path)[-1].step == step
    resumed, result = run(tmp_path, own_generator=own, resume=True)
    expected, whole_result = whole[own]
    assert same(resumed, expected)
    assert result.metric == whole_result.metric
    assert (result.steps, result.best_step) == (STEPS, whole_result.best_step)


@pytest.mark.parametrize("evaluate_every", [0, 5])
def test_cancelled_while_it_evaluates(tmp_path: Path, evaluate_every: int) -> None:
    settings = TrainingSettings(epochs=2, learning_rate=0.02, evaluate_every=evaluate_every)
    expected, _ = run(None, settings=settings)
    calls = 0

    def stopping(model: nn.Module) -> float:
        nonlocal calls
        calls += 1
        torch.rand(3)  # an evaluation may draw; that must not change the training
        if calls == 1:
            raise Cancelled("in the middle")
        return accuracy(model)

    with pytest.raises(Cancelled):
        run(tmp_path, settings=settings, metric=stopping)
    events: list[Event] = []
    resumed, result = run(
        tmp_path, settings=settings, metric=stopping, resume=True, on_event=events.append
    )
    assert same(resumed, expected)
    assert calls == 3, "the one that was broken off is made up for"
    assert [event.step for event in steps_of(events)] == list(range(6, 11))
    assert result.steps == 10


SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from training_case import run
def on_event(event):
    if type(event).__name__ == "TrainStep":
        print(event.step, flush=True)
        if event.step == 9:
            time.sleep(60)
run(Path(sys.argv[1]), on_event=on_event)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_loses_nothing(
    tmp_path: Path, whole: dict[bool, Any], number: signal.Signals
) -> None:
    support = str(Path(__file__).parents[2] / "support")
    reading, writing = os.pipe()
    with open(reading) as steps:
        child = warm.Process(
            ["-c", SCRIPT, str(tmp_path), support],
            stdout=writing,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )
        os.close(writing)
        for line in steps:
            if line.strip() == "9":
                break
        child.send_signal(number)
        child.wait(timeout=30)
    files = list_checkpoints(tmp_path)
    assert files[-1].step == 8
    assert {file.name for file in tmp_path.iterdir()} == {
        "best.pt", *(file.path.name for file in files),
    }, "nothing half-written"  # fmt: skip
    resumed, _ = run(tmp_path, resume=True)
    assert same(resumed, whole[False][0])


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    first, _ = run(tmp_path)
    events: list[Event] = []
    again, result = run(tmp_path, resume=True, on_event=events.append)
    assert not steps_of(events)
    assert same(first, again)
    assert result.steps == STEPS


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, whole: dict[bool, Any]
) -> None:
    token = CancelToken()
    with pytest.raises(Cancelled):
        run(tmp_path, cancel=token, on_event=after(7, token.cancel))
    newest = list_checkpoints(tmp_path)[-1]
    newest.path.write_bytes(newest.path.read_bytes()[:100])
    resumed, _ = run(tmp_path, resume=True)
    assert same(resumed, whole[False][0])


def test_checkpoints_hold_no_pickled_objects(tmp_path: Path) -> None:
    run(tmp_path)
    for file in list_checkpoints(tmp_path):
        content = read_checkpoint(file.path)  # loaded with weights_only
        assert {"model", "optimizer", "schedule", "random", "position"} <= content.keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": TrainingSettings(**{**vars(SETTINGS), "learning_rate": 0.5})}, "learning_"),
        ({"identity": "other"}, "configuration"),
        ({"loader": [(torch.rand(8, 6), torch.zeros(8).long())]}, "the loader has 1 batches"),
        ({"model": nn.Sequential(nn.Linear(6, 2))}, "another model"),
    ],
)
def test_another_trainings_checkpoint_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    token = CancelToken()
    with pytest.raises(Cancelled):
        run(tmp_path, cancel=token, on_event=after(3, token.cancel))
    with pytest.raises(WrongState, match=words) as caught:
        run(tmp_path, resume=True, **change)
    assert "step-00000003.pt" in str(caught.value)


# -- broken -----------------------------------------------------------------------------------


def test_a_bound_that_runs_away_is_named(tmp_path: Path) -> None:
    model = make_model()

    def spoil() -> None:
        with torch.no_grad():
            model[4].quant_module.acts_clip_max.fill_(float("nan"))

    with pytest.raises(TrainingDiverged) as caught:
        run(tmp_path, model=model, on_event=after(5, spoil))
    error = caught.value
    assert error.layer == "4"
    assert "clip bound 4.quant_module.acts_clip_max is nan" in str(error)
    assert error.step == 4, "the last checkpoint"
    good = read_checkpoint(list_checkpoints(tmp_path)[-1].path)["model"]
    assert list_checkpoints(tmp_path)[-1].step == 4
    assert all(torch.equal(value, good[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("folder", [True, False])
def test_a_layer_that_overflows_is_named(tmp_path: Path, folder: bool) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model[0].quant_module.replaced_module.weight.fill_(3e38)
    before["0.quant_module.replaced_module.weight"].fill_(3e38)
    with pytest.raises(TrainingDiverged) as caught:
        run(tmp_path if folder else None, model=model)
    assert caught.value.layer == "0"
    assert "output" in str(caught.value)
    state = model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in state.items()), "running means"


def test_a_gradient_that_is_not_finite_is_named() -> None:
    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 0).sqrt()  # its gradient is NaN, its value is not

    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), Root(), nn.Linear(4, 2))
    with pytest.raises(TrainingDiverged) as caught:
        run(None, model=model)
    assert caught.value.layer == "1"
    assert "gradient" in str(caught.value)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_layer_that_refuses_what_is_not_finite() -> None:
    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not torch.isfinite(x).all():
                raise RuntimeError("not finite")
            return x

    model = nn.Sequential(nn.Linear(6, 4), Picky(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.fill_(3e38)
    with pytest.raises(TrainingDiverged, match="output") as caught:
        run(None, model=model)
    assert caught.value.layer == "0"
    with pytest.raises(RuntimeError, match="mat1"):
        run(None, model=nn.Sequential(nn.Linear(7, 2)))


def test_float16_parameters_are_named_as_the_cause() -> None:
    loader = [(torch.randn(8, 6).half(), torch.zeros(8).long())] * 4
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).half()
    with pytest.raises(TrainingDiverged, match=r"float16.*model\.float\(\)"):
        run(None, model=model, loader=loader)


def test_bad_data_is_told_from_a_bad_model() -> None:
    loader = [(torch.full((8, 6), math.nan), torch.zeros(8).long())]
    with pytest.raises(TrainingDiverged, match="batch holds NaN") as caught:
        run(None, loader=loader)
    assert caught.value.layer == ""
    zero = lambda output, target: (output * 0).sum() / 0
    with pytest.raises(TrainingDiverged, match="every layer's output is finite"):
        run(None, loss=zero)


def test_bad_input() -> None:
    with pytest.raises(WrongValue, match="yields nothing"):
        run(None, loader=_Empty())
    with pytest.raises(WrongType, match="only once"):
        run(None, loader=iter([1]))
    with pytest.raises(WrongValue, match="no loss"):
        fit(make_model(), make_loader())
    with pytest.raises(WrongValue, match="has no target"):
        run(None, loader=[torch.rand(8, 6)])
    with pytest.raises(WrongState, match="can be trained"):
        run(None, model=make_model().requires_grad_(False))
    with pytest.raises(WrongValue) as caught:
        TrainingSettings(epochs=0, learning_rate=-1.0, optimizer="lion", seed=True)
    for field in ("epochs", "learning_rate", "optimizer", "seed"):
        assert field in str(caught.value), "all problems at once"
    with pytest.raises(WrongValue, match="'speed'"):
        TrainingSettings.from_mapping({"speed": 1})


class _Empty:
    def __iter__(self) -> Any:
        return iter(())


# -- the user's own ---------------------------------------------------------------------------


class Lightning(nn.Module):
    """As users of Lightning write them; nothing of it is imported."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
        x, y = batch
        self.seen.append(batch_idx)
        return {"loss": nn.functional.cross_entropy(self.net(x), y)}

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}


def test_a_lightning_module_trains_and_resumes(tmp_path: Path) -> None:
    def start(folder: Path | None, **options: Any) -> tuple[Lightning, list[TrainStep]]:
        net = make_model()
        module = Lightning(net)
        events: list[Event] = []
        stop = options.pop("stop", None)

        def on_event(event: Event) -> None:
            events.append(event)
            if stop is not None:
                stop(event)

        run(folder, model=net, recipe=module, on_event=on_event, **options)
        return module, steps_of(events)

    whole, steps = start(None)
    assert whole.seen == [0, 1, 2, 3, 4] * 3
    assert [round(s.learning_rate, 4) for s in steps[::5]] == [0.1, 0.05, 0.025]
    token = CancelToken()
    with pytest.raises(Cancelled):
        start(tmp_path, cancel=token, stop=after(8, token.cancel))
    resumed, _ = start(tmp_path, resume=True)
    assert same(resumed.net, whole.net)


def test_a_plain_function_is_a_recipe() -> None:
    def step(model: nn.Module, batch: Any, index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    one, _ = run(None, recipe=step)
    other, _ = run(None, loss=nn.CrossEntropyLoss())
    assert same(one, other)


def test_refused_recipes() -> None:
    class Two(Lightning):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.net.parameters(), 0.1)] * 2

    class Manual(Lightning):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    net = make_model()
    with pytest.raises(WrongType, match="one torch optimiser"):
        run(None, model=net, recipe=Two(net))
    with pytest.raises(WrongType, match="not a loss"):
        run(None, model=net, recipe=Manual(net))
    with pytest.raises(WrongValue, match="own loss"):
        run(None, recipe=Lightning(net), loss=nn.CrossEntropyLoss())


def test_a_teacher_needs_no_labels() -> None:
    teacher = make_model().eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = make_model()
    with torch.no_grad():
        student[4].quant_module.replaced_module.weight.mul_(0.3)
    data = [(x, None) for x in Noisy().x.split(8)]

    def distance(model: nn.Module) -> float:
        with torch.no_grad():
            return -float(((model(Noisy().x) - teacher(Noisy().x)) ** 2).mean())

    start = distance(student.eval())
    settings = TrainingSettings(epochs=10, learning_rate=0.02)
    run(None, model=student, teacher=teacher, loader=data, metric=distance, settings=settings)
    assert distance(student) > start / 2
    assert all(torch.equal(v, before[name]) for name, v in teacher.state_dict().items())
