"""What a transient fault stopped is tried again, after longer pauses, and not for ever; whatever the clock says."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tbd import history, params
from tbd.errors import InputError, StageFailed, TransientFault
from tbd.history import FAILED, History, Outcome
from tbd.params import Params, Rule
from tbd.sources.folder import Folder
from tbd.watch import decide, outcomes, tries
from tbd.watch.decide import Broken, Fetched, Job, Known, Standing, Wait
from tests.workspace import REPOSITORY, fake_checkpoint

INCOMING = Path("incoming")


class Clock:
    """The clock on the wall, which anybody may set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead, real = 0.0, time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.ahead)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def p(workspace: Path) -> Params:
    Path("audits").mkdir()
    fake_checkpoint(INCOMING / "alpha")
    p = params.load(REPOSITORY / "params.yaml")
    fake = p.generate.model_copy(update={"engine": "fake"})
    changes = {"settle": 0, "policy": [Rule(checkpoints="*", benchmark="exam", unseen="new")]}
    return p.model_copy(update={"generate": fake, "watch": p.watch.model_copy(update=changes)})


def changed(p: Params, **watch: object) -> Params:
    return p.model_copy(update={"watch": p.watch.model_copy(update=watch)})


def look(p: Params, retry: bool = False) -> decide.Decision | Broken:
    (found,) = Folder(str(INCOMING)).look()
    seen = decide.peek(found, p, Standing(), retry)
    if seen is None:
        got = decide.fetch(Folder(str(INCOMING)), found, p)
        seen = decide.decide(got, p, Standing(), retry) if isinstance(got, Fetched) else [got]  # type: ignore[list-item]
    return seen[0]


def test_names_that_look_alike_are_counted_apart(p: Params) -> None:
    (found,) = Folder(str(INCOMING)).look()
    other = replace(found, place=f"{found.place} on exam", version="another")
    for times in range(1, 4):
        assert tries.count(found, "exam", p) == tries.count(other, None, p) == times


def stopped(p: Params, said: str = "stage generate@x: no space") -> Outcome:
    job = look(p)
    assert isinstance(job, Job), job
    with history.held() as known:
        return known.add(outcomes.fault(job.found, job.fingerprint, said, p, "exam"))


def test_pauses_double_and_the_last_try_is_the_last(p: Params, clock: Clock) -> None:
    p = changed(p, tries=12)
    waits = []
    for _ in range(11):
        assert stopped(p).transient
        for minute in range(0, 4000, 10):  # look every ten seconds
            clock.ahead += 10
            if not isinstance(look(p), Wait):
                waits.append(minute + 10)
                break
    assert waits == [80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600, 3600, 3600]
    last = stopped(p)
    assert last.outcome == FAILED and not last.transient
    assert last.reason == (
        "stage generate@x: no space. That was so at 12 looks, so it is given up. Try again: tbd watch --retry."
    )
    clock.ahead += 1e6
    assert isinstance(look(p), Known) and isinstance(look(p, retry=True), Job)
    assert len(History().outcomes) == 2  # told when it begins and when it ends
    (INCOMING / "alpha/config.json").write_text('{"other": 1}')
    assert stopped(p).transient  # another version begins anew


@pytest.mark.parametrize(
    ("error", "for_good"),
    [
        (InputError("x: no such checkpoint folder."), True),
        (StageFailed("stage generate@x: 3 tensors are missing.", bad_input=True), True),
        (StageFailed("audits/x/dvc.yaml: not valid.", bad_input=True), True),
        (StageFailed("stage generate@reference: 3 tensors are missing.", bad_input=True), False),
        (StageFailed("stage generate@x: KeyError: 'y'"), False),  # nobody foresaw it: a machine's fault or ours
        (StageFailed("stage generate@x: ended by signal 9", transient=True), False),
        (TransientFault("stage generate@x: no space"), False),
        (KeyError("y"), False),
    ],
)
def test_what_is_wrong_for_good_is_the_audits_own_input(error: Exception, for_good: bool) -> None:
    assert outcomes.for_good(error, "x") == for_good


def test_who_asks_does_not_wait(p: Params) -> None:
    stopped(p)
    waits = look(p)
    assert isinstance(waits, Wait) and "Tried again in 1:" in waits.why and "--retry" in waits.why
    assert isinstance(look(p, retry=True), Job)


def test_the_same_of_what_could_not_even_be_fetched(p: Params, clock: Clock) -> None:
    p = changed(p, tries=2)
    (found,) = Folder(str(INCOMING)).look()
    for transient in (True, False):
        with history.held() as known:
            assert known.add(outcomes.fault(found, None, "the hub answers 503.", p)).transient == transient
        assert isinstance(look(p), Wait if transient else Known)
        clock.ahead += 100


@pytest.mark.parametrize("jump", [-1e9, -50.0, 1e9])
def test_a_clock_that_jumps_does_not_lengthen_a_pause(p: Params, clock: Clock, jump: float) -> None:
    stopped(p)
    clock.ahead += jump
    for _ in range(14):
        if isinstance(look(p), Job):
            break
        clock.ahead += 10
    assert isinstance(look(p), Job)


@pytest.mark.parametrize("back", [60.0, 1e8])
def test_files_of_the_future_are_waited_for_no_longer_than_others(p: Params, clock: Clock, back: float) -> None:
    p = changed(p, settle=30)
    clock.ahead -= back  # the clock was put back, or the folder is on a host whose clock is ahead
    assert isinstance(look(p), Wait)
    clock.ahead += 29
    assert isinstance(look(p), Wait)
    os.utime(INCOMING / "alpha/config.json")
    assert isinstance(look(p), Wait)
    clock.ahead += 29
    assert isinstance(look(p), Wait)
    clock.ahead += 2
    assert isinstance(look(p), Job)


def test_one_of_the_future_that_lacks_a_part_is_broken_in_the_end(p: Params, clock: Clock) -> None:
    (INCOMING / "alpha/model.safetensors").unlink()
    clock.ahead -= 1e8
    assert isinstance(look(p), Wait)
    clock.ahead += p.watch.give_up + 1
    assert isinstance(look(p), Broken)


def test_what_changes_for_ever_is_said_once_and_judged_when_it_does_not(p: Params, clock: Clock) -> None:
    p = changed(p, settle=30, patience=100)
    clock.ahead += 90
    weights = INCOMING / "alpha/model.safetensors"

    def grows() -> None:
        weights.write_bytes(weights.read_bytes())

    grows()
    real = time.time() - clock.ahead
    (found,) = Folder(str(INCOMING)).look()
    assert found.since <= real and isinstance(look(changed(p, settle=120)), Wait)
    clock.ahead += 15  # it began 105 seconds ago, and is not settled
    for _ in range(2):
        late = look(changed(p, settle=120))
        assert isinstance(late, Broken | Known) and "still changes after 1:40" in late.why
        with history.held() as known:
            known.add(outcomes.failure(late.found, None, late.why.removeprefix("failed before: ")))
        grows()
    assert isinstance(late, Known) and len(History().outcomes) == 1
    clock.ahead += 1000
    assert isinstance(look(p), Job)
