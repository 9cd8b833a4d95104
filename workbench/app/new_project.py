"""The form that makes a project of a model file and a data file, or a folder of pictures."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import panel as pn
import panel_material_ui as pmui

from workbench.app.code_source import CodeSource
from workbench.app.html import ThemedHTML, escape, failure
from workbench.app.i18n import _, error_text
from workbench.app.picture_settings import PictureSettings
from workbench.app.projects import project_folder
from workbench.app.style import aligned
from workbench.app.upload_button import UploadButton
from workbench.app.uploads import (
    DATA,
    MODELS,
    files_folder,
    offered,
    offered_folders,
    offered_networks,
)
from workbench.engine.errors import MissingFile, WorkbenchError, WrongValue
from workbench.studio.code import check_reference
from workbench.studio.expected import expected_of_file
from workbench.studio.factory import Factory
from workbench.studio.image_settings import ImageSettings
from workbench.studio.project import (
    DataSpec,
    Project,
    ProjectSettings,
    TrainSpec,
    is_project,
    not_writable,
)
from workbench.studio.source_spec import SourceSpec
from workbench.studio.trying import try_project

METRICS = ("top1", "top5", "psnr", "cosine")


def new_project(
    name: str,
    model: str | Factory,
    data: str,
    metric: str = "",
    images: ImageSettings | None = None,
    train: str = "",
) -> Path:
    """A project of files in the workspace's folder, which are copied into it; returns its folder.

    Folders stay where they are: of ``transformers`` as ``model``; of pictures, read as ``images``
    says, as ``data`` and as ``train`` to train with. So do the weights of a ``Factory``. ``data``
    may be a ``package.module:loader``, too.
    ``metric`` empty: top-1 where the data has labels, else the cosine to the float outputs. The
    files are read by the project's own worker. Errors: ``WrongValue`` for a name that is not
    allowed or taken, ``MissingFile``, ``NotWritable``.
    """
    folder = project_folder(name, where=_("name"))
    if is_project(folder):
        raise WrongValue(
            _("“{name}” is there already").format(name=name),
            where=_("name"),
            hint=_("Choose another name."),
        )
    kept = Path("files")
    names: list[str] = []
    if isinstance(model, Factory):
        check_reference(model.name, what="source")
        source = model.spec
    elif model in offered_networks():
        source = SourceSpec("hf", str(files_folder().resolve() / model))
    else:
        names += [model, *external_files(_file(model))]
        source = SourceSpec(Path(model).suffix[1:], str(kept / model))
    images = images or ImageSettings()
    if data in offered_folders():
        spec = DataSpec("folder", str(files_folder().resolve() / data), images=images)
    elif ":" in data and data not in offered(DATA):
        check_reference(data, what="data")
        spec = DataSpec("python", data)
    else:
        names.append(data)
        spec = DataSpec("npz", str(kept / data))
    train_spec = TrainSpec()
    if train in offered_folders():
        train_spec = TrainSpec("folder", str(files_folder().resolve() / train), images)
    elif train:
        names.append(train)
        train_spec = TrainSpec("npz", str(kept / train))
    settings = ProjectSettings(
        name,
        source,
        spec,
        metric,
        threads=max(1, (os.cpu_count() or 2) - 1),
        train=train_spec,
    )
    files = [_file(each) for each in names]
    project = Project.create(folder, settings=settings)
    try:
        (folder / kept).mkdir(exist_ok=True, mode=0o750)
        for file in files:
            shutil.copy2(file, folder / kept / file.name)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise not_writable(folder, error) from error
    finally:
        project.close()
    return folder


def external_files(model: Path) -> list[str]:
    """Names of the files beside an ONNX model that hold its large tensors."""
    if model.suffix != ".onnx":
        return []
    from workbench.engine.graph.onnx_source import external_locations

    return external_locations(model)


def _file(name: str) -> Path:
    """A file of the workspace's folder; a name from a browser never leads out of it."""
    folder = files_folder().resolve()
    path = (folder / name).resolve()
    if path.parent != folder or not path.is_file():
        raise MissingFile(
            _("“{name}” is not there").format(name=name[:80]),
            where=str(folder),
            hint=_("Upload it, or put it into this folder."),
        )
    return path


