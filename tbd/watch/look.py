"""A look at the sources without Prefect: is there anything to do, and what stands for what is there?"""

from collections.abc import Iterable

from tbd import gates, sources
from tbd.errors import InputError, TransientFault
from tbd.history import FAILED, History, Outcome, outbox
from tbd.params import Params
from tbd.report.text import plain
from tbd.sources import Found
from tbd.watch import outcomes
from tbd.watch.decide import Back, Decision, Job, Known, Same, Standing, Wait, peek


def work(addresses: Iterable[str], p: Params, retry: bool, strict: bool) -> bool:
    """Whether the flow `watch` has something to do at these sources; prints what they show.

    A source that is wrong is work, because the history is to say so; `strict`: it raises InputError instead.
    """
    history, standing, found_work = History(), Standing(), bool(outbox.pending())
    for address in addresses:
        try:
            seen = {found: peek(found, p, standing, retry) for found in sources.source(address).look()}
        except (InputError, TransientFault) as error:
            if strict and isinstance(error, InputError):
                raise
            print(f"{address}: {error}")
            found_work = True
            continue
        last = history.last(f"source {address}", None)
        found_work |= last is not None and last.outcome == FAILED  # it works again
        news = []
        for found, decisions in seen.items():
            if decisions is None:  # it has to be fetched to tell more
                news.append(f"{found.name}: new")
                found_work = True
            elif not all(isinstance(one, Known) for one in decisions):
                news.append(f"{found.name}: {'; '.join(one.why for one in decisions)}")
                found_work |= not all(isinstance(one, Wait | Known) for one in decisions)
        print(f"{address}: {len(seen)} looked at, {len(seen) - len(news)} dealt with before")
        for line in news:
            print(plain(line))
    return found_work


def standing(addresses: Iterable[str], p: Params) -> list[Outcome]:
    """What stands for everything that these sources show, whether it is new or not; never empty.

    One outcome for each checkpoint and benchmark, or for a checkpoint before any; one for a source that shows none.
    """
    decided, stands = Standing(), []
    for address in addresses:
        try:
            found = sources.source(address).look()
        except (InputError, TransientFault) as error:
            stands.append(outcomes.other("source", address, str(error), isinstance(error, TransientFault)))
            continue
        if not found:
            stands.append(outcomes.nothing("source", address, "There is no checkpoint."))
        for checkpoint in found:
            decisions = peek(checkpoint, p, decided)
            if decisions is None:
                stands.append(_undone(checkpoint, "It is new, or still lacks a part.", None, decided))
            else:
                stands += [_stands(decision, decided) for decision in decisions]
    return stands or [outcomes.nothing("flow", "watch", "watch.sources of params.yaml names no source.")]


def _stands(decision: Decision, decided: Standing) -> Outcome:
    if isinstance(decision, Back):
        return decision.outcome
    if isinstance(decision, Known):
        return decision.outcome or outcomes.without(decision.found, gates.NO_RULE, decision.why)
    benchmark = None
    if isinstance(decision, Job):
        benchmark = decision.rule.benchmark
    elif isinstance(decision, Same):
        benchmark = decided.audits[decision.audit].benchmark
    return _undone(decision.found, decision.why, benchmark, decided)


def _undone(found: Found, why: str, benchmark: str | None, decided: Standing) -> Outcome:
    """Of what is still to be done: the failure that this very content came to, or else that it waits."""
    last = decided.history.last(found.place, benchmark)
    if last is not None and last.outcome == FAILED and last.version == found.version:
        return last
    return outcomes.without(found, gates.WAITING, why, benchmark)
