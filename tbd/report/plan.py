"""What an audit will be able to see and what it costs, before anything is generated: the document, a table, a page.

Pure functions of a `Plan`. As in `tbd.report.audit` every text is escaped, and the page fetches and runs nothing.
"""

from pathlib import Path

from tabulate import tabulate

from tbd.detection.results import Result
from tbd.generation.cost import Memory, Pass, Speed
from tbd.progress import clock
from tbd.records import atomic
from tbd.report import audit as report
from tbd.report.text import percent, plain


class Asked(Result):
    """A question set."""

    name: str
    """of the file in data/sets"""
    questions: int
    """in it"""
    units: int
    """of them that are independent: questions of one source count once"""


class Detectable(Result):
    """The smallest share of the benchmark whose leaking is found in 80% of audits, by simulation."""

    unseen: int
    """independent unseen questions"""
    mde80: float | None
    """in (0, 1]; None: not even all of it"""
    low: float | None
    """lower end of its interval; None: the strength is assumed, not measured, or not even all of it"""
    high: float | None
    """upper end; None as for the lower end"""


class Strength(Result):
    """How far leaked questions lie above unseen ones, and what can be seen then."""

    name: str
    """in words"""
    d_prime: float | None
    """sd between the two, both normal; None: as on the reference"""
    auc: float
    """how often a leaked question scores above an unseen one, in [0, 1]"""
    found: list[Detectable]
    """with the unseen questions there are, and with more"""


class AtTokens(Result):
    """The detector's method, looking at so many tokens of an answer, on the reference's other half."""

    m: int
    """tokens"""
    auc: float
    """in [0, 1]; 0.5 = guessing"""
    auc_low: float
    """lower end of its interval"""
    auc_high: float
    """upper end"""


class Reference(Result):
    """What the workspace's own detector says."""

    audit: str
    """it was measured on"""
    method: str
    """its id"""
    same_base: bool | None
    """whether the reference was distilled from the model that the checkpoint was made from, or is; None: not known"""
    tokens: list[AtTokens]
    """by tokens, ascending; one entry where no other number was tried"""


class Plan(Result):
    """What `tbd plan --json` prints."""

    audit: str | None
    """None: not registered yet"""
    checkpoint: str | None
    """folder; None: only its size is known, or not even that"""
    with_base: bool
    """whether there is a base model, so that the paired check decides too"""
    benchmark: Asked
    """the questions under suspicion"""
    unseen: Asked
    """what they are compared with"""
    level: float
    """highest probability of CONTAMINATED on a benchmark that was not in the data, in (0, 1)"""
    confidence: float
    """of every interval"""
    simulations: int
    """audits simulated at each share"""
    detectable_share: float
    """NO EVIDENCE needs the upper limit of `mde80` to be at most this"""
    no_evidence: bool | None
    """whether NO EVIDENCE can come out; None: no detector says"""
    reference: Reference | None
    """None: no detector yet"""
    strengths: list[Strength]
    """the reference's first, where there is one"""
    max_new_tokens: int
    """tokens of an answer at most"""
    rough: bool
    """whether prompts were counted by characters, because the tokenizer is not here"""
    passes: list[Pass]
    """what is read and written"""
    disk: int
    """bytes of the answers in the audit's folder, at most; the store of finished answers takes as much again"""
    memory: list[Memory]
    """of each model whose size is known"""
    speeds: list[Speed]
    """of each model measured"""
    seconds: float | None
    """for all passes at most; None: not measured"""
    notes: list[str]
    """what a reader must know, one line each"""


def share(one: Detectable) -> str:
    """A smallest share in words.

    >>> share(Detectable(unseen=100, mde80=0.15, low=0.11, high=None))
    '15% [11%, more]'
    """
    if one.mde80 is None:
        return "none" if one.low is None else f"none [{percent(one.low)}, more]"
    if one.low is None:
        return percent(one.mde80)
    return f"{percent(one.mde80)} [{percent(one.low)}, {percent(one.high) if one.high is not None else 'more'}]"


def size(count: int | None) -> str:
    """Bytes in words.

    >>> size(14_000_000_000), size(53_500_000), size(128_000), size(None)
    ('14.0 GB', '54 MB', '128 kB', 'not known')
    """
    if count is None:
        return "not known"
    if count >= 1e9:
        return f"{count / 1e9:,.1f} GB"
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"


def seen(plan: Plan) -> list[dict[str, str]]:
    """A row a strength, a column for each number of unseen questions."""
    return [
        {"leaked questions score as": plain(one.name), "AUC": f"{one.auc:.2f}"}
        | {f"{cell.unseen} unseen": share(cell) for cell in one.found}
        for one in plan.strengths
    ]


