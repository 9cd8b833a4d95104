from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import channel_models
import pytest
import torch
from torch import Tensor, nn

from workbench.amct.common.auto_channel_prune.search_channel_base import (
    AttrProtoHelper,
    GreedySearch,
    SearchChannelBase,
)
from workbench.amct.common.auto_channel_prune.sensitivity_base import (
    SensitivityBase,
    TaylorLossSensitivity,
)
from workbench.engine import auto_channel_prune_search, create_prune_retrain_model
from workbench.engine.files.retrain_text import load_retrain_text_config
from workbench.engine.graph.capture import Captured, capture
from workbench.engine.graph.channel_groups import channel_groups
from workbench.engine.graph.channel_map import channel_map
from workbench.engine.search.channel_space import SearchSpace, layer_costs

GENERATOR = torch.Generator().manual_seed(2)
DATA, LABEL = torch.randn(8, 3, 8, 8, generator=GENERATOR), torch.randn(8, 5, generator=GENERATOR)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return channel_models.unsettle(channel_models.Reference())


@pytest.fixture(scope="module")
def found(net: nn.Module) -> Captured:
    return capture(net, DATA[:2], dynamic=False)


class Search:
    def __init__(self, folder: Path, model: nn.Module) -> None:
        self.model, self.folder = model, folder
        self.config, self.output = str(folder / "s.cfg"), str(folder / "o.cfg")

    def run(self, text: str, data: Any = None, **options: Any) -> Any:
        """The written config as protobuf reads it."""
        Path(self.config).write_text(text)
        given = [DATA, LABEL] if data is None else data
        auto_channel_prune_search(self.model, self.config, given, self.output, **options)
        return load_retrain_text_config(self.output)

    def ratios(self, message: Any) -> dict[str, float]:
        return {
            o.layer_name: round(
                o.prune_config.filter_pruner.balanced_l2_norm_filter_prune.prune_ratio, 5
            )
            for o in message.override_layer_configs
        }

    def sidecar(self) -> Any:
        return json.loads(Path(f"{self.output}.workbench.json").read_text())["options"]

    def create(self) -> nn.Module:
        record = str(self.folder / "r.txt")
        return create_prune_retrain_model(self.model, DATA[:2], self.output, record)


@pytest.fixture
def search(tmp_path: Path, net: nn.Module) -> Search:
    return Search(tmp_path, net)


def bit_operations(model: nn.Module) -> float:
    """By the formula, from the layers' own shapes (the network's maps are 8 x 8)."""
    total = 0.0
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            cout, cin, height, width = layer.weight.shape
            total += 2 * cin * height * width * 64 * cout
        elif isinstance(layer, nn.Linear):
            total += 2 * layer.in_features * layer.out_features
    return total * 1024


@pytest.mark.parametrize(
    ("compat", "costs", "unit"),
    [
        (False, [28311552, 75497472, 94371840, 102400], 34209792),
        (True, [31850496, 84934656, 132710400, 512000], 45121536),
    ],
)
def test_bit_operations_of_the_specification(
    found: Captured, compat: bool, costs: list[int], unit: int
) -> None:
    made = layer_costs(found, compat=compat)
    assert [cost.bitops(cost.cin, cost.cout) for cost in made.values()] == costs
    groups = channel_groups(channel_map(found)).groups
    space = SearchSpace(groups, made, ascend_optimized=False, max_prune_ratio=1.0, swapped=compat)
    assert space.unit_cost(0) == unit


def test_costs_of_depthwise_and_transposed_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.ConvTranspose2d(8, 2, 2, stride=2),
    ).eval()
    costs = layer_costs(capture(model, torch.randn(2, 3, 4, 4), dynamic=False))
    made = [cost.bitops(cost.cin, cost.cout) / 1024 for cost in costs.values()]
    assert made == [(2 * 3 - 1) * 16 * 4, 2 * 9 * 16 * 8, 2 * 16 * 8 * 2 * 4]
    # Half of a depthwise kernel costs half.
    assert costs["1"].bitops(2, 4) * 2 == costs["1"].bitops(4, 8)


