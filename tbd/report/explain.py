"""A verdict in five sentences, for a person who decides about a release, with the numbers behind each of them.

A pure function of `verdict.json`. The sentences are Markdown of the simplest kind: what came from outside (names,
identities) stands between backticks, and no backtick is inside it.
"""

import textwrap
from dataclasses import dataclass

from tbd.detection.results import Power, Verdict
from tbd.report.text import code, count, level, number, p_value, percent, plain, score, span

WIDTH = 100
"""columns in a terminal"""


@dataclass(frozen=True)
class Number:
    """A number behind a sentence."""

    what: str
    value: str
    how: str
    """where it comes from and how to read it"""


@dataclass(frozen=True)
class Sentence:
    """One of the five."""

    about: str
    text: str
    numbers: tuple[Number, ...]


@dataclass(frozen=True)
class Check:
    """What was checked of the assumption that benchmark and unseen questions are of one kind."""

    check: str
    value: str
    excludes: str
    leaves: str
    """what it cannot exclude"""


@dataclass(frozen=True)
class Explanation:
    """What a verdict says, what it does not say, and what follows."""

    audit: str
    verdict: str
    sentences: tuple[Sentence, ...]
    """what was found, how much, the flagged questions, what the audit can see, what it rests on"""
    checks: tuple[Check, ...]
    """behind the last of the sentences"""
    unsaid: str
    change: str
    """what would change the verdict"""
    now: str
    """what to do"""
    method: str

    @property
    def paragraphs(self) -> tuple[str, str]:
        """The whole of it in two paragraphs of Markdown: the five sentences, and the rest."""
        return " ".join(one.text for one in self.sentences), " ".join((self.unsaid, self.change, self.now, self.method))

    def terminal(self) -> str:
        """The whole of it for a terminal, without the numbers."""
        rest = {
            "What it does not say": self.unsaid,
            "What would change it": self.change,
            "What to do now": self.now,
            "How it was measured": self.method,
        }
        said = {one.about: one.text for one in self.sentences} | rest
        lines = (textwrap.fill(f"{about}. {text}", WIDTH, break_long_words=False) for about, text in said.items())
        return "\n\n".join([f"{plain(self.audit)}: {self.verdict}", *lines])


def explain(v: Verdict) -> Explanation:
    """The verdict in words."""
    return Explanation(
        audit=v.audit,
        verdict=v.verdict,
        sentences=(_found(v), _amount(v), _flags(v), _sight(v), _basis(v)),
        checks=_checks(v),
        unsaid=_unsaid(v),
        change=_change(v),
        now=_now(v),
        method=_method(v),
    )


def _told_apart(v: Verdict) -> bool:
    """Whether the base model already tells the two sets apart."""
    base = v.same_kind.base_p_value
    return base is not None and base <= v.exchangeability


def _worded(v: Verdict) -> bool:
    """Whether the wording alone does."""
    return v.same_kind.blind is not None and v.same_kind.blind.p_value <= v.exchangeability


def _higher(v: Verdict) -> bool:
    return v.p_value <= v.level


def _scored(v: Verdict) -> int:
    return v.benchmark.n - v.unscored


def _questions(v: Verdict) -> str:
    return f"{_scored(v)} questions" + (" with a score" if v.unscored else "")


def _found(v: Verdict) -> Sentence:
    benchmark, unseen, p = code(v.benchmark.name), code(v.unseen.name), p_value(v.p_value)
    data = f"in the data that {code(v.checkpoint)} was distilled on"
    surer = f"surer of its answers to them than of those to the questions of {unseen}, which it cannot have seen"
    unchecked = f"If {benchmark} and {unseen} are of one kind, which no base model could check, "
    if v.verdict == "CONTAMINATED":
        text = (
            f"questions of {benchmark} were most likely {data}: it is {surer}, by more than chance explains "
            f"(p = {p}; where nothing leaked, at most {level(v.level)} of audits say this)."
        )
    elif v.verdict == "NO EVIDENCE":
        text = (
            f"there is no sign that questions of {benchmark} were {data}: it is not {surer}, beyond what chance "
            f"explains (p = {p})."
        )
    else:
        text = f"this audit cannot tell whether questions of {benchmark} were {data}: " + (
            f"the base model, which saw neither set, already tells {benchmark} and {unseen} apart "
            f"(p = {p_value(v.same_kind.base_p_value)})."
            if _told_apart(v)
            else f"it is {surer} (p = {p}), but a difference in kind between the two may explain that."
            if _higher(v)
            else f"there is no sign of it (p = {p}), but an audit like this one might not have noticed."
        )
    if v.base is None and v.verdict != "INCONCLUSIVE":
        text = unchecked + text
    numbers = [
        Number(
            "p-value",
            p,
            "how often the benchmark would score this much higher than unseen questions if nothing had leaked; one "
            "exact test, permutations of two rank statistics (min-P)",
        ),
        Number(
            "error rate",
            f"at most {level(v.level)}",
            "how often an audit says CONTAMINATED of a benchmark that was not in the data, if both sets are of one "
            "kind",
        ),
        Number("reasons", plain(" ".join(v.reasons)), "as the decision gave them"),
    ]
    if v.clusters:
        units = f"{v.clusters.benchmark} and {v.clusters.unseen}"
        numbers.append(Number("independent units", units, "of the benchmark and of the unseen set: sources repeat"))
    return Sentence("What was found", text[0].upper() + text[1:], tuple(numbers))


