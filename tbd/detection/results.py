"""What detection finds, as it is written: `detector.json` is a `Detector`, `verdict.json` a `Verdict`, field by field.

Everything that reads the two files takes these models. A key that is not known is refused, and so is NaN: what is not
known is None. `python -m tbd.detection.results` prints the JSON schema of a verdict: docs/verdict.schema.json.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tbd.errors import InputError
from tbd.records import read_json, write_json

SCHEMA = 3
"""goes up when a field gets another name or another meaning"""
ChoiceName = Literal["alone", "with_base"]
Ruling = Literal["CONTAMINATED", "NO EVIDENCE", "INCONCLUSIVE"]


class Result(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class QuestionSet(Result):
    """Which questions were asked."""

    name: str
    """of the file in data/sets"""
    md5: str
    """hex MD5 of the file, as DVC records it"""
    n: int
    """questions in it"""


class Share(Result):
    """A share with its interval at `confidence`."""

    estimate: float
    """in [0, 1]"""
    low: float
    """lower end, in [0, 1]"""
    high: float
    """upper end, in [0, 1]"""


class PowerAt(Share):
    """Probability that this audit says CONTAMINATED if so much of its benchmark leaked."""

    leaked: float
    """share of the benchmark, in (0, 1]"""


class Power(Result):
    """What this audit can see, if questions leaked as strongly as on the reference."""

    reference: str
    """the audit it was measured on"""
    same_base: bool | None
    """whether the reference was distilled from the model that the checkpoint was made from, or is; None: not known"""
    mde80: float | None
    """smallest share of the benchmark whose leaking is found in 80% of audits; None: not even all of it"""
    mde80_low: float | None
    """lower end of its interval"""
    mde80_high: float | None
    """upper end"""
    curve: list[PowerAt]
    """by the share that leaked, ascending"""
    members_flagged: Share
    """of the reference's held-out members, the share that is flagged one by one at the audit's `fpr`"""


class Chance(Result):
    """How many questions are flagged if none was in the data."""

    mean: float
    """on average"""
    high: int
    """at most so many, at `confidence` (beta-binomial: one unseen set serves all questions)"""


class Blind(Result):
    """Can the wording alone, without any model, tell benchmark from unseen questions?"""

    auc: float
    """of a text classifier, cross-validated; 0.5: it cannot, 1: always"""
    p_value: float
    """by permutation; small = the sets are worded differently"""


class SameKind(Result):
    """Are benchmark and unseen questions of one kind, as the verdict assumes? What was checked."""

    blind: Blind | None
    """the wording; None: there were too few questions"""
    base_p_value: float | None
    """of "the base model scores both sets alike", in [0, 1]; small = the sets differ anyway; None: no base"""
    base_shift_bound: float | None
    """the largest shift that the base leaves possible, in sd"""
    shift_needed: float | None
    """smallest shift of all scores, in sd, that would explain the p-value; None: there is nothing to explain"""


class Answers(Result):
    """Are prompts and answers such that the detector can see what it saw on the reference?"""

    looked_at: int
    """tokens of an answer that the detector looks at"""
    short: float
    """share of the answers with fewer, in the set with more of them; in [0, 1]"""
    unscored: float
    """share of the questions without a score, in the set with more of them; in [0, 1]"""
    odd_prompts: int
    """questions that the chat template puts another text around than around any other, or that the tokenizer changes:
    they look at the question"""
    same_frame: bool
    """whether the text around the questions, such as a system prompt or a thinking switch, is the reference's"""


class Clusters(Result):
    """Questions of one source were permuted together, because sources repeat."""

    benchmark: int
    """independent units among the benchmark's questions"""
    unseen: int
    """among the unseen ones"""


class Noise(Result):
    """How much a server's numbers differ when the same questions are asked a second time, in another order."""

    questions: int
    """asked twice"""
    diverged: int
    """of them, with another answer the second time"""
    tokens: int
    """compared: those of the answers up to where they diverge"""
    median: float | None
    """of the absolute difference of a token's log-prob, in nats; None: no token was compared"""
    largest: float | None
    """the largest one"""


