import multiprocessing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tbd import history
from tbd.errors import InputError
from tbd.history import FAILED, History, Outcome, event, held, outbox, webhook
from tbd.params import Notify

SET: dict[str, Any] = {"name": "aime", "md5": "0" * 32, "n": 30}
EVERYTHING = Notify(
    events=["contaminated", "single", "inconclusive", "failed", "recovered"], blocks=["slack-webhook/team"]
)


def outcome(said: str = "CONTAMINATED", place: str = "models/a", **more: Any) -> Outcome:
    about = {
        "checkpoint": Path(place).name,
        "place": place,
        "origin": place,
        "fingerprint": "f1",
        "reason": "Because.",
        **more,
    }
    if said != FAILED:
        about = {"benchmark": SET, "audit": f"{Path(place).name}-aime", "state": f"state of {place}", **about}
    return Outcome(time=datetime(2026, 11, 23, tzinfo=UTC), outcome=said, **about)


def add(*outcomes: Outcome) -> list[Outcome]:
    with held() as known:
        return [known.add(one) for one in outcomes]


def test_what_was_added_is_there_when_it_is_read_again(workspace: Path) -> None:
    first, second = add(
        outcome(contamination_rate=0.4, share_at_least=0.2, p_value=0.001), outcome("NO EVIDENCE", "models/b")
    )
    assert History().outcomes == [first, second]
    assert first.id and second.id and first.id != second.id
    assert first.leaked == "at least 20%, estimate 40%" and second.leaked == ""


def test_a_line_of_an_older_tbd_is_read(workspace: Path) -> None:
    add(outcome(contamination_rate=0.4, transient=True))
    file = Path("audits/history.jsonl")
    line = file.read_text().replace('"transient"', '"passing"')
    before = '"contamination_rate": 0.4', '"rate": {"estimate": 0.4, "low": 0.2, "high": 0.6}'
    assert before[0] in line
    file.write_text(line.replace(*before))
    (read,) = History().outcomes
    assert read.contamination_rate == 0.4 and read.transient
    assert webhook.body(read)["data"]["contamination_rate"] == 0.4


def test_the_same_verdict_is_one_line_another_state_is_another(workspace: Path) -> None:
    add(outcome(), outcome())
    assert len(History().outcomes) == 1
    add(outcome(state="after a change of the rate"), outcome())
    assert [one.state for one in History().outcomes] == [
        "state of models/a",
        "after a change of the rate",
        "state of models/a",
    ]
    assert len({one.id for one in History().outcomes}) == 3


def test_judged_anew_with_the_same_verdict_is_noted_and_not_told(workspace: Path) -> None:
    first, again, turned, other = add(
        outcome(),
        outcome(state="new detector"),
        outcome("NO EVIDENCE", state="newer"),
        outcome(state="newest", fingerprint="f2"),
    )
    assert [event(one) for one in (first, again, turned, other)] == ["single", "quiet", "quiet", "single"]
    assert [one.repeated for one in (first, again, turned, other)] == [False, True, False, False]


@pytest.mark.parametrize(
    ("second", "lines"),
    [
        ({}, 1),
        ({"version": "touched"}, 1),
        ({"reason": "Another."}, 2),
        ({"fingerprint": "f2"}, 2),
        ({"benchmark": SET}, 2),
        ({"place": "models/b"}, 2),
    ],
)
def test_a_failure_is_told_once(workspace: Path, second: dict[str, Any], lines: int) -> None:
    add(outcome(FAILED), outcome(FAILED, **second))
    assert len(History().outcomes) == lines


def test_a_passing_failure_is_one_whatever_its_words(workspace: Path) -> None:
    add(outcome(FAILED, transient=True, reason="timeout"), outcome(FAILED, transient=True, reason="refused"))
    assert [one.reason for one in History().outcomes] == ["timeout"]


def test_recovery(workspace: Path) -> None:
    """On this benchmark, or as a whole; once; not after another place's failure."""
    _, other, here, again = add(
        outcome(FAILED), outcome(place="models/b"), outcome("NO EVIDENCE"), outcome("NO EVIDENCE", state="judged anew")
    )
    assert (other.recovered, here.recovered, again.recovered) == (False, True, False)
    _, elsewhere, back = add(
        outcome(FAILED, benchmark=SET),
        outcome("NO EVIDENCE", benchmark={**SET, "name": "gsm"}),
        outcome("NO EVIDENCE", state="again"),
    )
    assert (elsewhere.recovered, back.recovered) == (False, True)


@pytest.mark.parametrize(
    ("one", "what"),
    [
        (outcome("CONTAMINATED", stream_discovery=True), "contaminated"),
        (outcome("CONTAMINATED", stream_discovery=True, repeated=True), "contaminated"),
        (outcome("CONTAMINATED", stream_discovery=True, recovered=True), "contaminated"),
        (outcome("CONTAMINATED"), "single"),
        (outcome("CONTAMINATED", recovered=True), "recovered"),
        (outcome("NO EVIDENCE"), "quiet"),
        (outcome("NO EVIDENCE", recovered=True), "recovered"),
        (outcome("INCONCLUSIVE"), "inconclusive"),
        (outcome("INCONCLUSIVE", recovered=True), "recovered"),
        (outcome(FAILED), "failed"),
        (outcome("CONTAMINATED", same_as="first"), "quiet"),
        (outcome(history.WORKS, recovered=True), "recovered"),
    ],
)
def test_events(one: Outcome, what: str) -> None:
    assert event(one) == what


