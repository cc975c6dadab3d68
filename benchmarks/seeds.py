"""Does the demo come out the same with other questions and another training? `python -m benchmarks.seeds`: as long as
that many demos.

Each seed draws other question sets and trains another reference, in a workspace of its own, by `dvc repro` as it
stands. AUC is the detector's, cross-validated; half of the references' benchmark was in their data.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path

import psutil
import torch
import yaml
from tabulate import tabulate

from tbd.detection.results import Power
from tbd.report.summary import finds_from
from tbd.report.text import interval
from tests.workspace import REPOSITORY, create

HEADERS = [
    "seed",
    "type",
    "detector",
    "AUC",
    "halfway: AUC",
    "reference",
    "at least",
    "halfway",
    "at least",
    "base",
    "flagged",
    "finds from",
]


def row(seed: int, root: Path, where: dict[str, int]) -> list[object]:
    """One seed from nothing to both verdicts; a line of the table."""
    changes = {"sets": {"seed": where["sets"] + seed}, "distill": {"seed": where["distill"] + seed}}
    workspace = create(root, changes, fake=False)
    workspace.repro()
    detector = json.loads((root / "detector/detector.json").read_text())
    strong = detector["references"][0]["provenance"]
    found: list[object] = [seed, strong["dtype"], detector["choices"]["with_base"]["id"]]
    for reference in detector["references"]:
        figures = reference["with_base"]
        found.append(interval(figures["auc"], figures["auc_low"], figures["auc_high"], ".3f"))
    for audit in ("reference", "halfway"):
        told = workspace.verdict(audit)
        found += [told["verdict"], f"{told['share_at_least']:.0%}"]
    base = workspace.verdict("base")
    found += [base["verdict"], f"{base['flagged']} of {base['benchmark']['n']}"]
    found.append(finds_from(Power.model_validate(base["power"])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="default: 0 to 4; 0 is the demo's")
    options = parser.parse_args()
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    first = {section: params[section]["seed"] for section in ("sets", "distill")}
    print(f"{psutil.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="tbd-seeds-") as folder:
        for seed in options.seeds:
            rows.append(row(seed, Path(folder) / str(seed), first))
            print(f"seed {seed}: {' | '.join(map(str, rows[-1][1:]))}", flush=True)
    print("\n" + tabulate(rows, HEADERS, tablefmt="github"))


if __name__ == "__main__":
    main()