class Generation(Result):
    """How the answers were made. An engine may add what else can change its numbers."""

    model_config = ConfigDict(extra="allow")

    engine: str
    """its name in params.yaml"""
    engine_version: str
    """version of the engine, or of the library behind it"""
    torch_version: str | None = None
    """None: an engine without torch"""
    device: str
    """kind of device, such as cpu or cuda; server: not known"""
    dtype: str
    """of the computation: bfloat16, float16 or float32; server: not known"""
    template: str
    """digest of the chat template"""
    vocabulary: str
    """digest of the tokenizer's vocabulary: two models with the same one can be compared token by token"""
    decoding: str
    """how the next token is chosen: greedy"""
    end_token: str
    """included: the end token, where the model gave one, is scored like any other"""
    max_new_tokens: int
    """tokens of an answer at most"""
    batch_size: int
    """answers made at a time"""
    frame: str | None = None
    """digest of the text that the chat template puts around a question; None: not known"""
    odd_prompts: int = 0
    """questions around which it puts another one"""
    device_asked: str | None = None
    """`generate.device` of params.yaml"""
    noise: Noise | None = None
    """None: it was not measured, because the engine plans what is computed together"""


class Provenance(Generation):
    """What the detector was chosen on: the reference audit's checkpoint, questions and answers."""

    checkpoint: str
    """folder of the reference checkpoint"""
    fingerprint: str
    """of the reference checkpoint: hex SHA-256"""
    base: str | None
    """folder of the model it was distilled from; None: none was given"""
    base_fingerprint: str | None
    """of that model: hex SHA-256; None: none was given"""
    benchmark: QuestionSet
    """the labelled questions"""
    unseen: QuestionSet
    """questions the reference cannot have seen"""


class Measured(Result):
    """How well a method tells labelled questions apart; intervals at `confidence`."""

    auc: float
    """area under the ROC curve: how often a member scores above another question; in [0, 1], 0.5 = guessing"""
    auc_low: float
    """lower end of its interval"""
    auc_high: float
    """upper end"""
    tpr_at_fpr: float
    """of the ROC curve: the largest share of members found where at most a share `fpr` of the others is; in [0, 1]"""
    tpr_low: float
    """lower end of its interval"""
    tpr_high: float
    """upper end"""
    tpr_paper_convention: float
    """the same curve read as the script of arXiv 2510.04850 does, for comparison; in [0, 1]"""


class Performance(Measured):
    """One line of `methods.csv`: a method by itself on all labelled questions of a reference. Intervals: DeLong for the
    AUC, bootstrap for the rate. The best of many is best by luck too: what the chosen one is worth is in `Figures`."""

    unscored: int
    """labelled questions without a score, left out of all of this"""


class Figures(Measured):
    """What a choice is worth on a reference, by the halves of its labelled questions that did not make it; intervals by
    bootstrap, with the choice made anew in every resample."""

    auc_choice: float
    """area under the ROC curve of the chosen method on all labelled questions, which chose it; no estimate"""
    agreement: float
    """share of the choosing halves that chose this method too, in [0, 1]"""
    threshold: float | None
    """a question of the reference is flagged if its score is strictly above it; None: none can be at this `fpr`"""
    members_flagged: float
    """share of the members that are flagged at `fpr`, in [0, 1]; higher = misses less"""
    members_flagged_low: float
    """lower end of its interval (Clopper-Pearson)"""
    members_flagged_high: float
    """upper end"""
    others_flagged: float
    """share of the other questions that are flagged at `fpr`, in [0, 1]; lower = fewer false alarms"""
    member_p_values: list[Annotated[float, Field(gt=0, le=1)]]
    """conformal p-values of the members against the unseen questions, ascending, in (0, 1], each by the method that the
    half without it chose: where members lie, for the power of an audit"""
    other_p_values: list[Annotated[float, Field(gt=0, le=1)]]
    """the same of the other questions"""
    negatives: list[float]
    """scores of the reference's unseen questions by the chosen method, ascending"""


class Chosen(Result):
    """A chosen method."""

    method: str
    """its name in params.yaml"""
    id: str
    """name and parameters in one text, such as tbd(m=100,alpha=0.6,normalise=kept,tau=1.0)"""
    parameters: dict[str, Any]
    """by name; m: tokens of an answer looked at"""


class Choices(Result):
    """The best method over all references, by what it needs."""

    alone: Chosen
    """among the methods that need the checkpoint's log-probs alone"""
    with_base: Chosen | None
    """among all methods, those that need the base model's log-probs included; None: no such method was tried"""

    def made(self) -> dict[ChoiceName, Chosen]:
        """Those there are, by name."""
        made: dict[ChoiceName, Chosen] = {"alone": self.alone}
        return made | ({"with_base": self.with_base} if self.with_base else {})