class NewProject:
    """Model and what it wants, data, metric, name, and the button."""

    def __init__(self) -> None:
        field: dict[str, Any] = {"size": "small", "width": 420, "margin": (0, 0, 12, 0)}
        small: dict[str, Any] = {"size": "small", "margin": 0}
        self.model = pmui.Select(label=_("model"), options=[], **field)
        self.wants = ThemedHTML()
        self.data = pmui.Select(label=_("data"), options=[], **field)
        self.train = pmui.Select(label=_("training data"), options=[""], **field)
        self.pictures = PictureSettings()
        self.code = CodeSource()
        self.metric = pmui.Select(
            label=_("metric"),
            options={_("by the data"): "", **{name: name for name in METRICS}},
            value="",
            width=140,
            **small,
        )
        self.name = pmui.TextInput(label=_("name"), width=300, **small)
        self.create = pmui.Button(label=_("Create project"), variant="contained", **small)
        self.upload = UploadButton(self._arrived, margin=(0, 0, 12, 0))
        self.said = ThemedHTML()
        self.create.on_click(self._create)
        self.model.param.watch(self._model_chosen, "value")
        for menu in (self.data, self.train):
            menu.param.watch(self._data_chosen, "value")
        self.fill()

    def fill(self) -> None:
        """Offer what is in the folder now."""
        self.code.fill()
        for menu, names in (
            (self.model, [*offered(MODELS), *offered_networks()]),
            (self.data, [*offered(DATA), *offered_folders()]),
        ):
            folders = {*offered_folders(), *offered_networks()}
            menu.options = {f"{name}/" if name in folders else name: name for name in names}
            menu.visible = bool(names)
            if menu.value not in names:
                menu.value = names[0] if names else None
        self.train.options = {
            _("none: train with the calibration samples"): "", **self.data.options
        }  # fmt: skip
        self.train.visible = self.data.visible
        if self.train.value not in self.train.options.values():
            self.train.value = ""
        about = _(
            "Exported programs (.pt2), ONNX files and folders of transformers; the data is an .npz "
            "whose arrays are named as the inputs, with labels if there are any, or a folder of "
            "pictures with a sub-folder for each class. Files and folders in this folder are "
            "offered:"
        )
        where = escape(str(files_folder()))
        self.said.fill(f'<p class="wb-muted">{escape(about)} <code>{where}</code></p>')

    def _arrived(self, names: list[str]) -> None:
        self.fill()
        for name in names:
            if Path(name).suffix in MODELS:
                self.model.value = name
                self.name.value = self.name.value or Path(name).stem
            elif Path(name).suffix in DATA:
                self.data.value = name

    def _model_chosen(self, *_events: Any) -> None:
        """Say what the model wants before any data is chosen."""
        name = self.model.value
        if not name:
            self.wants.fill("")
            return
        try:
            network = name in offered_networks()
            expected = expected_of_file(files_folder() / name if network else _file(name))
        except (WorkbenchError, OSError) as error:
            self._refuse(error, self.wants)
            return
        items = "".join(f"<li><code>{escape(one.words)}</code></li>" for one in expected)
        title = escape(_("The model wants (the first dimension counts the samples):"))
        self.wants.fill(f'<p class="wb-muted">{title}</p><ul>{items}</ul>')
        self.pictures.propose(expected)

    def _data_chosen(self, *_events: Any) -> None:
        folders = offered_folders()
        self.pictures.row.visible = self.data.value in folders or self.train.value in folders

    def _refuse(self, error: Exception, where: ThemedHTML) -> None:
        text = error_text(error) if isinstance(error, WorkbenchError) else str(error)
        where.fill(f'<div class="wb-notice" role="alert">✕ {escape(text)}</div>')

    async def _create(self, _event: Any) -> None:
        try:
            model: str | Factory | None = self.code.model or self.model.value
            data = self.code.data or self.data.value
            if not model or not data:
                raise WrongValue(_("a project needs a model and data"), hint=_("Upload both."))
            title = model.title if isinstance(model, Factory) else Path(model).stem
            name = (self.name.value or title).strip()
            folder = new_project(
                name, model, data, self.metric.value,
                self.pictures.settings, self.train.value or "",
            )  # fmt: skip
        except (WorkbenchError, OSError) as error:
            self._refuse(error, self.said)
            return
        self.create.disabled = True
        trying = escape(_("Loading the model and the data, and running one batch …"))
        self.said.fill(f'<div class="wb-info" role="status">{trying}</div>')
        try:
            problem = await asyncio.to_thread(try_project, folder)
        except (WorkbenchError, OSError) as error:
            self._refuse(error, self.said)
            return
        finally:
            self.create.disabled = False
        if problem is not None:
            self.said.fill(failure(problem))
            return
        self.upload.go = "?" + urlencode({"project": name})

    def __panel__(self) -> Any:
        return pn.Column(
            ThemedHTML(f'<h2 class="wb">{escape(_("Your own model"))}</h2>'),
            self.upload,
            self.model,
            self.wants,
            self.data,
            self.train,
            self.pictures.row,
            self.code.column,
            aligned(self.name, self.metric, self.create),
            self.said,
            margin=0,
        )
