"""``log.py``: the project's state as the Python script that makes it again.

Only what differs from the defaults is written, so that a project is about a dozen lines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from workbench.engine.files.config_rules import IFMR_ONLY
from workbench.studio import ptq
from workbench.studio.formats_script import formats_lines
from workbench.studio.formats_state import graph_is_missing
from workbench.studio.graph_names import graph_arguments
from workbench.studio.image_settings import folder_text
from workbench.studio.kept_weights import current
from workbench.studio.project import MODEL_FILES, Project, safe_name
from workbench.studio.pruning_script import shrink_lines
from workbench.studio.search_script import IMPORTS as SEARCH_IMPORTS
from workbench.studio.search_script import Option, search_lines
from workbench.studio.training_script import training_lines
from workbench.studio.variants_script import variant_lines

if TYPE_CHECKING:
    from workbench.studio.figures import Figures

_PLACES = {
    "act_bits": ("activation_quant_params", "num_bits"),
    "act_algo": ("activation_quant_params", "act_algo"),
    "wts_bits": ("weight_quant_params", "num_bits"),
    "wts_algo": ("weight_quant_params", "wts_algo"),
    "channel_wise": ("weight_quant_params", "channel_wise"),
    "dmq": ("", "dmq_balancer_param"),
}


def project_script(project: Project, table: pd.DataFrame, figures: Figures) -> str:
    """The script; run it anywhere, it writes into the folder ``reproduced``."""
    settings = project.settings
    name = safe_name(settings.name)
    options = changed_options(table, figures)
    search = search_lines(project, figures, options)
    training = training_lines(project, table, options)
    modules = formats_lines(project)
    shrinking = shrink_lines(project, table)
    named_variants = variant_lines(
        project,
        table,
        lambda other: [
            *_config_lines(other, figures, []),
            *_option_lines(changed_options(other, figures)),
        ],
    )
    uses_json = options or any("json." in line for line in named_variants)
    imports = ["import json"] if uses_json else []
    imports += [line for line in SEARCH_IMPORTS[:1] if search]
    imports += ["from pathlib import Path", "", "import torch", ""]
    imports += ["import workbench.engine as engine"]
    imports += [line for line in SEARCH_IMPORTS[1:] if search or training or modules or shrinking]
    source_imports, source_lines = _source(project, figures.batch_num)
    named = graph_arguments(project.store)
    quantising = [
        'names = ("ptq.json", "ptq.record.txt", "ptq.onnx")',
        "config, record, graph = (str(out / name) for name in names)",
        *_config_lines(table, figures, search),
        *_option_lines(options),
        *_balance_lines(table),
        "calibration = engine.quantize_model("
        f"config, graph, record, model, batches[0]{named}{_learning(table)}{_seed(settings.seed)})",
        "for batch in batches:",
        "    calibration(*batch)",
        f"engine.save_model(graph, record, str(out / {name!r}))",
    ]
    if graph_is_missing(project.store, table):
        quantising = []  # module by module only, below
    lines = [
        f'"""{_plain(settings.name)}, quantised with Compression Workbench."""',
        "",
        *imports,
        *source_imports,
        "",
        f"torch.set_num_threads({settings.threads})",
        *source_lines,
        "",
        'out = Path("reproduced")',
        "out.mkdir(exist_ok=True)",
        *quantising,
        *named_variants,
        *training,
        *modules,
        *shrinking,
    ]
    return "\n".join(lines) + "\n"


def _seed(seed: int) -> str:
    return f", seed={seed}" if seed else ""


def _learning(table: pd.DataFrame) -> str:
    """Learned rounding looks at the data before the calibration does."""
    if table.empty or not (table["quant_enable"] & (table["wts_algo"] == "ada_quantize")).any():
        return ""
    return ", calibration_data=batches"


def _plain(text: str) -> str:
    return "".join(c for c in text if c.isprintable() and c not in '"\\')


def _source(project: Project, batch_num: int) -> tuple[list[str], list[str]]:
    source, data = project.settings.source.base, project.settings.data
    shrunk = project.source.kind == "shrunk"
    weights_file = str(project.state_path)
    imports: list[str] = []
    lines: list[str] = []
    if source.kind == "zoo":
        imports.append("from workbench import zoo")
        lines += [f"example = zoo.load({source.name!r})", "model = example.model"]
    elif source.kind == "python":
        module, _, attribute = source.name.partition(":")
        imports.append(f"import {module}")
        arguments = ", ".join(f"{key}={value!r}" for key, value in source.arguments.items())
        lines.append(f"model = {module}.{attribute}({arguments}).eval()")
        if source.weights and not shrunk:
            imports.append("from workbench.studio.sources import read_weights")
            path = str(project.folder / source.weights)
            lines.append(f"model.load_state_dict(read_weights(Path({path!r})))")
    elif source.kind in MODEL_FILES:
        module, function = MODEL_FILES[source.kind]
        imports.append(f"from {module} import {function}")
        path = str(project.folder / Path(source.name).expanduser())
        lines.append(f"model = {function}({path!r})")
    else:
        imports.append("from safetensors.torch import load_file")
        lines += [
            f"model = ...  # fill in: build your {_plain(source.name)} here",
            *([] if shrunk else [f"model.load_state_dict(load_file({weights_file!r}))"]),
            "model.eval()",
        ]
    if data.kind == "zoo" and source.kind == "zoo":
        lines.append(
            "batches = [(x,) for x in "
            f"example.data.calibration.split({data.batch_size})[:{batch_num}]]"
        )
    elif data.kind == "stored":
        imports.insert(0, "import numpy as np")
        lines += _stored_lines(project.data_path, batch_num)
    elif data.kind == "folder":
        imports.append("from workbench.studio import ImageFolder")
        path = str(project.folder / Path(data.name).expanduser())
        lines += [
            f"pictures = {folder_text(path, data.images)}.batches(model, {data.batch_size})",
            f"batches = [batch.inputs for batch in pictures[:{batch_num}]]",
        ]
    elif data.kind == "npz":
        imports.insert(0, "import numpy as np")
        imports.append("from workbench.studio.sources import input_names")
        path = str(project.folder / Path(data.name).expanduser())
        lines += [
            f"arrays = np.load({path!r})",
            "names = [n for n in input_names(model) if n in arrays]",
            'names = names or [n for n in arrays if n != "labels"]',
            f"splits = [torch.from_numpy(arrays[n]).split({data.batch_size}) for n in names]",
            f"batches = list(zip(*splits))[:{batch_num}]",
        ]
    else:
        lines.append(f"batches = ...  # fill in: {batch_num} tuples of inputs, from {data.name!r}")
    if shrunk:
        imports.append("from workbench.studio.shrunk import rebuild")
        lines += ["base = model", f"model = rebuild({str(project.folder)!r}, base, batches[0])"]
    if (weights := current(project)) is not None:
        imports = list(dict.fromkeys([*imports, "from safetensors.torch import load_file"]))
        lines.append(f"model.load_state_dict(load_file({str(weights)!r}))")
    return imports, lines


def _stored_lines(path: Path, batch_num: int) -> list[str]:
    return [
        f"arrays = np.load({str(path)!r})",
        "batches = [",
        "    tuple(torch.from_numpy(arrays[n]) for n in arrays.files "
        'if n.startswith(f"calibration_{i}_"))',
        f"    for i in range({batch_num})",
        "]",
    ]


def _config_lines(table: pd.DataFrame, figures: Figures, search: list[str]) -> list[str]:
    skipped: list[str] = []
    if not table.empty:
        skipped = table[table["eligible"] & ~table["quant_enable"]]["name"].tolist()
    call = f"engine.create_quant_config(config, model, batches[0], batch_num={figures.batch_num}"
    if not skipped and not search:
        return [f"{call})"]
    names = ", ".join(repr(name) for name in skipped)
    lines = [f"skip = [{names}]"]
    if len(names) >= 60:
        lines = ["skip = [", *(f"    {name!r}," for name in skipped), "]"]
    return [*lines, *search, f"{call}, skip_layers=skip)"]


def _balance_lines(table: pd.DataFrame) -> list[str]:
    """A DMQ balancer needs a step of its own before the quantisation."""
    if table.empty or not (table["quant_enable"] & (table["dmq"] > 0)).any():
        return []
    return [
        "balancing = engine.quantize_preprocess(config, record, model, batches[0])",
        "balancing(*batches[0])",
    ]


def _place(group: str, key: str) -> str:
    return f"[{group!r}][{key!r}]" if group else f"[{key!r}]"


def changed_options(table: pd.DataFrame, figures: Figures) -> list[Option]:
    """Settings that differ from the generated configuration."""
    if table.empty or not table["eligible"].any():
        return []
    generated = figures.generated_columns()
    columns = ptq.columns_of(table)
    found: list[Option] = []
    for row, (name, eligible, kind) in enumerate(
        zip(table["name"], table["eligible"], table["type"], strict=True)
    ):
        if not eligible:
            continue
        for column, (group, _) in _PLACES.items():
            if kind == "AvgPool2d" and group == "weight_quant_params":
                continue
            if columns[column][row] != generated[column][row]:
                found.append((name, column, columns[column][row]))
    return found


def _hfmg_lines(names: Sequence[str]) -> list[str]:
    """HFMG has none of the keys of IFMR, which the generated configuration is written with."""
    if not names:
        return []
    return [
        f"for name in {json.dumps(names, ensure_ascii=False)}:",
        '    activation = settings[name]["activation_quant_params"]',
        f"    for key in {IFMR_ONLY}:",
        "        del activation[key]",
        '    activation["act_algo"] = "hfmg"',
    ]


def _option_lines(options: Sequence[Option]) -> list[str]:
    """The same as edits of the configuration's JSON."""
    if not options:
        return []
    edits = [(n, *_PLACES[column], value) for n, column, value in options if value != "hfmg"]
    lines = ["settings = json.loads(Path(config).read_text())"]
    lines += _hfmg_lines([name for name, _, value in options if value == "hfmg"])
    same = {(group, key, value) for _, group, key, value in edits}
    if len(same) == 1 and len(edits) > 3:
        ((group, key, value),) = same
        names = json.dumps([name for name, *_ in edits], ensure_ascii=False)
        lines += [f"for name in {names}:", f"    settings[name]{_place(group, key)} = {value!r}"]
    else:
        lines += [f"settings[{n!r}]{_place(group, key)} = {v!r}" for n, group, key, v in edits]
    return [*lines, "Path(config).write_text(json.dumps(settings))"]