def _amount(v: Verdict) -> Sentence:
    sure, of = level(v.confidence), _questions(v)
    estimate = f"{percent(v.contamination_rate)}, which is no bound"
    if v.members_at_least is None:
        certified = "not known"
        text = (
            "How many questions leaked at least cannot be certified, because questions of one source are not "
            f"independent; the estimate is {estimate}."
        )
    elif v.members_at_least == 0:
        certified = f"0 of {_scored(v)}"
        text = (
            f"How many leaked cannot be certified (at least 0 of the {of}), although the benchmark as a whole stands "
            f"out; the estimate is {estimate}."
            if _higher(v)
            else f"No leaked question is certified (at least 0 of the {of}), and the estimate, which is no bound and "
            f"is often above zero where nothing leaked, is {percent(v.contamination_rate)}."
        )
    else:
        certified = f"{v.members_at_least} of {_scored(v)} ({percent(v.share_at_least)})"
        at_least = f"at least {v.members_at_least} of the {of} ({percent(v.share_at_least)}) were in the data"
        provided = (
            "were both sets of one kind, " if v.verdict == "INCONCLUSIVE" and (_higher(v) or _told_apart(v)) else ""
        )
        text = f"{provided}with {sure} confidence {at_least}; the estimate is {estimate}" + (
            ", and how many at most cannot be said."
            if _higher(v)
            else f"; that is another test than the verdict's, and it, too, errs in up to {level(1 - v.confidence)} of "
            "audits."
        )
    numbers = (
        Number(
            "certified minimum",
            certified,
            f"with {sure} confidence, by closed testing with Mann-Whitney tests; there is no upper limit, because how "
            "strong the distillation was is not known",
        ),
        Number(
            "estimate",
            f"{percent(v.contamination_rate)}, about {count(v.contamination_rate * _scored(v))} questions",
            "the share that unseen questions cannot explain (Storey); it may lie above or below the truth",
        ),
        Number("without a score", str(v.unscored), "questions left out of everything"),
    )
    return Sentence("How much", text[0].upper() + text[1:], numbers)


def _flags(v: Verdict) -> Sentence:
    mean, high = count(v.flagged_by_chance.mean), v.flagged_by_chance.high
    sure, estimated = level(v.confidence), v.contamination_rate * _scored(v)
    if v.flagged == 0:
        text = (
            f"No question is flagged, that is, none scores above nearly every unseen one; chance alone flags about "
            f"{mean} of {_scored(v)}, and up to {high}."
        )
    else:
        few = v.flagged <= high
        compared = (
            "also counts questions that look only somewhat surer"
            if estimated > v.flagged
            else "leaves out what chance flags, and looks at all questions, not only at the highest"
        )
        text = (
            f"{v.flagged} of the {_questions(v)} {'is' if v.flagged == 1 else 'are'} flagged, for scoring above nearly "
            f"every unseen one, {'which is no more than chance may give' if few else 'more than chance gives'} (about "
            f"{mean}, up to {high}), and about {percent(v.flagged_false)} of the flags are expected to be wrong; the "
            f"estimate ({percent(v.contamination_rate)}, about {count(estimated)}) is another number because it "
            f"{compared}."
        )
    numbers = [
        Number("flagged", f"{v.flagged} of {_scored(v)}", "a hint at which questions, no proof of any single one"),
        Number(
            "a question is flagged",
            f"at a p-value of at most {number(v.fpr)}"
            + ("" if v.threshold is None else f", which is a score above {score(v.threshold)}"),
            f"conformal: at most {level(v.fpr)} of questions the checkpoint has not seen are, on average",
        ),
        Number(
            "by chance alone",
            f"about {mean}, with {sure} confidence at most {high}",
            "beta-binomial: one unseen set serves all questions",
        ),
    ]
    if v.flagged_false is not None:
        numbers.append(Number("flags expected wrong", percent(v.flagged_false), "by the estimate of what leaked"))
    return Sentence("Single questions", text, tuple(numbers))


