"""Text from outside does nothing where it is shown: in a terminal, a log, a chat, MLflow, a file in git."""

import io
import json
import logging
import sys
from pathlib import Path

import pytest

from tbd import foreign, history
from tbd.history import History, webhook
from tbd.sources import Found
from tbd.tracking import history as mlflow_history
from tbd.tracking import runs
from tbd.watch import outcomes
from tests import results
from tests.history.test_history import outcome

ESCAPE = "\x1b]0;owned\x07\x9b2J\ud800"
TURNED = "\u202etxt.\u2066\u2069\u200f\u061c"
TOKEN = "https://me:word@store.example/a?X-Amz-Signature=topsecret"


def test_a_terminal_gets_no_control_character(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "stderr", told := io.StringIO())
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    foreign.guard()
    print(f"a\tb\n{ESCAPE}{TURNED}")
    log = logging.getLogger("tests.foreign")
    handler = logging.StreamHandler(shown)
    log.addHandler(handler)
    log.warning("%s: %s", "name", Path(ESCAPE))
    try:
        raise ValueError(ESCAPE)
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
        handler.setStream(told)
        log.exception("failed")
    log.removeHandler(handler)
    assert told.getvalue().count("ValueError: �]0;owned��2J�") == 2 and "\x1b" not in told.getvalue()
    assert shown.getvalue() == "a\tb\n�]0;owned��2J��txt.����\nname: �]0;owned��2J�\n"


def test_a_chat_is_told_without_mentions_links_and_secrets() -> None:
    name = "<!channel> @everyone <https://evil|here> [x](http://evil)"
    said = webhook.text(outcome(said="FAILED", checkpoint=name, reason=f"{TOKEN} {ESCAPE}"))
    assert not any(bad in said for bad in ("<!", "<h", "@e", "](", "topsecret", "word", "\x1b"))
    assert "channel" in said and "store.example" in said


def test_a_file_in_git_holds_no_secret(workspace: Path) -> None:
    with history.held() as known:
        known.add(outcome(said="FAILED", reason=f"{TOKEN}: 403"))
    text = history.FILE.read_text()
    assert "topsecret" not in text and "word" not in text and "store.example" in text
    with history.held() as known:  # the same fault again is the same
        known.add(outcome(said="FAILED", reason=f"{TOKEN}: 403"))
    assert len(History().outcomes) == 1


def test_neither_does_anything_else_of_an_outcome(workspace: Path) -> None:
    with history.held() as known:
        known.add(outcomes.other("source", TOKEN, f"{TOKEN}: no such folder.", transient=True))
        said = outcome("CONTAMINATED").model_copy(update={"origin": TOKEN, "warnings": [f"Power is that of {TOKEN}."]})
        known.add(said)
    text = history.FILE.read_text()
    assert "topsecret" not in text and "word" not in text and text.count("store.example") == 6
    assert History().last(f"source {TOKEN}", None) is not None  # it is found, to be told that it works again
    assert "topsecret" not in outcomes.failure(Found("a", "a", "a", ""), None, TOKEN).reason  # of what no history holds


def test_what_utf8_cannot_hold_is_noted_all_the_same(workspace: Path) -> None:
    found = Found("a", "a", "a", "")
    with history.held() as known:
        known.add(outcomes.failure(found, None, "the chat template does not work (\ud800)."))
    assert History().outcomes[0].reason == "the chat template does not work (\ufffd)."


def test_an_address_with_another_secret_is_another() -> None:
    one, other = (foreign.secretless(f"s3://b/a?version={n}") for n in (1, 2))
    assert one != other and foreign.secretless(one) == one and foreign.secretless("what? is it") == "what? is it"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://me:wo/rd@host/a", "https://host/a"),
        ("https://:word@host:80/a@b", "https://host:80/a@b"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("http://host/a:b/c@d", "http://host/a:b/c@d"),
        ("https://host/a;token=word", "https://host/a;…"),
        ("https://host/a#access_token=word&b=c", "https://host/a#…"),
        ("https://host/a#part of it = 3", "https://host/a#part of it = 3"),
        ("https://host/a;b?token=word", "https://host/a;b?…"),
    ],
)
def test_where_an_address_may_hold_a_secret(text: str, left: str) -> None:
    said = foreign.secretless(text)
    assert "word" not in said and said == foreign.secretless(said)
    assert said[: len(left)] == left and len(said) <= len(left) + 5


def test_mlflow_shows_names_as_they_are() -> None:
    evil = "![x](http://evil/a.png) <img src=x onerror=y>"
    warned = runs._warnings(results.verdict(warnings=[f"Power was measured on {evil}."]))
    assert "![x]" not in warned and "<img" not in warned and "evil" in warned
    described = mlflow_history._description({f"tbd.verdict.a`{evil}": evil, f"tbd.leaked.a`{evil}": evil})
    assert "<img" not in described.replace(f"`a'{evil}`", "") and f"`a'{evil}`" in described


def test_what_a_command_prints_and_a_receiver_reads_is_one_line() -> None:
    body = webhook.body(outcome(said="FAILED", reason="a\nb"))
    assert "\n" not in body["text"] and json.loads(json.dumps(body)) == body