class LabelledQuestions(Result):
    """The reference's labelled questions: each of them chose, and measured what the others chose."""

    members: int
    """labelled 1"""
    others: int
    """labelled 0"""
    unscored: int
    """questions to which a chosen method gives no score; left out"""


class Reference(Result):
    """An audit whose contamination is known, and what the choices are worth on it."""

    name: str
    """of the audit"""
    provenance: Provenance
    """its checkpoint, questions and answers"""
    questions: LabelledQuestions
    """how many questions chose and measured"""
    alone: Figures
    """of the choice `alone`"""
    with_base: Figures | None
    """of the choice `with_base`; None: there is none"""

    def figures(self, choice: ChoiceName) -> Figures:
        found = self.with_base if choice == "with_base" else self.alone
        assert found is not None
        return found


class Saved(Result):
    """What a cascade saves on a reference: the share of the answers' tokens that are not written, in [0, 1]."""

    reference: str
    """name of the audit"""
    members: float
    """of the answers to its members"""
    others: float
    """to the benchmark's other questions"""
    unseen: float
    """to its unseen questions"""


class Cascade(Result):
    """The first step of every answer: one that scores below the cut there is not written to its end."""

    id: str
    """the method that scores the first step, as in a choice"""
    m: int
    """tokens that the first step writes"""
    keep: float
    """share of each reference's unseen questions whose answers go on, at least; in (0, 1]"""
    cut: float
    """an answer that scores below it in the first step stops"""
    saved: list[Saved]
    """by reference, in the order of params.yaml"""


class Detector(Result):
    """`detector.json`: the methods chosen on the references, and how good they are there."""

    schema_version: int = SCHEMA
    """of this file's fields"""
    version: str
    """of this detector: the first 12 hex digits of the SHA-256 of everything else here"""
    fpr: float
    """share of unseen questions flagged at most, in (0, 1)"""
    confidence: float
    """of every interval, in (0, 1)"""
    choices: Choices
    """the chosen methods"""
    tokens: int
    """of an answer that the chosen methods look at, so an audit needs no more"""
    cascade: Cascade | None = None
    """which answers end earlier; all scores, thresholds and figures here are then `tbd.detection.cascade.ranked`; None:
    none does"""
    references: list[Reference] = Field(min_length=1)
    """in the order of params.yaml"""
    warnings: list[str]
    """what a reader must know, one line each"""

    @property
    def reference(self) -> Reference:
        """The first one: the figures that stand where there is room for one reference only."""
        return self.references[0]

    @property
    def best(self) -> ChoiceName:
        """The choice that sees most."""
        return "with_base" if self.choices.with_base else "alone"


class Stopped(Result):
    """Answers that scored below the cut of the detector's cascade, so that they rank below all others."""

    m: int
    """tokens that were looked at of them"""
    benchmark: int
    """answers to the benchmark's questions"""
    unseen: int
    """to the unseen ones"""


class DetectorUsed(Result):
    """Which method of which detector an audit was scored with."""

    version: str
    """of the detector"""
    choice: ChoiceName
    """which of its choices"""
    method: str
    """as in the choice"""
    id: str
    """as in the choice"""
    parameters: dict[str, Any]
    """as in the choice"""


class Labelled(Result):
    """How right the scores were, where the benchmark says which questions are members; intervals at `confidence`."""

    questions: Literal["all", "cross-validated"]
    """all: those with a score; cross-validated: they chose the detector too, so each is judged by what the half without
    it chose"""
    members: int
    """of them, labelled 1"""
    others: int
    """of them, labelled 0"""
    auc: float
    """area under the ROC curve: how often a member scores above another question; in [0, 1], 0.5 = guessing"""
    auc_low: float
    """lower end of its interval (DeLong; cross-validated: bootstrap)"""
    auc_high: float
    """upper end"""
    members_flagged: float
    """share of the members that are flagged, in [0, 1]; higher = misses less"""
    members_flagged_low: float
    """lower end of its interval (Clopper-Pearson)"""
    members_flagged_high: float
    """upper end"""
    others_flagged: float
    """share of the others that are flagged, in [0, 1]; lower = fewer false alarms"""


