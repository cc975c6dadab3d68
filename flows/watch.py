"""The flow `watch`: look at the sources once, and audit every checkpoint that was not audited yet."""

import time
from collections import Counter
from contextlib import suppress
from functools import partial

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.check import judge
from flows.deliver import add, deliver
from flows.hooks import TOLD
from flows.stages import ANSWER, UNREACHABLE, retrying, within
from tbd import history, params, sources
from tbd.commands import checks, prune
from tbd.errors import InputError, TransientFault
from tbd.history import FAILED, History
from tbd.locks import locked
from tbd.pipeline.workspace_lock import workspace
from tbd.progress import clock
from tbd.sources import Found
from tbd.watch import decide, outcomes
from tbd.watch.decide import Back, Broken, Fetched, Job, Known, Same, Standing, Wait
from tbd.workspace import STATE

LOCK = STATE / "look.lock"


@flow(name="watch", flow_run_name="watch", **TOLD)
def watch(addresses: list[str] | None = None, retry: bool = False, wait: bool = False) -> State:
    """Look once: audit every new checkpoint by the policy of params.yaml, and tell who is to be told.

    Where another look is under way, one at the sources of params.yaml is skipped; one that names its own waits.

    Args:
        addresses: Where to look: folders of checkpoints (or one checkpoint), models:/NAME, hf://org/name;
            watch.sources of params.yaml if left empty.
        retry: Try again what failed. Otherwise a broken checkpoint is tried again when it changes.
        wait: Look again until nothing is left that is still being written; for a place that no schedule looks at.
    """
    p, done = params.load(), Counter[str]()
    end = time.monotonic() + p.watch.patience
    while True:
        with locked(LOCK, p.watch.patience if addresses is not None else None, get_run_logger().info) as free:
            if free is None:
                return Completed(message="skipped: another look is under way")
            done += _look(addresses, retry)
        if not (wait and done.pop("waiting", 0)):
            break
        if time.monotonic() > end:
            _give_up(addresses or p.watch.sources, p)
            break
        time.sleep(max(p.watch.settle, 1.0))  # others may look meanwhile
    return Completed(message=f"{done['audited']} audited, {done['failed']} failed")


def _give_up(addresses: list[str], p: params.Params) -> None:
    """Say of what is still waited for that it is not any more."""
    for address in addresses:
        for checkpoint in sources.source(address).look():
            for one in decide.peek(checkpoint, p, Standing()) or []:
                if isinstance(one, Wait):
                    why = f"still not whole after {clock(p.watch.patience)} (watch.patience): {one.why}"
                    add(outcomes.failure(checkpoint, None, why, transient=True))
    deliver()


def _look(addresses: list[str] | None, retry: bool) -> Counter[str]:
    """How many were audited, failed, are still being written (`waiting`), and were dealt with before (`known`)."""
    logger = get_run_logger()
    p = params.load()
    checks.ready_for(p.watch.policy)
    deliver()  # what could not be delivered before
    total: Counter[str] = Counter()
    for address in addresses or p.watch.sources:
        found = retrying(look)(address, return_state=True)
        if not found.is_completed():
            fault = found.result(raise_on_failure=False)
            add(outcomes.other("source", address, str(fault), isinstance(fault, TransientFault)))
            total["failed"] += 1
            continue
        last = History().last(f"source {address}", None)
        if last is not None and last.outcome == FAILED:
            add(outcomes.other("source", address, None))
        here: Counter[str] = Counter()
        standing = Standing()
        for checkpoint in found.result():
            try:
                done = _take(address, checkpoint, p, retry, standing)
            except UNREACHABLE:
                raise
            except Exception as error:  # whatever it was, the others go on
                logger.exception("%s: not dealt with", checkpoint.name)
                add(outcomes.fault(checkpoint, None, str(error) or type(error).__name__, p))
                done = Counter(failed=1)
            if done.keys() - {"known", "waiting"}:
                standing = Standing()
            here += done
        logger.info("%s: %d checkpoints, %d dealt with before", address, len(found.result()), here["known"])
        total += here
    deliver(patient=True)
    with suppress(InputError), workspace(logger.info, 0.0):  # somebody at work there: the next look does it
        for line in [*prune.prune(p.watch.keep * 1e9)][:-1]:
            logger.info(line)
    logger.info("%d audited, %d failed", total["audited"], total["failed"])
    return total


