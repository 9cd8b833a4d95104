import hashlib
import sys
import threading

import pytest
import torch
from torch import nn

from workbench.engine.errors import CaptureError, WrongState, WrongType
from workbench.engine.events import Notice, Progress
from workbench.engine.graph.capture import capture
from workbench.engine.graph.copying import copy_model
from workbench.engine.graph.eligibility import find_layers
from workbench.engine.graph.folding import plan_folding
from workbench.engine.graph.program import read_program
from workbench.engine.graph.taps import find_taps


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout()).eval()


def digest(model: nn.Module) -> str:
    whole = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        whole.update(name.encode())
        whole.update(tensor.numpy().tobytes())
    return whole.hexdigest()


def test_the_users_model_is_untouched():
    model = small().train()
    model[1].eval()
    seen = []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    before, flags = digest(model), [m.training for m in model.modules()]
    captured = capture(model, torch.randn(1, 3, 8, 8))
    assert digest(model) == before
    assert [m.training for m in model.modules()] == flags
    assert list(model[0]._forward_hooks) == [handle.id]
    assert any("training mode" in notice for notice in captured.notices)
    assert not any(m.training for m in captured.module.modules())


def test_the_copy_shares_parameters_and_clones_buffers():
    model = small()
    copied = copy_model(model)
    assert copied[0].weight is model[0].weight
    assert copied[1].running_mean is not model[1].running_mean
    assert torch.equal(copied[1].running_mean, model[1].running_mean)


def test_a_model_that_cannot_be_copied_raises_and_names_the_attribute():
    model = small()
    model[2].guard = threading.Lock()
    with pytest.raises(RuntimeError, match=r"2\.guard"):
        capture(model, torch.randn(1, 3, 8, 8))


def test_a_batch_of_one_is_captured_dynamic():
    captured = capture(small(), (torch.randn(1, 3, 8, 8),))
    assert captured.dynamic_batch
    assert captured.notices == ()
    assert captured.layers["0"].input_shape == (0, 3, 8, 8)
    assert captured.layers["0"].output_shape == (0, 4, 6, 6)
    assert captured.layers["0"].macs == 6 * 6 * 4 * 3 * 9
    assert captured.args[0].shape[0] == 1


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(x.reshape(3, 8))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(x) if x.shape[0] > 4 else self.fc(-x)


@pytest.mark.parametrize(
    ("model", "shape"), [(Fixed(), (3, 2, 4)), (Branching(), (6, 8)), (Branching(), (3, 8))]
)
def test_a_model_that_refuses_a_dynamic_batch_is_static_with_a_notice(model, shape):
    events = []
    data = torch.randn(shape)
    captured = capture(model.eval(), data, on_event=events.append)
    assert not vars(data)
    assert not captured.dynamic_batch
    assert "batch size is fixed" in captured.notices[0]
    assert Notice(captured.notices[0]) in events
    assert isinstance(events[0], Progress)
    assert captured.layers["fc"].output_shape[0] == shape[0]
    assert captured.layers["fc"].macs == 16


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, *, scale, shift=None):
        y = self.fc(input=x) * scale
        return y if shift is None else y + shift


def test_a_dict_at_the_end_holds_keyword_arguments():
    data = (torch.randn(2, 4), {"scale": torch.randn(4), "shift": torch.randn(2, 4)})
    captured = capture(Keywords(), data)
    assert list(captured.kwargs) == ["scale", "shift"]
    assert captured.dynamic_batch
    assert captured.layers["fc"].eligible


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ([torch.zeros(1, 3, 8, 8)], RuntimeError),
        ("x", TypeError),
        (3, TypeError),
        (None, TypeError),
    ],
)
def test_wrong_input_data(data, error):
    with pytest.raises(error, match="input_data"):
        capture(small(), data)


def test_a_bare_layer_and_a_compressed_model_are_refused():
    with pytest.raises(WrongState, match="Sequential"):
        capture(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))
    model = small()
    model[2].workbench_wrapper = True
    with pytest.raises(WrongState, match="compression modules: 2"):
        capture(model, torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    model = small()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = bad
    with pytest.raises(WrongState, match=r"0\.weight"):
        capture(model, torch.randn(1, 3, 8, 8))


def test_torchscript_and_weights_without_values_are_refused_in_words():
    model, x = small().eval(), torch.randn(1, 3, 8, 8)
    with pytest.raises(WrongType, match=r"TorchScript.*torch\.nn\.Module"):
        capture(torch.jit.trace(model, x), x)
    with pytest.raises(WrongState, match=r"0\.weight: has no values"):
        capture(small().to("meta"), x)
    with pytest.raises(WrongState, match=r"1\.weight: has no values"):
        capture(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_wide_and_brain_floats_become_float32_on_the_copy(dtype):
    model = small().to(dtype)
    model[0].bias = nn.Parameter(model[0].bias.detach(), requires_grad=False)
    captured = capture(model, torch.randn(1, 3, 8, 8, dtype=dtype))
    assert model[0].weight.dtype is dtype
    assert captured.module[0].weight.dtype is torch.float32
    assert captured.module[1].running_mean.dtype is torch.float32
    assert not captured.module[0].bias.requires_grad
    assert captured.args[0].dtype is torch.float32
    assert "float32" in captured.notices[0]


def test_other_weight_types_are_a_type_error():
    model = nn.Sequential(nn.Linear(2, 2).to(torch.complex64))
    with pytest.raises(WrongType, match=r"0\.weight has data type complex64|0\.weight: has data"):
        capture(model, torch.randn(1, 2, dtype=torch.complex64))


class Dependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


def test_a_failed_export_names_the_line_and_what_remains():
    with pytest.raises(CaptureError) as caught:
        capture(Dependent(), torch.randn(2, 4))
    text = str(caught.value)
    assert "if x.sum() > 0" in text
    assert "test_capture.py" in text
    assert "convert()" in text


def test_nothing_is_printed(capfd):
    capture(small(), torch.randn(1, 3, 8, 8))
    out = capfd.readouterr()
    assert out.out == ""
    assert out.err == ""


def test_a_thousand_layers_are_read_without_quadratic_work():
    def work(depth: int) -> int:
        """Function calls made to analyse a captured chain of this depth."""
        layers = [m for _ in range(depth) for m in (nn.Linear(2, 2), nn.ReLU(inplace=True))]
        captured = capture(nn.Sequential(*layers).eval(), torch.randn(2, 2))
        assert sum(info.eligible for info in captured.layers.values()) == depth
        calls = 0

        def count(*_):
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            facts = read_program(captured.module, captured.program)
            find_layers(captured.module, facts, 2)
            find_taps(facts)
            plan_folding(captured)
        finally:
            sys.setprofile(None)
        return calls

    assert work(300) < 11 * work(30)


def test_a_failing_export_prints_nothing_either(capfd):
    with pytest.raises(CaptureError):
        capture(Dependent(), torch.randn(2, 4))
    out = capfd.readouterr()
    assert out.out == ""
    assert out.err == ""


def test_the_layers_are_the_same_without_a_dynamic_batch():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.more = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.one(x) if x.shape[0] == 1 else self.more(x)

    for model in (Branching(), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))):
        example = (torch.zeros(1, 4),)
        static, dynamic = capture(model, example, dynamic=False), capture(model, example)
        assert not static.dynamic_batch and dynamic.dynamic_batch
        assert {n: (i.eligible, i.reason) for n, i in static.layers.items()} == {
            n: (i.eligible, i.reason) for n, i in dynamic.layers.items()
        }
