"""A model of which there is only a server: registered, told again, and refused once it is another."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tbd import checkpoints, sources
from tbd.checkpoints import rendering, served
from tbd.checkpoints.served import Asked
from tbd.errors import InputError, TransientFault
from tbd.generation import engines
from tbd.generation.engines.served import differs, register
from tbd.params import Generate, Server
from tests.model_server import CONTEXT, ModelServer, answer

pytestmark = pytest.mark.slow

QUICK = Server(urls=["http://127.0.0.1:9"], backoff=0.002, tries=3)
"""of a server that nobody is to ask"""
HOW = Generate(engine="fake", device="cpu", dtype="auto", max_new_tokens=6, batch_size=50, server=QUICK)
QUESTIONS = ["How much is 1 + 1?", "Say hello.", "¿Qué?"]


@pytest.fixture(scope="module")
def running() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


@pytest.fixture
def server(running: ModelServer, workspace: Path) -> ModelServer:
    """An honest one, and a workspace to register it in."""
    running.behave()
    return running


def registered(server: ModelServer) -> Path:
    return register(f"openai:tiny@{server.url}/v1", HOW)


def opened(folder: Path) -> Any:
    kind, how = engines.of(folder, HOW)
    return kind.open(folder, how)


def test_it_is_registered_once_and_answers_with_its_own_tokens(server: ModelServer) -> None:
    folder = registered(server)
    known = served.read(folder)
    assert (known.model, known.url, known.server, known.max_model_len) == ("tiny", server.url, "vllm 0.0.1", CONTEXT)
    checkpoints.inspect(folder)
    assert registered(server) == folder and [*served.SERVED.iterdir()] == [folder]
    engine = opened(folder)
    assert engine.identity["fingerprint"] == checkpoints.fingerprint(folder) and engine.rescores
    assert engine.identity["served"] == f"openai:tiny@{server.url}"
    kind, how = engines.of(folder, HOW)
    prompts, frame, odd = kind.prompts(folder, how, QUESTIONS)
    assert list(prompts[0]) == [2, *(4 + one for one in QUESTIONS[0].encode()), 3]
    assert (frame, odd) == (rendering.frame("", ""), 0)
    for row, found in engine.generate(prompts, 6):
        assert found.token_ids.tolist() == answer(prompts[row], 6)[0]


def test_a_template_that_looks_at_the_question_is_odd(server: ModelServer) -> None:
    kind, how = engines.of(folder := registered(server), HOW)
    server.template = lambda question: "Think! " if "hello" in question else "Hm. "
    found = kind.prompts(folder, how, QUESTIONS)
    assert (found.frame, found.odd) == (rendering.frame("Hm. ", ""), 1)


def test_one_that_answers_otherwise_is_refused_and_registered_anew(server: ModelServer) -> None:
    folder = registered(server)
    server.weights = (77,)
    with pytest.raises(InputError, match=r"answers otherwise .* tbd check openai:tiny@.* audits what it is now"):
        opened(folder)
    other = registered(server)
    assert other != folder and checkpoints.fingerprint(other) != checkpoints.fingerprint(folder)
    opened(other)
    server.weights = ()
    assert registered(server) == folder
    server.template = lambda question: "You are a poet. "
    with pytest.raises(InputError, match="another chat template or tokenizer, or one that tells the date"):
        opened(folder)
    folder.joinpath(served.FILE).write_text("{}")
    with pytest.raises(InputError, match="is not what tbd wrote"):
        checkpoints.inspect(folder)


def test_one_that_is_down_is_a_transient_fault(workspace: Path) -> None:
    with ModelServer() as server:
        folder = registered(server)
    for ask in (lambda: opened(folder), lambda: register(f"openai:tiny@{server.url}", HOW)):
        with pytest.raises(TransientFault, match="no server answers"):
            ask()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"template": None}, "Is there /tokenize"),
        ({"uncounted": 1}, "the end token has to be sent"),
        ({"shape": "text"}, "text in place of token ids"),
        ({"melts": True}, "depend on the temperature"),
    ],
)
def test_a_server_that_cannot_serve_as_one_is_refused(server: ModelServer, wrong: dict[str, Any], words: str) -> None:
    vars(server).update(wrong)
    with pytest.raises(InputError, match=words) as error:
        registered(server)
    assert "\n" not in str(error.value) and not served.SERVED.exists()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("openai:tiny", "is named openai:MODEL@URL"),
        ("openai:@http://host", "is named openai:MODEL@URL"),
        ("openai:tiny@ftp://host", "is named openai:MODEL@URL"),
        ("openai:tiny@http://me:word@host:1", "holds credentials. Put the key into TBD_SERVER_KEY"),
        ("openai:tiny@http://host?key=word", "is no address such as"),
        ("openai:other@{url}", "serves 'tiny', and not 'other'. Name one of those"),
    ],
)
def test_addresses_that_cannot_be(server: ModelServer, address: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        register(address.format(url=server.url), HOW)
    assert words in str(error.value) and "word" not in str(error.value)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("Is <|im_end|> a word?", "holds '<|im_end|>'"),
        ("[INST] Say so", "holds '[INST]'"),
        ("long " * 300, f"exceed the {CONTEXT} of the server"),
    ],
)
def test_questions_that_cannot_be_asked(server: ModelServer, question: str, words: str) -> None:
    folder = registered(server)
    kind, how = engines.of(folder, HOW)
    with pytest.raises(InputError) as error:
        kind.prompts(folder, how, ["Well?", question])
    assert words in str(error.value)


def test_a_folder_that_somebody_brings_asks_no_server(server: ModelServer) -> None:
    folder, before = registered(server), len(server.requests)
    brought = Path("incoming/model")
    brought.parent.mkdir()
    brought.symlink_to(folder.absolute())
    for name in ("alone", "beside a model"):
        shutil.copytree(folder, brought.with_name(name))
    brought.with_name("beside a model").joinpath("config.json").write_text("{}")
    for one in brought.parent.iterdir():
        assert engines.of(one, HOW) == (engines.find("fake"), HOW)
        with pytest.raises(InputError, match="names a server"):
            sources.find(str(one))
    assert len(server.requests) == before


def test_only_check_takes_one(server: ModelServer) -> None:
    folder = registered(server)
    for address in (str(folder), f"openai:tiny@{server.url}"):
        with pytest.raises(InputError, match="nly tbd check takes"):
            sources.find(address)


def asked(*logprobs: float, ids: tuple[int, ...] = (5, 6, 7, 8)) -> Asked:
    return Asked(text="q", prompt=[1], token_ids=list(ids), logprobs=list(logprobs), ended=False)


def test_what_differs_is_another_model_and_rounding_is_not() -> None:
    known = [asked(-0.1, -0.7, -0.2, -0.1)]
    assert differs(known, [asked(-0.12, -0.65, -0.2, -0.1)]) is None
    assert differs(known, [asked(-0.1, -0.7, -0.2, -0.9, ids=(5, 6, 9, 8))]) is None  # two that are about as likely
    assert "part" in (differs(known, [asked(-0.1, -0.7, -0.2, -0.1, ids=(9, 6, 7, 8))]) or "")
    assert "0.15 nats" in (differs(known, [asked(-0.1, -0.1, -0.2, -0.1)]) or "")
    assert "template" in (differs(known, [asked(-0.1).model_copy(update={"prompt": [2]})]) or "")
