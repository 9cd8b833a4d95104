"""``open_session``: from whatever the user has to a live session."""

from __future__ import annotations

import logging
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engine.errors import (
    MissingFile,
    WorkbenchError,
    WrongState,
    WrongType,
    WrongValue,
)
from workbench.studio import jobtable
from workbench.studio.code import load_object
from workbench.studio.errors import JobFailed
from workbench.studio.factory import Factory
from workbench.studio.figures import TRAIN_NOTICES
from workbench.studio.image_folder import ImageFolder
from workbench.studio.jobs import JobManager, ThreadManager, WorkerManager
from workbench.studio.metrics import check_name
from workbench.studio.project import (
    MODEL_FILES,
    TOML_NAME,
    DataSpec,
    Project,
    ProjectSettings,
    TrainSpec,
    is_project,
    read_settings,
    safe_name,
)
from workbench.studio.session import Session
from workbench.studio.source_spec import SourceSpec
from workbench.studio.waiting import WAIT_SECONDS

if TYPE_CHECKING:
    from torch import nn

    from workbench.studio.sources import LiveSource

log = logging.getLogger("workbench.studio")

RUNS = "runs"
PATIENCE = 1.0  # seconds of waiting for another window before that is said


def open_session(
    source: Any,
    data: Any = None,
    metric: Any = None,
    project: str | Path | None = None,
    *,
    in_process: bool = True,
    calibration_batches: int | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    seed: int | None = None,
    wait: bool | None = None,
    train: Any = None,
) -> Session:
    """Open a model or a project.

    ``source``: a name of ``workbench.zoo``, a ``torch.nn.Module``, an exported program (``.pt2``)
    or ONNX file, a folder of ``transformers``, ``package.module:factory`` (where code is allowed;
    a ``Factory`` where it takes arguments or weights), or an existing project folder. ``data``: a
    loader whose batches are inputs or (inputs, labels), a mapping with ``calibration`` and
    ``evaluation`` loaders, the path of an ``.npz``, or a folder of pictures with a sub-folder for
    each class: its path, or an ``ImageFolder`` with settings.
    ``train``: training data, a loader whose batches are inputs or (inputs, labels), the path of an
    ``.npz``, a folder of pictures (by its path: read with the settings of ``data``, whose classes
    it must have), or ``package.module:loader``; an example has its own, and without any a training
    learns from the calibration data.
    ``metric``: ``top1``, ``top5``, ``psnr``, ``cosine``, ``package.module:function``, or a function
    ``metric(model, batches) -> float`` where higher is better. ``project``: the folder to keep all
    in (default ``runs/<name>``); one that exists is continued. A project folder as ``source`` takes
    other data, training data or metric by name or path, and keeps what it has where none is given.

    ``in_process``: jobs run in a thread here; otherwise in the project's worker process, and a
    session returns at once while its layers follow. ``wait``: for the layers (default: in_process).

    ``seed``: of a new project (default 0); one that exists keeps its own. ``threads`` of torch in
    the project's jobs and in its script: another number counts from then on.

    A model that runs but has no graph (``torch.export`` refuses it) is opened with a warning: its
    modules can be quantised (``compare_formats``, ``quantize_modules``), and nothing else.

    Errors: ``MissingFile`` for a file that is not there, ``CodeNotAllowed``, ``NotWritable``, and
    ``WrongValue`` for a folder that holds another model's project or has another seed.
    """
    live: LiveSource | None = None
    if isinstance(source, str | os.PathLike) and is_project(source):
        if project is not None and Path(project).resolve() != Path(source).resolve():
            raise WrongValue("source is a project already", where="project", hint="Leave it out.")
        known: Path | None = Path(source)
    else:
        known = None if data is not None else _known(source, project)
    if known is not None:
        opened = Project.open(known)
        try:
            _check_seed(opened, seed)
            if threads is not None:
                _update(opened, replace(opened.settings, threads=threads))
            _take_over(
                opened, data, metric, train, batch_size=batch_size, batches=calibration_batches
            )
        except BaseException:
            opened.close()
            raise
    else:
        settings, live = _settings(
            source, data, metric, calibration_batches, batch_size, threads, seed, train
        )
        if live is not None and not in_process:
            raise WrongState(
                "a model object lives in this process only",
                where="source",
                hint="Open it with in_process=True, or name a package.module:factory.",
            )
        opened = _project(settings, project, seed, threads)
        if live is not None:
            _keep_live(opened, live)
    manager: JobManager | None = None
    if not opened.read_only:
        manager = ThreadManager(opened.folder, live) if in_process else WorkerManager(opened.folder)
    session = Session(opened, manager)
    if manager is not None and (live is not None or not len(session.layers)):
        patient = in_process if wait is None else wait
        if patient and not len(session.layers):
            _wait_for_another(session, manager)
        active = jobtable.latest(opened.store)
        if active is None or not active.active or manager.look_after(active):
            try:
                if live is not None or not len(session.layers):  # nobody else has opened it
                    session.start("open", wait=patient)
            except JobFailed as error:
                if not session.without_graph:
                    raise
                log.warning("%s", error)
            for notice in session.summary.notices:
                log.warning("%s", notice)
    return session


