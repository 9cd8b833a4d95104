"""Words for the studio's own names, the same in every window: jobs, trials, files."""

from __future__ import annotations

from workbench.charts.spoken import said, sentence
from workbench.charts.text import _


def parity_text(text: str) -> str:
    """A parity line, ``torch ≡ ONNX: largest difference 0.1 (0.2 steps)``, part by part."""
    whole = said(text)
    names, colon, figures = text.partition(": ")
    if whole != text or not colon:
        return whole
    return names + colon + ", ".join(said(part) for part in figures.split(", "))


def job_title(kind: str) -> str:
    """A job's kind as a person calls it."""
    return {
        "open": _("Opening the model"),
        "analyse": _("Analysing"),
        "inspect": _("Comparing"),
        "search": _("Searching"),
        "prune_search": _("Measuring channels"),
        "prune": _("Pruning"),
        "decompose": _("Decomposing"),
        "train": _("Training"),
        "weights": _("Changing the weights"),
        "formats": _("Measuring formats"),
        "quantize": _("Quantising"),
        "evaluate": _("Evaluating"),
        "export": _("Exporting"),
    }.get(kind, kind)


def job_sentence(kind: str, message: str) -> str:
    """What a running job says it does."""
    return sentence(message) or job_title(kind)


def job_noun(kind: str) -> str:
    """What a job of a kind is, whether it runs or has long ended."""
    return {
        "analyse": _("analysis"),
        "inspect": _("comparison of a layer"),
        "search": _("search"),
        "prune_search": _("channel measurement"),
        "prune": _("pruning"),
        "decompose": _("decomposition"),
        "train": _("training"),
        "formats": _("format measurement"),
        "quantize": _("quantisation"),
        "evaluate": _("evaluation"),
        "export": _("export"),
    }.get(kind, job_title(kind))


def job_state(state: str) -> str:
    """A job's state as a person calls it."""
    return {
        "queued": _("waiting for the worker"),
        "running": _("running"),
        "paused": _("paused"),
        "cancelling": _("stopping at the next step"),
        "finished": _("finished"),
        "failed": _("failed"),
        "cancelled": _("cancelled"),
    }.get(state, state)


def method_title(method: str) -> str:
    """A method of training as a person calls it."""
    return {
        "qat": _("QAT"),
        "distill": _("distillation"),
        "finetune": _("fine-tuning"),
        "sparse": _("2:4 sparsity"),
        "compressed": _("combined"),
    }.get(method, method)


def trial_kinds() -> dict[str, str]:
    """What the kinds of trials are called."""
    return {
        "float": _("float model"),
        "all": _("all quantised"),
        "probe": _("search"),
        "final": _("calibrated"),
        "trained": _("trained"),
    }


def file_title(kind: str) -> str:
    """An exported file's kind, and what it is for."""
    return {
        "float": _("float"),
        "fake_quant": _("fake-quant, for checking in ONNX Runtime"),
        "deploy": _("deploy, integers for the accelerator"),
        "qdq": _("QDQ, for ONNX Runtime and TensorRT"),
        "trained": _("float, as trained"),
        "compressed": _("pruned float, for ONNX Runtime"),
        "compressed_deploy": _("the same, under the name that tools of the accelerator expect"),
    }.get(kind, kind)