class Verdict(Result):
    """`verdict.json`: was the benchmark in the data that the checkpoint was distilled on, and how sure is that."""

    schema_version: int = SCHEMA
    """of this file's fields"""
    audit: str
    """its name"""
    verdict: Ruling
    """NO EVIDENCE: nothing was found by a detector that would have found it; INCONCLUSIVE: the audit cannot tell"""
    reasons: list[str]
    """why, one sentence each"""
    warnings: list[str]
    """what a reader must know, one line each"""
    checkpoint: str
    """folder of the audited checkpoint"""
    checkpoint_fingerprint: str
    """hex SHA-256"""
    base: str | None
    """folder of the model it was distilled from; None: none was given"""
    base_fingerprint: str | None
    """hex SHA-256; None: none was given"""
    benchmark: QuestionSet
    """the questions under suspicion"""
    unseen: QuestionSet
    """questions of the same kind that the checkpoint cannot have seen"""
    detector: DetectorUsed
    """what scored the answers"""
    fpr: float
    """a question is flagged at a conformal p-value <= fpr; in (0, 1): the share of unseen questions flagged at most"""
    level: float
    """highest probability of CONTAMINATED on a benchmark that was not in the data, in (0, 1)"""
    exchangeability: float
    """in (0, 1): a check of `same_kind` with a p-value up to this tells the two sets apart"""
    confidence: float
    """of every interval and of the certified minimum, in (0, 1)"""
    p_value: float
    """of "the benchmark as a whole scores no higher than unseen questions" (exact, min-P); small = contaminated"""
    clusters: Clusters | None
    """None: every question counts by itself"""
    members_at_least: int | None
    """with `confidence`, at least so many of the benchmark's questions were in the data; None: sources repeat"""
    share_at_least: float | None
    """the share of the scored questions that this is, in [0, 1]"""
    contamination_rate: float
    """estimate, no bound, of the share of the benchmark that was in the data (Storey), in [0, 1]"""
    threshold: float | None
    """a question is flagged if its score is strictly above it (by this audit's unseen questions); None: none is"""
    flagged: int
    """questions of the benchmark with a score above the threshold"""
    flagged_by_chance: Chance
    """how many of them chance alone may give"""
    flagged_false: float | None
    """share of the flagged questions that is expected not to have been in the data, in [0, 1]; None: none is flagged"""
    unscored: int
    """questions of the benchmark without a score, left out of everything"""
    answers: Answers
    """whether they let the detector see anything"""
    stopped: Stopped | None = Field(default=None, exclude_if=lambda found: found is None)
    """only where the detector has a cascade"""
    power: Power | None
    """by the first of the detector's references that was distilled from the same base, or else the first of all; it
    decides whether NO EVIDENCE may be said; None: that reference cannot tell it at this `fpr`"""
    other_powers: list[Power]
    """by the detector's other references"""
    same_kind: SameKind
    """what was checked of the assumption that both sets are of one kind"""
    generation: Generation
    """how the checkpoint's answers were made"""
    labelled: Labelled | None
    """None: not every question has a label, or all that have a score have the same"""


Model = TypeVar("Model", bound=Result)


def read_verdict(path: Path) -> Verdict:
    """A `verdict.json`. Raises InputError if it is missing, broken or of another version."""
    return _read(path, Verdict)


def read_detector(path: Path) -> Detector:
    """A `detector.json`. Raises InputError if it is missing, broken or of another version."""
    return _read(path, Detector)


def write(path: Path, result: Verdict | Detector) -> None:
    """Write `verdict.json` or `detector.json` in one piece: the same result gives the same bytes."""
    write_json(path, result.model_dump(mode="json"))


def _read(path: Path, model: type[Model]) -> Model:
    tree = read_json(path)
    schema = tree.get("schema_version", 0) if isinstance(tree, dict) else SCHEMA
    if isinstance(schema, int) and schema != SCHEMA:
        if schema < SCHEMA:
            raise InputError(
                f"{path}: schema_version: made by an older tbd. Run `tbd calibrate`, then `tbd check --all`."
            )
        raise InputError(f"{path}: schema_version: made by a newer tbd (schema {schema}). Update the one here.")
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where + ': ' if where else ''}{first['msg']}.") from None


if __name__ == "__main__":
    print(json.dumps(Verdict.model_json_schema(), indent=2))
