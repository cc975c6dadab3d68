"""Three hundred malformed and hostile inputs: each is taken, or refused in one line, soon, and with nothing half
written."""

import io
import json
import os
import random
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tbd import cli, params
from tbd.errors import TransientFault
from tbd.sources import source
from tbd.watch import decide
from tests.faults.test_look import WAYS
from tests.workspace import Workspace, fake_checkpoint, finished

Tried = Callable[[str, int, str], None]
SETS, SETTINGS, CHECKPOINTS = 120, 100, 80
EACH = 20
"""seconds that one may take"""
MEMORY = 1 << 30
"""bytes that all together may need more than at the beginning"""
TEXTS: list[Any] = [
    *(
        "",
        " \t",
        "\0",
        "a\0b",
        "\x1b[2J\x1b]0;owned\x07",
        "<!channel>",
        "<|im_end|>",
        "{{ 7 * 7 }}",
        "=cmd|' /C calc'!A0",
    ),
    *("\u202eabc", "\ud800", "\ufeff", "../../etc/passwd", "Z\u0301" * 9000, "a" * 3_000_000, "1e999", "NaN", "\r\n\r"),
    *(
        None,
        True,
        -1,
        10**30,
        10**400,
        1e308,
        float("nan"),
        float("inf"),
        [],
        {},
        [[["a"]]],
        {"a": {"b": None}},
        b"\xff",
    ),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    workspace = finished()[0].copy(tmp_path / "workspace")
    monkeypatch.chdir(workspace.root)
    for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
        monkeypatch.setenv(name, workspace.environment[name])
    return workspace


@contextmanager
def bounded(what: object) -> Iterator[None]:
    """It ends in EACH seconds, and does not grow this process without bound."""

    def late(*_: object) -> None:
        raise AssertionError(f"takes more than {EACH} s: {what}")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    signal.signal(signal.SIGALRM, late)
    signal.alarm(EACH)
    try:
        yield
    finally:
        signal.alarm(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MEMORY, what


def told(capsys: pytest.CaptureFixture[str], what: object, *command: str) -> int:
    """The exit code of a command, which is 0, or 2 with one line that a terminal can show."""
    capsys.readouterr()
    with bounded(what), pytest.raises(SystemExit) as stop:
        cli.main(list(command))
    err = capsys.readouterr().err
    lines = err.splitlines()
    code = int(stop.value.code or 0)
    assert code in (0, 2), (what, err[-3000:])
    if code:
        assert len(lines) == 1 and lines[0].startswith("error: ") and lines[0].isprintable(), (what, err[-3000:])
        assert len(lines[0]) < 2000, (what, len(lines[0]))
    return code


# --- question sets ----------------------------------------------------------------------------------------------------


def spoilt(content: bytes, rng: random.Random) -> bytes:
    """Cut, with bytes in the wrong place, or in another encoding."""
    at = rng.randrange(len(content) + 1)
    ways: list[Callable[[], bytes]] = [
        lambda: content[:at],
        lambda: content[:at] + b"\0" * rng.choice([1, 4096]) + content[at:],
        lambda: content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
        lambda: content[:at] + rng.randbytes(64) + content[at:],
        lambda: b"\xef\xbb\xbf" + content,
        lambda: content.decode("latin-1").encode("utf-16"),
        lambda: content.replace(b"\n", b"\r"),
        lambda: content[:at] + b'"' + content[at:],
        lambda: content[:at] + b"[" * 100_000,
        lambda: content + content,
        lambda: b"",
        lambda: content,
    ]
    return rng.choice(ways)()


def question_file(folder: Path, number: int, rng: random.Random) -> Path:
    rows: list[dict[Any, Any]] = [{"question": f"How much is {n} + {number}?", "label": n % 2} for n in range(20)]
    for _ in range(rng.choice([0, 1, 1, 3])):
        row = rng.choice(rows)
        key = rng.choice(["question", "label", "question", rng.choice(["", "\x1b[31m", "question\0", "answer"])])
        row[key] = rng.choice(TEXTS)
    kind = rng.choice(["jsonl", "jsonl", "json", "csv", "parquet"])
    text = [
        {key: value.decode("latin-1") if isinstance(value, bytes) else value for key, value in row.items()}
        for row in rows
    ]
    if kind == "jsonl":
        content = "".join(json.dumps(row) + "\n" for row in text).encode()
    elif kind == "json":
        content = json.dumps(text).encode()
    else:
        frame, buffer = (
            pd.DataFrame([{k: str(v).encode("utf-8", "replace").decode() for k, v in row.items()} for row in rows]),
            io.BytesIO(),
        )
        if kind == "csv":
            frame.to_csv(buffer, index=False)
        else:
            frame.to_parquet(buffer)
        content = buffer.getvalue()
    name = rng.choice([f"q{number}", f"q{number}", f"q {number} \x1b[1m", f"-q{number}", f"q{number}" + "ü" * 60])
    file = folder / f"{name}.{kind}"
    file.write_bytes(spoilt(content, rng))
    return file


def test_question_sets(
    place: Workspace, tmp_path: Path, rng: random.Random, capsys: pytest.CaptureFixture[str], tried: Tried
) -> None:
    codes: Counter[int] = Counter()
    before = place.hashes()
    for number in range(SETS):
        file = question_file(tmp_path, number, rng)
        extra = rng.choice([[], ["--label-column", "label"], ["--column", rng.choice(["question", "missing", "\x1b"])]])
        code = told(capsys, file, "import", f"set{number}", str(file), *extra)
        codes[code] += 1
        if code == 0:
            for made in (f"data/sets/set{number}.parquet", f"data/sets/set{number}.parquet.dvc"):
                (place.root / made).unlink()
        left = {
            name: digest for name, digest in place.hashes().items() if not name.startswith((".dvc/", "data/sets/.git"))
        }
        assert left == {name: before[name] for name in left} and before.keys() >= left.keys(), file
    tried(
        "question files for `tbd import`, malformed and hostile",
        SETS,
        f"{codes[0]} taken, {codes[2]} refused in one line",
    )


# --- params.yaml, audit.yaml ------------------------------------------------------------------------------------------


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path in a tree of dicts and lists."""
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in parts:
        yield (*at, key)
        yield from places(value, (*at, key))


def mutated(text: str, rng: random.Random) -> bytes:
    """A YAML file with other values, other keys, or spoilt."""
    if rng.random() < 0.3:
        return spoilt(text.encode(), rng)
    tree = yaml.safe_load(text)
    for _ in range(rng.choice([1, 1, 2])):
        *above, last = rng.choice(list(places(tree)))
        inner = tree
        for key in above:
            inner = inner[key]
        if rng.random() < 0.2:
            inner.pop(last)
        elif rng.random() < 0.2 and isinstance(inner, dict):
            inner[rng.choice(["", "\x1b[31m", "nobody", 3])] = inner.pop(last)
        else:
            inner[last] = rng.choice([value for value in TEXTS if value != "\ud800"])
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace")


def test_parameters_and_audits(
    place: Workspace, rng: random.Random, capsys: pytest.CaptureFixture[str], tried: Tried
) -> None:
    codes: Counter[int] = Counter()
    files = [Path("params.yaml"), Path("audits/base/audit.yaml")]
    kept = {file: file.read_text() for file in files}
    for number in range(SETTINGS):
        file = rng.choice(files)
        file.write_bytes(mutated(kept[file], rng))
        before = place.hashes()
        what = (number, file.read_bytes()[:2000])
        codes[told(capsys, what, "explain", "base")] += 1
        code = told(capsys, what, "plan", "base", "--no-burst")
        codes[code] += 1
        assert place.hashes() == before
        file.write_text(kept[file])
    tried(
        "params.yaml and audit.yaml with other values, keys and bytes",
        SETTINGS,
        f"{codes[0]} taken, {codes[2]} refused in one line, by two commands each",
    )


# --- checkpoints ------------------------------------------------------------------------------------------------------


def hostile(folder: Path, rng: random.Random) -> None:
    """A checkpoint that is broken in one to three ways."""
    fake_checkpoint(folder, "How much is 1 + 1?")
    ways: list[Callable[[Path], Any]] = [
        *(
            WAYS[name]
            for name in (
                "fifo",
                "device",
                "socket",
                "loop",
                "name",
                "nested",
                "no weights",
                "no config",
                "two billion layers",
                "a header of sixty gigabytes",
                "a tokenizer of sixty gigabytes",
            )
        ),
        lambda folder: (folder / "config.json").write_bytes(
            spoilt(b'{"model_type": "llama", "num_hidden_layers": 2}', rng)
        ),
        lambda folder: (folder / "config.json").write_text(
            json.dumps({"num_layers": rng.choice(TEXTS[:-1])}, default=str)
        ),
        lambda folder: (folder / "model.safetensors").write_bytes(spoilt(header(rng), rng)),
        lambda folder: (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": rng.choice([{"a": "../x"}, {"a": 3}, [], None, {"a": ["b"]}, {"a": "x\x1b[2J"}])})
        ),
        lambda folder: (folder / rng.choice(["x\x1b[2J.json", "<!channel>.json", "a\nb.json", "\u202e.json"])).mkdir(),
        lambda folder: (folder / "fake.txt").write_bytes(rng.choice([b"\xff\xfe", b"\0" * 100, b"a" * 5_000_000])),
        lambda folder: (folder / "model-00001-of-99999999999.safetensors").write_bytes(header(rng)),
        lambda folder: os.truncate(folder / "tokenizer.json", 127 << 20),
        lambda folder: (folder / "vocab.json").symlink_to(
            rng.choice(["/proc/self/mem", "/etc/passwd", ".", "nowhere", "/dev/stdin"])
        ),
        lambda folder: (folder / "config.json").chmod(0),
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
    ]
    chosen = rng.sample(ways, rng.choice([1, 1, 2, 3]))
    for way in sorted(chosen, key=ways.index, reverse=True):  # a FIFO last: to write to one waits for ever
        try:
            way(folder)
        except (FileNotFoundError, FileExistsError, ValueError, TypeError):  # another way was there before
            continue


def header(rng: random.Random) -> bytes:
    tensor = {
        "dtype": "F32",
        "shape": rng.choice([[2], [-1], [10**30, 10**30], ["a"], "ab", None, [2, [2]]]),
        "data_offsets": rng.choice([[0, 8], [8, 0], [0, 10**20], [], None, ["a", "b"]]),
    }
    text = json.dumps({rng.choice(["a", "", "\x1b[2J"]): tensor, "__metadata__": rng.choice([None, {}, 3])}).encode()
    return rng.choice([len(text), 2**63, 0, len(text) + 1]).to_bytes(8, "little") + text + bytes(8)


def test_checkpoint_folders(workspace: Path, rng: random.Random, tried: Tried) -> None:
    """What a look does before an audit: list, check, ask for a prompt, take the fingerprint."""
    shutil.copy(finished()[0].root / "params.yaml", "params.yaml")
    p = params.load()
    p = p.model_copy(update={"watch": p.watch.model_copy(update={"settle": 0, "give_up": 0})})
    incoming, seen = Path("incoming"), Counter[str]()
    for number in range(CHECKPOINTS):
        folder = incoming / f"bad-{number}"
        hostile(folder, rng)
        with bounded(folder):
            (found,) = source(str(incoming)).look()
            try:
                got: object = decide.fetch(source(str(incoming)), found, p)
            except TransientFault as fault:
                raise AssertionError(f"{folder}: {list(folder.iterdir())}") from fault
        seen[type(got).__name__] += 1
        if isinstance(got, decide.Broken):
            assert len(got.why) < 2000
            json.dumps(got.why, ensure_ascii=False).encode()
        shutil.move(folder, f"seen-{number}")
    tried(
        "checkpoint folders with broken, odd and hostile files",
        CHECKPOINTS,
        f"{seen['Fetched']} taken, {seen['Broken']} refused in one line",
    )
