import copy
import logging
import weakref

import pytest
import torch
from torch import nn

import workbench.engine.flows.activation_store as store_module
from workbench.engine.errors import Cancelled
from workbench.engine.events import CancelToken, Progress
from workbench.engine.flows.activation_store import ActivationStore
from workbench.engine.flows.block_calibration import calibrate_by_block, find_blocks
from workbench.engine.flows.module_quantize import convert, quantization_report, quantize
from workbench.engine.modules.quantize.awq import LinearAWQuant
from workbench.zoo.decoder import Decoder
from workbench.zoo.sorting import grow_outliers, sequences, sorting_accuracy, trained_sorter

INT4 = {"type": "int4", "symmetric": True, "strategy": "channel"}
INT8 = {
    "weights": {"type": "int8", "symmetric": True, "strategy": "channel"},
    "inputs": {"type": "int8", "symmetric": True, "strategy": "tensor"},
}
SMOOTH = {"smoothquant": {"smooth_strength": 0.5}}


def config(algorithm, quant_cfg=None, batch_num=4, skip=("lm_head",)):
    return {
        "batch_num": batch_num,
        "quant_cfg": quant_cfg or {"weights": INT4},
        "algorithm": algorithm,
        "skip_layers": skip,
    }


@pytest.fixture(scope="module")
def sorter():
    model = trained_sorter()
    grow_outliers(model)
    return model


def batches(count=4, size=64):
    return [tokens[:, :-1] for tokens in sequences(count * size, 7).split(size)]


def by_block(model, settings, count=4, size=64, **options):
    model = copy.deepcopy(model)
    quantize(model, settings, any_dtype=True)
    calibrate_by_block(model, batches(count, size), **options)
    return convert(model)


def test_a_transformer_keeps_its_accuracy(sorter):
    """Within 0.5 points, where plain rounding of the same formats loses more than 1.5."""
    exact = sorting_accuracy(sorter)
    assert exact > 99
    plain = {
        "int4": by_block(sorter, config({"minmax"})),
        "int8": by_block(sorter, config({"minmax"}, INT8)),
    }
    better = {
        "gptq int4": by_block(sorter, config({"gptq"}), size=128),
        "awq int4": by_block(sorter, config({"awq": {"grids_num": 20}}), size=128),
        "smoothquant int8": by_block(sorter, config(SMOOTH, INT8)),
    }
    for model in plain.values():
        assert sorting_accuracy(model) < exact - 1.5
    for name, model in better.items():
        assert sorting_accuracy(model) >= exact - 0.5, name


def test_one_block_equals_plain_forwards(sorter):
    """Everything before the first quantised layer is float in both: the same statistics."""
    settings = config(SMOOTH, INT8)
    plain = copy.deepcopy(sorter)
    quantize(plain, settings, any_dtype=True)
    for batch in batches():
        plain(batch)
    stepwise = copy.deepcopy(sorter)
    quantize(stepwise, settings, any_dtype=True)
    calibrate_by_block(stepwise, batches())
    for layer in ("self_attn.q_proj", "mlp.up_proj", "self_attn.o_proj"):
        name = f"model.layers.0.{layer}"
        ours, theirs = stepwise.get_submodule(name), plain.get_submodule(name)
        assert ours.cur_batch == theirs.cur_batch == 4
        torch.testing.assert_close(ours.scale, theirs.scale)
    # The second block sees quantised answers.
    name = "model.layers.1.mlp.up_proj"
    assert not torch.equal(stepwise.get_submodule(name).scale, plain.get_submodule(name).scale)
    x = batches(1)[0]
    assert torch.equal(stepwise(x), stepwise(x))


def test_blocks_are_converted_on_the_way_and_told_in_the_report(sorter):
    model = copy.deepcopy(sorter)
    quantize(model, config({"gptq"}, skip=()), any_dtype=True)
    calibrate_by_block(model, batches(), convert_blocks=True)
    report = {entry.name: entry for entry in quantization_report(model)}
    assert report["model.layers.1.mlp.up_proj"].action == "converted"
    # Outside of the blocks: calibrated on the answers of the last one.
    assert report["lm_head"].action == "calibrating" and model.lm_head.cur_batch == 4
    convert(model)
    assert quantization_report(model)[-1].action == "converted"
    assert sorting_accuracy(model, 500) > 95


