"""The engine `openai` against a real HTTP server on loopback, honest and faulty."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbd import params
from tbd.errors import InputError, TransientFault
from tbd.generation import answers, client, noise
from tbd.generation.client import Client, Failed, Wrong
from tbd.generation.engines import Completion
from tbd.generation.engines.openai import OpenAIEngine, end_started, key
from tbd.params import Generate, Server
from tbd.records import sha256
from tests import model_server
from tests.model_server import END, ModelServer, answer, at_random
from tests.receiver import slow
from tests.test_params import TREE, changed
from tests.workspace import REPOSITORY

pytestmark = pytest.mark.slow

PROMPTS = [(2, 4 + i % 300, 4 + i // 300, 7, 3) for i in range(1000)]
TOKENS = 6
QUICK: dict[str, Any] = {"backoff": 0.002, "tries": 8}
PROBES = [(2, 10, 11, 12, one, 3) for one in (13, 14, 15)]


def asked(**server: Any) -> Generate:
    own = Server(**QUICK | server)
    return Generate(engine="openai", device="auto", dtype="auto", max_new_tokens=TOKENS, batch_size=50, server=own)


@pytest.fixture(scope="module")
def running() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


@pytest.fixture(scope="module")
def opened(running: ModelServer, tiny_checkpoint: Path) -> OpenAIEngine:
    return OpenAIEngine.open(tiny_checkpoint, asked(urls=[running.url], timeout=0.5))


@pytest.fixture
def server(running: ModelServer) -> ModelServer:
    """An honest one."""
    running.behave()
    return running


@pytest.fixture
def engine(opened: OpenAIEngine, server: ModelServer) -> OpenAIEngine:
    return opened


def right(prompt: tuple[int, ...], found: Completion, most: int = TOKENS) -> bool:
    ids, logprobs = answer(prompt, most)
    reason = "stop" if ids[-1] == END else "length"
    return (
        found.token_ids.tolist() == ids
        and np.allclose(found.logprobs, logprobs, atol=1e-7)
        and found.finish_reason == reason
    )


def said(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_faulty_server_loses_no_question_and_lets_no_wrong_number_through(
    engine: OpenAIEngine, server: ModelServer
) -> None:
    server.fault, server.most = at_random(7, 0.25), 20
    found = dict(engine.generate(PROMPTS, TOKENS))
    assert len(found) == len(PROMPTS) and all(right(prompt, found[row]) for row, prompt in enumerate(PROMPTS))
    assert set(model_server.FAULTS) < set(server.served) and sum(server.served.values()) > 1300
    assert {one.finish_reason for one in found.values()} == {"stop", "length"}


def test_what_it_is_told_of_itself_and_of_given_tokens(engine: OpenAIEngine, server: ModelServer) -> None:
    identity = engine.identity
    assert (identity["engine"], identity["engine_version"], identity["model"]) == ("openai", "vllm 0.0.1", "tiny")
    assert server.url.rpartition(":")[2] not in json.dumps(identity)
    assert engine.rescores and engine.at_once == 3
    tokens = [np.array([5, 6, 7], np.int32), np.array(answer(PROMPTS[1], 4)[0], np.int32)]
    server.fault = at_random(3, 0.5)
    for prompt, own, found in zip(PROMPTS, tokens, engine.logprobs(PROMPTS[:2], tokens), strict=False):
        whole = [*prompt, *own.tolist()]
        expected = [model_server.logprob(whole[:i], whole[i]) for i in range(len(prompt), len(whole))]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", ["vllm", "tokens", "llama.cpp"])
def test_ids_come_in_any_of_three_shapes(engine: OpenAIEngine, server: ModelServer, shape: str) -> None:
    server.shape = shape
    assert all(right(PROMPTS[row], found) for row, found in engine.generate(PROMPTS[:20], TOKENS))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("count", "5 log-probs in one answer"),
        ("missing", "a log-prob is missing"),
        ("NaN", "a log-prob is missing or no number"),
        ("positive", "a log-prob above 0"),
        ("-9999", "stands for minus infinity"),
        ("text", "text in place of token ids. It has to know return_token_ids"),
        ("echo", "sends the prompt back"),
        ("not the likeliest", "--generation-config vllm"),
        ("two log-probs", "a token with two log-probs (0, and -0."),
        ("two ids", "two ids of one token"),
        ("unknown token", "the token id 1073741824, and the checkpoint has 320 tokens"),
        ("no log-probs", "no log-probs"),
        ("too long", "longer than"),
    ],
)
def test_a_server_that_is_always_wrong_is_refused(
    engine: OpenAIEngine, server: ModelServer, fault: str, words: str
) -> None:
    server.fault = lambda prompt: fault
    prompt = next(one for one in PROMPTS if len(answer(one, TOKENS)[0]) == TOKENS)
    with pytest.raises(InputError) as error:
        dict(engine.generate([prompt], TOKENS))
    assert words in said(error) and "cannot be used" in said(error)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.sampled_from(["token_id:5", "stop"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(*[JSON] * 6)
def test_whatever_json_comes_is_right_or_wrong(
    ids: Any, tokens: Any, logprobs: Any, tops: Any, said: Any, end: Any
) -> None:
    whole = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops}
    for one in (whole, whole | {"content": said}, said):
        choice = {"token_ids": ids, "logprobs": one, "finish_reason": end}
        for tree in ({"choices": [choice]}, {"choices": said}, said):
            with suppress(Wrong):
                found = answers.completion(tree, (9, 9), 2, frozenset({1}))
                assert 0 < len(found.token_ids) == len(found.logprobs) <= 2 and (found.logprobs <= 0).all()
            with suppress(Wrong):
                assert len(answers.given(tree, (9, 9), 1)) == 1


@pytest.mark.parametrize("fault", ["429", "500", "hang up", "cut JSON"])
def test_one_that_never_answers_is_a_transient_fault(engine: OpenAIEngine, server: ModelServer, fault: str) -> None:
    server.fault = lambda prompt: fault
    with pytest.raises(TransientFault, match="failed 8 times"):
        dict(engine.generate(PROMPTS[:1], TOKENS))


@pytest.mark.parametrize(("status", "error"), [(400, InputError), (413, InputError), (500, TransientFault)])
def test_a_question_that_a_server_does_not_take_is_told(
    engine: OpenAIEngine, server: ModelServer, status: int, error: type[Exception]
) -> None:
    def raw(handler: Any, body: dict[str, Any]) -> bool:
        return tuple(body["prompt"]) == PROMPTS[6] and handler.send(status, {"error": "no"}) is None

    server.instead = raw
    with pytest.raises(error, match=rf"question 7 of a batch of 20 \(5 tokens\): the server 127.* {status} no") as told:
        dict(engine.generate(PROMPTS[:20], TOKENS))
    said(told)
    server.instead = lambda handler, body: len(body["prompt"]) == 7 and handler.send(status, {}) is None
    with pytest.raises(error, match=r"question 3 of a batch of 4 \(7 tokens\): the server"):
        engine.logprobs([PROMPTS[1][:3]] * 4, [np.array([5] * n, np.int32) for n in (1, 2, 4, 3)])


def test_an_answer_that_stops_short_or_without_an_end_token_is_refused(
    engine: OpenAIEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ends", frozenset({310}))  # another checkpoint's
    ended = next(one for one in PROMPTS if answer(one, TOKENS)[0][-1] == END)
    with pytest.raises(InputError, match="ended without an end token"):
        dict(engine.generate([ended], TOKENS))


def probe(engine: OpenAIEngine) -> bool:
    return engine.client.run(engine.probe(PROBES)).result()


def test_the_probe_finds_out_what_changes_log_probs(engine: OpenAIEngine, server: ModelServer) -> None:
    assert probe(engine)
    server.echoes = False
    assert not probe(engine)
    server.melts = True
    with pytest.raises(InputError, match="depend on the temperature"):
        probe(engine)
    server.melts, server.echoes, server.penalty = False, True, 0.5
    with pytest.raises(InputError, match=r"0\.5 nats apart"):
        probe(engine)


GARBLED: dict[str, Callable[[list[float]], list[float]]] = {
    "the next one's": lambda logprobs: [*logprobs[1:], logprobs[0]],
    "decimal logarithms": lambda logprobs: [one / np.log(10) for one in logprobs],
    "doubled": lambda logprobs: [2 * one for one in logprobs],
    "none": lambda logprobs: [0.0] * len(logprobs),
    "one in five": lambda logprobs: [one - (place % 5 == 4) for place, one in enumerate(logprobs)],
}


@pytest.mark.parametrize("how", GARBLED)
def test_log_probs_of_answers_that_are_not_those_of_given_tokens_are_refused(
    engine: OpenAIEngine, server: ModelServer, how: str
) -> None:
    server.garbles = GARBLED[how]
    with pytest.raises(InputError, match=r"nats apart"):
        probe(engine)


def test_without_an_echo_the_tokens_of_an_answer_are_asked_for_one_by_one(
    engine: OpenAIEngine, server: ModelServer
) -> None:
    server.echoes, server.garbles = False, GARBLED["the next one's"]
    with pytest.raises(InputError, match="depend on the temperature, or on what else it answers"):
        probe(engine)


def test_rounding_passes_and_certain_answers_are_said_to_prove_little(
    engine: OpenAIEngine, server: ModelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = random.Random(0)
    server.garbles = lambda logprobs: [min(0.0, one + noise.gauss(0, 0.04)) for one in logprobs]  # bfloat16: less
    assert probe(engine) and "is certain of nearly every token" not in capsys.readouterr().out
    server.garbles, server.echoes = lambda logprobs: [one / 10 for one in logprobs], False
    assert not probe(engine) and "is certain of nearly every token" in capsys.readouterr().out
    server.garbles = GARBLED["none"]
    with pytest.raises(InputError, match="says 0 for the log-prob of every token"):
        probe(engine)


@pytest.mark.parametrize("echoes", [True, False])
def test_addresses_of_different_models_are_refused(tiny_checkpoint: Path, echoes: bool) -> None:
    with ModelServer() as one, ModelServer() as same, ModelServer() as other:
        one.echoes = same.echoes = other.echoes = echoes
        assert OpenAIEngine.open(tiny_checkpoint, asked(urls=[one.url, same.url])).rescores is echoes
        other.weights = (77,)
        with pytest.raises(InputError) as error:
            OpenAIEngine.open(tiny_checkpoint, asked(urls=[one.url, same.url, other.url]))
        names = [each.url.removeprefix("http://") for each in (one, other)]
        assert f"{names[0]} and {names[1]} serve different models" in said(error)


def test_no_base_model_where_the_server_does_not_echo(server: ModelServer, tiny_checkpoint: Path) -> None:
    server.echoes = False
    assert not OpenAIEngine.open(tiny_checkpoint, asked(urls=[server.url])).rescores


def test_a_server_of_another_model_is_refused(tiny_checkpoint: Path) -> None:
    with ModelServer("other") as server:
        with pytest.raises(InputError) as error:
            OpenAIEngine.open(tiny_checkpoint, asked(urls=[server.url]))
        assert "serves 'other', and not 'tiny'. Start it with --served-model-name tiny" in said(error)
        with ModelServer() as too:  # vLLM serves one model a server: the base's is another address
            both = OpenAIEngine.open(tiny_checkpoint, asked(urls=[server.url, too.url]))
            assert [one.url for one in both.client.addresses] == [too.url]


def test_one_model_is_not_two_checkpoints(server: ModelServer, tiny_checkpoint: Path, make_checkpoint: Any) -> None:
    named = OpenAIEngine.open(tiny_checkpoint, asked(urls=[server.url], model="tiny"))
    assert named.identity["model"] == "tiny"
    with pytest.raises(InputError, match="'tiny' was another checkpoint a moment ago"):
        OpenAIEngine.open(
            make_checkpoint(tiny_checkpoint.parent / "base", seed=5), asked(urls=[server.url], model="tiny")
        )


def test_addresses_share_the_work_and_one_that_goes_down_is_left(tiny_checkpoint: Path) -> None:
    with ModelServer() as one, ModelServer() as other:
        nobody = "http://127.0.0.1:1"
        engine = OpenAIEngine.open(tiny_checkpoint, asked(urls=[one.url, other.url, nobody], concurrency=8))
        assert len(engine.client.addresses) == 2 and engine.at_once == 2
        before = one.served["right"], other.served["right"]
        assert len(dict(engine.generate(PROMPTS[:200], TOKENS))) == 200
        shares = one.served["right"] - before[0], other.served["right"] - before[1]
        assert sum(shares) == 200 and min(shares) > 60 and max(one.peak, other.peak) <= 8
        finding = engine.generate(PROMPTS[:400], TOKENS)
        next(finding)
        other.__exit__()
        found = dict(finding)
        assert len(found) == 399 and all(right(PROMPTS[row], each) for row, each in found.items())


@pytest.mark.parametrize("fault", ["500", "no log-probs"])
def test_an_address_that_is_always_wrong_does_not_stop_the_others(tiny_checkpoint: Path, fault: str) -> None:
    """It answers at once, so that it would always have the most room."""
    with ModelServer() as well, ModelServer() as broken:
        how = asked(urls=[well.url, broken.url], concurrency=8, backoff=0.05)
        engine = OpenAIEngine.open(tiny_checkpoint, how)
        broken.fault, before = lambda prompt: fault, broken.served[fault]

        def late(handler: Any, body: dict[str, Any]) -> bool:
            time.sleep(0.02)
            return False

        well.instead = late
        found = dict(engine.generate(PROMPTS[:80], TOKENS))
        assert all(right(PROMPTS[row], each) for row, each in found.items()) and len(found) == 80
        assert broken.served[fault] - before < 80


def test_what_fails_is_asked_again_at_another_address(tiny_checkpoint: Path) -> None:
    with ModelServer() as well, ModelServer() as broken:
        engine = OpenAIEngine.open(tiny_checkpoint, asked(urls=[well.url, broken.url], tries=2, backoff=0.001))
        broken.fault = lambda prompt: "500"
        for prompt in PROMPTS[:20]:
            assert len(dict(engine.generate([prompt], TOKENS))) == 1
            engine.client.addresses[1].back = 0.0  # not paused: the next may begin there again
        assert broken.served["500"] > 2


def test_it_waits_as_long_as_it_is_asked_to(engine: OpenAIEngine, server: ModelServer) -> None:
    first = iter(["429"])
    server.fault = lambda prompt: next(first, None)
    server.pause = 1
    dict(engine.generate(PROMPTS[:1], TOKENS))
    (before, _), (after, _) = server.requests[-2:]
    assert after - before >= 1


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("2", 2, 2),
        ("0.5", 0.5, 0.5),
        ("1e9", 120, 120),
        ("inf", 120, 120),
        *[(text, 0, 0) for text in ("", "-5", "nan", "²", "soon", formatdate(0), "Mon, 99 Foo 2026")],
    ],
)
def test_how_long_a_server_asks_to_be_left_alone(text: str, least: float, most: float) -> None:
    assert least <= client._asked(text) <= most


def test_a_server_may_name_a_date() -> None:
    assert 30 <= client._asked(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert client._asked(formatdate(time.time() + 9999, usegmt=True)) == 120


def test_a_redirect_says_where_to(engine: OpenAIEngine, server: ModelServer) -> None:
    to = "https://me:word@elsewhere:8000/v1/completions?token=word"
    server.instead = lambda handler, body: handler.send(307, {}, Location=to) is None
    with pytest.raises(
        InputError, match=r"redirects /v1/completions to https://elsewhere:8000/v1/completions\. Use"
    ) as told:
        dict(engine.generate(PROMPTS[:1], TOKENS))
    assert "word" not in said(told)


def test_the_key_is_sent_and_never_shown(
    server: ModelServer, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TBD_SERVER_KEY", "sk-hidden")
    engine = OpenAIEngine.open(tiny_checkpoint, asked(urls=[server.url]))
    assert server.requests[-1][1]["Authorization"] == "Bearer sk-hidden"
    messages = []
    for fault, kind in (("401", InputError), ("500", TransientFault)):
        server.fault = lambda prompt, fault=fault: fault  # type: ignore[misc]
        with pytest.raises(kind) as error:
            dict(engine.generate(PROMPTS[:1], TOKENS))
        messages.append(said(error))
    assert "TBD_SERVER_KEY" in messages[0] and "***" in messages[1]
    assert "hidden" not in "".join([*messages, json.dumps(engine.identity), *capfd.readouterr()])


def test_a_key_with_a_line_break_is_that_key(
    server: ModelServer, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TBD_SERVER_KEY", " sk-hidden\n")
    OpenAIEngine.open(tiny_checkpoint, asked(urls=[server.url]))
    assert server.requests[-1][1]["Authorization"] == "Bearer sk-hidden"


@pytest.mark.parametrize("value", ["sk-hid\nden", "“sk-hidden”", "schlüssel-hidden", "sk-hid\x7fden"])
def test_a_key_that_no_request_can_carry_is_refused_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(InputError, match="OPENAI_API_KEY") as error:
        key()
    assert "hid" not in said(error)


def test_a_key_is_not_shown_where_a_long_error_is_cut(
    server: ModelServer, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TBD_SERVER_KEY", "sk-hidden-0123456789")
    engine = OpenAIEngine.open(tiny_checkpoint, asked(urls=[server.url]))
    for padding in range(170, 205, 7):
        told = {"error": {"message": "x" * padding + " sk-hidden-0123456789"}}
        server.instead = lambda handler, body, told=told: handler.send(400, told) or True  # type: ignore[misc]
        with pytest.raises(InputError, match="refuses the request") as error:
            dict(engine.generate(PROMPTS[:1], TOKENS))
        assert "sk" not in said(error)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://me:word@127.0.0.1:1"),
        ("NO_PROXY", "::1/128,[::1]"),
        ("HTTP_PROXY", "ftp://me:word@127.0.0.1:1"),
        ("http_proxy", "http://me:word@127.0.0.1:port"),
        ("SSL_CERT_FILE", "/nowhere/word"),
    ],
)
def test_a_proxy_or_certificate_that_cannot_be_used_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"Correct or unset .*{name}") as error:
        Client(["http://127.0.0.1:1"], Server(), None, None)
    assert "word" not in said(error)


# --- a server that tbd starts ----------------------------------------------------------------------------------------


@pytest.fixture
def notes(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which each server that is started leaves its environment."""
    monkeypatch.syspath_prepend(str(REPOSITORY))
    (workspace / "notes").mkdir()
    yield workspace / "notes"
    end_started()


