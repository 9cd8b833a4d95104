import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.engine.errors import Cancelled
from workbench.engine.events import CancelToken
from workbench.engine.files.tensor_folder import INDEX, TensorFolder
from workbench.engine.flows.block_calibration import calibrate_by_block
from workbench.engine.flows.folder_model import empty_weights
from workbench.engine.flows.module_quantize import convert, quantize
from workbench.engine.flows.quantize_folder import load_quantized_folder, quantize_folder
from workbench.zoo.decoder import Decoder, DecoderConfig

CONFIG = DecoderConfig(vocabulary=40, width=64, layers=3, heads=4, kv_heads=2, hidden=96)
INT4 = {"weights": {"type": "int4", "symmetric": True, "strategy": "group", "group_size": 32}}
INT8 = {
    "weights": {"type": "int8", "symmetric": True, "strategy": "channel"},
    "inputs": {"type": "int8", "symmetric": False, "strategy": "tensor"},
}


def settings(algorithm, quant_cfg=INT4, batch_num=2, **more):
    base = {"batch_num": batch_num, "quant_cfg": quant_cfg, "algorithm": algorithm}
    return {**base, "skip_layers": {"lm_head"}, **more}


def hollow(config=CONFIG):
    with empty_weights():
        return Decoder(config)


def batches(count=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(40, (3, 9), generator=generator) for _ in range(count)]


def save(model, folder, shards=2):
    folder.mkdir(parents=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    if model.config.tied:
        del state["lm_head.weight"]
    names = list(state)
    places = {}
    for number in range(shards):
        part = names[number::shards]
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text('{"model_type": "ours"}')


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    model = Decoder(CONFIG).to(torch.bfloat16).eval().requires_grad_(False)
    # Frequencies are no part of a checkpoint and stay as the constructor makes them.
    model.model.rotary_emb = hollow().model.rotary_emb
    save(model, tmp_path / "float")
    return model, str(tmp_path / "float"), str(tmp_path / "small")


@pytest.mark.parametrize(
    ("algorithm", "quant_cfg"),
    [({"gptq"}, INT4), ({"awq": {"grids_num": 4}}, INT4), ({"minmax"}, INT8)],
)
def test_equals_quantising_in_memory(source, algorithm, quant_cfg):
    model, folder, small = source
    report = quantize_folder(
        folder, small, settings(algorithm, quant_cfg), batches(), model=hollow()
    )
    assert len(report.quantized) == 21 and report.left[0][0] == "lm_head"
    assert report.bytes_after < 0.7 * report.bytes_before
    quantize(model, settings(algorithm, quant_cfg))
    calibrate_by_block(model, batches(), convert_blocks=True)
    convert(model)
    loaded = load_quantized_folder(small, model=hollow())
    expected, found = model.state_dict(), loaded.state_dict()
    assert set(expected) == set(found)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    with torch.no_grad():
        assert torch.equal(loaded(batches()[0]), model(batches()[0]))


def test_algorithms_on_weights_alone_need_no_batches(source):
    _, folder, small = source
    config = settings({"minmax"})
    report = quantize_folder(folder, small, config, model=hollow())
    assert len(report.quantized) == 21
    files = [path.name for path in Path(small).iterdir()]
    assert "config.json" in files and INDEX in files
    index = json.loads(open(f"{small}/{INDEX}").read())
    stored = {
        n: t
        for f in set(index["weight_map"].values())
        for n, t in load_file(f"{small}/{f}").items()
    }
    assert set(stored) == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in stored.values())
    assert stored["model.layers.2.mlp.up_proj.quantized_weight"].dtype == torch.int32


def test_tied_weights_stay_tied_and_are_stored_once(tmp_path):
    config = DecoderConfig(vocabulary=40, width=64, layers=2, heads=4, kv_heads=2, tied=True)
    torch.manual_seed(1)
    model = Decoder(config).bfloat16().eval()
    save(model, tmp_path / "float")
    folder, small = str(tmp_path / "float"), str(tmp_path / "small")
    quantize_folder(folder, small, settings({"gptq"}), batches(), model=hollow(config))
    assert "lm_head.weight" not in TensorFolder(small).tensors
    loaded = load_quantized_folder(small, model=hollow(config))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_only_one_block_is_in_memory(source):
    """Of the float weights of other blocks nothing is left when a block is loaded."""
    _, folder, small = source
    model = hollow()
    most = 0

    def live():
        return sum(
            any(p.device.type != "meta" for p in (*block.parameters(), *block.buffers()))
            for block in model.model.layers
        )

    def watch(_module, _args, _kwargs):
        nonlocal most
        most = max(most, live())

    model.register_forward_pre_hook(watch, with_kwargs=True)
    quantize_folder(folder, small, settings({"gptq"}), batches(), model=model)
    assert most == 1
    assert live() == 0


