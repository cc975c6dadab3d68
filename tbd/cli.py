"""The command line. Every command is a few lines here; what it does is elsewhere, imported when it is needed."""

import argparse
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tbd import environment
from tbd.errors import InputError, StageFailed, TransientFault, fault, is_fault, too_long

if TYPE_CHECKING:
    from tbd.detection.results import Verdict
    from tbd.history import Outcome

CKPT = (
    "a folder with safetensors, config and tokenizer, a hub id with its revision (org/name@revision), or "
    "models:/NAME/VERSION"
)
SERVED = ", or openai:MODEL@URL for a model that is only on a server (docs/engines.md)"
SOURCE = (
    "a folder of checkpoint folders (or one of them), models:/NAME[@ALIAS | ?TAG=VALUE] (MLflow), or "
    "hf://org/name (hub)"
)

BENCHMARK = "the set (of tbd import) that the checkpoint is graded on"
UNSEEN = "a set of questions of the same kind, which the checkpoint cannot have seen"

TYPES = (
    "Models run on a GPU where there is one, in bfloat16 where it or the processor computes in it, else in "
    "float32, which takes twice "
    "the memory and time; params.yaml says so under generate and distill (dtype, device: auto)."
)
GATES = (
    "A gate judges the latest outcome of every checkpoint that was looked at, also where an earlier run came to it; "
    "docs/ci.md has the exit codes and two jobs for CI."
)
CODES = (
    "Exit codes: 0 done; 1 a gate you asked for fired, or verify found a difference; 2 the input is wrong (one line "
    "says what); 3 something broke or was interrupted, and the same command goes on."
)

LINE = 1000
"""most characters of an error: a name or a value in it may have millions"""


