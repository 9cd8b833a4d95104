"""`Recover` on the planted networks, and what early verdicts save on digits-mobilenet-hard."""

from __future__ import annotations

from statistics import mean

from benchmarks.harness import Row, threads
from workbench import zoo
from workbench.engine.events import Event, TrialFinished
from workbench.engine.files.config import default_config
from workbench.engine.graph.capture import capture
from workbench.engine.search.auto_calibration import search_configuration
from workbench.engine.search.result import SearchResult
from workbench.zoo.planted import PLANTED, SampleEvaluator, answers, load_planted


def _search(
    example: zoo.ZooModel, evaluator: SampleEvaluator, strategy: str, *, early: bool = True
) -> tuple[SearchResult, list[TrialFinished]]:
    trials: list[TrialFinished] = []

    def on_event(event: Event) -> None:
        if isinstance(event, TrialFinished) and event.phase != "original":
            trials.append(event)

    captured = capture(example.model, (example.data.calibration[:2],))
    result = search_configuration(
        example.model,
        captured,
        default_config(captured.layers, batch_num=1),
        evaluator,
        strategy=strategy,
        early=early,
        on_event=on_event,
    )
    return result, trials


def planted_rows() -> list[Row]:
    """Equivalents are those the evaluator counted: the original is free, the final one counts."""
    rows, above = [], []
    for name in PLANTED:
        planted, minimum = load_planted(name), int(answers()[name]["minimum"])
        evaluator = planted.evaluator
        result, _ = _search(planted.example, evaluator, "Recover")
        floats = len(result.config.layers) - len(result.config.enabled())
        above.append(floats - minimum)
        rows.append(
            Row(
                f"Recover, {name}: full-evaluation equivalents",
                threads(),
                evaluator.evaluated / evaluator.sample_count - 1,
                "",
                8,
                f"{floats} of {len(result.config.layers)} layers left in float, smallest {minimum}",
            )
        )
    note = f"{above.count(0)} of {len(above)} at the smallest"
    if above.count(0) < 0.8 * len(above):
        note += ", too few"
    rows.append(Row("Recover: most layers above the smallest", threads(), max(above), "", 1, note))
    return rows


def early_rows() -> list[Row]:
    """Mean share of the samples that a trial evaluated, all-quantised and final trial included."""
    rows = []
    for strategy in ("Recover", "BinarySearch"):
        answer = []
        for early in (True, False):
            example = zoo.load("digits-mobilenet-hard")
            evaluator = SampleEvaluator(example, 0.005)
            result, trials = _search(example, evaluator, strategy, early=early)
            answer.append(result.config.enabled())
            if early:
                shares = [trial.share for trial in trials]
                middle = [trial.share for trial in trials if trial.phase == "search"]
        same = "the same" if answer[0] == answer[1] else "ANOTHER"
        rows.append(
            Row(
                f"samples evaluated a trial, digits-mobilenet-hard, {strategy}",
                threads(),
                100 * mean(shares),
                "%",
                60,
                f"{100 * mean(middle):.0f} % without the first and the last trial; "
                f"{same} final configuration",
            )
        )
    return rows
