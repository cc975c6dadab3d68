"""A checkpoint that is only a server: a folder of one file, with its address and how it answered fixed prompts.

`tbd check openai:MODEL@URL` makes such folders, in `checkpoints/served` of the workspace, and only there do they count:
what somebody else brings cannot make tbd ask a server. The fingerprint is of that file. Whether the server still
answers as it says is for `tbd.generation.engines.served` to find out. Weaker than the fingerprint of weights: other
weights that answer these prompts alike are not told apart.
"""

import re
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from tbd.errors import InputError
from tbd.params import Section, wrong_address

FILE = "served.json"
SERVED = Path("checkpoints/served")
PREFIX = "openai:"
ADDRESS = re.compile(PREFIX + r"(?P<model>.+?)@(?P<url>https?://.+)")
LONGEST = 200
"""characters of a model's name"""


class Changed(InputError):
    """A server answers otherwise than when its model was registered."""


class Asked(Section):
    """One prompt of the canary, and its greedy answer."""

    text: str
    """the question, to be put into the server's chat template"""
    prompt: list[int]
    """token ids that this gave"""
    token_ids: list[int]
    logprobs: list[float]
    """nats, of `token_ids`"""
    ended: bool
    """whether the model ended it there"""


class Served(Section):
    """What `served.json` says."""

    model: str
    """the name that the server has for it"""
    url: str
    server: str
    """kind and version, as it said"""
    root: str | None
    """what the server said that it had loaded"""
    max_model_len: int | None
    """tokens of prompt and answer together, likewise"""
    canary: list[Asked] = Field(min_length=1)

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        if wrong := wrong_address(url):
            raise ValueError(wrong)
        return url

    @property
    def address(self) -> str:
        return f"{PREFIX}{self.model}@{self.url}"


def is_served(folder: Path) -> bool:
    """Whether a folder is where those of servers are."""
    return folder.parent.resolve() == SERVED.resolve()


def is_address(checkpoint: str) -> bool:
    return checkpoint.startswith(PREFIX)


def parse(address: str) -> tuple[str, str]:
    """Model and URL of `openai:MODEL@URL`. Raises InputError, without the credentials that one may hold."""
    match = ADDRESS.fullmatch(address)
    if match is None or not address.isprintable() or len(match["model"]) > LONGEST:
        raise InputError("a model on a server is named openai:MODEL@URL, such as openai:model-7@http://host:8000.")
    model, url = match.groups()
    if wrong := wrong_address(url):
        raise InputError(f"{PREFIX}{model}@...: the URL {wrong}.")
    return model, url.rstrip("/").removesuffix("/v1")


def read(folder: Path) -> Served:
    """What the folder says. Raises InputError if it is none of a server."""
    file = folder / FILE
    if not is_served(folder) or not file.is_file():
        raise InputError(f"{folder}: no model on a server. tbd check openai:MODEL@URL makes such a folder.")
    try:
        return Served.model_validate_json(file.read_bytes())
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"{file}: {where or 'the file'} is not what tbd wrote. Take the folder away.") from None
