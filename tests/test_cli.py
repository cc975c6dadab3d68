"""The command line on a real workspace: what it refuses, in one line and without a trace, and what it does.

Whatever is refused is refused before Prefect starts, so these run in this process; only what the import costs needs
others.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tbd import cli, history, records
from tbd.commands import checks
from tbd.detection.results import read_verdict
from tbd.errors import InputError
from tbd.history import outbox
from tbd.pipeline import templates
from tbd.report.explain import explain
from tbd.watch import outcomes
from tests import outcomes as examples
from tests.model_server import ModelServer
from tests.shared import mlflow_store
from tests.workspace import Workspace, fake_checkpoint, finished, hurried

pytestmark = pytest.mark.slow
MonkeyPatch = pytest.MonkeyPatch
HEAVY = [
    "prefect",
    "mlflow",
    "dvc",
    "great_expectations",
    "torch",
    "transformers",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "sklearn",
    "matplotlib",
    "plotly",
    "pydantic",
]
SETS = ["--benchmark", "benchmark", "--unseen", "unseen"]


class Command:
    """`tbd` in a workspace."""

    def __init__(self, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
        self.workspace, self.root, self.capsys = workspace, workspace.root, capsys

    def __call__(self, *arguments: Any, code: int = 0) -> tuple[str, str]:
        """Its two outputs; it must exit with `code`."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        out, err = self.capsys.readouterr()
        assert stop.value.code == code, f"exit {stop.value.code}: {out}{err}"
        return hurried(out), err

    def refused(self, *arguments: Any) -> str:
        """The one line it complains in; nothing in the workspace has changed."""
        before = self.workspace.hashes()
        out, err = self(*arguments, code=2)
        assert self.workspace.hashes() == before
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
        return err.removeprefix("error: ").strip()


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished workspace that asks for the real engine: what is refused leaves it as it was, so one serves all."""
    workspace = finished()[0].copy(tmp_path_factory.mktemp("cli") / "shared")
    workspace.edit("params.yaml", {"generate": {"engine": "transformers"}})
    return workspace


def enter(workspace: Workspace, monkeypatch: MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(workspace.root)
    for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
        monkeypatch.setenv(name, workspace.environment[name])
    return Command(workspace, capsys)


@pytest.fixture
def shared(_shared: Workspace, monkeypatch: MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return enter(_shared, monkeypatch, capsys)


@pytest.fixture
def tbd(tmp_path: Path, monkeypatch: MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A finished workspace of the test's own, on the fake engine."""
    return enter(finished()[0].copy(tmp_path / "workspace"), monkeypatch, capsys)


# --- what is refused --------------------------------------------------------------------------------------------------


def rows(n: int = 3) -> list[dict[str, Any]]:
    asked = "How many legs have {} different horses in stable {}?"
    return [{"q": asked.format(i + 2, i), "known": i % 2, "why": "Count.", "a": 4 * i} for i in range(n)]


