"""A server of /v1/completions on loopback, honest or faulty. Also a command, so that tbd can start one.

Its model is a hash: every sequence of ids has one likeliest next id with one log-prob, whoever asks and how often.
"""

import contextlib
import hashlib
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

END = 1
"""the id of `<end>` in the tokenizer of `tests.conftest`"""
CONTEXT = 1000
"""tokens that a prompt and its answer may have together"""
FAULTS = (
    *("429", "500", "503", "time-out", "hang up", "cut JSON", "cut off", "no JSON"),
    *("count", "missing", "positive", "-9999", "NaN", "text", "echo", "not the likeliest", "no log-probs", "too long"),
    *("two log-probs", "two ids", "unknown token"),
)


def likeliest(prefix: Sequence[int]) -> tuple[int, float]:
    """The next id after `prefix`, and its log-prob."""
    number = int.from_bytes(hashlib.blake2b(b",".join(b"%d" % one for one in prefix), digest_size=8).digest(), "big")
    return (END if number % 20 == 0 else 4 + number % 300), -0.001 - (number >> 32) % 1000 / 2000


def logprob(prefix: Sequence[int], token: int) -> float:
    best, value = likeliest(prefix)
    return value if token == best else value - 3.0 - token / 100


def answer(prompt: Sequence[int], most: int) -> tuple[list[int], list[float]]:
    """The greedy answer, to its end token or to `most` tokens."""
    ids, logprobs = list(prompt), []
    while len(logprobs) < most and not (logprobs and ids[-1] == END):
        token, value = likeliest(ids)
        ids.append(token)
        logprobs.append(value)
    return ids[len(prompt) :], logprobs