def test_a_line_cut_off_by_a_kill_is_as_if_it_had_never_been(workspace: Path) -> None:
    first, _ = add(outcome(), outcome(place="models/b"))
    history.FILE.write_bytes(history.FILE.read_bytes()[:-7])
    assert History().outcomes == [first]
    add(outcome(place="models/c"))
    assert [one.place for one in History().outcomes] == ["models/a", "models/c"]


@pytest.mark.parametrize("line", ["{", "[]", '{"outcome": "CONTAMINATED"}', "null"])
def test_a_line_that_is_none_is_refused_by_its_number(workspace: Path, line: str) -> None:
    add(outcome())
    with history.FILE.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"history\.jsonl, line 2"):
        History()


def _adds(number: int) -> None:
    for n in range(20):
        add(outcome(place=f"models/{number}-{n}"))


def test_many_at_once_lose_nothing(workspace: Path) -> None:
    processes = [multiprocessing.get_context("fork").Process(target=_adds, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len({one.place for one in History().outcomes}) == 80


# --- the outbox -------------------------------------------------------------------------------------------------------


def test_due_until_done(workspace: Path) -> None:
    outbox.due("one", ["mlflow", "webhook"])
    outbox.due("two", ["mlflow"])
    outbox.due("one", ["mlflow"])  # is already
    outbox.done("one", "mlflow")
    assert outbox.pending() == [("one", "webhook"), ("two", "mlflow")]
    outbox.due("one", ["mlflow"])  # asked for again
    assert outbox.pending()[-1] == ("one", "mlflow")
    outbox.FILE.write_text('{"of": 1}\n')
    with pytest.raises(InputError, match=r"outbox.jsonl: a line without `of` or `to`\. Restore the file\."):
        outbox.pending()


def test_recipients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TBD_WEBHOOK_URL", raising=False)
    quiet, found = outcome("NO EVIDENCE"), outcome(stream_discovery=True)
    assert outbox.recipients(outcome(), EVERYTHING) == ["mlflow", "prefect", "slack-webhook/team"]
    monkeypatch.setenv("TBD_WEBHOOK_URL", "https://example.org/hook")
    assert outbox.recipients(outcome(), EVERYTHING) == ["mlflow", "prefect", "webhook", "slack-webhook/team"]
    assert outbox.recipients(quiet, EVERYTHING) == ["mlflow", "prefect"]
    discoveries = Notify(events=["contaminated"], blocks=[])
    assert outbox.recipients(found, discoveries) == ["mlflow", "prefect", "webhook"]
    assert outbox.recipients(outcome(), discoveries) == ["mlflow", "prefect"]
    assert outbox.recipients(outcome(FAILED), discoveries) == ["mlflow", "prefect"]
    assert outbox.recipients(outcome(FAILED, what="source"), EVERYTHING) == ["prefect", "webhook", "slack-webhook/team"]


def test_a_delivery_is_due_before_its_outcome_is_in_the_history(workspace: Path) -> None:
    """A kill in between leaves an unknown delivery, never an untold outcome."""
    seen: list[int] = []

    def before(new: Outcome) -> None:
        seen.append(len(History().outcomes))
        outbox.due(new.id, ["mlflow"])

    with held() as known:
        added = known.add(outcome(), before)
    assert seen == [0] and outbox.pending() == [(added.id, "mlflow")]


def test_the_message_has_no_bookkeeping_in_it() -> None:
    about = {"contamination_rate": 0.4, "share_at_least": 0.2, "p_value": 0.00123, "version": "v"}
    body = webhook.body(outcome(id="abc", tested=True, alpha_now=0.0025, stream_discovery=True, **about))
    assert body["type"] == "tbd.contaminated" and body["timestamp"] == "2026-11-23T00:00:00Z"
    single = "CONTAMINATED: a on aime: at least 20%, estimate 40%, p = 0.0012"
    assert body["text"] == f"{single}, a discovery of the stream (level 0.0025)."
    assert body["data"]["contamination_rate"] == 0.4 and body["data"]["audit"] == "a-aime"
    assert body["data"]["alpha_now"] == 0.0025 and body["data"]["tested"] and body["data"]["stream_discovery"]
    assert not {"version", "time", "git_commit"} & body["data"].keys()
    body = webhook.body(outcome(tested=True, alpha_now=0.00012, **about))
    assert body["type"] == "tbd.single" and body["text"] == f"{single}, no discovery of the stream (level 0.00012)."
    assert webhook.text(outcome(**about)) == f"{single}, not tested by the stream."
