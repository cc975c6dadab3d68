"""The commands. Each is a few lines here; what it does is elsewhere, imported when it is needed."""

import argparse
import importlib
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tbd import environment
from tbd.arguments import parser
from tbd.errors import InputError, StageFailed, TransientFault, fault, is_fault, too_long

if TYPE_CHECKING:
    from tbd.detection.results import Verdict
    from tbd.history import Outcome

LINE = 1000
"""most characters of an error: a name or a value in it may have millions"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    options = parser().parse_args(arguments)
    environment.prepare()
    from tbd import ending, foreign

    if arguments is None:  # a process of its own
        ending.prepare()
        foreign.guard()
    try:
        if not Path("params.yaml").is_file():
            raise InputError("params.yaml: not in this folder. Run tbd where params.yaml and dvc.yaml are.")
        code = COMMANDS[options.command](options)
    except (InputError, StageFailed, TransientFault) as error:
        code = _complain(*_stopped(error))
    except BaseException as error:
        if ending.told() or isinstance(error, KeyboardInterrupt):
            code = _complain(ending.WORDS, 3)
        elif is_fault(error):
            code = _complain(*_stopped(fault(error)))
        elif wrong := too_long(error):
            code = _complain(*_stopped(wrong))
        elif isinstance(error, Exception):
            sys.excepthook(type(error), error, error.__traceback__)
            code = 3
        else:
            raise
    sys.exit(ending.code(code))


def _stopped(error: InputError | StageFailed | TransientFault) -> tuple[str, int]:
    """What is said of an error, and the exit code."""
    if isinstance(error, TransientFault) or (isinstance(error, InputError) and is_fault(error)):
        return f"{error} Try again later.", 3
    return str(error), 2 if isinstance(error, InputError) or error.bad_input else 3


def _complain(message: str, code: int) -> int:
    said = "".join(c if c.isprintable() else " " for c in message)  # names of files may hold anything
    said = " ".join(said.split())
    with suppress(OSError):  # where stderr is a file on a full disk, the exit code says it alone
        print(
            "error: " + (said if len(said) <= LINE else f"{said[: LINE // 2]} ... {said[-LINE // 2 :]}"),
            file=sys.stderr,
        )
    return code


def _import(options: argparse.Namespace) -> int:
    from tbd.commands import sets
    from tbd.pipeline.workspace_lock import workspace

    columns = {
        "question": options.column,
        "label": options.label_column,
        "reasoning": options.reasoning_column,
        "source": options.source_column,
        "answer": options.answer_column,
    }
    with workspace():
        count = sets.import_set(options.name, options.file, columns)
    print(
        f"{options.name}: {count} questions in data/sets/{options.name}.parquet, under DVC. Commit the .dvc "
        "file beside it."
    )
    return 0


def _distill(options: argparse.Namespace) -> int:
    from tbd import locks, params, sources
    from tbd.commands import sets
    from tbd.progress import Progress
    from tbd.reference import planting
    from tbd.workspace import set_path

    out = Path(options.out)
    if out.exists():
        raise InputError(f"--out {out}: exists. Choose a new folder or remove it first.")
    p = params.load()
    if options.epochs is not None and options.epochs < 1:
        raise InputError(f"--epochs {options.epochs}: at least 1.")
    recipe = p.distill.model_copy(
        update={
            "epochs": p.distill.epochs if options.epochs is None else options.epochs,
            "lora": p.distill.lora or (params.LORA if options.lora else None),
        }
    )
    base = sources.resolve(options.base)
    sets.questions(options.set)
    with locks.device(p.serve.device_slots), Progress(f"distill {out}") as progress:
        planting.plant(base, set_path(options.set), out, recipe, p.generate.device, progress)
    print(f"Audit it: tbd check {out} --base {options.base} --benchmark NAME --unseen NAME")
    return 0


def _load(*modules: str) -> None:
    """Import what takes many seconds the first time, when Python compiles it, and say so meanwhile."""
    from tbd.progress import Progress

    with Progress("loading"):
        for name in modules:
            importlib.import_module(name)


def _calibrate(options: argparse.Namespace) -> int:
    _load("tbd.commands.checks", "flows.calibrate")
    from flows.calibrate import calibrate
    from flows.run import run
    from tbd import params
    from tbd.commands import checks
    from tbd.detection.results import read_detector
    from tbd.mlflow_store import store
    from tbd.report import summary
    from tbd.workspace import DETECTOR

    store()  # a wrong address is better told before hours of generation than after
    checks.ready(params.load().calibrate.references)
    run(calibrate)
    print("\n" + summary.detector_markdown(read_detector(DETECTOR)))
    return 0


def _answer(
    options: argparse.Namespace,
    name: str,
    work: "Callable[[argparse.Namespace], tuple[list[Outcome], list[Verdict]]]",
) -> int:
    """Do the work of `check` or `watch`, and answer for what stands then: in words, in files, by the exit code."""
    from tbd.commands import answers
    from tbd.gates import Answer, Gates
    from tbd.report import answer as written
    from tbd.report.text import plain
    from tbd.sources import Found
    from tbd.watch import outcomes

    gates, files = Gates(options.fail_on, options.require), answers.ready(options.summary, options.junit)
    stopped = None
    with answers.aside(options.json):
        try:
            standing, verdicts = work(options)
            answer = Answer(standing, gates, gates.exit_code(standing), {one.audit: one for one in verdicts})
        except (InputError, StageFailed, TransientFault) as error:
            stopped, code = _stopped(error)
            answer = Answer([outcomes.failure(Found(name, name, name, ""), None, stopped)], gates, code)
        for one in answer.standing if stopped is None else []:
            for gate in gates.fired(one.outcome):
                on = f" on {one.benchmark.name}" if one.benchmark else ""
                print(plain(f"{gate} fires: {one.checkpoint}{on}: {one.outcome}: {one.reason}"))
        answers.write(answer, files)
    if options.json:
        print(written.document(answer))
    return answer.code if stopped is None else _complain(stopped, answer.code)


def _check(options: argparse.Namespace) -> int:
    return _answer(options, "check-all" if options.all else options.checkpoint or "check", _checked)


def _checked(options: argparse.Namespace) -> "tuple[list[Outcome], list[Verdict]]":
    _load("tbd.commands.checks")
    from tbd import audits
    from tbd.commands import checks
    from tbd.detection.results import read_verdict
    from tbd.history import History
    from tbd.mlflow_store import store
    from tbd.pipeline.workspace_lock import workspace
    from tbd.report import summary
    from tbd.watch import outcomes
    from tbd.workspace import AUDITS

    store()  # a wrong address is better told before hours of generation than after

    if options.all:
        given = [
            key
            for key in ("checkpoint", "benchmark", "unseen", "base", "audit", "fpr")
            if getattr(options, key) is not None
        ]
        if given:
            raise InputError(f"--all: takes the audits as they are; leave {', '.join(given)} out.")
        names, every = checks.present(), audits.names()
        checks.ready(names)
        if checks.settled(names):
            print("nothing to do: every verdict is up to date, told and recorded")
        else:
            _load("flows.check")
            from flows.check import check_all
            from flows.run import run

            with workspace():
                run(check_all, names)
    else:
        for name in ("checkpoint", "benchmark", "unseen"):
            if getattr(options, name) is None:
                raise InputError(
                    f"tbd check: {'CKPT' if name == 'checkpoint' else '--' + name} is missing. See tbd check --help."
                )
        asked = (options.checkpoint, options.benchmark, options.unseen, options.base, options.audit, options.fpr)
        names = every = [checks.prepare(*asked)[0]]  # refuses in a moment what the flow would refuse in its log
        _load("flows.check")
        from flows.check import check
        from flows.run import run

        with workspace():
            run(check, *asked)
    verdicts = [read_verdict(AUDITS / name / "verdict.json") for name in names]
    print("\n" + summary.table(verdicts) + "\n")
    for verdict in verdicts:
        for line in (*verdict.reasons, *verdict.warnings):
            print(f"{verdict.audit}: {line}")
    for name in names:
        print(f"report: {AUDITS / name / 'report.html'}")
    print("browse: tbd ui    recompute: tbd verify AUDIT")
    known = History()
    standing = [outcomes.standing(name, known) for name in every]
    return standing or [outcomes.nothing("flow", "check-all", "There is no audit.")], verdicts


def _plan(options: argparse.Namespace) -> int:
    from contextlib import redirect_stdout

    from tbd import foreign
    from tbd.commands import plan
    from tbd.report import plan as page

    if options.html is not None and options.html.is_dir():
        raise InputError(f"--html {options.html}: a folder. Name a file.")
    with redirect_stdout(foreign.Terminal(sys.stderr)):  # the plan alone goes out
        asked = plan.asked(options.what, options.benchmark, options.unseen, options.base, options.parameters)
        found = plan.plan(asked, burst=not options.no_burst)
    print(found.model_dump_json(indent=2) if options.json else page.table(found))
    if options.html is not None:
        page.write(options.html, found)
        print(f"page: {options.html}", file=sys.stderr if options.json else sys.stdout)
    return 0


def _watch(options: argparse.Namespace) -> int:
    return _answer(options, " ".join(options.sources) or "watch.sources", _watched)


def _watched(options: argparse.Namespace) -> "tuple[list[Outcome], list[Verdict]]":
    _load("tbd.commands.checks")
    from tbd import params
    from tbd.commands import checks
    from tbd.history import History, webhook
    from tbd.mlflow_store import store
    from tbd.report import summary
    from tbd.scores.scoring import wanted
    from tbd.watch import look

    store()
    webhook.check()
    p = params.load()
    wanted(p)
    checks.ready_for(p.watch.policy)
    before, addresses = History(), options.sources or p.watch.sources
    new: list[Outcome] = []
    if look.work(addresses, p, options.retry, strict=bool(options.sources)):
        _load("flows.watch")
        from flows.run import run
        from flows.watch import watch

        run(watch, addresses, options.retry)
        new = History().outcomes[len(before.outcomes) :]
        if new:
            print("\n" + summary.history_table(new) + "\n")
        print("history: audits/history.html    browse: tbd ui")
    else:
        print("nothing new")  # said without starting any of the machinery
    if not any((options.fail_on, options.require, options.json, options.summary, options.junit)):
        return [], []  # nobody asks what stands
    standing = look.standing(addresses, p)
    seen = {_about(one) for one in standing}
    return standing + [one for one in summary.latest(new) if _about(one) not in seen], []  # it went away meanwhile


def _about(outcome: "Outcome") -> tuple[str, str | None]:
    return outcome.place, outcome.benchmark.name if outcome.benchmark else None


def _serve(options: argparse.Namespace) -> int:
    from flows.run import refusals
    from flows.serve import serve

    with refusals():
        serve(options.name or Path.cwd().name, options.port, options.pool)
    return 0


def _history(options: argparse.Namespace) -> int:
    import json

    from tbd import params
    from tbd.errors import unknown
    from tbd.history import History
    from tbd.report import history_page, summary
    from tbd.workspace import AUDITS

    outcomes = History().outcomes
    if options.benchmark is not None:
        known = {one.benchmark.name for one in outcomes if one.benchmark}
        if options.benchmark not in known:
            raise unknown("benchmark", options.benchmark, known, "audits/history.jsonl")
    chosen = [one for one in outcomes if options.benchmark in (None, one.benchmark and one.benchmark.name)]
    if options.json:
        print(json.dumps([one.model_dump(mode="json") for one in chosen], indent=2, ensure_ascii=False))
        return 0
    if not chosen:
        print("no audits yet: tbd check CKPT, or tbd watch SOURCE")
        return 0
    alpha = params.load().stream.alpha
    print(summary.history_table(chosen))
    print(f"\n{summary.spent(outcomes, alpha)}")
    print(f"page: {history_page.write(AUDITS / 'history.html', outcomes, alpha)}")
    return 0


def _explain(options: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from tbd import audits
    from tbd.detection.results import read_verdict
    from tbd.report.explain import explain
    from tbd.workspace import AUDITS

    audits.get(options.audit)
    file = AUDITS / options.audit / "verdict.json"
    if not file.is_file():
        raise InputError(f"{file}: not there yet. tbd check --all brings every audit up to date.")
    found = explain(read_verdict(file))
    print(json.dumps(asdict(found), indent=2, ensure_ascii=False) if options.json else found.terminal())
    return 0


def _verify(options: argparse.Namespace) -> int:
    from tbd.commands import checks

    differences = checks.verify(options.audit)
    for line in differences:
        print(line)
    print(
        f"{options.audit}: "
        + (f"{len(differences)} differences" if differences else "recomputed, the same in every number")
    )
    checks.same_server(options.audit)
    return int(bool(differences))


def _record(options: argparse.Namespace) -> int:
    from tbd.mlflow_store import TrackingDown
    from tbd.tracking.runs import record_all

    try:
        runs = record_all(Path())
    except TrackingDown as error:
        return _complain(str(error), 3)
    print(f"{len(runs)} new runs in MLflow")
    return 0


def _prune(options: argparse.Namespace) -> int:
    from tbd import params
    from tbd.commands import prune
    from tbd.pipeline.workspace_lock import workspace

    keep = options.keep if options.keep is not None else params.load().watch.keep
    if not 0 <= keep < float("inf"):
        raise InputError(f"--keep {keep:g}: a number of GB, 0 or more.")
    with workspace():
        for line in prune.prune(keep * 1e9, options.dry_run):
            print(line, flush=True)
        print(prune.collect(options.dry_run))
    return 0


def _store(options: argparse.Namespace) -> int:
    from tbd import params
    from tbd.commands import prune
    from tbd.pipeline.workspace_lock import workspace

    with workspace():
        for line in prune.stored(params.load().generate.store, options.prune):
            print(line, flush=True)
    return 0


def _migrate(options: argparse.Namespace) -> int:
    from tbd.commands.migrate import migrate
    from tbd.pipeline.workspace_lock import workspace

    with workspace():
        for line in migrate():
            print(line, flush=True)
    return 0


def _ui(options: argparse.Namespace) -> int:
    from tbd import ending
    from tbd.mlflow_store import artifact_root, store

    address = store()
    if address.startswith(("http://", "https://")):
        print("MLFLOW_TRACKING_URI names a server: open it in a browser.")
        return 0
    _free(options.port)
    print(f"Experiments: http://127.0.0.1:{options.port}/#/experiments?workflowType=machine_learning", flush=True)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--host",
        "127.0.0.1",
        "--port",
        str(options.port),
        "--workers",
        "1",  # for one person; each takes seconds to start, and hundreds of MB
        "--allowed-hosts",
        "127.0.0.1:*,localhost:*",  # MLflow's default lets in names that begin with 10. or 192.168.
        "--backend-store-uri",
        address,
    ]
    root = artifact_root(address)
    command += ["--artifacts-destination", str(root)] if root else []
    with ending.tied():
        server = subprocess.Popen(command, start_new_session=True)  # its workers are told by us, and once
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0  # how one stops it
    finally:
        ending.end_group(server)


def _free(port: int) -> None:
    """Raise InputError where a server cannot have the port: what answers there would be taken for ours."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else "0 to 65535"
        raise InputError(f"--port {port}: {why}. Choose another with --port.") from None


COMMANDS = {
    "import": _import,
    "distill": _distill,
    "calibrate": _calibrate,
    "check": _check,
    "plan": _plan,
    "watch": _watch,
    "serve": _serve,
    "history": _history,
    "explain": _explain,
    "verify": _verify,
    "record": _record,
    "prune": _prune,
    "store": _store,
    "migrate": _migrate,
    "ui": _ui,
}