def _wait_for_another(session: Session, manager: JobManager) -> None:
    """Until the window that opens this project at this moment has done so, or is gone."""
    start, told = time.monotonic(), False
    while True:
        job = jobtable.latest(session.project.store)
        if job is None or not job.active or len(session.layers) or manager.look_after(job):
            return
        if not told and time.monotonic() - start > PATIENCE:
            told = True
            log.warning(
                "waiting for another window that opens %s at this moment", session.project.folder
            )
        time.sleep(WAIT_SECONDS)
        session.poll()


def _settings(
    source: Any,
    data: Any,
    metric: Any,
    calibration_batches: int | None,
    batch_size: int | None,
    threads: int | None,
    seed: int | None,
    train: Any = None,
) -> tuple[ProjectSettings, LiveSource | None]:
    spec = DataSpec(batch_size=batch_size or 64, calibration_batches=calibration_batches or 2)
    name, function = _metric_name(metric)
    if threads is None:
        threads = _default_threads()
    first_seed = seed or 0
    if isinstance(source, str | os.PathLike | Factory):
        title, model = _named(source)
        data_spec = _data_spec(data, spec, model.kind, model.name)
        train_spec = _train_spec(train, data_spec)
        settings = ProjectSettings(
            title, model, data_spec, name, threads=threads, seed=first_seed, train=train_spec
        )
        _check_named(train_spec, function)
        return settings, None
    from torch import nn

    from workbench.engine.graph.eligibility import check_module
    from workbench.studio.batches import cut, stored_hint
    from workbench.studio.sources import LiveSource

    if not isinstance(source, nn.Module):
        raise WrongType(
            f"{type(source).__name__} is no source",
            where="source",
            hint="Give a zoo name, a torch.nn.Module, or a project folder.",
        )
    check_module(source)
    if data is None:
        raise WrongValue("a model needs data to be calibrated", where="data", hint=stored_hint())
    title = type(source).__name__
    if isinstance(data, str | os.PathLike | ImageFolder):
        data_spec = _data_spec(data, spec, "live", title)
        dataset = None
    else:
        dataset = cut(data, source, spec)
        data_spec = DataSpec("stored", "", spec.batch_size, len(dataset.calibration))
    settings = ProjectSettings(
        safe_name(title), SourceSpec("live", title), data_spec, name, threads=threads,
        seed=first_seed, train=_train_spec(train, data_spec),
    )  # fmt: skip
    return settings, LiveSource(source, dataset, function, _live_train(train))


def _check_named(train: TrainSpec, function: Any) -> None:
    """A model that is opened by name has nothing that lives in this process only."""
    if train.kind == "live":
        raise WrongType(
            "a loader as training data needs a model object as source",
            where="train",
            hint="Name it as package.module:loader, or pass the model itself.",
        )
    if function is not None:
        raise WrongType(
            "a function as metric needs a model object as source",
            where="metric",
            hint="Name it as package.module:function, or pass the model itself.",
        )


def _named(source: str | os.PathLike[str] | Factory) -> tuple[str, SourceSpec]:
    """What a project of a model that is a file or a name is called, and its source."""
    if isinstance(source, Factory):
        spec = source.spec
        load_object(source.name, what="source")
        return safe_name(source.title), spec
    text = os.fspath(source)
    kind = _source_kind(text)
    if kind in MODEL_FILES:
        text = str(Path(text).expanduser().absolute())
    title = Path(text).stem if kind in MODEL_FILES else text.rsplit(":", 1)[-1]
    return safe_name(title), SourceSpec(kind, text)


