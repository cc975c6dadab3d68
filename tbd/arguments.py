"""The command line: every command, its options and their help. What they do is in `tbd.cli`."""

import argparse
from pathlib import Path
from typing import NoReturn

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
