"""Folders of transformers as networks: the weights of the file, a graph, one tensor out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.engine.errors import MissingFile, WrongValue
from workbench.engine.flows.folder_network import load_folder_model
from workbench.engine.graph.capture import capture
from workbench.studio import open_session

SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}


def vision() -> Any:
    import transformers

    config = transformers.ViTConfig(
        **SIZES, intermediate_size=24, image_size=8, patch_size=4, num_labels=3
    )
    return transformers.ViTForImageClassification(config)


def text() -> Any:
    import transformers

    config = transformers.BertConfig(**SIZES, vocab_size=20, intermediate_size=24, num_labels=3)
    return transformers.BertForSequenceClassification(config)


def tied() -> Any:
    import transformers

    config = transformers.Qwen2Config(
        **SIZES, vocab_size=20, intermediate_size=24, num_key_value_heads=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config)


@pytest.mark.parametrize(("make", "linear"), [(vision, 7), (text, 8), (tied, 7)])
def test_it_computes_what_the_saved_model_does(tmp_path: Path, make: Any, linear: int) -> None:
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(tmp_path)
    x = torch.randn(2, 3, 8, 8) if make is vision else torch.randint(20, (2, 5))
    network = load_folder_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(network(x), model(x).logits)
    captured = capture(network, (x,))
    eligible = [layer for layer in captured.layers.values() if layer.eligible]
    assert captured.dynamic_batch and sum(x.type == "Linear" for x in eligible) == linear


def test_masks_are_passed_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = text().eval()
    model.save_pretrained(tmp_path)
    ids, mask = torch.randint(20, (2, 5)), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        found = load_folder_model(tmp_path)(ids, mask)
        assert torch.equal(found, model(ids, attention_mask=mask).logits)
        assert not torch.allclose(found, model(ids).logits)


def test_a_project_of_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision().eval().save_pretrained(tmp_path / "vit")
    import numpy as np

    pictures = torch.randn(16, 3, 8, 8).numpy()
    np.savez(tmp_path / "data.npz", pixel_values=pictures, labels=np.arange(16) % 3)
    session = open_session(
        tmp_path / "vit", tmp_path / "data.npz", project=tmp_path / "p", batch_size=8, threads=1
    )
    session.evaluate()
    assert session.summary.model == "vit" and session.summary.quantized == 8
    assert "load_folder_model(" in session.script()
    session.dispose()


def test_what_is_not_a_folder_of_a_model(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"no config\.json"):
        load_folder_model(tmp_path)
    vision().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(dict(list(weights.items())[1:]), tmp_path / "model.safetensors")
    with pytest.raises(WrongValue, match="missing"):
        load_folder_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "evil.Evil"}, "model_type": "evil"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('code of the folder was run')")
    with pytest.raises(WrongValue, match="evil"):
        load_folder_model(tmp_path)
