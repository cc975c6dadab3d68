"""`tbd serve` as a team runs it: real servers on loopback, and checkpoints that appear while it runs."""

import base64
import json
import shutil
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.team import Team, kill, started
from tests.workspace import fake_checkpoint, finished

pytestmark = pytest.mark.slow


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    with started(tmp_path / "team") as team:
        yield team


def copy_slowly(source: Path, target: Path, pause: float) -> None:
    """As a slow network does: file by file, each in pieces; not the order that would be kind."""
    target.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "fake.txt"):
        data = (source / name).read_bytes()
        with (target / name).open("wb") as file:
            for start in range(0, len(data), -(-len(data) // 2)):
                file.write(data[start : start + -(-len(data) // 2)])
                file.flush()
                time.sleep(pause)


def test_four_checkpoints_at_different_moments(team: Team, tmp_path: Path) -> None:
    """Each has its right outcome, once, and who is to be told gets exactly what they should."""
    slow = fake_checkpoint(tmp_path / "elsewhere", "slow and clean")
    (tmp_path / "afar").mkdir()
    team.drop("alpha", *team.members)
    with team.serving():
        team.wait(lambda: team.outcomes()["alpha", "CONTAMINATED", False] == 1)
        copying = threading.Thread(target=copy_slowly, args=(slow, tmp_path / "afar/slow", 1.5))
        copying.start()
        pickle = team.drop("pickle", "p")
        (pickle / "model.safetensors").rename(pickle / "pytorch_model.bin")
        team.announce(tmp_path / "afar")  # while it is still being written
        shutil.copytree(team.incoming / "alpha", team.incoming / ".twin")
        (team.incoming / ".twin").rename(team.incoming / "twin")
        copying.join()
        expected = {
            ("alpha", "CONTAMINATED", False): 1,
            ("twin", "CONTAMINATED", True): 1,
            ("pickle", "FAILED", False): 1,
            ("slow", "NO EVIDENCE", False): 1,
        }
        team.wait(lambda: len(team.history()) >= 4)
        team.look_again()
        assert team.outcomes() == expected
        assert team.told() == {("tbd.contaminated", "alpha"): 1, ("tbd.failed", "pickle"): 1}
        assert len(team.receiver.messages) == 2
        said = [json.loads(message.body)["said"] for message in team.chat.messages]
        assert [one.split(" on ")[0] for one in said] == [
            "tbd: contaminated: CONTAMINATED: alpha",
            said[1],
        ] and "pickle" in said[1]
        expected_runs = {
            ("alpha", "CONTAMINATED"): 1,
            ("slow", "NO EVIDENCE"): 1,
            ("pickle", "FAILED"): 1,
        }
        assert team.runs() == expected_runs
        # made whole, it is tried again, and who was told of the failure is told that it passed
        (pickle / "pytorch_model.bin").rename(pickle / "model.safetensors")
        team.wait(lambda: team.told()["tbd.recovered", "pickle"] == 1)
        in_prefect(team)
    page = (team.workspace.root / "audits/history.html").read_text()
    assert all(name in page for name in ("alpha", "twin", "slow", "pickle"))


def in_prefect(team: Team) -> None:
    """Deployments with forms that explain themselves, runs in their right states, artifacts."""
    api = f"{team.prefect.url}/api"
    deployments = {one["name"] + " " + one["entrypoint"]: one for one in servers.ask(api, "deployments")}
    assert {one.split()[0] for one in deployments} == {"team", "team-on-event"} and len(deployments) == 4
    form = next(one for one in deployments.values() if "check" in one["entrypoint"])["parameter_openapi_schema"][
        "properties"
    ]
    assert all(field["title"] and len(field["description"]) > 20 for field in form.values())
    audits = [run for run in servers.ask(api, "flow_runs") if run["name"].startswith("audit ")]
    assert len(audits) == 3 and all(run["state_type"] == "COMPLETED" for run in audits)
    looks = [
        run for run in servers.ask(api, "flow_runs") if run["name"] == "watch" and run["state_type"] == "COMPLETED"
    ]
    assert any("1 audited" in str(run["state"]["message"]) for run in looks)
    assert {"verdicts", "outcome-pickle"} <= {artifact["key"] for artifact in servers.ask(api, "artifacts")}


def test_a_server_of_its_own(tmp_path: Path) -> None:
    """Which its pages and its deployments are told of, and which ends with it."""
    workspace = finished()[0].copy(tmp_path / "workspace").used_before()
    port = servers.free_port()
    log = tmp_path / "log"
    process = workspace.launch(log, sys.executable, "-m", "tbd", "serve", "--port", str(port))
    try:
        end = time.monotonic() + servers.PATIENCE
        while (found := deployments(port, workspace.root / ".tbd/prefect-auth")) < 4:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.5)
        assert found == 4 and pages_ask(port) == f"http://127.0.0.1:{port}/api"
        assert "temporary server" not in log.read_text() and f"Prefect UI: http://127.0.0.1:{port} (" in log.read_text()
    finally:
        kill(process, signal.SIGTERM)
    assert pages_ask(port) is None


def deployments(port: int, auth: Path) -> int:
    try:
        credentials = base64.b64encode(auth.read_bytes().strip()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {credentials}"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/deployments/filter", b"{}", headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return len(json.load(answer))
    except OSError:
        return 0


def pages_ask(port: int) -> str | None:
    """The API that the pages of a Prefect server ask, or None if nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ui-settings", timeout=5) as answer:
            return str(json.load(answer)["api_url"])
    except OSError:
        return None