def test_float_weights_go_with_the_block_that_is_converted(sorter):
    model = copy.deepcopy(sorter).train()
    quantize(model, config({"awq": {"grids_num": 2}}), any_dtype=True)
    blocks = [list(block.modules()) for block in model.model.layers]
    weights = [
        [weakref.ref(m.weight) for m in modules if isinstance(m, LinearAWQuant)]
        for modules in blocks
    ]
    del blocks
    assert [len(held) for held in weights] == [7, 7]
    left = []

    def count(event):
        if isinstance(event, Progress) and event.what == "blocks":
            left.append([sum(weight() is not None for weight in held) for held in weights])

    calibrate_by_block(model, batches(), convert_blocks=True, on_event=count)
    assert left == [[0, 7], [0, 0]]
    # Converted or not, modules are in the mode in which they were given.
    assert all(module.training for module in model.modules())


def test_answers_beyond_the_budget_go_to_disk(sorter, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(store_module.tempfile, "tempdir", str(tmp_path))
    with ActivationStore(100) as store, caplog.at_level(logging.INFO):
        answers = [(torch.full((8,), float(i)), [None, torch.arange(3.0)]) for i in range(4)]
        for i, answer in enumerate(answers):
            store.put(i, answer)
        store.put(0, (torch.zeros(2), [None, torch.ones(3)]))
        assert len(list(next(tmp_path.iterdir()).iterdir())) == 2
        for i, answer in enumerate(answers[1:], 1):
            found = store.get(i)
            assert torch.equal(found[0], answer[0]) and torch.equal(found[1][1], answer[1][1])
        assert torch.equal(store.get(0)[0], torch.zeros(2))
    assert "goes to disk" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_left_as_it_was(sorter):
    model = copy.deepcopy(sorter).train()
    quantize(model, config({"gptq"}), any_dtype=True)
    calibrate_by_block(model, batches())
    assert model.training and all("forward" not in vars(m) for m in model.modules())
    cancel = CancelToken()
    cancel.cancel()
    other = copy.deepcopy(sorter)
    quantize(other, config({"gptq"}), any_dtype=True)
    with pytest.raises(Cancelled):
        calibrate_by_block(other, batches(), cancel=cancel)
    assert all("forward" not in vars(m) for m in other.modules())


def test_dicts_are_keyword_arguments(sorter):
    model = copy.deepcopy(sorter)
    quantize(model, config({"gptq"}), any_dtype=True)
    calibrate_by_block(model, ({"tokens": tokens} for tokens in batches()))
    assert model.get_submodule("model.layers.1.mlp.up_proj").calls_missing() == 0


def test_too_few_batches_name_the_layers(sorter):
    model = copy.deepcopy(sorter)
    quantize(model, config({"gptq"}, batch_num=5), any_dtype=True)
    with pytest.raises(RuntimeError, match=r"after 4 batches.*layers.0.self_attn.q_proj \(4 of 5"):
        calibrate_by_block(model, batches())
    with pytest.raises(RuntimeError, match="no batch"):
        calibrate_by_block(model, [])
    with pytest.raises(TypeError, match=r"it is Tensor\. Give one batch as \[batch\]"):
        calibrate_by_block(model, batches()[0])
    with pytest.raises(RuntimeError, match=r"Call quantize\(\) first"):
        calibrate_by_block(sorter, batches())


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return self.blocks[2](self.blocks[0](x))


def test_blocks_must_be_found_and_called():
    model = Skipping()
    quantize(model, config({"gptq"}), any_dtype=True)
    with pytest.raises(RuntimeError, match="does not call blocks.1"):
        calibrate_by_block(model, [torch.ones(2, 4)] * 4)
    with pytest.raises(ValueError, match="model.layers"):
        find_blocks(Decoder(), "layers")
    with pytest.raises(ValueError, match="no list"):
        find_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), None)
    assert find_blocks(Decoder(), None)[0] == "model.layers"
    experts = nn.ModuleList(nn.ModuleList(nn.Linear(2, 2) for _ in range(9)) for _ in range(2))
    assert find_blocks(nn.ModuleDict({"layers": experts}), None)[0] == "layers"
    shared = Skipping()
    shared.blocks[1] = shared.blocks[0]
    with pytest.raises(ValueError, match="twice"):
        find_blocks(shared, None)
