"""A first look at the sources, before Prefect is started: is there anything to do?"""

from collections.abc import Iterable

from tbd import sources
from tbd.errors import InputError, TransientFault
from tbd.history import FAILED, History, outbox
from tbd.params import Params
from tbd.report.text import plain
from tbd.watch.decide import Known, Standing, Wait, peek


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