class ModelServer:
    """`fault` names what is wrong with the answer to a prompt, if anything; see FAULTS."""

    def __init__(self, *names: str, port: int = 0, root: str | None = None) -> None:
        self.behave()
        self.served: Counter[str] = Counter()
        self.requests: list[tuple[float, dict[str, str]]] = []
        self.under_way = self.peak = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                served = {"owned_by": "vllm", "max_model_len": CONTEXT}
                models = [served | {"id": name, "root": root or name} for name in names or ("tiny",)]
                trees = {"/v1/models": {"data": models}, "/version": {"version": "0.0.1"}, "/health": {}}
                self.send(200 if self.path in trees else 404, trees.get(self.path, {}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.path != "/v1/completions":
                    return self.send(*server.tokens(self.path, body))
                with server.lock:
                    server.requests.append((time.monotonic(), dict(self.headers)))
                    server.under_way += 1
                    server.peak = max(server.peak, server.under_way)
                    busy = server.under_way > server.most
                try:
                    if not server.instead(self, body):
                        server.answer(self, body, "429" if busy else server.fault(tuple(body["prompt"])))
                finally:
                    with server.lock:
                        server.under_way -= 1

            def send(self, status: int, tree: Any, cut: int = 0, **headers: str) -> None:
                content = json.dumps(tree).encode() if not isinstance(tree, bytes) else tree
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key.replace("_", "-"), value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - cut])
                self.close_connection |= bool(cut)

            def log_message(self, *arguments: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

            def handle_error(self, *arguments: Any) -> None: ...  # a client that went away

        self.http = Server(("127.0.0.1", port), Handler)

    def __enter__(self) -> "ModelServer":
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def behave(self) -> None:
        """From now on be honest."""
        self.fault: Callable[[tuple[int, ...]], str | None] = lambda prompt: None
        self.instead: Callable[[Any, dict[str, Any]], bool] = lambda handler, body: False
        """answers a request in place of this server, unless it returns False"""
        self.shape = "vllm"
        """or tokens (older vLLM), llama.cpp, text"""
        self.echoes = True
        self.penalty = 0.0
        """nats by which the log-probs of what it writes are too low"""
        self.garbles: Callable[[list[float]], list[float]] = lambda logprobs: logprobs
        """what it says in place of the log-probs of what it writes"""
        self.melts = False
        """whether log-probs follow the temperature"""
        self.most = 10_000
        """requests at a time; others get 429"""
        self.pause = 0
        """seconds that it asks for with 429 and 503"""
        self.weights: tuple[int, ...] = ()
        """other ones make it another model"""
        self.uncounted = 0
        """tokens of an answer that it counts and does not send"""
        self.template: Callable[[str], str] | None = lambda question: ""
        """what its chat template puts before a question; None: it has no /tokenize"""

    def answer(self, handler: Any, body: dict[str, Any], fault: str | None) -> None:
        self.served[fault or "right"] += 1
        if fault in ("429", "503"):
            return handler.send(int(fault), {"error": {"message": "later"}}, Retry_After=str(self.pause))
        if fault == "500":
            return handler.send(500, {"error": {"message": f"broken, {handler.headers.get('authorization')}"}})
        if fault == "401":
            return handler.send(401, {"error": {"message": f"no such key: {handler.headers.get('authorization')}"}})
        if fault == "time-out":
            time.sleep(0.7)
        if fault == "hang up":
            handler.close_connection = True
            return None
        if fault == "too long":
            return handler.send(200, b" " * (2 << 20))
        tree = self.completion(body, fault)
        content = json.dumps(tree).encode()
        if fault == "cut JSON":
            return handler.send(200, content[: len(content) // 2])
        if fault == "no JSON":
            return handler.send(200, b"<html>a proxy</html>")
        with contextlib.suppress(OSError):  # it waited no longer
            return handler.send(200, tree, cut=100 if fault == "cut off" else 0)

    def completion(self, body: dict[str, Any], fault: str | None) -> Any:
        prompt, most = body["prompt"], body["max_tokens"]
        ids, logprobs = answer((*self.weights, *prompt), most)
        finish = "stop" if ids[-1] == END else "length"
        logprobs = [value - self.penalty for value in logprobs]
        logprobs = self.garbles(logprobs)
        if self.melts:
            logprobs = [value - body["temperature"] for value in logprobs]
        tops = list(logprobs)
        shown = ids
        echoed = body.get("echo") and self.echoes
        if echoed or fault == "echo":
            before: list[Any] = [None if echoed else -0.5]
            before += [logprob((*self.weights, *prompt[:i]), prompt[i]) for i in range(1, len(prompt))]
            shown, logprobs, tops = [*prompt, *ids], before + logprobs, before + tops
            if fault == "echo":
                ids, logprobs, tops = ([*one][:most] for one in (shown, logprobs, tops))
                shown = ids
        if fault == "count":
            logprobs = logprobs[:-1]
        if fault in ("missing", "positive", "-9999", "NaN"):
            logprobs[-1] = {"missing": None, "positive": 0.1, "-9999": -9999.0, "NaN": float("nan")}[fault]
        if fault == "not the likeliest":
            logprobs[-1] -= 1
        if fault == "two log-probs":
            logprobs, tops = [0.0] * len(logprobs), [top - 0.01 for top in tops]
        if fault == "unknown token":
            ids = shown = [2**30, *ids[1:]]
        shape = "text" if fault == "text" else self.shape
        tokens = [f"t{one}" if shape == "text" else f"token_id:{one}" for one in shown]
        if shape == "llama.cpp":
            entries = [
                {"id": one, "token": "t", "logprob": value, "top_logprobs": [{"id": one, "logprob": top}]}
                for one, value, top in zip(ids, logprobs, tops, strict=False)
            ]
            said: Any = {"content": entries}
        else:
            best = [{token: top} for token, top in zip(tokens, tops, strict=True)]
            said = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": best}
        choice = {"text": "", "logprobs": None if fault == "no log-probs" else said, "finish_reason": finish}
        if shape == "vllm":
            choice |= {"token_ids": ids, "prompt_token_ids": prompt}
        if fault == "two ids":
            choice["token_ids"] = [one + 1 for one in ids]
        return {"choices": [choice], "usage": {"completion_tokens": len(ids) + self.uncounted}}

    def tokens(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """As /tokenize and /detokenize of vLLM, with the bytes of a text as its tokens."""
        if self.template is None or path not in ("/tokenize", "/detokenize"):
            return 404, {"detail": "Not Found"}
        if path == "/detokenize":
            return 200, {"prompt": bytes(one - 4 for one in body["tokens"] if one > 3).decode()}
        if "prompt" in body:
            return 200, {"tokens": [4 + one for one in body["prompt"].encode()], "max_model_len": CONTEXT}
        (message,) = body["messages"]
        question = message["content"]
        asked = [4 + one for one in (self.template(question) + question).encode()]
        return 200, {"count": len(asked) + 2, "max_model_len": CONTEXT, "tokens": [2, *asked, 3]}


def at_random(seed: int, share: float, in_a_row: int = 3) -> Callable[[tuple[int, ...]], str | None]:
    """Faults of every kind at that share of the requests, at most so many in a row for one prompt."""
    rng, rows, lock = random.Random(seed), Counter[tuple[int, ...]](), threading.Lock()

    def fault(prompt: tuple[int, ...]) -> str | None:
        with lock:
            if rng.random() < share and rows[prompt] < in_a_row:
                rows[prompt] += 1
                return rng.choice(FAULTS)
            rows[prompt] = 0
            return None

    return fault


if __name__ == "__main__":
    checkpoint, port, notes = sys.argv[1:]
    Path(notes, f"{os.getpid()}.json").write_text(json.dumps(dict(os.environ)))
    if Path(notes, "broken").exists():
        sys.exit("loading 10%\rloading 100%\r\x1b[31mthe weights are of\x1b]0;a title\x07 another world\r")
    with ModelServer("whatever", port=int(port), root=checkpoint):
        threading.Event().wait()