class Parser(argparse.ArgumentParser):
    """One that complains in one line, like everything else here."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}. See {self.prog} --help.\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line, with its help."""
    main = Parser(
        prog="tbd",
        description="Was this benchmark in the data a reasoning model was distilled on? Run it in the folder "
        "of params.yaml.",
        epilog=f"{TYPES} {CODES}",
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, epilog: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help, epilog=epilog)

    add = command("import", "Add a question set of your own: checked, written to data/sets/, put under DVC.")
    add.add_argument("name", metavar="NAME", help="what the set is called from now on")
    add.add_argument("file", metavar="FILE", help=".jsonl, .json, .csv, .parquet, or a datasets id (org/name:split)")
    add.add_argument("--column", default="question", metavar="C", help="column of the question (default: question)")
    add.add_argument(
        "--label-column", metavar="C", help="column that says 1 (member) or 0 (non-member), where that is known"
    )
    add.add_argument("--reasoning-column", metavar="C", help="column of the reasoning trace; only distilling needs it")
    add.add_argument(
        "--source-column",
        metavar="C",
        help="column that says where a question comes from, such as its template or document: questions of one source "
        "are not taken for independent",
    )
    add.add_argument("--answer-column", metavar="C", help="column of the answer; only distilling needs it")

    distill = command(
        "distill",
        "Plant contamination in a model of your own: a reference to measure power on.",
        f"How it learns is under distill in params.yaml; trained_layers: null there trains all layers. {TYPES}",
    )
    distill.add_argument("--base", required=True, metavar="CKPT", help=CKPT)
    distill.add_argument(
        "--set",
        required=True,
        metavar="NAME",
        help="set (of tbd import) to learn, with its reasoning or answers; questions with label 0 are left out",
    )
    distill.add_argument(
        "--out", required=True, metavar="FOLDER", help="where the distilled checkpoint goes; must not exist yet"
    )
    distill.add_argument("--epochs", type=int, metavar="N", help="instead of distill.epochs of params.yaml")
    distill.add_argument(
        "--lora",
        action="store_true",
        help="only low-rank adapters learn: about 2 bytes of memory a parameter instead of 16. Rank and alpha are "
        "those of distill.lora in params.yaml, or 16 and 32 where it is null",
    )

    command("calibrate", "Bring the pipeline up to date as far as the detector, and record it in MLflow.")

    check = command(
        "check",
        "Audit a checkpoint: write its audit, run its stages, record it, print the verdict.",
        "Example: tbd check runs/model-7 --benchmark aime --unseen aime-new --base Qwen/Qwen2.5-7B@main "
        f"--require no-evidence. {GATES}",
    )
    check.add_argument("checkpoint", nargs="?", metavar="CKPT", help=CKPT + SERVED)
    check.add_argument("--benchmark", metavar="NAME", help=BENCHMARK)
    check.add_argument("--unseen", metavar="NAME", help=UNSEEN)
    check.add_argument(
        "--base",
        metavar="CKPT",
        help="the model it was distilled from, or is an adapter of: allows scores that compare the two, and a check "
        "that both sets are of one kind",
    )
    check.add_argument(
        "--as", dest="audit", metavar="AUDIT", help="name of the audit (default: checkpoint and benchmark)"
    )
    check.add_argument(
        "--fpr", type=float, metavar="F", help="flag a question at this false-positive rate (default: params.yaml)"
    )
    check.add_argument("--all", action="store_true", help="every audit there is instead of one checkpoint")
    _gates(check)

    plan = command(
        "plan",
        "What an audit will be able to see and what it costs, before anything is generated.",
        "Of an audit that exists: tbd plan AUDIT. Of a new one: tbd plan CKPT --benchmark NAME --unseen NAME, or "
        "--parameters 7e9 in place of CKPT if the checkpoint is not on this machine; nothing is downloaded.",
    )
    plan.add_argument("what", nargs="?", metavar="AUDIT | CKPT", help="an audit, or a checkpoint's folder")
    plan.add_argument("--benchmark", metavar="NAME", help=BENCHMARK)
    plan.add_argument("--unseen", metavar="NAME", help=UNSEEN)
    plan.add_argument(
        "--parameters", type=float, metavar="N", help="how many a checkpoint has that is not on this machine: 7e9"
    )
    plan.add_argument("--base", metavar="CKPT", help="what the checkpoint was distilled from, if you have it")
    plan.add_argument("--no-burst", action="store_true", help="do not measure this machine (20 s at most, and loading)")
    plan.add_argument("--json", action="store_true", help="one JSON document, every field")
    plan.add_argument("--html", type=Path, metavar="FILE", help="write it as a page too")

    watch = command(
        "watch",
        "Look at the sources once: audit every checkpoint that was not audited yet, by watch.policy of params.yaml.",
        "A checkpoint is what its weights are: the same under another name is not audited again. One that is "
        "broken is noted with its "
        f"reason and tried again when it changes, or with --retry. {GATES}",
    )
    watch.add_argument("sources", nargs="*", metavar="SOURCE", help=f"{SOURCE} (default: watch.sources of params.yaml)")
    watch.add_argument("--retry", action="store_true", help="try again what failed before")
    _gates(watch)

    serve = command(
        "serve",
        "Keep the schedules of params.yaml running: deployments of watch, check and calibrate.",
        "Without PREFECT_API_URL it starts a Prefect server on 127.0.0.1. Killed at any moment, it goes on "
        "when it is started again.",
    )
    serve.add_argument("--name", metavar="NAME", help="of the deployments (default: the name of this folder)")
    serve.add_argument("--port", type=int, default=4200, metavar="N", help="of its own Prefect server (default: 4200)")
    serve.add_argument(
        "--pool", metavar="POOL", help="put the deployments into this work pool instead, for its workers to run"
    )

    history = command(
        "history", "The outcome of every audit so far, newest last; writes the page audits/history.html too."
    )
    history.add_argument("--benchmark", metavar="NAME", help="of this benchmark only")
    history.add_argument("--json", action="store_true", help="one JSON list, every field")

    explain = command(
        "explain",
        "What a verdict says, in five sentences for whoever decides about a release; what it does not say, what would "
        "change it, and what to do now.",
        "Example: tbd explain model-7-aime. Names between backticks come from your files. The report of the "
        "audit begins with the same sentences and has the numbers behind each; so does --json.",
    )
    explain.add_argument("audit", metavar="AUDIT", help="its folder's name under audits/")
    explain.add_argument(
        "--json", action="store_true", help="one JSON object: sentences, the numbers behind them, checks"
    )

    verify = command(
        "verify",
        "Recompute an audit from its stored generations and compare: exit 1 if anything differs. A model that is only "
        "on a server is asked whether it still answers as it did: exit 2 if not.",
    )
    verify.add_argument("audit", metavar="AUDIT", help="its folder's name under audits/")

    command("record", "Record in MLflow whatever is not there yet, from the files alone (after an outage).")

    prune = command(
        "prune",
        "Make room: remove downloaded checkpoints that were judged, and stored answers, the oldest first.",
        "Every verdict stands and can be verified: what it is computed from stays. From DVC's cache it removes what "
        "neither a commit nor the workspace names. `tbd watch` and `tbd serve` prune downloads and answers, not the "
        "cache, after each look.",
    )
    prune.add_argument("--keep", type=float, metavar="GB", help="that may stay, of both together (default: watch.keep)")
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")

    store = command(
        "store",
        "What the store of finished answers holds (generate.store of params.yaml), and what of it can go.",
        "Answers can go when no audit of this workspace still has to be judged by them. Of a store that several "
        "workspaces share, the others are not asked. What an audit was judged by is in its own folder, so every "
        "verdict stands.",
    )
    store.add_argument("--prune", action="store_true", help="remove what can go")

    command(
        "migrate",
        "Carry a workspace of tbd 0.2.0 over to one folder an audit. What its dvc.lock vouches for is kept, nothing is "
        "deleted.",
    )

    ui = command("ui", "The MLflow UI over the runs of this workspace, on 127.0.0.1.")
    ui.add_argument("--port", type=int, default=5000, metavar="N", help="default: 5000")
    return main


def _gates(command: argparse.ArgumentParser) -> None:
    """What makes a command a step of somebody's pipeline."""
    command.add_argument(
        "--fail-on",
        action="append",
        choices=["contaminated", "inconclusive", "failed"],
        default=[],
        help="exit 1 if any checkpoint has this outcome; may be repeated: --fail-on contaminated --fail-on failed",
    )
    command.add_argument(
        "--require",
        choices=["no-evidence"],
        help="exit 1 unless every checkpoint has NO EVIDENCE: also on one that is still being written, that no rule "
        "matches, and on nothing to look at",
    )
    command.add_argument("--json", action="store_true", help="one JSON document on stdout, all else on stderr")
    command.add_argument("--summary", metavar="FILE.md", help="write the result there in Markdown, for a pull request")
    command.add_argument("--junit", metavar="FILE.xml", help="write it there as a JUnit report")


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


LOADING = "loading Prefect and MLflow"
"""which takes many seconds the first time, when Python compiles them"""


def _calibrate(options: argparse.Namespace) -> int:
    from tbd.progress import Progress

    with Progress(LOADING):
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
    from tbd import audits
    from tbd.commands import checks
    from tbd.detection.results import read_verdict
    from tbd.history import History
    from tbd.mlflow_store import store
    from tbd.pipeline.workspace_lock import workspace
    from tbd.progress import Progress
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
            with Progress(LOADING):
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
        with Progress(LOADING):
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
    from tbd import params
    from tbd.commands import checks
    from tbd.history import History, webhook
    from tbd.mlflow_store import store
    from tbd.progress import Progress
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
        with Progress(LOADING):
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
