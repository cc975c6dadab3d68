"""Verdicts in few words: tables for the terminal, rows and Markdown for Prefect and for pull requests."""

import re
from collections.abc import Sequence
from datetime import UTC

from tabulate import tabulate

from tbd.detection.results import Detector, Power, Verdict
from tbd.gates import Answer
from tbd.history import FAILED, WORKS, Outcome, in_words, stream
from tbd.report.explain import explain
from tbd.report.text import code, interval, plain

WIDTH = 160
"""columns that the table of a history takes at most, unless benchmarks have long names"""
NARROW = 26
"""columns of a name at most"""
DETAIL = 27
"""columns left to the detail at least"""
MARKUP = re.compile(r"[\\`*_<>\[\]|~&#$]|:(?=//)|(?<=www)\.")
"""what may start something in Markdown within a line: emphasis, code, HTML, a link, a cell, a formula"""


def row(verdict: Verdict) -> dict[str, str]:
    """One audit in one line."""
    labelled = verdict.labelled
    return {
        "audit": verdict.audit,
        "verdict": verdict.verdict,
        "flagged": f"{verdict.flagged} of {verdict.benchmark.n}",
        "in the data": in_words(verdict.share_at_least, verdict.contamination_rate),
        "p-value": f"{verdict.p_value:.2g}",
        "finds from": finds_from(verdict.power),
        "AUC (labels)": interval(labelled.auc, labelled.auc_low, labelled.auc_high, ".3f") if labelled else "",
    }


def finds_from(power: Power | None) -> str:
    """The smallest share of the benchmark that four audits in five would find, and whose reference says so."""
    if power is None:
        return "unknown"
    whose = {True: "", False: f" ({power.reference}: other base)", None: f" ({power.reference}: base not known)"}
    foreign = whose[power.same_base]
    if power.mde80 is None:
        return f"not even 1.00{foreign}"
    high = "more" if power.mde80_high is None else f"{power.mde80_high:.2f}"
    return f"{power.mde80:.2f} [{power.mde80_low:.2f}, {high}]{foreign}"


def table(verdicts: list[Verdict]) -> str:
    """The table that `tbd check` prints."""
    return str(tabulate([row(verdict) for verdict in verdicts], headers="keys", disable_numparse=True))


