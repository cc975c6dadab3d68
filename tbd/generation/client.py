"""Requests to servers of one model: so many at a time as they bear, again where they fail, never past a bound.

It knows addresses, times and bytes, and nothing of prompts, tokens or log-probs: what an answer must be, whoever asks
says. Requests run on one event loop in a thread of its own, for all callers in all threads.
"""

import asyncio
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from tbd.errors import InputError, TransientFault
from tbd.params import Server

Value = TypeVar("Value")

LONGEST_PAUSE = 30.0
"""seconds between two tries, unless the server asks for more"""
LONGEST_ASKED = 120.0
"""seconds that a server may ask to be left alone (Retry-After)"""
WAIT = 0.5
"""seconds between two looks at a server that is being started again"""
GLANCES, GLANCE = 3, 10.0
"""tries of a request that only looks at what a server is, and seconds for each"""
BUSY = (429, 503)
HEALS = (408, 409, 425)
"""of the 4xx, those that are worth another try"""

PROXY = re.compile("(http|https|all|no)_proxy|SSL_CERT_(FILE|DIR)", re.IGNORECASE)
"""variables of the environment that httpx looks at"""


class Wrong(Exception):
    """An answer that is not what was asked for: what is wrong with it, and what to do."""


class Failed(Exception):
    """A try that failed, with what was wrong and how many seconds the server asks to be left alone."""

    def __init__(self, said: str, pause: float = 0.0, busy: bool = False, down: bool = False) -> None:
        super().__init__(said)
        self.pause, self.busy, self.down = pause, busy, down


class Address:
    """One server, and how much it bears: additive increase, multiplicative decrease (Chiu and Jain, 1989)."""

    def __init__(self, url: str, most: int) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.name = urlsplit(url).netloc
        self.most, self.size = most, float(most)
        self.under_way = 0
        self.failures = 0
        """one after the other"""
        self.back = self.cut = self.crowded = 0.0
        """when it may be asked again, when it last failed, and when it was last found busy"""

    def free(self, now: float) -> bool:
        return self.under_way < int(self.size) and self.back <= now

    def well(self) -> None:
        self.failures, self.size = 0, min(self.most, self.size + 1 / self.size)

    def failed(self, error: Failed | Wrong, began: float, backoff: float, alone: bool) -> None:
        """`alone`: no other address can be asked meanwhile, so that only one that is down is left alone for a while."""
        now = time.monotonic()
        busy, down = isinstance(error, Failed) and error.busy, isinstance(error, Failed) and error.down
        if isinstance(error, Failed):
            self.back = max(self.back, now + error.pause)
        if busy and began > self.crowded:  # once for all that were under way together
            self.crowded, self.size = now, max(1.0, self.size / 2)
        if began > self.cut:
            self.cut = now
            self.failures += 1
            if down or not (busy or alone):
                self.back = max(self.back, now + _pause(backoff, self.failures))


def _pause(backoff: float, failures: int) -> float:
    """Seconds, with jitter: those that failed together do not come back together."""
    return min(LONGEST_PAUSE, backoff * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0)