def room(memory: Memory) -> str:
    """How many answers there is memory for, in words."""
    if memory.room is None:
        return ""
    if memory.room == 0:
        return ". This machine has not that much memory left"
    return f". This machine has memory left for {memory.room:,} answers at a time (generate.batch_size)"


def costs(plan: Plan) -> list[tuple[str, str]]:
    """What it costs, a line each."""
    rough = "about " if plan.rough else ""
    lines = [
        (f"{one.model} {one.does}", f"{rough}{one.read:,} tokens read, at most {one.written:,} written")
        for one in plan.passes
    ]
    lines += [
        (
            f"memory of the {one.model}",
            f"{size(one.weights)} weights ({one.parameters:,} parameters, {one.dtype}), "
            f"keys and values {size(one.cache)}; an estimate{room(one)}",
        )
        for one in plan.memory
    ]
    lines += [
        (
            f"speed of the {one.model}",
            f"{one.read:,.0f} tokens/s read, {one.written:,.0f} written, {one.questions} answers at a time "
            f"({one.device}, {one.dtype}); loaded in {one.load:.0f} s",
        )
        for one in plan.speeds
    ]
    lines.append(("answers on disk", f"at most {size(plan.disk)}, and as much in the store of finished answers"))
    taken = "not measured" if plan.seconds is None else f"{clock(plan.seconds)} at most, by the speed measured just now"
    return [*lines, ("time on this machine", taken)]


def verdicts(plan: Plan) -> str:
    """Whether NO EVIDENCE can come out, in a sentence."""
    if plan.reference is None or plan.no_evidence is None:
        return "No detector here yet: whether NO EVIDENCE can come out is known once `tbd calibrate` has run."
    needs = f"wants the upper limit of the share to be at most {plan.detectable_share:.0%} (decision.detectable_share)"
    if plan.no_evidence:
        return f"NO EVIDENCE can come out: it {needs}."
    return (
        f"NO EVIDENCE cannot come out, only CONTAMINATED or INCONCLUSIVE: it {needs}, on a reference of the same base, "
        "and enough questions in each set (decision.fewest_units, decision.fpr)."
    )


def tokens(plan: Plan) -> str:
    """What more tokens of an answer would buy, as far as it is known."""
    if plan.reference is None:
        return "What longer answers would buy is not known: no detector here yet."
    tried = plan.reference.tokens
    figures = "; ".join(f"M = {one.m}: {one.auc:.2f} [{one.auc_low:.2f}, {one.auc_high:.2f}]" for one in tried)
    if len(tried) < 2:
        return f"What longer answers would buy is not known: no other M than that of {plan.reference.method} was tried."
    return f"AUC of {plan.reference.method} by tokens looked at, on the reference: {figures}."


def heading(plan: Plan) -> str:
    """What is planned, in a sentence."""
    base = "a base model" if plan.with_base else "no base model"
    return (
        f"{plan.benchmark.questions} questions ({plan.benchmark.name}) against {plan.unseen.questions} unseen ones "
        f"({plan.unseen.name}), {base}, answers of {plan.max_new_tokens} tokens at most"
    )


def caption(plan: Plan) -> str:
    """What the table of shares holds."""
    return (
        f"Smallest share of the benchmark whose leaking is found in four audits of five, at level {plan.level:g}, by "
        f"simulation ({plan.simulations} audits a share). [{plan.confidence:.0%} interval], where the strength was "
        "measured; none: not even a benchmark that leaked whole."
    )


def table(plan: Plan) -> str:
    """What `tbd plan` prints."""
    return "\n\n".join(
        [
            heading(plan),
            caption(plan),
            tabulate(seen(plan), headers="keys", disable_numparse=True),
            "\n".join(map(plain, [verdicts(plan), tokens(plan), *plan.notes])),
            tabulate(costs(plan), tablefmt="plain", disable_numparse=True),
        ]
    )


def render(plan: Plan) -> str:
    """The page as HTML5."""
    return (
        report.environment()
        .get_template("plan.html.j2")
        .render(
            plan=plan,
            heading=heading(plan),
            caption=caption(plan),
            seen=seen(plan),
            says=[verdicts(plan), tokens(plan), *plan.notes],
            costs=costs(plan),
        )
    )


def write(path: Path, plan: Plan) -> Path:
    """`render` into a file, in one piece."""
    page = render(plan)
    with atomic(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path
