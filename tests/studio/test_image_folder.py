"""A folder of pictures as data: labels, order, pixels, what is refused, and what is kept of it."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pictures import make_pictures
from PIL import Image
from studio_models import make_net
from torch import nn

from workbench.cli.commands import _data
from workbench.cli.main import parser
from workbench.engine.errors import MissingFile, WrongType, WrongValue
from workbench.studio import ImageFolder, Project, open_session
from workbench.studio.errors import JobFailed
from workbench.studio.evaluator import RowsInMemory
from workbench.studio.image_folder import ImageBatches, decode, list_pictures
from workbench.studio.image_settings import ImageSettings
from workbench.studio.project import ProjectSettings, TrainSpec, read_settings, to_toml
from workbench.studio.training_data import training_data

RAW = {"mean": (), "std": ()}


def batches(folder: Path, size: int = 5, channels: int = 3, **settings: object) -> ImageBatches:
    return ImageFolder(folder, **{**RAW, **settings}).batches(channels, size)  # type: ignore[arg-type]


# -- labels and order -----------------------------------------------------------------------------


def test_labels_are_the_places_of_the_sorted_sub_folders(tmp_path: Path) -> None:
    make_pictures(tmp_path, classes=2, each=2)
    shutil.move(tmp_path / "class1", tmp_path / "Zebra")  # capitals sort before small letters
    (tmp_path / "dogs" / "deeper").mkdir(parents=True)
    shutil.copy(tmp_path / "class0" / "000.png", tmp_path / "dogs" / "deeper" / "A.PNG")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    shutil.copy(tmp_path / "class0" / "000.png", tmp_path / ".hidden")
    (tmp_path / "class0" / "notes.txt").write_text("no picture")
    (tmp_path / "class0" / "._000.png").write_text("what another system leaves behind")
    found = list_pictures(tmp_path)
    assert found.classes == ("Zebra", "class0", "dogs", "empty")
    assert found.labels == (0, 0, 1, 1, 2)
    assert found.files[-1].name == "A.PNG"
    assert batches(tmp_path).empty_classes == ["empty"]


def test_pictures_without_sub_folders_have_no_labels(tmp_path: Path) -> None:
    make_pictures(tmp_path, classes=1)
    flat = tmp_path / "class0"
    assert list_pictures(flat).classes == ()
    assert batches(flat)[0].target is None


def test_every_picture_once_in_an_order_that_stays(tmp_path: Path) -> None:
    make_pictures(tmp_path, classes=3, each=7)
    found = batches(tmp_path, 5)
    assert (len(found), found.samples) == (5, 21)
    x = torch.cat([batch.inputs[0] for batch in found])
    y = torch.cat([batch.target for batch in found if batch.target is not None])
    assert [len(batch.inputs[0]) for batch in found] == [5, 5, 5, 5, 1]
    again = batches(tmp_path, 21)[0]
    assert torch.equal(x, again.inputs[0]) and torch.equal(y, again.target)
    # Each class has a brightness of its own, so the labels follow their pictures.
    assert torch.equal((x.mean((1, 2, 3)) * 255 / 60).floor().long(), y)
    assert len({tuple(one.flatten().tolist()) for one in x}) == 21
    assert set(found[0].target.tolist()) == {0, 1, 2}, "what calibrates has all classes"
    assert torch.equal(found[-1].inputs[0], found[4].inputs[0])
    with pytest.raises(IndexError):
        found[5]


def test_samples_in_any_order_as_from_memory(tmp_path: Path) -> None:
    found = batches(make_pictures(tmp_path, each=5), 4)
    rows = [7, 0, 14, 3]
    one, other = found.gather(rows), RowsInMemory(list(found)).gather(rows)
    assert torch.equal(one.inputs[0], other.inputs[0]) and torch.equal(one.target, other.target)


# -- pixels ---------------------------------------------------------------------------------------


def test_values_are_scaled_and_normalised(tmp_path: Path) -> None:
    make_pictures(tmp_path, classes=1, each=1)
    raw = np.asarray(Image.open(tmp_path / "class0" / "000.png"), dtype=np.float64)
    wanted = raw.transpose(2, 0, 1) / 255
    assert np.allclose(batches(tmp_path)[0].inputs[0][0], wanted, atol=1e-7)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    shown = batches(tmp_path, mean=mean, std=std)[0].inputs[0][0]
    for c in range(3):
        assert np.allclose(shown[c], (wanted[c] - mean[c]) / std[c], atol=1e-6)
    imagenet = ImageFolder(tmp_path).batches(3, 4)[0].inputs[0][0]
    assert np.allclose(imagenet[1], (wanted[1] - 0.456) / 0.224, atol=1e-5)
    grey = ImageFolder(tmp_path).batches(1, 4)[0].inputs[0]
    assert grey.min() >= 0 and grey.max() <= 1, "one channel is not normalised"


@examples(max_examples=15, deadline=None)
@given(st.integers(9, 40), st.integers(9, 40), st.integers(6, 24), st.integers(0, 12))
def test_the_shorter_side_is_resized_and_the_middle_cut_out(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, resize: int, crop: int
) -> None:
    file = tmp_path_factory.mktemp("one") / "a.png"
    values = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(file)
    found = decode(file, ImageSettings(resize, crop), 3)
    shorter, scale = min(height, width), max(resize, crop)
    size = (int(scale * height / shorter), int(scale * width / shorter))
    x = torch.from_numpy(values).permute(2, 0, 1)[None].float()
    y = nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)[0]
    if crop:
        top, left = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
        y = y[:, top : top + crop, left : left + crop]
    assert found.shape == y.shape
    assert (found.float() - y).abs().max() <= 1.0, "Pillow rounds between its two passes"


def grey_16(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint16))


@pytest.mark.parametrize(
    ("picture", "channels", "pixel"),
    [
        (Image.new("L", (4, 4), 100), 3, (100, 100, 100)),
        (Image.new("RGB", (4, 4), (10, 20, 30)), 4, (10, 20, 30, 255)),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), 3, (10, 20, 30)),
        (Image.new("RGB", (4, 4), (200, 100, 50)), 1, (124,)),  # 0.299 R + 0.587 G + 0.114 B
        (Image.new("1", (4, 4), 1), 1, (255,)),
        (Image.new("P", (4, 4), 0), 3, (0, 0, 0)),
        (grey_16(np.full((4, 4), 65535)), 1, (255,)),
        (grey_16(np.full((4, 4), 32896)), 3, (128, 128, 128)),
    ],
)
def test_whatever_the_file_has_becomes_the_model_s_channels(
    tmp_path: Path, picture: Image.Image, channels: int, pixel: tuple[int, ...]
) -> None:
    picture.save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png", ImageSettings(), channels)
    assert found.shape == (channels, 4, 4)
    assert tuple(found[:, 2, 1].tolist()) == pixel


# -- what is refused ------------------------------------------------------------------------------


def huge_png(side: int) -> bytes:
    """A file of a few bytes that claims to have ``side`` × ``side`` pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        head = struct.pack(">I", len(data)) + name + data
        return head + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not a picture", "cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read"),
        (huge_png(9000), "9000×9000 pixels"),
        (huge_png(60000), "cannot be read|pixels"),
        (huge_png(8), "cannot be read"),
    ],
)
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    make_pictures(tmp_path, classes=1, each=1)
    (tmp_path / "class0" / "bad.png").write_bytes(content)
    with pytest.raises(WrongValue, match=words) as error:
        batches(tmp_path)[0]
    assert error.value.where.endswith("bad.png")


