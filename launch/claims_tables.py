"""Tables and pictures of launch/claims.py, from whatever runs have finished."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from statistics import fmean, median
from typing import Any

from claims_runs import Plan, Series, Validation, finished

from jmp_ds.files import write_json, write_text
from jmp_ds.report import Curve, markdown_table, plot_curves, plot_pairs, plus_minus
from jmp_ds.training.metrics_log import read_metrics

Table = tuple[list[str], list[list[Any]]]
SCRATCH, PRETRAINED = "scratch", "pre-trained"
REMEMBERED = ("qm7x", "mptrj")
SECONDARY = "energy_mae_per_atom"


def write_results(plan: Plan) -> str:
    """Write claims.md, claims.json, claims.png and claims_curves.png; the tables as Markdown.

    Tables hold what has finished; a target or a start without numbers is left out.
    """
    titles = {
        "Pre-training: validation at the end": pretraining(plan),
        "(a) Pre-training against scratch": against_scratch(plan),
        "(a) Energies of the same runs": energies(plan),
        "(a) One learning rate above the three": above_the_grid(plan),
        "(b) Larger against smaller network": sizes(plan),
        "(c) Steps to scratch's best validation error": steps(plan),
        "(d) What matters in pre-training": variations(plan, plan.settings["studies"]["d"], PRETRAINED),
        "(e) Keeping the pre-trained head": variations(plan, plan.settings["studies"]["e"], PRETRAINED),
        "Options of fine-tuning: gained and forgotten": options(plan),
        "Cost": cost(plan),
    }
    text = "\n\n".join(f"## {title}\n\n{markdown_table(*table)}" for title, table in titles.items() if table[1])
    text += "".join(f"\n\n{line}" for line in summary(plan))
    write_text(plan.out / "claims.md", text + "\n")
    write_json(plan.out / "claims.json", {"tables": titles, "runs": list(_numbers(plan)), "summary": summary(plan)})
    _pictures(plan)
    return text


def pretraining(plan: Plan) -> Table:
    """Force and energy errors of every variant on the validation structures of its domains."""
    rows: list[list[Any]] = []
    for variant, chosen in plan.settings["variants"].items():
        folder = plan.bundle(variant).parent
        if finished(folder):
            last = [line for line in read_metrics(folder) if line["kind"] == "validate"][-1]
            tasks = [name for name in plan.settings["pretraining"]["tasks"] if name not in chosen.get("leave_out", ())]
            rows += [[variant, task, last[f"{task}/forces_mae"], last[f"{task}/{SECONDARY}"]] for task in tasks]
    return ["pre-training", "domain", "forces (meV/Å)", "energy (meV/atom)"], rows


def against_scratch(plan: Plan) -> Table:
    """One row per target: errors of the test structures, mean ± deviation over seeds."""
    rows: list[list[Any]] = []
    for target, spec in plan.settings["targets"].items():
        if seeds := _common_seeds(plan, target, (SCRATCH, PRETRAINED)):
            sides = [_errors(plan, target, start, seeds) for start in (PRETRAINED, SCRATCH)]
            rates = "; ".join(_rates(plan, target, start, seeds) for start in (PRETRAINED, SCRATCH))
            better = sum(a < b for a, b in zip(*sides, strict=True))
            cells = [plus_minus(fmean(side), _deviation(side)) for side in sides]
            change = _percent(fmean(sides[0]) / fmean(sides[1]))
            rows.append([target, spec["metric"], spec["unit"], *cells, change, f"{better} of {len(seeds)}", rates])
    head = ["target", "test error", "unit", PRETRAINED, SCRATCH, "change", "seeds better", "learning rates"]
    return head, rows


def energies(plan: Plan) -> Table:
    """The other error of targets with energies and forces, which neither rates nor weights were chosen by."""
    rows: list[list[Any]] = []
    for target, spec in plan.settings["targets"].items():
        seeds = _common_seeds(plan, target, (SCRATCH, PRETRAINED)) if spec["metric"] == "forces_mae" else []
        if seeds:
            sides = [_errors(plan, target, start, seeds, SECONDARY) for start in (PRETRAINED, SCRATCH)]
            cells = [plus_minus(fmean(side), _deviation(side)) for side in sides]
            rows.append([target, "meV/atom", *cells, _percent(fmean(sides[0]) / fmean(sides[1]))])
    return ["target", "unit", PRETRAINED, SCRATCH, "change"], rows


def above_the_grid(plan: Plan) -> Table:
    """Best validation errors at every learning rate and at one above them, seed 0: whether the grid was wide enough."""
    rows: list[list[Any]] = []
    for target in plan.settings["studies"]["grid"]["targets"]:
        for start, higher in ((PRETRAINED, "pretrained-higher"), (SCRATCH, "scratch-higher")):
            tried = [Series(target, start, 0), Series(target, higher, 0)]
            found = [plan.validation(series, rate) for series in tried for rate in plan.rates(series) or ()]
            if all(v is not None for v in found):
                rows.append([target, start, *(v.best for v in found if v is not None)])
    rates = [*plan.settings["rates"], *plan.settings["starts"]["scratch-higher"]["rates"]]
    return ["target", "start", *(f"error / std at {rate:g}" for rate in rates)], rows


def sizes(plan: Plan) -> Table:
    """One row per target: both networks from both starts, seed 0."""
    starts = ["scratch-smaller", SCRATCH, "pretrained-smaller", PRETRAINED]
    rows: list[list[Any]] = []
    for target, spec in plan.settings["targets"].items():
        if _common_seeds(plan, target, starts)[:1] == [0]:
            errors = [_errors(plan, target, start, [0])[0] for start in starts]
            changes = [_percent(errors[1] / errors[0]), _percent(errors[3] / errors[2])]
            rows.append([target, spec["unit"], errors[0], errors[1], changes[0], errors[2], errors[3], changes[1]])
    head = ["target", "unit", "smaller, scratch", "larger, scratch", "change"]
    return [*head, "smaller, pre-trained", "larger, pre-trained", "change"], rows


def steps(plan: Plan) -> Table:
    """One row per target and seed: when the pre-trained run was as good as the run from scratch ever was."""
    rows: list[list[Any]] = []
    for target in plan.settings["targets"]:
        for seed in _common_seeds(plan, target, (SCRATCH, PRETRAINED)):
            scratch, pretrained = (_chosen(plan, Series(target, start, seed)) for start in (SCRATCH, PRETRAINED))
            needed = steps_needed(scratch), first_at_most(pretrained, scratch.best)
            factor = f"{needed[0] / needed[1]:.1f}" if needed[1] is not None else "never"
            rows.append([target, seed, scratch.steps[-1], needed[0], needed[1] or "never", factor])
    return ["target", "seed", "steps of a run", "scratch's best at", f"{PRETRAINED} as good at", "times fewer"], rows


def steps_needed(run: Validation) -> int:
    """Step of the smallest validation error."""
    return run.steps[run.values.index(run.best)]


def first_at_most(run: Validation, value: float) -> int | None:
    """First validated step with an error of at most `value`; None if there is none."""
    return next((step for step, own in zip(run.steps, run.values, strict=True) if own <= value), None)


def variations(plan: Plan, study: Any, base: str) -> Table:
    """One row per target of a study: the errors of its starts beside those of `base` and of scratch, seed 0."""
    starts = [base, *study["starts"]]
    rows: list[list[Any]] = []
    for target in study["targets"]:
        known = {start: _errors(plan, target, start, _common_seeds(plan, target, [start])[:1]) for start in starts}
        if known[base] and any(known[start] for start in study["starts"]):
            cells: list[Any] = [target, plan.settings["targets"][target]["unit"]]
            cells += [known[base][0], *_errors(plan, target, SCRATCH, _common_seeds(plan, target, [SCRATCH])[:1])]
            for start in study["starts"]:
                cells += [known[start][0], _percent(known[start][0] / known[base][0])] if known[start] else ["", ""]
            rows.append(cells)
    head = [column for start in study["starts"] for column in (start, "change")]
    return ["target", "unit", base, SCRATCH, *head], rows


def options(plan: Plan) -> Table:
    """One row per start of study f: the test error, and errors of remembered tasks before and after, seed 0."""
    rows: list[list[Any]] = []
    base = None
    for start in plan.settings["studies"]["f"]["starts"]:
        for target in plan.settings["studies"]["f"]["targets"]:
            series = Series(target, start, 0)
            errors, rate = plan.test_errors(series), plan.best_rate(series)
            if errors is None or rate is None:
                continue
            own = errors[plan.settings["targets"][target]["metric"]]
            base = own if base is None else base
            told = json.loads((plan.run(series, rate) / "report" / "tuning.json").read_text())["forgotten"]
            lost = [f"{before:.4g} → {after:.4g}" for before, after in (told[f"{t}/forces_mae"] for t in REMEMBERED)]
            rows.append([start, target, f"{rate:g}", own, _percent(own / base), *lost])
    head = ["option", "target", "learning rate", "test, forces (meV/Å)", "change"]
    return [*head, *(f"{task}, forces (meV/Å)" for task in REMEMBERED)], rows


def cost(plan: Plan) -> Table:
    """Time of all processes, one core each."""
    file = plan.out / "times.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    kinds = {"pre-training": [], "fine-tuning": [], "test": []}  # type: dict[str, list[float]]
    for line in lines:
        name = line["job"]
        kind = "pre-training" if name.startswith("pretrain-") else "test" if name.endswith("-test") else "fine-tuning"
        kinds[kind].append(line["seconds"])
    return ["what", "processes", "core hours"], [[k, len(s), sum(s) / 3600] for k, s in kinds.items() if s]


def summary(plan: Plan) -> list[str]:
    """One sentence per claim, with the mean and the median over targets."""
    lines = []
    ratios = [
        fmean(_errors(plan, t, PRETRAINED, seeds)) / fmean(_errors(plan, t, SCRATCH, seeds))
        for t in plan.settings["targets"]
        if (seeds := _common_seeds(plan, t, (SCRATCH, PRETRAINED)))
    ]
    if ratios:
        lines.append(f"(a) Pre-trained against scratch, {len(ratios)} targets: {_spread(ratios)}.")
    rows = sizes(plan)[1]
    for words, small, large in (("from scratch", 2, 3), ("pre-trained", 5, 6)):
        if rows:
            lines.append(f"(b) Larger against smaller, {words}: {_spread([row[large] / row[small] for row in rows])}.")
    found = [row for row in steps(plan)[1] if row[4] != "never"]
    if found:
        factors = [row[3] / row[4] for row in found]
        missed = len(steps(plan)[1]) - len(found)
        lines.append(
            f"(c) Times fewer steps: mean {fmean(factors):.1f}, median {median(factors):.1f}; never: {missed}."
        )
    return lines


# ---------------------------------------------------------------------------------------------------- numbers


def _numbers(plan: Plan) -> Iterator[dict[str, Any]]:
    """Every finished series: validation of all its rates, the rate that was chosen, its test errors."""
    for series in plan.series():
        errors = plan.test_errors(series)
        if errors is not None:
            tried = {f"{rate:g}": v.best for rate in plan.rates(series) or () if (v := plan.validation(series, rate))}
            chosen = plan.best_rate(series)
            yield {**vars(series), "validation": tried, "chosen": chosen, "test": errors}


def _common_seeds(plan: Plan, target: str, starts: Sequence[str]) -> list[int]:
    """Seeds for which all these starts have been tested."""
    seeds = range(max(study["seeds"] for study in plan.settings["studies"].values()))
    return [s for s in seeds if all(plan.test_errors(Series(target, start, s)) is not None for start in starts)]


def _errors(plan: Plan, target: str, start: str, seeds: Sequence[int], metric: str | None = None) -> list[float]:
    """Test errors by seed; they must have been tested."""
    name = metric or plan.settings["targets"][target]["metric"]
    return [(plan.test_errors(Series(target, start, seed)) or {})[name] for seed in seeds]


def _chosen(plan: Plan, series: Series) -> Validation:
    """Validation of the run that was chosen."""
    rate = plan.best_rate(series)
    found = None if rate is None else plan.validation(series, rate)
    assert found is not None, series
    return found


def _rates(plan: Plan, target: str, start: str, seeds: Sequence[int]) -> str:
    return "/".join(sorted({f"{plan.best_rate(Series(target, start, seed)):g}" for seed in seeds}))


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation with denominator n - 1; NaN for fewer than two."""
    mean = fmean(values)
    return (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else float("nan")


def _percent(ratio: float) -> str:
    """Change of an error: -12.3 % is better by that much."""
    return f"{100 * (ratio - 1):+.1f} %"


def _spread(ratios: Sequence[float]) -> str:
    better = sum(ratio < 1 for ratio in ratios)
    words = f"error {_percent(fmean(ratios))} on average, {_percent(median(ratios))} in the median"
    return f"{words}, {better} of {len(ratios)} better"


# --------------------------------------------------------------------------------------------------- pictures


def _pictures(plan: Plan) -> None:
    """claims.png: test errors of both sides; claims_curves.png: validation of the chosen runs, seed 0."""
    targets = [t for t in plan.settings["targets"] if _common_seeds(plan, t, (SCRATCH, PRETRAINED))]
    if not targets:
        return
    seeds = {t: _common_seeds(plan, t, (SCRATCH, PRETRAINED)) for t in targets}
    units = [plan.settings["targets"][t]["unit"] for t in targets]
    sides = {s: [fmean(_errors(plan, t, s, seeds[t])) for t in targets] for s in (PRETRAINED, SCRATCH)}
    plot_pairs(plan.out / "claims.png", targets, sides, units)
    panels = {}
    for target in targets:
        runs = {start: _chosen(plan, Series(target, start, seeds[target][0])) for start in (PRETRAINED, SCRATCH)}
        panels[f"{target}: validation error / std"] = [Curve(name, run.steps, run.values) for name, run in runs.items()]
    plot_curves(plan.out / "claims_curves.png", panels, "step")