def _known(source: Any, project: str | Path | None) -> Path | None:
    """The project that a model given without data has already; an example brings its data."""
    if not isinstance(source, str | os.PathLike | Factory):
        return None
    title, model = _named(source)
    folder = Path(project) if project is not None else Path(RUNS) / title
    if model.kind == "zoo" or not is_project(folder):
        return None
    return folder if read_settings(folder / TOML_NAME).source == model else None


def _source_kind(text: str) -> str:
    from workbench import zoo
    from workbench.studio.sources import OFFERED

    if text in zoo.names():
        return "zoo"
    suffix = Path(text).suffix.lower()
    if suffix in (".pt2", ".onnx"):
        if not Path(text).expanduser().is_file():
            raise MissingFile("there is no such file", where=text, hint="Check the path.")
        return suffix[1:]
    if suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt"):
        raise WrongValue(
            f"{text} holds pickled objects, which are not opened as a model",
            where="source",
            hint=OFFERED,
        )
    if (Path(text) / "config.json").is_file():
        return "hf"
    if re.fullmatch(r"[\w.]+:[\w.]+", text):
        load_object(text, what="source")
        return "python"
    known = ", ".join(zoo.names())
    raise WrongValue(
        f"{text!r} is neither an example nor a project folder",
        where="source",
        hint=f"Examples: {known}. {OFFERED}",
    )