def test_reaches_the_target_and_create_follows(search: Search) -> None:
    original = bit_operations(search.model)
    for samples in (1, 2, 8):
        message = search.run(
            f"compress_ratio: 1.5 ascend_optimized: false test_iteration: {samples}"
        )
        pruned = search.create()
        reached = original / bit_operations(pruned)
        assert reached == pytest.approx(search.sidecar()["compress_ratio"], rel=1e-12)
        assert reached >= 1.5
        # Without the last removal it was not met: a channel of the larger group saves most.
        assert original / (bit_operations(pruned) + 34209792 * 1.2) < 1.5
        assert list(message.regular_prune_skip_layers) == ["fc"]
        chosen = search.sidecar()["prune_channels"]
        for group in pruned.workbench_prune.groups:
            for name, channels in group.removed.items():
                assert list(channels) == chosen[name]


def test_a_config_that_was_edited_is_followed_instead(search: Search) -> None:
    search.run("compress_ratio: 1.5 ascend_optimized: false")
    text = Path(search.output).read_text()
    Path(search.output).write_text(text.replace("prune_ratio: 0.25", "prune_ratio: 0.5"))
    assert search.create().c0.out_channels == 4


def test_max_prune_ratio_and_a_target_out_of_reach(
    search: Search, caplog: pytest.LogCaptureFixture
) -> None:
    message = search.run("compress_ratio: 50 ascend_optimized: false max_prune_ratio: 0.5")
    assert search.ratios(message) == {"c0": 0.5, "c1": 0.5, "c2": 0.5}
    assert "compress_ratio 50 cannot be met" in caplog.text
    assert f"{search.sidecar()['compress_ratio']:.3f} is the best" in caplog.text
    assert "what the written config does" in caplog.text


def test_channels_that_a_layer_norm_is_over(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    data, label = torch.randn(4, 4), torch.randn(4, 3)
    config, output = str(tmp_path / "search.cfg"), str(tmp_path / "out.cfg")
    Path(config).write_text("compress_ratio: 1.9 ascend_optimized: false")
    auto_channel_prune_search(model, config, [data, label], output)
    assert "override_layer_configs" not in Path(output).read_text()
    auto_channel_prune_search(model, config, [data, label], output, through_layer_norm=True)
    record = str(tmp_path / "record.txt")
    pruned = create_prune_retrain_model(model, data, output, record, through_layer_norm=True)
    assert pruned[0].out_features == pruned[1].normalized_shape[0] == pruned[3].in_features == 4


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 20, 1), nn.Conv2d(20, 48, 1)
        self.c, self.d = nn.Conv2d(48, 40, 1), nn.Conv2d(40, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x).relu()).relu()).relu()).mean((2, 3))


def test_alignment(tmp_path: Path) -> None:
    torch.manual_seed(0)
    search = Search(tmp_path, Wide())
    search.run("compress_ratio: 1.9")
    made = search.create()
    for layer, whole in ((made.a, 20), (made.b, 48), (made.c, 40)):
        assert layer.out_channels % 16 == 0 or layer.out_channels == whole
    assert made.b.out_channels < 48 or made.c.out_channels < 40


