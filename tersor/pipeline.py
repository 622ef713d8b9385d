"""The whole of Tersor on one page.

    model   = rewrite(model)                          lossless: fold norms
    profile = measure(model, data, needs)             one pass over calibration data
    table   = price(model, profile, techniques, ...)  damage exact per layer, bytes exact, seconds measured
    plan    = knapsack(table, budget)                 arithmetic
    small   = fit(model, data, profile, decisions)    in execution order, inputs drifted, target original outputs
    small   = recover(small, teacher=model, data)     only where it is asked for, and where the fit lost too much
    report  = deliver(...)                            export aside, run, compare, measure, back off, exchange into place

Search and calibration see the calibration part of the data only. The evaluation part is read when an exported artifact is
judged, fastest first; the first one inside the budget is delivered.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tersor.deadline import Deadline, TimeUp, enforced, until
from tersor.delivery import deliver
from tersor.errors import StorageError, reason
from tersor.inputs import amounts
from tersor.inputs.job import Progress, bring, quiet, torch_threads
from tersor.limits import Heard, cut_short, too_short
from tersor.recipe import open_recipe
from tersor.recovery.wish import Recovery
from tersor.report import Report
from tersor.rewrites.fold_norms import fold_norms
from tersor.scratch import scratch
from tersor.search import STEPS, Search
from tersor.sensed import Sensitivity
from tersor.site import groups
from tersor.store.files import clean, refuse_folder, repair
from tersor.summary import summarise
from tersor.targets import targets_called
from tersor.trials import Workbench


def compress(
    model: Any,
    data: Any,
    *,
    metric: Any = "accuracy",
    max_drop: float | str = 0.005,
    target: str = "auto",
    out: str | Path | None = None,
    eval_data: Any = None,
    batch: int = 1,
    threads: int = 0,
    seed: int = 0,
    exclude: Sequence[str] = (),
    time_limit: float | str | Deadline | None = None,
    recipe: str | Path | None = None,
    allow_code: bool = False,
    recover: Recovery | str | None = None,
    sensitivity: Sensitivity | str | Path | None = None,
    dry_run: bool = False,
    memory_limit: int | str | None = None,
    progress: Progress = quiet,
) -> Report:
    """Find the fastest version of a trained model within the allowed metric drop, verify it, and write it to a folder.

    model: a module, (module, example), an exported program, or their spec (`file.py:function`, `archive.pt2`).
    data, eval_data: batches of (inputs, labels), or their spec; without `eval_data` a seeded part of `data` is held out.
    metric: a built-in name, a `Metric`, or a spec; `max_drop`: maximum allowed drop of it (0.005 or "0.5%").
    target: target names separated by commas, or "auto" for every installed one; `batch`: batch size to optimize latency for.
    time_limit: maximum time for everything ("10m"): the best candidate that was verified by then is delivered.
    recipe: a plan.yaml to re-apply; allow_code: whether it may run the functions that it names (`augment: file.py:function`).
    recover: how long candidates over the budget are trained, with the original as the teacher ("2epochs", "10m", or a
    `Recovery`). sensitivity: the result of `sensitivity` for the channels of this model, or its file; it corrects predictions.
    memory_limit: maximum memory, of child processes too ("2GB"); None: the limit of the container or machine.
    out: the folder to write (None: none, only the report). Raises a `TersorError` whose message is one sentence.
    """
    begin = time.monotonic()
    targets = targets_called(target)
    if out is not None and not dry_run:
        refuse_folder(Path(out))
        repair(Path(out))  # and nothing stays there of a run that was killed
        clean(Path(out))
    steps = len(STEPS) if recipe is None else 1
    limit, heard = (
        amounts.deadline(time_limit),
        Heard(progress, steps + 3),
    )  # before: the original; after: last race, delivery
    saved = None if recipe is None else open_recipe(Path(recipe), allow_code)
    if saved is not None:
        seed, threads = saved.seed, saved.threads  # what the fit depends on is part of the decision
    search = None
    with torch_threads(threads), scratch() as folder:
        try:
            with until(limit):
                with enforced():
                    job = bring(
                        model,
                        data,
                        metric,
                        max_drop,
                        eval_data,
                        batch,
                        threads,
                        seed,
                        tuple(exclude),
                        limit,
                        heard,
                        memory_limit,
                    )
                search = Search(job, fold_norms(job.model), Workbench(job, folder), targets, enter=heard.enter)
                heard.best = search.best_so_far
                if saved is not None:
                    heard.enter()
                    search.follow(saved)
                else:
                    if sensitivity is not None:
                        search.factors = Sensitivity.of(sensitivity).factors([g.name for g in groups(search.model)])
                    search.recover = recover if isinstance(recover, Recovery) else Recovery.of(recover)
                    if left_out := search.run():
                        search.notes.append(cut_short(limit, heard, left_out))
                heard.enter()
                chosen, race = search.choose()
                heard.enter()
        except TimeUp:
            raise too_short(limit, heard, None if search is None else search.bench.verifying()) from None
        while True:
            try:
                report = summarise(job, search, chosen, race, time.monotonic() - begin)
                if out is not None and not dry_run:
                    fields = {"seed": seed, "recipe": search.recipe(chosen).written()}
                    deliver(Path(out), chosen, report, search.recipe(chosen).to_yaml(), fields, job.threads)
                break
            except StorageError:  # there is room for none of them
                raise
            except Exception as cause:  # whatever a runtime raises; it worked until now: the next best is taken
                search.bench.rule_out(chosen.name, f"It could not be delivered: {reason(cause)}")
            try:
                with until(limit):
                    chosen, race = search.choose()
            except TimeUp:
                raise too_short(limit, heard, search.bench.verifying()) from None
    return report
