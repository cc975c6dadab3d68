"""Question sets of a workspace: importing one, and reading one wherever it is now.

Refused before anything is written.
"""

from pathlib import Path

import pandas as pd
import pyarrow as pa

from tbd import params, records
from tbd.errors import InputError, unknown
from tbd.pipeline.repro import dvc
from tbd.sets import importing
from tbd.workspace import SETS, check_name, set_path


def import_set(name: str, source: str, columns: dict[str, str | None]) -> int:
    """Read, validate, write data/sets/NAME.parquet and put it under DVC.

    Returns the number of questions. Raises InputError.
    """
    from tbd.sets import expectations  # seconds

    path = set_path(check_name(name, "set"))
    frame, first = importing.read(source)
    frame = importing.questions(frame, source, first, columns)
    p = params.load().validate_
    outcome = expectations.check_questions(name, frame, {}, p.ngram, p.max_overlap)
    if outcome.failures:
        raise InputError(f"{source}: {outcome.failures[0]}")
    table = pa.Table.from_pandas(frame, records.QUESTIONS, preserve_index=False)
    tracker = path.with_name(path.name + ".dvc")
    made_by_pipeline = str(path) in pipeline_outputs()
    if tracker.exists() and not path.exists():
        dvc("checkout", "--quiet", str(tracker))
    if path.exists():
        if not records.read_table(path, records.QUESTIONS).equals(table):
            raise InputError(f"set {name!r}: the name is taken by other questions ({path}). Choose another name.")
        if not tracker.exists() and not made_by_pipeline:  # killed between writing and tracking
            dvc("add", "--quiet", str(path))
        return len(table)
    if made_by_pipeline:
        raise InputError(f"set {name!r}: the pipeline makes a set of this name. Choose another name.")
    records.write_table(path, table)
    try:
        dvc("add", "--quiet", str(path))
    except BaseException:
        path.unlink(missing_ok=True)
        tracker.unlink(missing_ok=True)
        raise
    return len(table)


def pipeline_outputs() -> set[str]:
    try:
        stages = params.load_yaml(Path("dvc.yaml"))["stages"]
        return {out for stage in stages.values() for out in stage.get("outs", []) if isinstance(out, str)}
    except (AttributeError, LookupError, TypeError):
        raise InputError("dvc.yaml: not a pipeline of DVC. Restore it from git.") from None


def questions(name: str) -> pd.DataFrame:
    """The question set `name`, a row a question. Raises InputError, suggesting a name, if there is none such."""
    path = set_path(check_name(name, "set"))
    tracker = path.with_name(path.name + ".dvc")
    if not path.is_file():
        known = {file.stem for file in SETS.glob("*.parquet")}
        made = {Path(out).stem for out in pipeline_outputs() if Path(out).parent == SETS}
        if name in made:
            dvc("repro", "sets")
        elif tracker.is_file():
            dvc("checkout", str(tracker))
        else:
            raise unknown("set", name, known | made, str(SETS))
    if tracker.is_file() and params.load_yaml(tracker)["outs"][0]["md5"] != records.md5(path):
        raise InputError(
            f"{path}: changed since it was imported. Undo it with `dvc checkout {tracker}`, or import it under "
            "another name."
        )
    frame: pd.DataFrame = records.read_table(path, records.QUESTIONS).to_pandas()
    return frame