def _whose(v: Verdict, power: Power) -> str:
    """Where the reference comes from, beside this checkpoint."""
    if power.reference == v.audit:
        return "which is this audit itself"
    return {
        True: "which comes from the same base model",
        False: "which comes from another base model, so this may not carry over",
        None: "of which it is not known whether it comes from the same base model, so this may not carry over",
    }[power.same_base]


def _sight(v: Verdict) -> Sentence:
    power = v.power
    if power is None:
        text = (
            "What this audit can see is not known, because its reference has too few unseen questions for a "
            f"false-positive rate of {level(v.fpr)}, so finding nothing would mean little."
        )
        needs = Number("smallest leak found", "not known", "a reference with more unseen questions would tell it")
        return Sentence("What this audit can see", text, (needs,))
    reference, sure = code(power.reference), level(v.confidence)
    strong = f"leaked as strongly as was planted in the reference {reference}, {_whose(v, power)}"
    share = _smallest(power, sure)
    if power.mde80 is None:
        text = f"Even if the whole benchmark had {strong}, fewer than four audits in five like this one would notice."
    else:
        text = (
            f"If {share} had {strong}, four audits in five like this one would notice; a smaller or weaker leak is "
            "noticed less often."
        )
    flagged = power.members_flagged
    others = [
        Number(f"smallest leak found, if as strong as in {code(one.reference)}", _smallest(one, sure), _whose(v, one))
        for one in v.other_powers
    ]
    if others:
        text += (
            " As strongly as in "
            + ", or in ".join(f"{code(one.reference)}: {_smallest(one, sure)}" for one in v.other_powers)
            + "."
        )
    numbers = (
        Number(
            "smallest leak found",
            share,
            "in 80% of audits; simulated from the reference with this audit's numbers of questions, its "
            "test and its check of the base",
        ),
        Number("measured on", reference, _whose(v, power)),
        Number(
            "members flagged there",
            f"{percent(flagged.estimate)} ({sure} interval {span(flagged.low, flagged.high)})",
            "of the reference's leaked questions, one by one: not how often an audit finds a leak",
        ),
        *others,
    )
    return Sentence("What this audit can see", text, numbers)


def _smallest(power: Power, sure: str) -> str:
    """The smallest leak that an audit finds, with its interval."""
    if power.mde80 is None:
        start = f" ({sure} interval from {percent(power.mde80_low)} on)" if power.mde80_low else ""
        return f"not even all of the benchmark{start}"
    high = "more than all of it" if power.mde80_high is None else percent(power.mde80_high)
    return f"{percent(power.mde80)} of the benchmark ({sure} interval {percent(power.mde80_low)} to {high})"


def _basis(v: Verdict) -> Sentence:
    kind, found = v.same_kind, []
    benchmark, unseen = code(v.benchmark.name), code(v.unseen.name)
    if v.base is None:
        rests = "The verdict rests on an unchecked assumption (no base model was given), which is"
    else:
        rests = "The verdict rests on an assumption, which is"
        found.append(
            "the base model could not check it, as it scores all of its answers alike"
            if kind.base_p_value is None
            else f"the base model {_apart(_told_apart(v))} (p = {p_value(kind.base_p_value)})"
        )
    found.append(
        f"their wording alone {_apart(_worded(v))} (AUC {kind.blind.auc:.2f}, p = {p_value(kind.blind.p_value)})"
        if kind.blind
        else "their wording was not compared, for want of questions"
    )
    if kind.shift_needed is not None:
        bound = kind.base_shift_bound
        left = "" if bound is None else f", of which the base leaves at most {bound:.2f} possible"
        found.append(
            f"it would take a difference in kind of {kind.shift_needed:.2f} standard deviations to explain what was "
            "found" + left
        )
    numbers = [
        Number(
            "not to be checked here",
            f"{code(v.checkpoint)} has not seen {unseen}",
            "it rests on where these questions come from; had it seen them, a leak would be missed",
        )
    ]
    if v.base is not None:
        numbers.append(
            Number(
                "not to be checked here",
                f"{code(v.base)} has seen neither set",
                "had it seen one of them, it would tell the two apart for that reason",
            )
        )
    said = ", and ".join(filter(None, [", ".join(found[:-1]), found[-1]]))
    text = f"{rests} that {benchmark} and {unseen} are questions of one kind: {said}."
    return Sentence("What it rests on", text, tuple(numbers))


def _apart(told: bool) -> str:
    return "tells them apart" if told else "does not tell them apart"