class Planted(nn.Module):
    """Only channels 1 and 4 of ``a`` matter to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)
        self.b.weight.data[:, [0, 2, 3, 5]] *= 1e-3

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)).mean((2, 3))


def test_sensitivity_finds_the_channels_that_matter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    search = Search(tmp_path, Planted())
    search.run("compress_ratio: 2.9 ascend_optimized: false test_iteration: 8")
    assert search.sidecar()["prune_channels"] == {"a": [0, 2, 3, 5]}


def taylor_by_hand(
    model: nn.Module, samples: int, *, consumers: bool, absolute: bool
) -> list[Tensor]:
    model = model.eval()
    grads: dict[str, Tensor] = {}
    weights = {n: p for n, p in model.named_parameters() if n.endswith("weight")}
    for i in range(samples):
        loss = (model(DATA[i : i + 1]) - LABEL[i : i + 1]).abs().mean()
        for n, g in zip(weights, torch.autograd.grad(loss, weights.values()), strict=True):
            term = (weights[n] * g).detach()
            grads[n] = grads.get(n, 0) + (term.abs() if absolute else term)
    product = {n: g.abs() for n, g in grads.items()}
    out = lambda n: product[n + ".weight"].flatten(1).sum(1)
    into = lambda n: product[n + ".weight"].transpose(0, 1).flatten(1).sum(1)
    first, second = out("c0") + out("c1"), out("c2")
    if consumers:
        first, second = first + into("c1") + into("c2"), second + into("fc")
    return [first, second]


class Spy(SearchChannelBase):
    """Keeps everything but the first channel of every producer, and what it was given."""

    def channel_prune_search(self, graph_info, search_records, prune_config):
        self.given = (graph_info, search_records, prune_config)
        self.sensitivity = [
            AttrProtoHelper(r.producer[0]).get_attr_value("sensitivity") for r in search_records
        ]
        self.costs = [
            AttrProtoHelper(r.producer[0]).get_attr_value("bitops") for r in search_records
        ]
        return {
            n.name: [0] + [1] * (graph_info[n.name]["cout"] - 1)
            for r in search_records
            for n in r.producer
        }


@pytest.mark.parametrize(("consumers", "absolute"), [(False, False), (True, False), (True, True)])
def test_taylor_against_the_formula(search: Search, consumers: bool, absolute: bool) -> None:
    before = {n: p.clone() for n, p in search.model.named_parameters()}
    spy = Spy()
    measure = TaylorLossSensitivity(include_consumers=consumers, absolute=absolute)
    text = "compress_ratio: 1.1 ascend_optimized: false test_iteration: 3"
    search.run(text, sensitivity=measure, search_alg=spy)
    wanted = taylor_by_hand(search.model, 3, consumers=consumers, absolute=absolute)
    for made, expected in zip(spy.sensitivity, wanted, strict=True):
        assert made == pytest.approx(expected.tolist(), rel=1e-4)
    for name, parameter in search.model.named_parameters():
        assert parameter.grad is None and torch.equal(parameter, before[name])


def test_one_batch_of_all_samples_is_their_mean(search: Search) -> None:
    text = "compress_ratio: 1.1 ascend_optimized: false test_iteration: 8"
    singles, together, squares = Spy(), Spy(), Spy()
    search.run(text, sensitivity=TaylorLossSensitivity(absolute=False), search_alg=singles)
    search.run(text, sensitivity=TaylorLossSensitivity(batch_size=8), search_alg=together)
    for a, b in zip(singles.sensitivity, together.sensitivity, strict=True):
        assert a == pytest.approx([8 * x for x in b], rel=1e-3)
    other = TaylorLossSensitivity()
    other.set_loss_func(nn.MSELoss())
    search.run(text, sensitivity=other, search_alg=squares)
    assert squares.sensitivity[0] != pytest.approx(singles.sensitivity[0], rel=1e-2)
    # Without a label the loss is of the output alone.
    search.run(text, [DATA, None], search_alg=squares)


def test_plug_ins_get_what_is_documented(search: Search) -> None:
    class Constant(SensitivityBase):
        def get_sensitivity(self, search_records: Any) -> None:
            self.model = self.graph.model
            for record in search_records:
                helper = AttrProtoHelper(record.producer[0])
                count = helper.get_attr_value("end") - helper.get_attr_value("begin")
                assert not helper.has_attr("prune_index")
                helper.set_attr_value("sensitivity", "FLOATS", [1.0] * count)

    spy, constant = Spy(), Constant()
    message = search.run(
        "compress_ratio: 1.2 ascend_optimized: false max_prune_ratio: 0.75",
        sensitivity=constant, search_alg=spy,
    )  # fmt: skip
    info, records, prune_config = spy.given
    assert prune_config == (1.2, False, 0.75)
    assert info["c1"] == {"cin": 8, "cout": 8, "ori_cout": 8, "bitops": 75497472}
    assert [n.name for n in records[0].producer] == ["c0", "c1"]
    assert spy.costs[0] == pytest.approx(34209792)
    assert spy.sensitivity == [[1.0] * 8, [1.0] * 10]
    assert isinstance(constant.model, nn.Module) and constant.model is not search.model
    assert constant.test_iteration == 1 and constant.output_nodes is None
    assert search.ratios(message) == {"c0": 0.125, "c1": 0.125, "c2": 0.1}
    assert search.sidecar()["prune_channels"] == {"c0": [0], "c1": [0], "c2": [0]}
    spy.update_graph({0: 2}, info, records)
    assert (info["c0"]["cout"], info["c1"]["cin"], info["c1"]["cout"]) == (6, 6, 6)
    assert info["c1"]["bitops"] == pytest.approx(75497472 * 0.75**2)
    assert info["c2"]["bitops"] == pytest.approx(94371840 * 0.75)


@pytest.mark.parametrize(
    ("values", "words"),
    [([1.0] * 3, "has 3 values; allowed: 8"), ([float("nan")] * 8, "NaN"), (None, "not set")],
)
def test_a_sensitivity_of_the_wrong_shape(search: Search, values: Any, words: str) -> None:
    class Wrong(SensitivityBase):
        def get_sensitivity(self, search_records: Any) -> None:
            if values is not None:
                node = search_records[0].producer[0]
                AttrProtoHelper(node).set_attr_value("sensitivity", "FLOATS", values)

    with pytest.raises(ValueError, match=rf"(?s)Wrong.get_sensitivity.*{words}"):
        search.run("compress_ratio: 1.2", sensitivity=Wrong())
    assert not Path(search.output).exists()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"c0": [1] * 8}, "nothing of producer c1"),
        ({"c0": [1] * 7, "c1": [1] * 8, "c2": [1] * 10}, "7 entries for producer c0"),
        ({"c0": [0] + [1] * 7, "c1": [1] * 8, "c2": [1] * 10}, "removes 0 channels of c1"),
        ({"c0": [0] * 8, "c1": [0] * 8, "c2": [1] * 10}, "leaves no channel"),
    ],
)
def test_a_search_that_answers_wrongly(search: Search, answer: Any, words: str) -> None:
    class Wrong(SearchChannelBase):
        def channel_prune_search(self, graph_info, search_records, prune_config):
            return answer

    with pytest.raises(ValueError, match=words):
        search.run("compress_ratio: 1.2", search_alg=Wrong())


def overriding(search: Search, text: str) -> str:
    path = search.folder / "keep.cfg"
    path.write_text(text)
    return f'compress_ratio: 1.2 ascend_optimized: false override_prune_cfg: "{path}"'


OVERRIDE = (
    'override_layer_configs { layer_name: "%s" prune_config { filter_pruner { '
    "balanced_l2_norm_filter_prune { prune_ratio: %s ascend_optimized: false } } } }"
)


def test_overridden_layers_keep_their_setting_and_count(search: Search) -> None:
    message = search.run(overriding(search, OVERRIDE % ("c2", 0.5)))
    assert search.ratios(message)["c2"] == 0.5
    pruned = search.create()
    assert pruned.c2.out_channels == 5
    reached = bit_operations(search.model) / bit_operations(pruned)
    assert reached == pytest.approx(search.sidecar()["compress_ratio"])


def test_no_layer_takes_the_hidden_global_ratio(search: Search) -> None:
    """c0's partner is overridden: it is in no search group, and must not be pruned (D-16)."""
    text = overriding(search, OVERRIDE % ("c1", 0.25))
    message = search.run(text)
    assert message.prune_config.filter_pruner.balanced_l2_norm_filter_prune.HasField("prune_ratio")
    assert {"c0", "fc"} <= set(message.regular_prune_skip_layers)
    assert search.create().c0.out_channels == 8
    old = search.run(text, compat=True)
    assert "c0" not in {*old.regular_prune_skip_layers, *search.ratios(old)}