def test_pictures_of_several_sizes_ask_for_a_crop(tmp_path: Path) -> None:
    make_pictures(tmp_path, classes=1, each=2)
    Image.new("RGB", (9, 8)).save(tmp_path / "class0" / "wide.png")
    with pytest.raises(WrongValue, match="Set crop"):
        batches(tmp_path)[0]
    assert batches(tmp_path, crop=6)[0].inputs[0].shape == (3, 3, 6, 6)


def test_folders_and_settings_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        list_pictures(tmp_path / "gone")
    with pytest.raises(WrongValue, match="no pictures"):
        list_pictures(tmp_path)
    make_pictures(tmp_path, classes=1, each=1)
    with pytest.raises(WrongValue, match="5 channels"):
        batches(tmp_path, channels=5)
    with pytest.raises(WrongValue, match="mean has 2 values; the model has 3"):
        batches(tmp_path, mean=(0.1, 0.2))
    with pytest.raises(WrongValue, match=r"crop is -1.*std is \[0\.0\]"):
        batches(tmp_path, crop=-1, std=(0.0,))
    with pytest.raises(WrongType, match="resize"):
        batches(tmp_path, resize=2.5)


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pictures(tmp_path, each=4)
    found = batches(tmp_path, 4)
    found.cache_bytes = 5 * 8 * 8 * 3
    read: list[str] = []
    real = Image.open

    def counted(file: Path, **options: object) -> Image.Image:
        read.append(file.name)
        return real(file, **options)

    monkeypatch.setattr(Image, "open", counted)
    assert len(found) == 3 and not read, "nothing is decoded before it is wanted"
    for _ in range(2):
        for batch in found:
            assert batch.inputs[0].shape == (4, 3, 8, 8)
    assert len(read) == 12 + 7, "five of twelve are kept"
    assert sum(x.numel() for x in found._cache.values()) <= found.cache_bytes


# -- in a project ---------------------------------------------------------------------------------