def command(notes: Path) -> str:
    parts = [sys.executable, str(REPOSITORY / "tests/model_server.py"), "{checkpoint}", "{port}", str(notes)]
    return shlex.join(parts)


def servers(notes: Path) -> list[int]:
    """Those that were started, by their process id, the newest last."""
    files = sorted(notes.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    return [int(file.stem) for file in files]


def gone(pid: int) -> bool:
    end = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_a_server_is_started_watched_and_ended(
    notes: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TBD_SERVER_KEY": "sk", "HF_TOKEN": "t", "INDEX": "https://me:word@host/", "KEPT": "1"}.items():
        monkeypatch.setenv(name, value)
    engine = OpenAIEngine.open(tiny_checkpoint, asked(command=command(notes), patience=30))
    assert "model" not in engine.identity
    assert engine.identity["command"] == sha256(command(notes))[:16]  # its options can change the numbers
    (first,) = servers(notes)
    seen = json.loads((notes / f"{first}.json").read_text())
    assert seen["KEPT"] == "1" and not {"TBD_SERVER_KEY", "HF_TOKEN", "INDEX", "PYTHONPATH"} & set(seen)
    os.kill(first, signal.SIGKILL)
    found = dict(engine.generate(PROMPTS[:100], TOKENS))
    assert all(right(PROMPTS[row], each) for row, each in found.items())
    assert len(servers(notes)) == 2
    end_started()
    assert gone(servers(notes)[-1])


def test_a_server_ends_with_whoever_started_it(notes: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tbd.generation.server import Server;"
        "Server(sys.argv[1], Path('c'), 'auto', 30); print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, command(notes)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    ) as starter:
        assert starter.stdout is not None
        assert "log:" in starter.stdout.readline() and starter.stdout.readline() == "up\n"
        starter.kill()
    assert gone(servers(notes)[0])


def test_one_that_does_not_start_says_why(notes: Path, tiny_checkpoint: Path) -> None:
    (notes / "broken").touch()
    with pytest.raises(TransientFault) as error:
        OpenAIEngine.open(tiny_checkpoint, asked(command=command(notes), patience=30))
    assert "did not start: the weights are of another world (log: .tbd/server-tiny.log)" in said(error)
    with pytest.raises(InputError, match="no such program: nothing-of-the-kind"):
        OpenAIEngine.open(tiny_checkpoint, asked(command="nothing-of-the-kind {checkpoint} {port}"))


# --- parameters, and the noise floor ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "server", "words"),
    [
        ("openai", {}, "one of server.urls and server.command"),
        ("openai", {"urls": ["http://a:1"], "command": "x {checkpoint} {port}"}, "one of server.urls"),
        ("fake", {"urls": ["http://me:word@host:1"]}, "number 1 holds credentials"),
        ("fake", {"urls": ["http://host:1", "host:2"]}, "number 2 is no address"),
        ("fake", {"urls": ["http://xn--a"]}, "number 1 is no address"),
        ("fake", {"urls": ["http://☃.net"]}, "number 1 is no address"),
        ("fake", {"urls": ["http://[v1.a]:1"]}, "number 1 is no address"),
        ("fake", {"urls": ["http://\xad"]}, "number 1 is no address"),
        ("fake", {"urls": ["http://host:1\t"]}, "number 1 is no address"),
        ("fake", {"command": "vllm serve {checkpoint}"}, "has no {port}"),
        ("fake", {"concurrency": 0}, "generate.server.concurrency"),
    ],
)
def test_parameters_that_cannot_be(engine: str, server: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        params.parse(changed("generate", TREE["generate"] | {"engine": engine, "server": server}))
    assert words in said(error) and said(error).startswith("params.yaml: generate") and "word" not in said(error)


def test_the_noise_floor_is_what_a_second_time_differs_by() -> None:
    def made(ids: list[int], *logprobs: float) -> Completion:
        return Completion(np.array(ids, np.int32), np.array(logprobs, np.float32), "length")

    first = [made([5, 6, 7], -0.1, -0.2, -0.3), made([5, 6], -0.5, -0.5)]
    again = [made([5, 6, 8], -0.1, -0.4, -0.9), made([5, 6], -0.5, -0.6)]
    found = noise.compare(first, again)
    assert found == {"questions": 2, "diverged": 1, "tokens": 4, "median": 0.05, "largest": 0.2}
    assert noise.compare(first[:1], [made([9], -0.1)]) == {
        "questions": 1, "diverged": 1, "tokens": 0, "median": None, "largest": None,
    }  # fmt: skip


@pytest.mark.parametrize(("status", "error"), [("200 OK", Wrong), ("502 Bad Gateway", Failed)])
def test_a_compressed_answer_is_not_unpacked(status: str, error: type[Exception]) -> None:
    with slow(f"HTTP/1.1 {status}\r\nContent-Encoding: gzip\r\nContent-Length: 9999\r\n\r\n".encode()) as url:
        client = Client([url], Server(urls=[url], backoff=0.01), None, None)
        with pytest.raises(error, match="compressed" if error is Wrong else "502"):
            client.run(client.get(client.addresses[0], "/version")).result()
