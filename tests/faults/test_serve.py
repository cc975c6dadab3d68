"""SIGKILL to `tbd serve`, alone and with all it started, and to the servers it talks to."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.team import Team, kill, started

Tried = Callable[[str, int, str], None]


def test_kills_of_serve_and_its_servers(tmp_path: Path, tried: Tried) -> None:
    with started(tmp_path / "team") as team:
        as_if_nothing_had_been(team)
    tried("SIGKILL of `tbd serve`, of MLflow and of Prefect", 4, "one verdict, one run, one message")


def as_if_nothing_had_been(team: Team) -> None:
    process = team.start()
    try:
        team.drop("learnt", *team.members, "and one more")
        team.wait(team.busy)
        kill(process, signal.SIGKILL)  # alone: the run it had started lives on
        team.mlflow.stop(signal.SIGKILL)
        process = team.start()
        team.wait(team.busy)
        team.prefect.stop(signal.SIGKILL)
        time.sleep(5)
        team.prefect.start()
        time.sleep(10)
        kill(process, signal.SIGKILL, group=True)  # with everything it had started
        process = team.start()
        team.wait(lambda: team.outcomes()["learnt", "CONTAMINATED", False] == 1)
        team.mlflow.start()

        expected = {("learnt", "CONTAMINATED"): 1}
        team.wait(lambda: team.runs() == expected)
        team.look_again()
        assert {key[:2]: count for key, count in team.outcomes().items()} == expected and team.runs() == expected
        assert team.told() == {("tbd.contaminated", "learnt"): 1}
    finally:
        kill(process, signal.SIGTERM)