class Client:
    """The servers of one model."""

    def __init__(self, urls: list[str], params: Server, key: str | None, ready: Callable[[], bool] | None) -> None:
        """`ready` tells whether a server that was started here answers, and starts it again where it ended.

        Raises InputError where the environment names a proxy or certificates that cannot be used.
        """
        self.params, self.key, self.ready = params, key, ready
        self.addresses = [Address(url, params.concurrency) for url in urls]
        self._room = asyncio.Condition()
        try:
            self._http = httpx.AsyncClient(
                headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
                timeout=None,  # ours is of the whole answer
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
                trust_env=ready is None,  # no proxy before a server of our own
            )
        except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
            names = sorted(name for name in os.environ if PROXY.fullmatch(name) and os.environ[name])
            raise InputError(
                f"the environment's proxies or certificates cannot be used ({type(error).__name__}). "
                f"Correct or unset {', '.join(names) or 'them'}."
            ) from None

    def run(self, work: Coroutine[Any, Any, Value]) -> Future[Value]:
        """Do it on the event loop of all clients."""
        return asyncio.run_coroutine_threadsafe(work, _loop())

    async def get(self, address: Address, path: str, most: int = 1 << 20) -> Any:
        """The JSON at a path, None where there is none. Raises Failed or Wrong."""
        for number in range(1, GLANCES + 1):
            try:
                status, headers, content = await self._send(address, "GET", path, None, most, GLANCE)
                if status in (404, 405):
                    return None
                self._check(address, status, headers, content, path)
                return self._parsed(content)
            except Failed:
                if number == GLANCES:
                    raise
                await asyncio.sleep(_pause(self.params.backoff, number))
        raise AssertionError

    async def ask(
        self,
        body: dict[str, Any],
        read: Callable[[Any], Value],
        most: int,
        address: Address | None = None,
        path: str = "/v1/completions",
    ) -> Value:
        """What `read` makes of the answer to a POST, at this address or at whichever has room.

        `read` raises Wrong for an answer that cannot be used; it is asked for again, for servers garble some.

        Raises:
            InputError: the server refuses the request, or none of its answers can be used.
            TransientFault: it does not answer.
        """
        failed: Exception | None = None
        at: Address | None = None
        alone = address is not None or len(self.addresses) == 1
        for number in range(1, self.params.tries + 1):
            at = await self._take(address, other_than=at)
            began = time.monotonic()
            try:
                status, headers, content = await self._send(at, "POST", path, body, most, self.params.timeout)
                self._check(at, status, headers, content, path)
                value = read(self._parsed(content))
            except Wrong as error:
                failed, pause = InputError(f"the server {at.name} cannot be used: {error}"), 0.0
                at.failed(error, began, self.params.backoff, alone)
            except Failed as error:
                failed = TransientFault(f"the server {at.name} failed {number} times: {error}. Nothing done is lost.")
                at.failed(error, began, self.params.backoff, alone)
                while error.down and self.ready is not None and not self.ready():
                    await asyncio.sleep(WAIT)
                pause = 0.0 if error.down else _pause(self.params.backoff, number)
            else:
                at.well()
                return value
            finally:
                await self._give_back(at)
            if pause and number < self.params.tries:
                await asyncio.sleep(pause)
        assert failed is not None
        raise failed

    async def _take(self, only: Address | None, other_than: Address | None) -> Address:
        """The address with the most room, as soon as one has any; one that just failed only if no other has."""
        those = [only] if only else self.addresses
        async with self._room:
            while True:
                now = time.monotonic()
                if free := [one for one in those if one.free(now)]:
                    found = min(free, key=lambda one: (one is other_than, one.under_way / one.size, random.random()))
                    found.under_way += 1
                    return found
                back = [one.back - now for one in those if one.back > now]
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(back) + 0.01 if back else None):
                        await self._room.wait()

    async def _give_back(self, address: Address) -> None:
        async with self._room:
            address.under_way -= 1
            self._room.notify(2)  # it may have grown by one

    async def _send(
        self, address: Address, method: str, path: str, body: Any, most: int, patience: float
    ) -> tuple[int, httpx.Headers, bytes]:
        content = bytearray()
        try:
            async with (
                asyncio.timeout(patience),
                self._http.stream(method, address.url + path, json=body) as response,
            ):
                encodings = response.headers.get("content-encoding", "").lower().split(",")
                if any(one.strip() not in ("", "identity") for one in encodings):  # a bomb, perhaps
                    if response.status_code == 200:
                        raise Wrong("its answer is compressed, which it was not asked for")
                    return response.status_code, response.headers, b""
                async for part in response.aiter_raw():
                    content += part
                    if len(content) > most:
                        raise Wrong(f"its answer is longer than {most:,} bytes. Is it a server of language models?")
        except TimeoutError:
            raise Failed(f"no answer in {patience:g} s", busy=True) from None
        except httpx.TransportError as error:
            said = self._plain(str(error)) or type(error).__name__
            raise Failed(said, down=not isinstance(error, httpx.RemoteProtocolError)) from None
        except httpx.HTTPError as error:
            raise Failed(self._plain(str(error))) from None
        return response.status_code, response.headers, bytes(content)

    def _check(self, address: Address, status: int, headers: httpx.Headers, content: bytes, path: str) -> None:
        if status == 200:
            return
        said = self._plain(_message(content))
        what = f"{status} {said}".strip()
        if status in BUSY or status in HEALS or status >= 500:
            raise Failed(what, _asked(headers.get("retry-after", "")), busy=status in BUSY)
        if 300 <= status < 400 and (to := headers.get("location")):
            there = self._plain(urlsplit(str(to))._replace(query="", fragment="").geturl())
            there = re.sub("//[^/]*@", "//", there)
            raise InputError(
                f"the server {address.name} redirects {path} to {there}. Use that address, without {path}."
            )
        hint = {
            401: " Set TBD_SERVER_KEY to its key.",
            403: " Set TBD_SERVER_KEY to its key.",
            404: f" Is there {path}, and the model?",
        }.get(status, "")
        raise InputError(f"the server {address.name} refuses the request: {what}.{hint}")

    def _parsed(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise Failed("its answer is no JSON (cut off?)") from None

    def _plain(self, text: str) -> str:
        """One line of what a server says, without our key."""
        shown = text.replace(self.key, "***") if self.key else text  # before it is cut, or a part of it would stay
        return " ".join(shown.split())[:200]


def _asked(text: str) -> float:
    """Seconds of a Retry-After, which is a number or a date, from 0 to LONGEST_ASKED."""
    try:
        pause = float(text)
    except ValueError:
        try:
            pause = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(pause, LONGEST_ASKED) if pause > 0 else 0.0  # NaN is no pause


def _message(content: bytes) -> str:
    """What the body of an error says."""
    text = content.decode(errors="replace")
    try:
        tree = json.loads(text)
        said = tree.get("error", tree)
        return str(said.get("message", said) if isinstance(said, dict) else said)
    except (ValueError, AttributeError, RecursionError):
        return text


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="requests", daemon=True).start()
    return loop
