"""The webhook against a real receiver on loopback."""

import base64
import hashlib
import hmac
import json
import socket
from collections.abc import Iterator

import pytest

from tbd.errors import InputError, TransientFault
from tbd.history import webhook
from tests.history.test_history import outcome
from tests.receiver import Receiver, slow

SECRET = "whsec_" + base64.b64encode(b"a key of the receiver's").decode()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def test_a_signed_message_arrives_as_the_standard_says(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TBD_WEBHOOK_URL", receiver.url)
    monkeypatch.setenv("TBD_WEBHOOK_SECRET", SECRET)
    webhook.send(outcome(id="abc", stream_discovery=True))
    (message,) = receiver.messages
    assert json.loads(message.body)["type"] == "tbd.contaminated"
    assert message.headers["content-type"] == "application/json" and message.headers["webhook-id"] == "abc"
    signed = f"abc.{message.headers['webhook-timestamp']}.".encode() + message.body
    expected = base64.b64encode(hmac.new(b"a key of the receiver's", signed, hashlib.sha256).digest()).decode()
    assert message.headers["webhook-signature"] == f"v1,{expected}"


def test_the_standards_own_example() -> None:
    """https://github.com/standard-webhooks/standard-webhooks, spec, symmetric signature."""
    payload = b'{"test": 2432232314}'
    found = webhook.sign("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, payload)
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_without_a_secret_it_is_not_signed(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TBD_WEBHOOK_URL", receiver.url)
    webhook.send(outcome(id="abc"))
    assert "webhook-signature" not in receiver.messages[0].headers


@pytest.mark.parametrize(
    ("code", "error"),
    [(500, TransientFault), (503, TransientFault), (429, TransientFault), (404, InputError), (302, InputError)],
)
def test_other_answers(receiver: Receiver, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]) -> None:
    monkeypatch.setenv("TBD_WEBHOOK_URL", receiver.url + "/secret-token")
    receiver.answers = [code]
    with pytest.raises(error, match=str(code)) as raised:
        webhook.send(outcome(id="abc"))
    assert "secret-token" not in str(raised.value) and len(receiver.messages) == 1


def test_an_answer_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with slow() as url:
        monkeypatch.setenv("TBD_WEBHOOK_URL", url)
        webhook.send(outcome(id="abc"))  # which comes back, though the answer never ends


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("TBD_WEBHOOK_URL", f"http://127.0.0.1:{free.getsockname()[1]}/secret-token")
        with pytest.raises(TransientFault, match="no answer") as raised:
            webhook.send(outcome(id="abc"))
    assert "secret-token" not in str(raised.value)


@pytest.mark.parametrize("address", ["example.org", "file:///etc/passwd", "https://", "slack", "https://" + 64 * "a"])
def test_addresses_that_are_none(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("TBD_WEBHOOK_URL", address)
    with pytest.raises(InputError, match="TBD_WEBHOOK_URL"):
        webhook.check()


@pytest.mark.parametrize("secret", ["whsec_not base64!", "whsec_not base64!é", "not base64!\udcff"])
def test_a_secret_that_is_none(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("TBD_WEBHOOK_SECRET", secret)
    with pytest.raises(InputError, match="TBD_WEBHOOK_SECRET") as raised:
        webhook.check()
    assert "not base64!" not in str(raised.value)


def test_what_a_reader_must_know_is_in_the_line(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TBD_WEBHOOK_URL", receiver.url)
    webhook.send(outcome(id="abc", warnings=["The answers were computed on the CPU."], recovered=True))
    sent = json.loads(receiver.messages[0].body)
    assert sent["text"].endswith(". It had failed before. The answers were computed on the CPU.")
    assert sent["data"]["warnings"] == ["The answers were computed on the CPU."]
