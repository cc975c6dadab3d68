"""How far long work is: the sums, the line, and that something is said while the work itself is silent."""

import os
import pty
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbd.progress import Progress, clock


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("tbd.progress.time", found)
    return found


def test_each_kind_of_work_is_left_at_its_own_speed(passing: Clock) -> None:
    progress = Progress("reference")
    progress.plan("read", 1000)
    progress.plan("written", 200)
    passing.now = 60  # a model was loaded
    progress.begin("answers")
    passing.now += 10
    progress.advance("read", 100)  # 10 a second
    assert progress.left() == pytest.approx(900 / 10 + 200 / 10)  # writing is not known yet
    passing.now += 20
    progress.advance("written", 40)  # 2 a second
    assert progress.left() == pytest.approx(900 / 10 + 160 / 2)
    assert (
        progress.line()
        == " 15% reference: answers; 100 of 1,000 tokens read at 10/s; 40 of 200 tokens written at 2/s; 2:50 left"
    )


def test_answers_that_end_early_shorten_what_is_left(passing: Clock) -> None:
    progress = Progress("x")
    progress.plan("written", 1000)
    passing.now = 10
    progress.advance("written", 100)
    assert progress.left() == pytest.approx(90)
    progress.spare("written", 300)  # they were allowed 400
    assert progress.left() == pytest.approx(600 / 4 / 10)
    progress.plan("written", -600)  # the others are in the store
    assert progress.left() == 0 and progress.line().startswith("100% x")


def test_what_a_server_read_while_it_wrote_has_no_speed(passing: Clock) -> None:
    progress = Progress("x")
    for kind, tokens in (("written", 40), ("read", 100)):
        progress.plan(kind, 2 * tokens)
        passing.now += 10 if kind == "written" else 1e-6
        progress.advance(kind, tokens)
    assert progress.line() == " 50% x: under way; 40 of 80 tokens written at 4/s; 100 of 200 tokens read; 0:10 left"


def test_what_memory_took_back_is_still_to_do(passing: Clock) -> None:
    progress = Progress("x")
    progress.plan("read", 100)
    passing.now = 5
    progress.advance("read", 50)
    progress.advance("read", -50)
    assert progress.left() is None
    passing.now = 10
    progress.advance("read", 50)
    assert progress.left() == pytest.approx(10)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(["read", "written"]), st.integers(1, 50)), min_size=1, max_size=40))
def test_steady_work_ends_when_it_was_said_to(steps: list[tuple[str, int]]) -> None:
    """A second a token read, three a token written: at every moment after the first of each kind the time left is
    exact."""
    cost = {"read": 1.0, "written": 3.0}
    with pytest.MonkeyPatch.context() as patch:
        passing = Clock()
        patch.setattr("tbd.progress.time", passing)
        progress = Progress("x")
        for kind, tokens in steps:
            progress.plan(kind, tokens)
        for at, (kind, tokens) in enumerate(steps):
            passing.now += tokens * cost[kind]
            progress.advance(kind, tokens)
            if {kind for kind, _ in steps[at + 1 :]} <= {kind for kind, _ in steps[: at + 1]}:
                assert progress.left() == pytest.approx(sum(n * cost[kind] for kind, n in steps[at + 1 :]))


def test_what_is_over_at_once_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("validate"):
        pass
    assert capsys.readouterr().out == ""


def test_it_speaks_while_the_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reference", every=0.05) as progress:
        progress.begin("loading a model")
        end = time.monotonic() + 10
        while (out := capsys.readouterr().out).count("loading a model, 0:00 so far") < 2 and time.monotonic() < end:
            time.sleep(0.2)
    assert out.splitlines()[0] == "reference: loading a model, 0:00 so far"


def test_it_ends_with_its_block(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), Progress("x", every=0.01):
        raise ZeroDivisionError
    time.sleep(0.05)
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().out == ""


IN_A_TERMINAL = """
import time
from tbd import foreign
from tbd.progress import Progress
foreign.guard()
with Progress("loading"):
    time.sleep(0.7)
with Progress("reference") as progress:
    progress.plan("read", 1000)
    for _ in range(4):
        time.sleep(0.3)
        progress.advance("read", 250)
    print("said between\\x9b2J\\x1b]0;owned\\x07")
"""


def test_in_a_terminal_it_is_one_line() -> None:
    here, there = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL], stdout=there, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    ):
        os.close(there)
        out = b""
        while True:
            try:
                part = os.read(here, 4096)
            except OSError:  # how a terminal says that nobody writes to it any more
                break
            if not part:
                break
            out += part
    os.close(here)
    shown = out.decode().replace("\r\n", "\n")
    assert "\x1b[2K" in shown  # the line is wiped before it is written again
    assert "said between\ufffd2J\ufffd]0;owned\ufffd\n" in shown  # and what is printed obeys nobody
    assert "100% reference: under way; 1,000 of 1,000 tokens read" in shown
    loading, _, rest = shown.partition("\n")
    assert "loading: under way" in loading and "\x1b[1A\x1b[2K" in rest  # what had no end to tell is wiped
    assert rest.count("\n") == 2


@pytest.mark.parametrize(("seconds", "said"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (53484, "14:51:24")])
def test_a_clock(seconds: float, said: str) -> None:
    assert clock(seconds) == said


def test_work_that_hangs_is_given_up() -> None:
    script = """
import time
from tbd.progress import Progress
with Progress("base", every=0.05) as progress:
    progress.patience = 0.5
    for _ in range(10):  # longer than that in all, but never without progress
        time.sleep(0.1)
        progress.advance("read", 1)
    progress.begin("answers")
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 75
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith("error: base: answers: no progress for 0:00, given up.")