def test_cancelled_or_failed_runs_leave_nothing(source, tmp_path):
    _, folder, small = source
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        quantize_folder(folder, small, settings({"gptq"}), batches(), model=hollow(), cancel=cancel)
    with pytest.raises(RuntimeError, match="not calibrated"):
        quantize_folder(folder, small, settings({"gptq"}, batch_num=3), batches(), model=hollow())
    with pytest.raises(RuntimeError, match="has seen 0 of 2"):
        quantize_folder(folder, small, settings({"gptq"}), model=hollow())
    config = settings({"gptq"}, skip_layers={"proj", "lm_head"})
    with pytest.raises(RuntimeError, match="nothing would be quantised.*skip_layers"):
        quantize_folder(folder, small, config, batches(), model=hollow())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float"]


def test_folders_that_do_not_fit(source, tmp_path):
    _, folder, small = source
    config = settings({"gptq"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("x")
    with pytest.raises(ValueError, match="not empty"):
        quantize_folder(folder, str(tmp_path / "full"), config, batches(), model=hollow())
    other = DecoderConfig(vocabulary=41, width=64, layers=4, heads=4, kv_heads=2, hidden=96)
    with pytest.raises(ValueError, match="problems") as caught:
        quantize_folder(folder, small, config, batches(), model=hollow(other))
    assert "model.embed_tokens.weight is of shape [40, 64]; allowed: [41, 64]" in str(caught.value)
    assert "model.layers.3.mlp.up_proj.weight is missing" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="neither"):
        quantize_folder(str(tmp_path / "full"), small, config, batches(), model=hollow())
    with pytest.raises(FileNotFoundError, match="workbench_quantization.json"):
        load_quantized_folder(folder, model=hollow())
    with pytest.raises(TypeError, match=r"quantize_folder\(\): batches .* it is Tensor"):
        quantize_folder(folder, small, config, batches()[0], model=hollow())
    (Path(folder) / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config.json .*: model="):
        quantize_folder(folder, small, config, batches())


def test_an_index_may_not_lead_out_of_its_folder(tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for name, error in (
        ("../weights.safetensors", ValueError),
        ("gone.safetensors", FileNotFoundError),
    ):
        (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(error, match=name.strip("./")):
            TensorFolder(folder)
    (folder / INDEX).unlink()
    (folder / "model.safetensors").write_bytes(b"no safetensors at all")
    with pytest.raises(ValueError, match="not a safetensors file"):
        TensorFolder(folder)


def test_a_manifest_cannot_name_other_classes(source):
    _, folder, small = source
    quantize_folder(folder, small, settings({"minmax"}), model=hollow())
    path = f"{small}/workbench_quantization.json"
    data = json.loads(open(path).read())
    entry = data["layers"]["model.layers.0.mlp.up_proj"]
    for change, says in (
        ({"class": "Popen"}, "NpuWeightQuantizedLinear"),
        ({"attributes": {"forward": "x"}}, "forward"),
        ({"buffers": ["nothing"]}, "nothing"),
    ):
        data["layers"]["model.layers.0.mlp.up_proj"] = {**entry, **change}
        open(path, "w").write(json.dumps(data))
        with pytest.raises(ValueError, match=says):
            load_quantized_folder(small, model=hollow())


def test_empty_weights_has_shapes_and_real_buffers():
    model = hollow(DecoderConfig(vocabulary=10**7, width=8, heads=2, kv_heads=1))
    assert model.lm_head.weight.is_meta and model.lm_head.weight.shape == (10**7, 8)
    assert not model.model.rotary_emb.frequencies.is_meta
    assert not torch.nn.Linear(2, 2).weight.is_meta


def test_without_transformers_the_error_says_what_to_install(source, monkeypatch):
    _, folder, small = source
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"compression-workbench\[hf\]"):
        quantize_folder(folder, small)


def test_a_folder_of_transformers(tmp_path):
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).bfloat16().eval()
    model.save_pretrained(tmp_path / "float", max_shard_size="60KB")
    calls = [{"input_ids": tokens % 60, "use_cache": False} for tokens in batches()]
    small = str(tmp_path / "small")
    report = quantize_folder(str(tmp_path / "float"), small, settings({"gptq"}), calls)
    assert len(report.quantized) == 14
    loaded = load_quantized_folder(small)
    with torch.no_grad():
        exact, found = model(**calls[0]).logits.float(), loaded(**calls[0]).logits.float()
    assert float((found - exact).norm() / exact.norm()) < 0.2