def latest(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """What holds now: the latest outcome of every place and benchmark, oldest first.

    If a checkpoint failed as a whole, only that failure holds until a verdict on any benchmark follows. Sources and
    flows that work again are not listed.
    """
    places: dict[str, dict[str | None, int]] = {}
    for i, outcome in enumerate(outcomes):
        at = places.setdefault(outcome.place, {})
        if outcome.benchmark is None:
            at.clear()
        elif outcome.outcome != FAILED:
            at.pop(None, None)
        at[outcome.benchmark.name if outcome.benchmark else None] = i
    held = sorted(i for at in places.values() for i in at.values())
    return [outcomes[i] for i in held if outcomes[i].outcome != WORKS]


def standing(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """Rows of what holds now, newest first."""
    return [_history_row(outcome) for outcome in reversed(latest(outcomes))]


def history_table(outcomes: Sequence[Outcome]) -> str:
    """The table that `tbd history` prints, one line an outcome in the order given."""
    rows = [_history_row(outcome) for outcome in outcomes]
    others = [key for key in rows[0] if key != "detail"] if rows else []
    taken = sum(2 + max(len(key) + 2, *(len(row[key]) for row in rows)) for key in others)  # as tabulate pads them
    for row in rows:
        row["detail"] = _cut(row["detail"], max(DETAIL, WIDTH - taken))
    return str(tabulate(rows, headers="keys", disable_numparse=True))


def spent(outcomes: Sequence[Outcome], alpha: float) -> str:
    """Where the stream of checks stands after a whole history, in a line."""
    now = stream.after(outcomes)
    tests = f"{now.tests} test" + ("s" if now.tests != 1 else "")
    found = f"{len(now.found)} discover" + ("ies" if len(now.found) != 1 else "y")
    return (
        f"stream of checks: {tests}, {found}; the next verdict CONTAMINATED is one if "
        f"its p-value is at most {now.level(alpha):.2g}"
    )


def _history_row(o: Outcome) -> dict[str, str]:
    if o.same_as is not None:
        detail = f"same weights as {o.same_as}"
    elif o.outcome == FAILED or o.p_value is None or o.flagged is None or o.benchmark is None:
        detail = o.reason
    else:
        detail = f"p = {o.p_value:.2g}, {o.flagged} of {o.benchmark.n} flagged"
    return {
        "time": f"{o.time.astimezone(UTC):%Y-%m-%d %H:%M}",
        "checkpoint": _cut(o.checkpoint, NARROW, end=True),
        "benchmark": _cut(o.benchmark.name, NARROW) if o.benchmark else "",
        "outcome": _cut(o.outcome, NARROW),
        "in the data": o.leaked,
        "audit": _cut(o.audit or "", NARROW, end=True),
        "detail": detail
        + ("; a discovery of the stream" if o.stream_discovery else "")
        + ("; had failed before" if o.recovered else "")
        + (f"; warnings: {len(o.warnings)}" if o.warnings else ""),
    }


def _cut(text: str, width: int, end: bool = False) -> str:
    """At most `width` characters, harmless to a terminal; `end` keeps the end, where the names of one training
    differ."""
    text = plain(text)
    if len(text) <= width:
        return text
    return "…" + text[1 - width :] if end else text[: width - 1] + "…"


def verdict_markdown(verdict: Verdict) -> str:
    """One verdict in full. Names come from files, so they are fenced as code."""
    lines = [
        f"# {verdict.verdict}",
        f"Audit `{verdict.audit}`: checkpoint {code(verdict.checkpoint)} on benchmark `{verdict.benchmark.name}`.",
        *explain(verdict).paragraphs,
        "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in row(verdict).items() if value),
        *(f"> {escaped(warning)}" for warning in verdict.warnings),
        f"Report: `audits/{verdict.audit}/report.html`",
    ]
    return "\n\n".join(lines)


def outcome_markdown(outcome: Outcome) -> str:
    """A Prefect artifact for an outcome without a verdict of its own."""
    return f"# {outcome.outcome}\n\n{code(outcome.checkpoint)}\n\n{code(outcome.reason)}"


def answer(found: Answer) -> str:
    """What a command came to, for a pull request: the gates that fired, what stands, and each verdict it computed."""
    fired = list(dict.fromkeys(gate for one in found.standing for gate in found.gates.fired(one.outcome)))
    if found.code > 1:
        said = f"stopped, exit code {found.code}"
    else:
        said = " and ".join(code(gate) for gate in fired) + " fired" if fired else "no gate fired"
    rows = [
        {
            "checkpoint": code(one.checkpoint),
            "benchmark": code(one.benchmark.name) if one.benchmark else "",
            "outcome": one.outcome,
            "because": escaped(one.reason),
            "gate": ", ".join(map(code, found.gates.fired(one.outcome))),
        }
        for one in found.standing
    ]
    lines = [
        "| " + " | ".join(cells) + " |" for cells in (rows[0], ["---"] * len(rows[0]), *(r.values() for r in rows))
    ]
    return "\n\n".join([f"# tbd: {said}", "\n".join(lines), *map(verdict_markdown, found.verdicts.values())]) + "\n"


def escaped(text: str) -> str:
    """A sentence that may hold text from outside, as Markdown that shows it as it is; `@name` notifies nobody.

    >>> escaped("p <= 0.05 [a](b)")
    'p &#60;= 0.05 &#91;a&#93;(b)'
    """
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", plain(text)).replace("@", "<span>@</span>")


def detector_markdown(detector: Detector) -> str:
    """A Prefect artifact: the chosen methods with their intervals."""
    rows = [
        {
            "needs": "checkpoint and base" if choice == "with_base" else "checkpoint alone",
            "method": f"`{chosen.id}`",
            "on": f"`{reference.name}`",
            "AUC": interval(figures.auc, figures.auc_low, figures.auc_high, ".3f"),
            f"TPR at {detector.fpr:.0%} FPR": interval(figures.tpr_at_fpr, figures.tpr_low, figures.tpr_high),
            "members flagged": interval(
                figures.members_flagged, figures.members_flagged_low, figures.members_flagged_high
            ),
        }
        for choice, chosen in detector.choices.made().items()
        for reference in detector.references
        for figures in [reference.figures(choice)]
    ]
    table = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    return f"# Detector {detector.version}\n\n{table}"
