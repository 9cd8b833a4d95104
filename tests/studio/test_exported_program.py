"""A ``.pt2`` or ``.onnx`` file as the source of a project, from opening to the script."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import warm
from studio_models import make_data, make_net

from workbench.engine.errors import MissingFile, WrongState, WrongValue
from workbench.studio import DataSpec, Project, ProjectSettings, SourceSpec, open_session
from workbench.studio.errors import JobFailed


@pytest.fixture(params=["pt2", "onnx"])
def files(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    batches = make_data()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    # The script, too, takes what the model wants out of whatever else is there.
    np.savez(tmp_path / "data.npz", ids=np.arange(len(x)), x=x.numpy(), labels=y.numpy())
    dynamic = ({0: torch.export.Dim("batch")},)
    path = tmp_path / f"net.{request.param}"
    if request.param == "pt2":
        torch.export.save(torch.export.export(make_net(), (x,), dynamic_shapes=dynamic), path)
    else:
        axes = {"x": {0: "batch"}}
        torch.onnx.export(
            make_net(), (x,), str(path), dynamo=False, input_names=["x"], dynamic_axes=axes
        )
    return path, tmp_path / "data.npz"


def test_from_file_to_script(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = files
    session = open_session(model, data, project=tmp_path / "p", batch_size=8, threads=1)
    assert session.layers["name"].tolist() == ["conv1", "conv2", "fc"]
    assert session.layers["eligible"].all()
    assert not session.layers["retrain_enable"].any()
    for refused in (
        lambda: session.toggle("fc", "retrain_enable"),
        lambda: session.set_flag(["fc", "conv1"], True, "retrain_enable"),
        lambda: setattr(session.config["fc"], "retrain_enable", True),
        session.train,
    ):
        with pytest.raises(WrongState, match="file cannot be trained|pt2. cannot be trained"):
            refused()
    session.toggle("conv2")
    session.name_graph(["image"], ["logits"], "n")
    session.export()
    assert session.summary.model == "net" and session.summary.metric_name == "top1"
    assert all(line.ok for line in session.exports.parity)
    session.dispose()
    done = warm.run([str(session.project.log_path)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "reproduced"
    for path in (session.exports.files[1].path, made / "net_fake_quant_model.onnx"):
        graph = onnx.load(path).graph
        assert [value.name for value in (*graph.input, *graph.output)] == ["image", "logits"]
        assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    assert (made / "ptq.record.txt").read_bytes() == session.project.record_path.read_bytes()
    again = open_session(tmp_path / "p")
    assert again.layers["quant_enable"].tolist() == [True, False, True]
    again.dispose()


def test_a_file_that_went_or_never_was(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = files
    with pytest.raises(MissingFile, match="no such file"):
        open_session(model.with_stem("other"), data, project=tmp_path / "q")
    with pytest.raises(WrongValue, match="needs data"):
        open_session(model, project=tmp_path / "q")
    settings = ProjectSettings(
        "net",
        SourceSpec(model.suffix[1:], str(model.with_stem("gone"))),
        DataSpec("npz", str(data)),
    )
    Project.create(tmp_path / "p", settings=settings).close()
    with pytest.raises(JobFailed, match="no such file"):
        open_session(tmp_path / "p")