@task(task_run_name="look at {address}", cache_policy=NO_CACHE)
def look(address: str) -> list[Found]:
    """What a source shows now."""
    with within(ANSWER, address):
        return sources.source(address).look()


@task(task_run_name="fetch {checkpoint.name}", cache_policy=NO_CACHE)
def fetch(address: str, checkpoint: Found, p: params.Params) -> Fetched | Wait | Broken:
    """Get a checkpoint that is new or changed onto this machine."""
    with within(p.watch.patience, checkpoint.place):
        return decide.fetch(sources.source(address), checkpoint, p)


def _take(address: str, checkpoint: Found, p: params.Params, retry: bool, standing: Standing) -> Counter[str]:
    """Do what is to be done about one checkpoint. Counts as `_look` does, and copies of judged weights as `same`."""
    logger = get_run_logger()
    seen = decide.peek(checkpoint, p, standing, retry)
    if seen is not None and all(isinstance(one, Wait | Known) for one in seen):
        waits = [one for one in seen if isinstance(one, Wait)]
        for one in waits:
            logger.info("%s: %s", checkpoint.name, one.why)
        return Counter(waiting=1) if waits else Counter(known=1)
    here = standing.fetched(checkpoint, p)
    if seen is None or here is None:
        state = retrying(fetch)(address, checkpoint, p, return_state=True)
        if not state.is_completed():
            fault = state.result(raise_on_failure=False)
            of = outcomes.failure if isinstance(fault, InputError) else partial(outcomes.fault, p=p)
            add(of(checkpoint, None, str(fault)).model_copy(update={"state": decide.asked(p)}))
            return Counter(failed=1)
        got = state.result()
        if isinstance(got, Wait | Broken):
            logger.info("%s: %s", checkpoint.name, got.why)
            if isinstance(got, Broken):
                of = partial(outcomes.fault, p=p) if got.lacking else outcomes.failure
                add(of(checkpoint, None, got.why).model_copy(update={"state": decide.asked(p)}))
            return Counter(waiting=1) if isinstance(got, Wait) else Counter(failed=1)
        here = got
    done: Counter[str] = Counter()
    deliver()  # before what may take hours
    # nobody else is at work here now; another look may have dealt with it before
    with workspace(logger.info, p.watch.patience):
        for decision in decide.decide(here, p, Standing(), retry):
            if not isinstance(decision, Known):
                logger.info("%s: %s", checkpoint.name, decision.why)
            match decision:
                case Back():
                    add(decision.outcome.model_copy(update={"time": history.now()}))
                    done["same"] += 1
                case Same():
                    add(outcomes.same(decision, History()))
                    done["same"] += 1
                case Wait():
                    done["waiting"] += 1
                case Job():
                    done["audited" if audit(decision, return_state=True).is_completed() else "failed"] += 1
    deliver()
    return done or Counter(known=1)


@flow(name="audit", flow_run_name="audit {job.audit}")
def audit(job: Job) -> None:
    """One checkpoint on one benchmark. A failure goes into the history as such."""
    rule = job.rule
    try:
        origin = job.found.origin if job.found.origin != str(job.folder) else None
        name, entry = checks.prepare(
            str(job.folder), rule.benchmark, rule.unseen, job.base, job.audit, rule.fpr, origin
        )
        judge(name, entry, job.found)
    except UNREACHABLE:
        raise  # Prefect's server is away: the audit is registered, and goes on at the next look
    except Exception as error:  # whatever it was, the others go on
        p = params.load()
        of = outcomes.failure if outcomes.for_good(error, job.audit) else partial(outcomes.fault, p=p)
        said = of(job.found, job.fingerprint, str(error) or type(error).__name__, benchmark=rule.benchmark)
        add(said.model_copy(update={"state": decide.asked(p, rule)}))
        raise


if __name__ == "__main__":
    watch()