def jsonl(path: Path, entries: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("x.jsonl", b"", "x.jsonl: the file is empty"),
    "only blank lines": ("x.jsonl", b"\n\n", "x.jsonl: no rows"),
    "header alone": ("x.csv", b"q,known\n", "x.csv: no rows"),
    "missing column": ("x.csv", b"question,known\na b c,1\n", "unknown column 'q'. Available: known, question."),
    "broken line": ("x.jsonl", b'{"q": "one question"}\n{"q": "two\n', "x.jsonl, line 2: not valid JSON"),
    "line that is a list": ("x.jsonl", b'{"q": "one question"}\n\n["q"]\n', "x.jsonl, line 3: not a JSON object"),
    "broken json": ("x.json", b'[{"q": "one"},', "x.json: not valid JSON"),
    "json that is no list": ("x.json", b'{"q": "one"}', "x.json: not a list of JSON objects"),
    "latin-1 jsonl": (
        "x.jsonl",
        '{"q": "one"}\n{"q": "Wie viele Äpfel?"}\n'.encode("latin-1"),
        "x.jsonl, line 2: not UTF-8",
    ),
    "latin-1 json": ("x.json", '[{"q": "Wie viele Äpfel?"}]'.encode("latin-1"), "x.json: not UTF-8"),
    "latin-1 csv": ("x.csv", "q\nWie viele Äpfel?\n".encode("latin-1"), "x.csv: not UTF-8"),
    "ragged csv": ("x.csv", b"q,known\nhow many,1\nwhat if,0,0\n", "x.csv: not valid CSV"),
    "csv with a column too many": ("x.csv", b"q,known\nhow many,1,7\nwhat if,0,8\n", "x.csv: not valid CSV"),
    "not parquet": ("x.parquet", b"PAR1 no PAR1", "x.parquet: not a readable Parquet file"),
    "another type": ("x.txt", b"how many", "x.txt: unknown file type '.txt'"),
    "blank question": ("x.jsonl", b'{"q": "how many"}\n{"q": "  "}\n', "x.jsonl, row 2: 'q' is empty"),
    "question missing in a line": ("x.jsonl", b'{"q": "how many"}\n{"p": "what"}\n', "x.jsonl, row 2: 'q' is empty"),
    "question that is a list": ("x.jsonl", b'{"q": ["how many"]}\n', "x.jsonl, row 1: 'q' is list, not text"),
    "twice the same": ("x.csv", b'q\nhow many\nwhat if\n"how  many"\n', "x.csv, row 4: the same question as row 2"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_import_refuses_a_bad_file(shared: Command, tmp_path: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    assert message in shared.refused("import", "mine", tmp_path / name, "--column", "q")


def test_import_refuses_what_is_not_there_or_fits_no_name(shared: Command, tmp_path: Path) -> None:
    assert shared.refused("import", "mine", tmp_path / "gone.jsonl") == f"{tmp_path}/gone.jsonl: no such file."
    file = jsonl(tmp_path / "x.jsonl", rows())
    assert "unknown column 'questions'" in shared.refused("import", "mine", file, "--column", "questions")
    assert "'why' is 'count.'; a label is 1" in shared.refused(
        "import", "mine", file, "--column", "q", "--label-column", "why"
    )
    assert "name is taken" in shared.refused("import", "unseen", file, "--column", "q")
    for name in ("../mine", "a/b", "", ".hidden", "x" * 64, "-x", "1e3"):
        assert f"set {name!r}: " in shared.refused("import", "--column", "q", "--", name, file)


@pytest.mark.parametrize("content", ["", "- a\n", "stages: 3\n", "stages: {a: 3}\n", "stages: {a: {outs: 3}}\n"])
def test_import_refuses_a_broken_pipeline(tbd: Command, tmp_path: Path, content: str) -> None:
    (tbd.root / "dvc.yaml").write_text(content)
    said = tbd.refused("import", "mine", jsonl(tmp_path / "x.jsonl", rows()), "--column", "q")
    assert said == "dvc.yaml: not a pipeline of DVC. Restore it from git."


def test_import_refuses_near_duplicates_naming_the_expectation(shared: Command, tmp_path: Path) -> None:
    text = "Anna buys 3 red apples and 4 green pears at the market on a rainy Monday, how many fruits are in her bag?"
    file = jsonl(tmp_path / "x.jsonl", [{"question": text}, {"question": text.replace("bag", "basket")}])
    line = shared.refused("import", "mine", file)
    assert "expect_" in line and "near-duplicates" in line


CHECKPOINTS = {
    "no config": "no config.json",
    "no tokenizer": "no tokenizer",
    "no weights": r"no *.safetensors file",
    "pickle only": "weights only as pickle (pytorch_model.bin)",
    "truncated": "truncated",
    "cut in header": "truncated",
    "adapter": "an adapter (LoRA)",
}


@pytest.mark.parametrize("how", CHECKPOINTS)
def test_check_and_distill_refuse_a_checkpoint_that_is_none(
    shared: Command, tmp_path: Path, broken: Callable[[str], Path], how: str
) -> None:
    folder = broken(how)
    assert CHECKPOINTS[how] in shared.refused("check", folder, *SETS)
    assert CHECKPOINTS[how] in shared.refused(
        "distill", "--base", folder, "--set", "members", "--out", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


def test_a_name_longer_than_any_file_has_is_refused_in_a_line(shared: Command) -> None:
    for name in ("a" * 300, "a/" * 3000):
        for command in (("check", name, *SETS), ("distill", "--base", name, "--set", "members", "--out", "out")):
            assert "longer than the name of any file" in shared.refused(*command)


def test_check_refuses_what_is_no_audit(shared: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    def check(*arguments: Any) -> str:
        return shared.refused("check", tiny_checkpoint, *arguments)

    assert "no such checkpoint folder" in shared.refused("check", tmp_path / "gone", *SETS)
    assert "name its revision too" in shared.refused("check", "org/model", *SETS)
    assert "unknown set 'benchmrk'. Did you mean 'benchmark'?" in check("--benchmark", "benchmrk", "--unseen", "unseen")
    assert "set '../unseen'" in check("--benchmark", "benchmark", "--unseen", "../unseen")
    assert "both 'unseen'" in check("--benchmark", "unseen", "--unseen", "unseen")
    assert "20 questions of 'members' are in 'benchmark'" in check("--benchmark", "benchmark", "--unseen", "members")
    assert "needs 999 unseen questions and 'unseen' has 40: add 959" in check(*SETS, "--fpr", "0.001")
    for rate in ("0", "1", "-1", "nan"):
        assert "a rate is at least" in check(*SETS, f"--fpr={rate}")
    assert "--unseen is missing" in check("--benchmark", "benchmark")
    assert "CKPT is missing" in shared.refused("check", *SETS)
    assert "leave checkpoint out" in check("--all")
    assert "invalid float value: 'much'" in check(*SETS, "--fpr", "much")
    assert "argument --fail-on: invalid choice: 'clean'" in check(*SETS, "--fail-on", "clean")


def test_check_refuses_a_name_that_is_taken_or_leaves_its_folder(tbd: Command) -> None:
    for name in ("../up", "a/b", "/tmp/x", "..", "", "a b", "x" * 64, "a\nb", "1e3"):
        assert f"audit {name!r}: " in tbd.refused("check", "checkpoints/reference", *SETS, f"--as={name}")
    line = tbd.refused("check", "checkpoints/reference", *SETS, "--as", "base")
    assert "audit 'base': the name is taken, with another checkpoint" in line
    assert "the same model as the checkpoint" in tbd.refused(
        "check", "checkpoints/base", *SETS, "--base", "checkpoints/base", "--as", "other"
    )


def test_what_params_yaml_says_wrong_is_refused_before_anything_runs(tbd: Command) -> None:
    path = tbd.root / "params.yaml"
    good = path.read_text()
    commands: list[list[Any]] = [["calibrate"], ["check", "--all"], ["check", "checkpoints/reference", *SETS]]

    def refused(before: str, after: str, message: str) -> None:
        assert before in good
        path.write_text(good.replace(before, after))
        for command in commands:
            assert message in tbd.refused(*command)

    refused("fpr: 0.05", "fpr: 0.001", "needs 999 unseen questions and 'unseen' has 40: add 959")
    refused("fpr: 0.05", "fprr: 0.05", "params.yaml: decision: unknown parameter 'fprr'. Did you mean 'fpr'?")
    refused("mean_logprob:", "mean_logprop:", "unknown method 'mean_logprop'. Did you mean 'mean_logprob'?")
    refused("    tbd:\n", "    tbd:\n      alfa: 0.6\n", "unknown parameter 'alfa'. Did you mean 'alpha'?")
    refused("fpr: 0.05", "fpr: [", "params.yaml, line")
    path.unlink()
    assert "params.yaml: not in this folder" in tbd.refused("calibrate")


def test_distill_refuses(shared: Command, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    out = tmp_path / "out"

    def distill(*arguments: Any, name: str = "members", to: Path = out) -> str:
        return shared.refused("distill", "--base", tiny_checkpoint, "--set", name, "--out", to, *arguments)

    assert "exists" in distill(to=tmp_path)
    assert "unknown set 'member'. Did you mean 'members'?" in distill(name="member")
    assert "--epochs 0: at least 1" in distill("--epochs", 0)
    shared.workspace.edit("params.yaml", {"distill": {"max_tokens": 16}})
    assert "more than distill.max_tokens = 16" in distill()
    shared.workspace.edit("params.yaml", {"distill": {"max_tokens": 1024}})
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "peft", None)  # as if it were not installed
        assert "peft is not installed. Install it: pip install" in distill("--lora")
    assert not list(tmp_path.glob(".out*")) and not out.exists()


@pytest.mark.parametrize(
    ("parameter", "option", "expected"),
    [
        (None, [], None),
        (None, ["--lora"], {"rank": 16, "alpha": 32}),
        ({"rank": 2, "alpha": 2}, [], {"rank": 2, "alpha": 2}),
        ({"rank": 2, "alpha": 2}, ["--lora"], {"rank": 2, "alpha": 2}),
    ],
)
def test_distill_with_adapters(
    tbd: Command, tiny_checkpoint: Path, tmp_path: Path, parameter: Any, option: list[str], expected: Any
) -> None:
    recipe = {"trained_layers": None, "batch_size": 32, "lora": parameter}
    tbd.workspace.edit("params.yaml", {"distill": recipe})
    out = tmp_path / "out"
    tbd("distill", "--base", tiny_checkpoint, "--set", "members", "--out", out, "--epochs", 1, *option)
    assert json.loads((out / "tbd.json").read_text()).get("lora") == expected


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nowhere", "nowhere: no such folder to look for checkpoints in"),
        ("models:/none", "models:/none"),
        ("hf://one", "hf://one: not an address on the hub"),
        ("models:/", "models:/: not an address in the registry"),
    ],
)
def test_watch_refuses_a_source_that_is_none(shared: Command, address: str, said: str) -> None:
    shutil.copy(mlflow_store(), shared.root)
    assert shared.refused("watch", address).startswith(said)


def test_serve_refuses_what_could_not_work_before_it_starts_anything(shared: Command) -> None:
    path = shared.root / "params.yaml"
    good = path.read_text()
    wrong: list[tuple[dict[str, Any], str]] = [
        (
            {"watch": {"policy": [{"checkpoints": "*", "benchmark": "benchmrk", "unseen": "unseen"}]}},
            "unknown set 'benchmrk'",
        ),
        ({"serve": {"watch": "every day"}}, "params.yaml: serve.watch"),
        ({"serve": {"watch": 1}}, "params.yaml: serve.watch"),
        ({"notify": {"events": ["contaminted"]}}, "params.yaml: notify.events"),
        ({"watch": {"settle": -1}}, "params.yaml: watch.settle"),
    ]
    for changes, said in wrong:
        shared.workspace.edit("params.yaml", changes)
        assert said in shared.refused("serve")
        path.write_text(good)
    assert "Set PREFECT_API_URL" in shared.refused("serve", "--pool", "team")
    assert not (shared.root / ".tbd/prefect-server.log").exists()


def test_history_refuses_a_benchmark_that_is_none(tbd: Command) -> None:
    with history.held() as known:
        known.add(examples.verdict(1))
    assert tbd.refused("history", "--benchmark", "math").startswith(
        "audits/history.jsonl: unknown benchmark 'math'. Did you mean 'maths'?"
    )


def test_unknown_commands_and_audits_are_refused_in_a_line(shared: Command) -> None:
    assert "invalid choice: 'chek'" in shared.refused("chek")
    assert "arguments are required: COMMAND" in shared.refused()
    assert "unknown audit 'referenc'. Did you mean 'reference'?" in shared.refused("verify", "referenc")
    said = shared.refused("verify", "a" * 5000)
    assert said.startswith("audits/: unknown audit 'aaa") and "Available:" in said and len(said) < cli.LINE + 10


# --- what is done -----------------------------------------------------------------------------------------------------


def write(path: Path, entries: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        return jsonl(path, entries)
    if path.suffix == ".json":
        path.write_text(json.dumps(entries))
    elif path.suffix == ".csv":
        pd.DataFrame(entries).to_csv(path, index=False)
    else:
        pq.write_table(pa.Table.from_pylist(entries), path)
    return path


def test_other_weights_at_a_place_are_another_audit(tbd: Command) -> None:
    fake_checkpoint(tbd.root / "models/mine", "first")
    asked = ("models/mine", "benchmark", "unseen", None)
    name, entry = checks.prepare(*asked, None, None)
    assert name == "mine-benchmark" and checks.present() == ["base", "reference"]
    templates.add(name, entry)
    assert checks.prepare(*asked, None, None) == (name, entry)
    shutil.rmtree(tbd.root / "models/mine")
    fake_checkpoint(tbd.root / "models/mine", "second")
    another, other = checks.prepare(*asked, None, None)
    assert another.startswith("mine-benchmark-x") and other.checkpoint_fingerprint != entry.checkpoint_fingerprint
    with pytest.raises(InputError, match=r"with another checkpoint_fingerprint\. Choose another with --as"):
        checks.prepare(*asked, name, None)
    assert name in checks.present()  # it has no verdict that could stand
    (tbd.root / f"audits/{name}/verdict.json").write_text("{}")
    assert checks.present() == ["base", "reference"]


def test_audits_are_settled_when_nothing_is_left_to_do(tbd: Command, monkeypatch: MonkeyPatch) -> None:
    """Then `check --all` starts neither Prefect nor a stage."""
    names = ["reference", "base"]
    assert not checks.settled(names)  # not in the history
    with history.held() as known:
        for name in names:
            known.add(outcomes.verdict(name))
    assert not checks.settled(names)  # not in MLflow
    monkeypatch.setattr("tbd.tracking.runs.recorded", lambda states: len(states) == 2)
    assert checks.settled(names)
    out, err = tbd("check", "--all")
    assert (
        out.startswith("nothing to do: every verdict is up to date, told and recorded\n")
        and "CONTAMINATED" in out
        and err == ""
    )
    out, err = tbd("check", "--all", "--fail-on", "contaminated", "--json", code=1)  # what stands, not what is new
    assert {one["audit"]: one["fired"] for one in json.loads(out)["results"]} == {
        "reference": ["--fail-on contaminated"],
        "base": [],
    }
    assert (
        err.startswith("nothing to do") and "--fail-on contaminated fires: reference on benchmark: CONTAMINATED" in err
    )
    outbox.due("some outcome", ["webhook"])
    assert not checks.settled(names)
    outbox.done("some outcome", "webhook")
    assert checks.settled(names)
    tbd.workspace.edit("params.yaml", {"decision": {"fpr": 0.1}})
    assert not checks.settled(names)  # stale
    tbd.workspace.edit("params.yaml", {"decision": {"fpr": 0.05}})
    assert checks.settled(names)
    (tbd.root / "audits/base/verdict.json").unlink()
    assert not checks.settled(names)


def test_a_verdict_stands_though_its_checkpoint_is_gone(tbd: Command, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr("tbd.tracking.runs.recorded", lambda states: True)
    with history.held() as known:
        for name in ("reference", "base"):
            known.add(outcomes.verdict(name))
    fake_checkpoint(tbd.root / "models/mine", "mine")
    name, entry = checks.prepare("models/mine", "benchmark", "unseen", None, None, None)
    templates.add(name, entry)
    shutil.rmtree(tbd.root / "models")
    (tbd.root / f"audits/{name}/verdict.json").write_text("{}")
    assert "no verdict of audit mine-benchmark" in tbd("check", "--all", "--fail-on", "failed", code=1)[0]
    with history.held() as known:
        known.add(examples.verdict(1, "INCONCLUSIVE", audit=name))
    for outcome, code in (("failed", 0), ("inconclusive", 1)):
        tbd("check", "--all", "--fail-on", outcome, code=code)


def test_what_is_refused_is_answered_for_too(tbd: Command) -> None:
    Path("tbd.md").write_text("NO EVIDENCE")
    out, err = tbd("check", "gone", *SETS, "--json", "--summary", "tbd.md", "--junit", "tbd.xml", code=2)
    found = json.loads(out)
    assert found["exit_code"] == 2 and [one["outcome"] for one in found["results"]] == ["FAILED"]
    assert err.startswith("error: gone: no such") and err.count("\n") == 1
    assert "stopped, exit code 2" in Path("tbd.md").read_text() and "<error " in Path("tbd.xml").read_text()
    assert "is not a file" in tbd.refused("check", "gone", *SETS, "--summary", "audits")
    assert "invalid choice: 'clean'" in tbd.refused("watch", "--require", "clean")


def test_without_an_audit_nothing_stands(tbd: Command, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr("tbd.tracking.runs.recorded", lambda states: True)
    for audit in ("reference", "base"):
        shutil.rmtree(tbd.root / f"audits/{audit}")
    tbd("check", "--all")
    assert "check-all: NOTHING" in tbd("check", "--all", "--require", "no-evidence", code=1)[0]


AWAY = "http://127.0.0.1:9/api"


def test_prefect_away_is_said_in_a_line(tbd: Command, monkeypatch: MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    said = "error: Prefect at 127.0.0.1:9 does not answer. Try again later.\n"
    monkeypatch.setenv("PREFECT_API_URL", AWAY)
    with temporary_settings({PREFECT_API_URL: AWAY}):
        for command in ("check --all", "serve --pool team"):
            assert tbd(*command.split(), code=3) == ("", said)
    done = tbd.workspace.tbd("serve", code=3, PREFECT_API_URL=AWAY)
    assert (done.stdout, done.stderr) == ("", said)


@pytest.mark.parametrize("address", ["nonsense", "ftp://127.0.0.1/api", "http://[", "http://"])
def test_an_address_that_is_none_of_prefect_is_refused(shared: Command, monkeypatch: MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", address)
    assert shared.refused("serve").startswith("PREFECT_API_URL: not the address of a Prefect API")


def test_import_reads_every_kind_of_file_the_same(tbd: Command, tmp_path: Path) -> None:
    columns = ["--column", "q", "--label-column", "known", "--reasoning-column", "why", "--answer-column", "a"]
    found = {}
    for kind in ("jsonl", "json", "csv", "parquet"):
        out, err = tbd("import", f"mine-{kind}", write(tmp_path / f"x.{kind}", rows()), *columns)
        assert out.startswith(f"mine-{kind}: 3 questions") and err == ""
        table = records.read_table(Path(f"data/sets/mine-{kind}.parquet"), records.QUESTIONS)
        assert table["source"].to_pylist() == [
            f"x.{kind}, row {i}" for i in ((2, 3, 4) if kind == "csv" else (1, 2, 3))
        ]
        found[kind] = table.drop_columns("source").to_pylist()
        assert Path(f"data/sets/mine-{kind}.parquet.dvc").is_file()
    assert found["jsonl"] == found["json"] == found["csv"] == found["parquet"]
    first = found["jsonl"][0]
    expected = {"question": rows()[0]["q"], "reasoning": "Count.", "answer": "0", "label": 0}
    assert first == expected | {"question_id": records.question_id(rows()[0]["q"])}
    assert tbd.workspace.run("git", "status", "--porcelain", "-uall").stdout.splitlines() == [
        f"?? data/sets/mine-{kind}.parquet.dvc" for kind in ("csv", "json", "jsonl", "parquet")
    ]


def test_importing_the_same_again_changes_nothing_and_another_is_refused(tbd: Command, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "x.jsonl", rows())
    tbd("import", "mine", file, "--column", "q")
    before = tbd.workspace.hashes()
    assert tbd("import", "mine", file, "--column", "q")[0].startswith("mine: 3 questions")
    assert tbd.workspace.hashes() == before
    assert "set 'mine': the name is taken" in tbd.refused("import", "mine", jsonl(file, rows(2)), "--column", "q")


def test_an_imported_set_that_was_changed_since_is_refused(tbd: Command, tmp_path: Path) -> None:
    tbd("import", "mine", write(tmp_path / "x.jsonl", rows()), "--column", "q")
    path = Path("data/sets/mine.parquet")
    records.write_table(path, records.read_table(path, records.QUESTIONS).slice(1))
    said = tbd.refused("check", "checkpoints/reference", "--benchmark", "mine", "--unseen", "unseen")
    assert (
        said == f"{path}: changed since it was imported. Undo it with `dvc checkout {path}.dvc`, or import it under "
        "another name."
    )


def test_an_imported_set_leaves_the_audits_there_are_alone(tbd: Command, tmp_path: Path) -> None:
    tbd("import", "mine", jsonl(tmp_path / "x.jsonl", rows()), "--column", "q")
    assert tbd.workspace.repro() == []


def tampered_numbers(folder: Path) -> None:
    table = records.read_table(folder / "generations.parquet", records.GENERATIONS)
    changed = [[value - 1 for value in row] for row in table["logprobs"].to_pylist()]
    table = table.set_column(4, records.GENERATIONS.field(4), pa.array(changed, records.GENERATIONS.field(4).type))
    pq.write_table(table, folder / "generations.parquet")


def tampered_bytes(folder: Path) -> None:
    data = bytearray((folder / "generations.parquet").read_bytes())
    data[len(data) // 3] ^= 0xFF
    (folder / "generations.parquet").write_bytes(data)


def tampered_verdict(folder: Path) -> None:
    path = folder / "verdict.json"
    path.write_text(path.read_text().replace("CONTAMINATED", "NO EVIDENCE"))


def tampered_rows(folder: Path) -> None:
    table = pq.read_table(folder / "generations.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), folder / "generations.parquet")


TAMPERED: list[tuple[Callable[[Path], Any], str]] = [
    (tampered_numbers, "other scores than its generations give"),
    (tampered_bytes, "audits/reference/generations.parquet: not the file dvc.lock names"),
    (tampered_verdict, "verdict.json: verdict: 'NO EVIDENCE' on disk, 'CONTAMINATED' recomputed"),
    (lambda folder: (folder / "verdict.json").write_text("{"), "verdict.json: not the file dvc.lock names"),
    (lambda folder: (folder / "scores.parquet").unlink(), "scores.parquet: not the file dvc.lock names"),
    (tampered_rows, "audits/reference/generations.parquet: not the file dvc.lock names"),
]


def test_explain_says_the_verdict_in_sentences(shared: Command) -> None:
    out, err = shared("explain", "reference")
    verdict = read_verdict(shared.root / "audits/reference/verdict.json")
    assert out == explain(verdict).terminal() + "\n" and err == ""
    told = json.loads(shared("explain", "reference", "--json")[0])
    assert (told["audit"], told["verdict"], len(told["sentences"])) == ("reference", verdict.verdict, 5)
    assert told["sentences"][1]["numbers"][0]["what"] == "certified minimum" and len(told["checks"]) == 4
    assert "five sentences" in shared("explain", "--help")[0]
    assert "Did you mean 'reference'?" in shared.refused("explain", "referenc")


def test_explain_of_what_has_no_verdict_yet_says_what_to_do(tbd: Command) -> None:
    (tbd.root / "audits/base/verdict.json").unlink()
    assert "audits/base/verdict.json: not there yet. tbd check --all" in tbd.refused("explain", "base")


def test_verify_says_whether_everything_is_what_it_was(tbd: Command) -> None:
    assert tbd("verify", "reference")[0] == "reference: recomputed, the same in every number\n"
    folder = tbd.root / "audits/reference"
    good = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for tamper, said in TAMPERED:
        tamper(folder)
        assert said in tbd("verify", "reference", code=1)[0]
        for file, content in good.items():
            file.write_bytes(content)
    tbd("verify", "base")
    tbd("verify", "reference")


# --- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["import tbd", "import tbd.cli", "import tbd.cli; tbd.cli.parser().format_help()"])
def test_help_loads_nothing_heavy(code: str) -> None:
    code = f"import sys; {code}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_help_says_how_every_command_is_used(shared: Command) -> None:
    out, err = shared("--help")
    assert err == "" and all(name in out for name in cli.COMMANDS)
    for name in cli.COMMANDS:
        assert "usage: tbd" in shared(name, "--help")[0]


def test_a_model_that_is_only_on_a_server(tbd: Command) -> None:
    """Checked with a base that is on another, verified, and refused once it answers otherwise."""
    with ModelServer("org/mine") as server, ModelServer("base") as other:
        other.weights = (77,)
        tbd.workspace.edit("params.yaml", {"generate": {"server": {"backoff": 0.01}}})
        address, base = f"openai:org/mine@{server.url}", f"openai:base@{other.url}"
        assert "serves 'org/mine', and not 'yours'" in tbd.refused("check", f"openai:yours@{server.url}", *SETS)
        assert "holds credentials" in tbd.refused("check", "openai:yours@http://me:word@host", *SETS)
        assert "Only tbd check takes one" in tbd.refused("distill", "--base", address, "--set=members", "--out=x")
        plan = json.loads(tbd("plan", address, *SETS, "--no-burst", "--json")[0])
        assert plan["rough"] and plan["passes"]
        name, entry = checks.prepare(address, "benchmark", "unseen", base, None, None)
        assert checks.prepare(address, "benchmark", "unseen", base, None, None)[1] == entry
        assert (name, entry.origin) == ("mine-benchmark", address)
        templates.add(name, entry)
        honest, asked = server.answer, []

        def swapped(handler: Any, body: Any, fault: str) -> None:
            asked.append(body["max_tokens"])
            server.weights = (79,) if asked.count(10) > 40 else ()  # once the benchmark's 40 are answered
            honest(handler, body, fault)

        server.answer = swapped  # type: ignore[method-assign]
        done = tbd.workspace.run(sys.executable, "-m", "tbd.stages.generate", name, code=2)
        assert "answers otherwise than when it was registered" in done.stderr
        server.answer, server.weights = honest, ()  # type: ignore[method-assign]
        known = len(asked)
        assert tbd.workspace.repro(f"verdict@{name}")[-1] == f"verdict@{name}"
        assert len(asked) == known  # it was not kept which of the two answered what
        assert tbd.workspace.verdict(name)["generation"]["noise"]["diverged"] == 0
        verdict = tbd.workspace.verdict(name)
        assert verdict["generation"]["served"] == address and verdict["detector"]["choice"] == "with_base"
        assert sum("weaker than a fingerprint" in one for one in verdict["warnings"]) == 1
        assert "recomputed, the same in every number" in tbd("verify", name)[0]
        assert json.loads(tbd("plan", name, "--no-burst", "--json")[0])["rough"]
        server.weights = (78,)
        out, err = tbd("verify", name, code=2)
        assert "recomputed, the same" in out and err.startswith(f"error: {address}: answers otherwise than when it was")
        again, changed = checks.prepare(address, "benchmark", "unseen", base, None, None)
        assert again.startswith(f"{name}-x") and changed.checkpoint != entry.checkpoint
        templates.add(again, changed)
        shutil.rmtree(changed.checkpoint)
        with pytest.raises(InputError, match=r"is not here.* or ask anew: tbd check openai:org/mine@"):
            checks.ready([name, again])
    out, err = tbd("verify", name, code=3)
    assert "recomputed, the same" in out and "no server answers" in err