def test_skipped_types_are_not_searched(search: Search) -> None:
    message = search.run(overriding(search, 'skip_layers: "c2" skip_layer_types: "Linear"'))
    assert set(search.ratios(message)) <= {"c0", "c1"}
    assert list(message.skip_layers) == ["c2"] and search.create().c2.out_channels == 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prune_config { }", "prune_config"),
        (OVERRIDE % ("c2", 1.5), "prune_ratio"),
        (OVERRIDE % ("c9", 0.5), "c9"),
        ((OVERRIDE % ("c2", 0.5)) * 2, "more than once"),
        (
            'override_layer_configs { layer_name: "c2" prune_config { n_out_of_m_pruner { '
            "l1_selective_prune { } } } }",
            "only filter_pruner",
        ),
        ('skip_layer_types: "Conv2d" skip_layers: "fc"', "without a layer to search"),
    ],
)
def test_wrong_overrides(search: Search, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        search.run(overriding(search, text))


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", ValueError, "compress_ratio is missing"),
        ("compress_ratio: 1", ValueError, "above 1"),
        ("compress_ratio: inf", ValueError, "above 1"),
        ("compress_ratio: 2 max_prune_ratio: 0", ValueError, "max_prune_ratio"),
        ("compress_ratio: 2 test_iteration: 0", ValueError, "test_iteration"),
        ("compress_ratio: 2 test_iteration: 9", RuntimeError, "has 8 samples"),
        ("compress: 2", RuntimeError, "line 1"),
        ('compress_ratio: 2 override_prune_cfg: "/nowhere.cfg"', FileNotFoundError, "nowhere"),
    ],
)
def test_wrong_configs(search: Search, text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        search.run(text)
    assert not Path(search.output).exists()


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_numbers_of_classes_need_another_loss(
    search: Search, caplog: pytest.LogCaptureFixture
) -> None:
    classes = torch.zeros(len(DATA), dtype=torch.int64)
    search.run("compress_ratio: 1.2", data=[DATA, classes])
    assert "int64, the loss is L1Loss" in caplog.text and "CrossEntropyLoss" in caplog.text
    caplog.clear()
    crossed = TaylorLossSensitivity()
    crossed.set_loss_func(nn.CrossEntropyLoss())
    search.run("compress_ratio: 1.2", data=[DATA, classes], sensitivity=crossed)
    assert "L1Loss" not in caplog.text


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_wrong_arguments(search: Search) -> None:
    good = "compress_ratio: 1.2"
    for options, error, words in (
        ({"sensitivity": "Other"}, ValueError, "TaylorLossSensitivity"),
        ({"search_alg": "Other"}, ValueError, "GreedySearch"),
        ({"sensitivity": GreedySearch()}, TypeError, "SensitivityBase"),
        ({"data": DATA}, TypeError, "input_data"),
        ({"data": [DATA]}, ValueError, "1 entries"),
        ({"data": [DATA, LABEL[:3]]}, ValueError, "8 and 3 samples"),
        ({"data": [DATA, torch.zeros(8, 7)]}, ValueError, "loss cannot be computed"),
        ({"data": [DATA, torch.full((8, 5), float("nan"))]}, ValueError, "loss is nan"),
    ):
        with pytest.raises(error, match=words):
            search.run(good, **options)


def test_the_reference_s_search_looks_every_hundred_channels(
    search: Search, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    text = "compress_ratio: 1.2 ascend_optimized: false"
    # Fewer than a hundred channels in all: everything goes but one of each group (D-14).
    assert search.ratios(search.run(text, compat=True)) == {"c0": 0.875, "c1": 0.875, "c2": 0.9}
    eager = search.ratios(search.run(text, compat=True, search_alg=GreedySearch(1)))
    assert max(eager.values()) < 0.875
    assert "prune_channels" not in search.sidecar()


class HandedHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit = channel_models.ViT()

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(x)


def test_heads_and_hidden_units_are_searched(tmp_path: Path) -> None:
    torch.manual_seed(0)
    search = Search(tmp_path, channel_models.unsettle(HandedHeads()))
    message = search.run("compress_ratio: 1.3 ascend_optimized: false", [DATA, LABEL])
    assert set(search.ratios(message)) <= {"vit.attention.qkv", "vit.mlp.0"}
    pruned = search.create()
    chosen = search.sidecar()["prune_channels"]
    for group in pruned.workbench_prune.groups:
        for name, channels in group.removed.items():
            assert list(channels) == chosen.get(name, [])
    assert search.sidecar()["compress_ratio"] >= 1.3