def test_a_model_on_a_folder_of_pictures(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "birds", classes=4, each=6, size=12)
    data = ImageFolder(pictures, crop=8, std=[0.5])
    session = open_session(
        make_net(), data=data, project=tmp_path / "p", batch_size=8, threads=1,
        calibration_batches=1,
    )  # fmt: skip
    assert session.summary.metric_name == "top1"
    assert session.summary.data == "birds, 4 classes, 24 samples, calibrated with 8"
    session.auto_calibrate(max_loss=0.5)
    assert session.trials["metric"].between(0, 1).all()
    settings = session.project.settings
    assert settings.data.images == ImageSettings(crop=8, std=(0.5,))
    assert read_settings(session.project.folder / "project.toml") == settings
    script = session.script()
    assert f"ImageFolder({str(pictures)!r}, crop=8, std=[0.5]).batches(model, 8)" in script
    place: dict[str, object] = {"model": make_net()}
    lines = [
        line
        for line in script.splitlines()
        if ("ImageFolder" in line or "pictures" in line) and not line.startswith(" ")
    ]
    exec("\n".join(lines), place)
    (x,) = place["batches"][0]  # type: ignore[index]
    wanted = data.batches(3, 8)[0].inputs[0]
    assert torch.equal(x, wanted) and len(place["batches"]) == 1  # type: ignore[arg-type]


def test_settings_of_pictures_in_project_toml(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "p")
    path = project.folder / "project.toml"
    text = to_toml(project.settings).replace(
        'kind = "none"\nname = ""\nbatch',
        'kind = "folder"\nname = "birds"\nresize = 256\nmean = []\nbatch',
    )
    path.write_text(text)
    assert read_settings(path).data.images == ImageSettings(resize=256, mean=())
    for old, new, error in (
        ("resize = 256", "resize = -1", "resize is -1"),
        ("mean = []", 'mean = "none"', "must be a list"),
        ("mean = []", "std = [0.0]", "numbers above 0"),
        ("resize = 256", "size = 256", "no field 'data.size'"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises((WrongValue, WrongType), match=error):
            read_settings(path)


def test_on_the_command_line() -> None:
    def given_as(*words: str) -> object:
        return _data(parser().parse_args(["analyse", "p", *words]))

    assert given_as("--data", "x.npz") == "x.npz"
    words = ["--data", "birds", "--crop", "224", "--mean", "none", "--std", "0.2,0.3,0.4"]
    assert given_as(*words) == ImageFolder("birds", crop=224, mean=[], std=[0.2, 0.3, 0.4])
    with pytest.raises(WrongValue, match="--resize"):
        given_as("--resize", "9")
    with pytest.raises(WrongValue, match="no list of numbers"):
        given_as("--data", "birds", "--mean", "a,b")


# -- as training data -----------------------------------------------------------------------------


def test_training_reads_each_picture_once_an_epoch_in_another_order(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "train", classes=2, each=5)
    settings = ProjectSettings(
        "net", train=TrainSpec("folder", str(folder), ImageSettings(mean=(), std=()))
    )
    project = Project.create(tmp_path / "project", settings=settings)
    data = training_data(project, make_net(), [], live=None, batch_size=5)
    assert data.title == "train, 2 classes, 10 samples"
    expected = {}
    for label, name in enumerate(("class0", "class1")):
        for file in (folder / name).iterdir():
            pixels = np.asarray(Image.open(file), dtype=np.float32).transpose(2, 0, 1) / 255
            expected[pixels.tobytes()] = label
    epochs = []
    for epoch in (0, 1, 0):
        data.loader.set_epoch(epoch)
        seen = [
            (picture.numpy().tobytes(), int(label))
            for (pictures,), labels in data.loader
            for picture, label in zip(pictures, labels, strict=True)
        ]
        assert dict(seen) == expected and len(seen) == 10
        epochs.append(seen)
    assert epochs[0] == epochs[2] != epochs[1]
    x, target = next(iter(data.as_given()))
    assert x.shape == (5, 3, 8, 8) and target.shape == (5,)


def test_a_training_with_pictures_from_open_to_the_script(tmp_path: Path) -> None:
    data, train = (
        make_pictures(tmp_path / name, classes=3, each=each)
        for name, each in (("val", 4), ("t", 6))
    )
    session = open_session(
        make_net(), ImageFolder(data, **RAW), train=str(train), project=tmp_path / "project",
        batch_size=4,
    )  # fmt: skip
    spec = session.project.settings.train
    assert (spec.kind, spec.images.given()) == ("folder", {"mean": [], "std": []})
    assert read_settings(session.project.folder / "project.toml") == session.project.settings
    session.train("finetune", epochs=1, batch_size=6, loss="cross_entropy")
    assert session.training.data == "t, 3 classes, 18 samples"
    assert f"train=ImageFolder({str(train)!r}, mean=[], std=[])" in session.script()

    shutil.move(train / "class2", train / "owls")
    with pytest.raises(JobFailed, match="class0, class1, owls; those of the data are class0"):
        session.train("finetune", epochs=1)
    session.dispose()
