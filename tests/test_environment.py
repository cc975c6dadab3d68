"""What other tools are told before they load."""

import os

import pytest

from tbd import environment


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*environment.DEFAULTS, *environment.WAITING):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_threads_sleep_while_they_wait(unset: pytest.MonkeyPatch) -> None:
    unset.setattr(os, "environ", {})
    environment.prepare()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and os.environ["DVC_NO_ANALYTICS"] == "1"


@pytest.mark.parametrize("name", environment.WAITING)
def test_unless_the_user_says_otherwise(unset: pytest.MonkeyPatch, name: str) -> None:
    unset.setattr(os, "environ", {name: "7"})
    environment.prepare()
    assert {key: os.environ.get(key) for key in environment.WAITING} == {
        key: "7" if key == name else None for key in environment.WAITING
    }