def _checks(v: Verdict) -> tuple[Check, ...]:
    kind = v.same_kind
    none = "not checked: " + (
        "no base model was given" if v.base is None else "the base model scores all of its answers alike"
    )
    blind, bound = kind.blind, kind.base_shift_bound
    return (
        Check(
            "Wording alone",
            "not checked: too few questions"
            if blind is None
            else f"{_apart(_worded(v))}: AUC {blind.auc:.2f} (0.5 is guessing), p = {p_value(blind.p_value)}",
            "a difference in style or topic large enough for a text classifier, without any model, to see",
            "a difference in difficulty, or in anything else that words do not show",
        ),
        Check(
            "The base's own answers",
            none if kind.base_p_value is None else f"{_apart(_told_apart(v))}: p = {p_value(kind.base_p_value)}",
            "a difference that a model which saw neither set would notice",
            "a small difference; and that the base saw one of the sets itself",
        ),
        Check(
            "Shift that the base leaves possible",
            none if bound is None else f"at most {bound:.2f} sd",
            "that a difference shared by base and checkpoint explains the verdict, if the next line is larger",
            "a difference that distilling made: training data in the benchmark's style without its questions",
        ),
        Check(
            "Shift that would explain the p-value",
            "nothing to explain" if kind.shift_needed is None else f"{kind.shift_needed:.2f} sd",
            "that any smaller difference between the sets explains the verdict",
            "a difference of that size: it says how large one must be, not whether there is one",
        ),
    )


def _unsaid(v: Verdict) -> str:
    if v.verdict == "CONTAMINATED":
        return (
            "It does not say which questions were in the data for certain, that anyone put them there on purpose, or "
            "how much of the model's result on them is owed to that."
        )
    if v.verdict == "NO EVIDENCE":
        return (
            "It does not say that the benchmark was kept out of the data: a smaller or weaker leak may leave no trace, "
            "and one before a stage of reinforcement learning is reported to be nearly invisible to such scores (AUC "
            "0.50 to 0.55)."
        )
    return "It speaks neither for nor against the checkpoint: contamination was not shown, and it was not ruled out."


def _change(v: Verdict) -> str:
    if v.verdict == "INCONCLUSIVE":
        return plain(v.reasons[-1])
    if v.verdict == "NO EVIDENCE":
        return "More unseen questions, or longer answers, would show a smaller leak too, and could change the verdict."
    if _worded(v):
        return (
            "Unseen questions that are worded like the benchmark's could change the verdict, because today's are not."
        )
    differ = "Unseen questions that are more like the benchmark's could change the verdict"
    if v.base is None:
        return f"{differ}, and so could the check with the base model (`tbd check --base`)."
    return f"{differ}, if today's differ from it in a way that the checks above cannot see."


def _now(v: Verdict) -> str:
    benchmark = code(v.benchmark.name)
    if v.verdict == "CONTAMINATED":
        first = "Run the audit again with the base model; until then, do" if v.base is None else "Do"
        return (
            f"{first} not compare this checkpoint's result on {benchmark} with other models', grade it on questions it "
            "cannot have seen, and look for the flagged questions in its training data."
        )
    if v.verdict == "NO EVIDENCE":
        return (
            f"Report the result on {benchmark} with this audit beside it, and with what it can see; keep the unseen "
            "questions out of training, so that the next checkpoint can be audited too."
        )
    return "Treat the checkpoint as not audited until that is done: neither release it nor hold it back on this."


def _method(v: Verdict) -> str:
    made, detector = v.generation, v.detector
    named = "Token Probability Deviation" if detector.method == "tbd" else "not Token Probability Deviation"
    torch = f" and torch {code(made.torch_version)}" if made.torch_version else ""
    p = v.same_kind.base_p_value
    checked = "no base model" if v.base is None else f"base model {code(v.base)}"
    if p is not None:
        checked += f", which scores both sets at p = {p_value(p)}"
    stopped = ""
    if v.stopped is not None:
        stopped = (
            f" {v.stopped.benchmark} of {v.benchmark.n} benchmark and {v.stopped.unseen} of {v.unseen.n} unseen "
            f"questions are judged by the first {v.stopped.m} tokens of their answers alone, by one rule for both, and "
            "rank below the others."
        )
    noise, again = "", made.noise
    if again is not None:
        noise = f" (asked a second time, {again.diverged} of {again.questions} answers differed"
        if again.median is not None and again.largest is not None:
            noise += f", log-probs by {again.median:.2g} nats in the middle and {again.largest:.2g} at most"
        noise += ")"
    server, only = (made.model_extra or {}).get("served"), ""
    if server is not None:
        only = f", known by the word of its server {code(server)} and a few of its answers alone,"
    return (
        f"Measured with {code(detector.id)} ({named}) of detector {code(detector.version)}, on greedy "
        f"answers of {code(v.checkpoint)} ({code(v.checkpoint_fingerprint[:12])}){only} by {code(made.engine)} "
        f"{code(made.engine_version)}{torch} in {code(made.dtype)} on {code(made.device)}{noise}; unseen set "
        f"{code(v.unseen.name)} ({v.unseen.n} questions); {checked}.{stopped}"
    )
