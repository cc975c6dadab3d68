"""Is the data fit to use? Great Expectations suites over question sets and answers, and their Data Docs.

Great Expectations gets a table of ids and of columns derived here (counts, flags), never a question or an answer. What
those columns must hold is said by built-in expectations. Every suite counts rows and forbids nulls, because an empty
table or a column of nulls meets every other expectation; and non-finite numbers are counted, because -inf meets a
maximum.
"""

import copy
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tbd import records
from tbd.errors import InputError
from tbd.records import question_id
from tbd.sets import near_duplicates

SHOWN = 5
"""question ids named in a failure"""
ANSWERED = 0.9
"""smallest share of answers with a token: one may be empty, but many empty ones mean a broken prompt or model"""

_RUN_TIME = datetime(2000, 1, 1, tzinfo=UTC)  # fixed: the same data must give the same pages
_SHOWN_TIME = re.compile(r"(?:1999-12-31|2000-01-01)[T ]\d\d:\d\d:\d\d[^'\"<]*")  # in any time zone
_ID = re.compile(r"[0-9a-f]{16}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Rule:
    """One built-in expectation."""

    kind: str
    """the name of its class"""
    demand: str
    """what it demands, and what to do otherwise"""
    arguments: dict[str, Any]

    @property
    def column(self) -> str:
        """The columns it looks at, or `table`."""
        named = [self.arguments.get(key) for key in ("column", "column_A", "column_B")]
        return ", ".join(filter(None, [*named, *self.arguments.get("column_list", [])])) or "table"


@dataclass(frozen=True)
class Outcome:
    """What a suite found."""

    name: str
    """of the set or the audit; also the name of the suite"""
    failures: list[str]
    """a line for each failed expectation: its type and column, what it demands, how many rows fail, and their ids"""
    result: Any = field(repr=False, compare=False)
    """Great Expectations' own result (BOOLEAN_ONLY), for the Data Docs"""


def check_questions(
    name: str, frame: pd.DataFrame, others: Mapping[str, Sequence[str]], ngram: int, max_overlap: float
) -> Outcome:
    """Check one question set, with the columns of `records.QUESTIONS`.

    `others` are the questions, by set, of the sets that must share none with this one. `ngram` and `max_overlap` are
    those of `near_duplicates.pairs`; questions with the same id are not counted as near-duplicates too.
    """
    questions = [text if isinstance(text, str) else None for text in frame["question"]]
    asked = [row for row, text in enumerate(questions) if _is_asked(text)]
    texts = [questions[row] or "" for row in asked]
    ids = [question_id(text) for text in texts]
    table = pd.DataFrame(
        {
            "question_id": frame["question_id"].to_numpy(object),
            "question_words": pd.array([None if text is None else len(text.split()) for text in questions], "Int64"),
            "label": frame["label"].to_numpy(),
            "labelled": frame["label"].notna().to_numpy(),
            "source": frame["source"].to_numpy(object),
        }
    )
    # Null where there is no text: the expectations on question_words report that, once.
    computed = pd.Series(ids, index=asked, dtype=object).reindex(table.index)
    table["id_is_of_question"] = (table["question_id"] == computed).astype(object).where(computed.notna(), None)
    inside = [(i, j) for i, j in near_duplicates.pairs(texts, None, ngram, max_overlap) if ids[i] != ids[j]]
    table["near_duplicates"] = _counts([asked[row] for pair in inside for row in pair], len(table))

    rules = [
        _rule("TableRowCountToBeBetween", "The set holds at least one question.", min_value=1),
        _rule("ColumnValuesToNotBeNull", "Every question has an id.", "question_id"),
        _rule("ColumnValuesToMatchRegex", "An id is 16 hex digits.", "question_id", regex="^[0-9a-f]{16}$"),
        _rule("ColumnValuesToBeUnique", "No question is in the set twice: remove the copies.", "question_id"),
        _one_of("id_is_of_question", "The id is that of the question's text: import again.", True),
        _rule("ColumnValuesToNotBeNull", "No question is null.", "question_words"),
        _rule("ColumnValuesToBeBetween", "No question is blank.", "question_words", min_value=1),
        _one_of("label", "A label is 1 (member), 0 (non-member) or null.", 0, 1),
        _rule("ColumnUniqueValueCountToBeBetween", "All questions have a label or none has.", "labelled", max_value=1),
        _rule("ColumnValuesToNotBeNull", "Every question says where it comes from.", "source"),
        _none("near_duplicates", "No two questions of the set are near-duplicates: keep one."),
    ]
    for other, their_texts in others.items():
        theirs = [text for text in their_texts if _is_asked(text)]
        their_ids = [question_id(text) for text in theirs]
        known = set(their_ids)
        table[f"also_in_{other}"] = _counts(
            [row for row, own in zip(asked, ids, strict=True) if own in known], len(table)
        )
        across = [i for i, j in near_duplicates.pairs(texts, theirs, ngram, max_overlap) if ids[i] != their_ids[j]]
        table[f"near_duplicates_in_{other}"] = _counts([asked[i] for i in across], len(table))
        rules += [
            _none(f"also_in_{other}", f"No question is also in {other}: remove it from one of the two."),
            _none(
                f"near_duplicates_in_{other}", f"No question has a near-duplicate in {other}: remove one of the two."
            ),
        ]
    return _validate(name, table, rules)


def check_generations(name: str, batches: Iterable[pa.Table], expected_ids: Mapping[str, pa.Array]) -> Outcome:
    """Check a table of `records.GENERATIONS`, given some rows at a time.

    `expected_ids` are the question ids, by set, that were to be answered.
    """
    facts = pa.concat_tables([_facts(table) for table in chain([records.GENERATIONS.empty_table()], batches)])
    missing: dict[str, list[str]] = {}
    expected = np.zeros(len(facts), bool)
    for set_name, keys in expected_ids.items():
        inside = pc.equal(facts["set"], set_name)
        expected |= pc.and_(inside, pc.is_in(facts["question_id"], keys)).to_numpy()
        answered = facts["question_id"].filter(inside)
        missing[f"unanswered_in_{set_name}"] = keys.filter(pc.invert(pc.is_in(keys, answered))).to_pylist()
    # strings stay in Arrow's memory: as Python objects a million of them take 0.3 GB
    frame = facts.to_pandas(types_mapper={pa.string(): pd.ArrowDtype(pa.string()), pa.int64(): pd.Int64Dtype()}.get)
    frame["expected"] = expected

    both = {"column_A": "tokens", "ignore_row_if": "either_value_is_missing"}
    rules = [
        _rule("TableRowCountToBeBetween", "There is at least one answer.", min_value=1),
        _rule("CompoundColumnsToBeUnique", "No question is answered twice.", column_list=["set", "question_id"]),
        _one_of("expected", "Every answer is to a question of its set: generate again.", True),
        _rule("ColumnValuesToMatchRegex", "A prompt's hash is 64 hex digits.", "prompt_sha256", regex="^[0-9a-f]{64}$"),
        _one_of("finish_reason", "An answer ended by itself, at the limit or by the cut.", "stop", "length", "cut"),
        _rule(
            "ColumnValuesToBeBetween",
            f"At least {ANSWERED:.0%} of the answers have a token.",
            "tokens",
            min_value=1,
            mostly=ANSWERED,
        ),
        _rule("ColumnPairValuesToBeEqual", "Each token has its log-prob.", column_B="logprobs", **both),
        _rule("ColumnPairValuesToBeEqual", "Each token has its base log-prob.", column_B="base_logprobs", **both),
    ]
    rules += [
        _rule("ColumnValuesToNotBeNull", "Never null.", column)
        for column in ("set", "question_id", "prompt_sha256", "finish_reason", "tokens", "logprobs")
    ]
    finite = "Every log-prob is a finite number: generate again, in another dtype if it stays."
    for column in ("logprobs", "base_logprobs"):
        rules += [_none(f"non_finite_{column}", finite), _none(f"positive_{column}", "No log-prob is above 0.")]
    for set_name in expected_ids:
        column = f"unanswered_in_{set_name}"
        frame[column] = len(missing[column])  # a fact about the table, so the same in every row
        rules.append(_none(column, f"Every question of {set_name} is answered: run the generation again."))
    return _validate(name, frame, rules, missing)


def demand(outcomes: Sequence[Outcome], docs: Path, otherwise: str) -> None:
    """Write the Data Docs, and raise InputError, which begins with `otherwise`, if an expectation failed."""
    write_docs(outcomes, docs)
    failures = [f"{outcome.name}: {line}" for outcome in outcomes for line in outcome.failures]
    for line in failures:
        print(line, flush=True)
    if failures:
        raise InputError(f"{otherwise}: {failures[0]} ({len(failures)} in all; see {docs})")


def write_docs(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write a site of Data Docs, `index.html` and a page for each outcome; it replaces `folder`.

    The same outcomes give the same bytes: run times, random element ids and the links' query strings are fixed. The
    pages get their styles from a public host, so without network they have none. Raises ValueError if two outcomes
    share a name.
    """
    if len({outcome.name for outcome in outcomes}) < len(outcomes):
        raise ValueError("two outcomes share a name, so one would hide the other")
    folder = folder.resolve()  # Great Expectations wants an absolute path
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        site = Path(temporary, "site")
        _build_site(outcomes, site)
        icon = site / "static" / "images" / "favicon.ico"
        kept = icon.read_bytes()  # the pages use nothing else of that folder, which holds 4 MB of fonts and pictures
        shutil.rmtree(site / "static")
        icon.parent.mkdir(parents=True)
        icon.write_bytes(kept)
        for page in sorted(site.rglob("*.html")):
            page.write_text(_fixed(page.read_text("utf-8")), "utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        site.chmod(0o755)
        os.replace(site, folder)


def _rule(kind: str, demand: str, column: str | None = None, **arguments: Any) -> Rule:
    return Rule(f"Expect{kind}", demand, arguments if column is None else {"column": column, **arguments})


def _is_asked(question: object) -> bool:
    """Neither null nor blank."""
    return isinstance(question, str) and bool(question.strip())


def _one_of(column: str, demand: str, *values: Any) -> Rule:
    return _rule("ColumnValuesToBeInSet", demand, column, value_set=list(values))


def _none(column: str, demand: str) -> Rule:
    """Every count in the column is 0, or null where there was nothing to count."""
    return _rule("ColumnValuesToBeBetween", demand, column, max_value=0)


def _counts(rows: Sequence[int], length: int) -> Any:
    """How often each row occurs in `rows`, int64 (length,)."""
    return np.bincount(np.asarray(rows, np.int64), minlength=length)


def _facts(table: pa.Table) -> pa.Table:
    """What is checked of some answers: a row each, plain columns."""
    facts = table.select(["set", "question_id", "prompt_sha256", "finish_reason"]).replace_schema_metadata()
    facts = facts.append_column("tokens", pc.list_value_length(table["token_ids"]).cast(pa.int64()))
    for column in ("logprobs", "base_logprobs"):
        lengths, odd, positive = _logprob_counts(table[column])
        facts = facts.append_column(column, lengths)
        facts = facts.append_column(f"non_finite_{column}", odd).append_column(f"positive_{column}", positive)
    return facts


def _logprob_counts(column: pa.ChunkedArray) -> tuple[pa.Array, pa.Array, pa.Array]:
    """How many values, non-finite values and positive values each list has: int64 (rows,), null for a null list."""
    lengths = pc.list_value_length(column).cast(pa.int64()).combine_chunks()
    values = pc.list_flatten(column).to_numpy().astype(float)  # a null inside a list becomes NaN
    null = lengths.is_null().to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(lengths)), lengths.fill_null(0).to_numpy())
    finite = np.isfinite(values)
    above = finite & (values > records.POSITIVE)
    odd, positive = (pa.array(_counts(rows[which], len(lengths)), mask=null) for which in (~finite, above))
    return lengths, odd, positive


def _context() -> Any:
    """A context in memory, without analytics, progress bars and temporary folders."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)
    config = DataContextConfig(store_backend_defaults=stores, progress_bars=ProgressBarsConfig(globally=False))
    return gx.get_context(mode="ephemeral", project_config=config)


def _validate(
    name: str, table: pd.DataFrame, rules: Sequence[Rule], named: Mapping[str, Sequence[str]] | None = None
) -> Outcome:
    """Evaluate the rules on a table without texts.

    `named`: the ids to report for a column that says something about the whole table, the same in every row.
    """
    context = _context()
    import great_expectations as gx

    asset = context.data_sources.add_pandas("tbd").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": table})
    expectations = [
        getattr(gx.expectations, rule.kind)(**rule.arguments, description=rule.demand, meta={"rule": number})
        for number, rule in enumerate(rules)
    ]
    result = batch.validate(gx.ExpectationSuite(name, expectations=expectations), result_format="BOOLEAN_ONLY")
    # Results come in another order than the rules, so each has the number of its rule in `meta`.
    failed = sorted(found.expectation_config.meta["rule"] for found in result.results if not found.success)
    failures = []
    for number in failed:
        # Which rows fail is computed for failed expectations alone; the Data Docs say yes or no.
        detail = batch.validate(expectations[number], result_format="COMPLETE")
        failures.append(_failure(rules[number], detail, table, (named or {}).get(rules[number].column)))
    return Outcome(name, failures, result)


def _failure(rule: Rule, detail: Any, table: pd.DataFrame, named: Sequence[str] | None) -> str:
    """One line: type, column, demand, and what was found, without values of text columns, which may be questions."""
    kind = detail.expectation_config.type
    rows = detail.result.get("unexpected_index_list")
    if detail.exception_info.get("raised_exception"):
        found = "it could not be evaluated"
    elif named is not None:
        found = f"{len(named)} questions: {_shown(named)}"
    elif rows is not None:
        ids = [str(table["question_id"].iloc[row]) for row in rows]
        # What does not look like an id may be a question: its row is named instead.
        places = [key if _ID.fullmatch(key) else f"row {row + 1}" for row, key in zip(rows, ids, strict=True)]
        found = f"{len(rows)} of {len(table)} rows: {_shown(list(dict.fromkeys(places)))}"
    else:
        found = str(detail.result.get("observed_value"))
    return f"{kind} ({rule.column}): failed. {rule.demand.rstrip('.')}. Found: {found}."


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _build_site(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Great Expectations' own site: an index and a page for each validation, no tutorials and no pages about suites."""
    context = _context()
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )
    from great_expectations.render.renderer.site_builder import SiteBuilder

    for place, outcome in enumerate(outcomes):
        # The index is sorted by time, and runs of one time are in the file system's order: no two may have the same.
        run = RunIdentifier(run_name=outcome.name, run_time=_RUN_TIME - timedelta(seconds=place))
        result = copy.copy(outcome.result)
        result.meta = outcome.result.meta | {"run_id": run}
        del result.meta["batch_markers"]  # they hold the time of loading
        key = ValidationResultIdentifier(ExpectationSuiteIdentifier(outcome.name), run, "batch")
        context.validation_results_store.set(key, result)
    SiteBuilder(
        context,
        {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
        site_name="tbd",
        show_how_to_buttons=False,
        site_section_builders={"expectations": "none", "profiling": "none"},
        runtime_environment={"root_directory": None},
    ).build()


def _fixed(page: str) -> str:
    """The page without what differs between builds: times in links, time zones, random element ids."""
    page = re.sub(r"\?d=\d{8}T\d{6}\.\d+Z", "", page)
    page = _SHOWN_TIME.sub("not recorded", page)
    numbers: dict[str, str] = {}
    return _UUID.sub(lambda found: numbers.setdefault(found[0], str(UUID(int=len(numbers)))), page)