def _data_spec(data: Any, spec: DataSpec, kind: str, name: str) -> DataSpec:
    if data is None:
        if kind != "zoo":
            raise WrongValue(
                "the model needs data", where="data", hint="Give an .npz path or a loader."
            )
        from workbench.zoo.data import BATCH_SIZE, CALIBRATION_SAMPLES

        return DataSpec("zoo", name, BATCH_SIZE, CALIBRATION_SAMPLES // BATCH_SIZE)
    if isinstance(data, ImageFolder):
        path = str(Path(data.path).expanduser().absolute())
        return DataSpec("folder", path, spec.batch_size, spec.calibration_batches, data.settings)
    if isinstance(data, str | os.PathLike):
        text = os.fspath(data)
        if Path(text).expanduser().is_dir():
            return _data_spec(ImageFolder(text), spec, kind, name)
        if text.lower().endswith(".npz"):
            path = _existing(text, "data")
            return DataSpec("npz", path, spec.batch_size, spec.calibration_batches)
        if re.fullmatch(r"[\w.]+:[\w.]+", text):
            return DataSpec("python", text, spec.batch_size, spec.calibration_batches)
        raise WrongValue(
            f"{text!r} is no data",
            where="data",
            hint="Allowed: an .npz file, a folder of pictures, or package.module:loader where code "
            "is allowed.",
        )
    raise WrongType(
        f"data is a {type(data).__name__}; with a named source it must be a path",
        where="data",
        hint="Pass the model object itself to use a loader object.",
    )


def _train_spec(train: Any, data: DataSpec) -> TrainSpec:
    """A folder that comes without settings is read as the project's own data is."""
    if train is None:
        return TrainSpec()
    if isinstance(train, ImageFolder):
        path = str(Path(train.path).expanduser().absolute())
        return TrainSpec("folder", path, train.settings)
    if not isinstance(train, str | os.PathLike):
        return TrainSpec("live", safe_name(type(train).__name__))
    text = os.fspath(train)
    if text.lower().endswith(".npz"):
        return TrainSpec("npz", _existing(text, "train"))
    if re.fullmatch(r"[\w.]+:[\w.]+", text):
        return TrainSpec("python", text)
    if Path(text).expanduser().is_dir():
        return TrainSpec("folder", str(Path(text).expanduser().absolute()), data.images)
    raise WrongValue(
        f"{text!r} is no training data",
        where="train",
        hint="Allowed: a loader, an .npz file, a folder of pictures, or package.module:loader "
        "where code is allowed.",
    )


def _existing(text: str, where: str) -> str:
    """The absolute path of a file: a name mistyped must not take a good one's place."""
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        raise MissingFile(f"{path}: there is no such file", where=where, hint="Check the path.")
    return str(path)


def _live_train(train: Any) -> Any:
    return None if isinstance(train, str | os.PathLike | ImageFolder) else train


def _metric_name(metric: Any) -> tuple[str, Any]:
    if metric is None:
        return "", None
    if isinstance(metric, str):
        check_name(metric)
        return metric, None
    if callable(metric):
        return safe_name(getattr(metric, "__name__", type(metric).__name__)), metric
    raise WrongType(f"metric is {metric!r}; allowed: a name or a function", where="metric")


def _default_threads() -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return max(1, (os.cpu_count() or 2) - 1)


def _project(
    settings: ProjectSettings, folder: str | Path | None, seed: int | None, threads: int | None
) -> Project:
    path = Path(folder) if folder is not None else Path(RUNS) / settings.name
    if not is_project(path):
        return Project.create(path, settings=settings)
    opened = Project.open(path)
    old = opened.settings
    # A smaller model is made of its base again.
    if settings.source not in (old.source, old.source.base):
        opened.close()
        raise WrongValue(
            f"the folder holds a project of {old.source.kind} {old.source.name!r}",
            where=str(path),
            hint="Choose another folder: project=..., on the command line --project FOLDER.",
        )
    try:
        _check_seed(opened, seed)
        _update(opened, settings if threads is not None else replace(settings, threads=old.threads))
    except WorkbenchError:
        opened.close()
        raise
    return opened


def _check_seed(opened: Project, seed: int | None) -> None:
    """A project's results were made with its own seed: another is refused, not ignored."""
    stored = opened.settings.seed
    if seed is not None and seed != stored:
        raise WrongValue(
            f"seed is {seed}; the project in {opened.folder} was made with {stored}",
            where="seed",
            hint="Leave seed out to go on with it, or give a new folder: project=....",
        )


def _take_over(
    opened: Project, data: Any, metric: Any, train: Any, *, batch_size: int | None,
    batches: int | None,
) -> None:  # fmt: skip
    """Other data, training data or metric for a project that was named by its folder."""
    old = opened.settings
    if data is metric is train is batch_size is batches is None:
        return
    if old.source.base.kind == "live":
        raise WrongValue(
            "the project was made from a model object, which has to be given with other data",
            where="source",
            hint="Open it with wb.open(model, data=..., project=folder).",
        )
    name, function = _metric_name(metric)
    wanted = old.data
    if wanted.kind != "zoo":  # an example's batches are as they are
        wanted = replace(
            wanted,
            batch_size=batch_size or wanted.batch_size,
            calibration_batches=batches or wanted.calibration_batches,
        )
    if data is not None:
        wanted = _data_spec(data, wanted, old.source.kind, old.source.name)
    training = _train_spec(train, wanted)
    _check_named(training, function)
    _update(opened, replace(old, data=wanted, metric=name, train=training))


def _update(opened: Project, settings: ProjectSettings) -> None:
    """What is given anew replaces what the project was made with."""
    old = opened.settings
    changes: dict[str, Any] = {}
    if old.data != settings.data:
        changes["data"] = settings.data
    if settings.train.kind != "none" and old.train != settings.train:
        changes["train"] = settings.train
    if old.threads != settings.threads:
        changes["threads"] = settings.threads
    if settings.metric and old.metric != settings.metric:
        changes["metric"] = settings.metric
    if changes and not opened.read_only:
        opened.update_settings(**changes)
        if "train" in changes:
            known = opened.store.get("figures") or {}
            opened.store.put(figures={**known, TRAIN_NOTICES: []})
        if "metric" in changes:
            opened.store.forget_results()


def _keep_live(project: Project, live: LiveSource) -> None:
    """Store what a live model's project needs elsewhere (decision 21)."""
    from workbench.engine.files.atomic import replace_on_success
    from workbench.studio.batches import write_stored

    if project.read_only:
        return
    if project.source.kind != "shrunk":
        with replace_on_success(project.state_path) as temporary:
            _save_weights(live.model, temporary)
    if live.data is not None:
        write_stored(project.data_path, live.data)


def _save_weights(model: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    state = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in model.state_dict().items()
    }
    save_file(state, path)
