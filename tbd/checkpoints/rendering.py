"""The process in which a checkpoint's tokenizer and chat template work, with limits; see `tbd.checkpoints.prompting`.

Reads what is asked as JSON from standard input, writes prompts or an error to standard output.
"""

import hashlib
import json
import math
import re
import resource
import secrets
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from tbd.errors import FAULTS, InputError, chain, first_line

CONTEXT = 1 << 30
"""tokens, where the configuration names no limit"""
ADDED = 1 << 20
"""most characters that a template may add to a question"""
PROBE = "How much is 417 and 298?"
"""a question to see what a chat template puts around one"""
PLAIN = "Hm?"
"""a question without any token that structures a chat"""
ROLES = (
    ("system", "user", "assistant", "user"),
    *(("user", role) for role in ("assistant", "tool", "developer", "ipython", "function")),
)
"""chats in which a template shows what it structures one with"""
SPACE = "\u2581"
"""how SentencePiece writes one"""
THOUGHTS = re.compile(r"</?(think|thinking|thought|reasoning|answer)>")
"""tokens by which a model begins or ends its reasoning, whether its template writes them or not"""


def limit(kind: int, value: int) -> None:
    """Set a soft limit of this process, where the system has such a one."""
    with suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def seconds(more: int) -> None:
    """Be killed after so many more seconds of processor."""
    limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + more)


class Prompts:
    """Questions as prompts of one checkpoint."""

    def __init__(self, asked: dict[str, Any]) -> None:
        """Raises InputError if tokenizer, template or configuration do not work."""
        from transformers import AutoConfig, AutoTokenizer

        self.folder, self.new, files = Path(asked["folder"]), asked["max_new_tokens"], asked["files"]
        self.today = datetime.fromisoformat(asked["today"])
        self.as_text = asked["control_tokens"] == "text"
        try:
            config = AutoConfig.from_pretrained(files, trust_remote_code=False).get_text_config()
        except BaseException as error:  # whatever the many classes raise, the file is the user's
            raise InputError(
                f"{self.folder / 'config.json'}: transformers cannot read it ({first_line(error)}). Save the model "
                "again, or install a newer transformers."
            ) from None
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(files, trust_remote_code=False)
        except BaseException as error:
            raise InputError(
                f"{self.folder}: the tokenizer cannot be read ({first_line(error)}). Save it again."
            ) from None
        if not self.tokenizer.chat_template:
            raise InputError(
                f"{self.folder}: the tokenizer has no chat template. Add chat_template.jinja to the checkpoint."
            )
        self.context = int(min(getattr(config, "max_position_embeddings", None) or CONTEXT, _even_context(config)))
        seconds(asked["limits"][1])
        self.compile()
        self.control = self.control_tokens()
        self.plain = self.text(PLAIN)
        self.usual = self.controls(self.ids(self.plain))

    def compile(self) -> None:
        """Compile the template, without the time and without chance; transformers keeps it for all questions."""
        from transformers.utils import chat_template_utils

        with template_error(self.folder):
            template = self.tokenizer.get_chat_template()
            environment = chat_template_utils._compile_jinja_template(template).environment
        environment.globals["strftime_now"] = lambda form: self.today.strftime(form)
        environment.globals.pop("lipsum", None)
        environment.filters.pop("random", None)

    def control_tokens(self) -> dict[int, str]:
        """The tokens that structure a chat: special ones, and added ones that the template writes."""
        tokenizer = self.tokenizer
        names = set(tokenizer._get_control_tokens(tokenizer.get_chat_template()))
        written = set(self.ids(self.text(PLAIN)))
        for roles in ROLES:
            with suppress(InputError):  # a template without some of the roles
                written.update(self.ids(self.text(PLAIN, roles)))
        written -= set(self.ids(PLAIN))
        return {
            token: str(added.content)
            for token, added in tokenizer.added_tokens_decoder.items()
            if added.content in names
            or (token in written and added.content.strip())
            or THOUGHTS.fullmatch(added.content)
        }

    def controls(self, ids: list[int]) -> Counter[int]:
        """How often each token that structures a chat is among these, but the one for unknown text: any may hold it."""
        return Counter(token for token in ids if token in self.control and token != self.tokenizer.unk_token_id)

    def spelt_out(self, text: str) -> int:
        """How often the token for unknown text is written out in a text, beyond what the template writes of it."""
        name = self.control.get(self.tokenizer.unk_token_id)
        return text.count(name) - self.plain.count(name) if name else 0

    def text(self, question: str, roles: tuple[str, ...] = ("user",)) -> str:
        """The question in the template, up to where the answer begins."""
        messages = [{"role": role, "content": question} for role in roles]
        with template_error(self.folder):
            found: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if len(found) > ADDED + 10 * len(roles) * len(question):
            raise InputError(
                f"{self.folder}: the chat template makes {len(found)} characters of a question of {len(question)}."
            )
        return found

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def prompt(self, name: str, question: str, text: str) -> list[int]:
        """Token ids of the question, which is `text` in the template. Raises InputError if it cannot be asked."""
        ids, unknown, spelt_out = self.ids(text), self.tokenizer.unk_token_id, self.spelt_out(text)
        if (controls := self.controls(ids)) != self.usual or spelt_out:
            token = self.control[next(iter((controls - self.usual) or (self.usual - controls) or [unknown]))]
            if not self.as_text:
                raise InputError(
                    f"question {name}: holds {token!r}, which structures a chat with {self.folder}. Leave the question "
                    "out, or set generate.control_tokens: text."
                )
            honest = ids.count(unknown) - spelt_out
            ids = self.sanitized(question)
            if self.controls(ids) != self.usual or ids.count(unknown) != honest:
                raise InputError(
                    f"question {name}: holds {token!r}, and {self.folder} cannot read that as text. "
                    "Leave the question out."
                )
        if self.new is not None and len(ids) + self.new > self.context:
            raise InputError(
                f"question {name}: {len(ids)} tokens and {self.new} new ones exceed the {self.context} of "
                f"{self.folder}. Lower generate.max_new_tokens or leave the question out."
            )
        return ids

    def read(self, ids: list[int]) -> str:
        """What a prompt says, as `seen` has it: another text than it was made of if the tokenizer changed that."""
        return seen(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def sanitized(self, question: str) -> list[int]:
        """Token ids with what structures a chat read as text; none if the tokenizer cannot do that."""
        try:
            found: list[int] = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                return_dict=False,
                sanitize_control_tokens=True,
            )
        except (ValueError, NotImplementedError):
            return []
        return found


@contextmanager
def template_error(folder: Path) -> Iterator[None]:
    """Whatever a template raises, as InputError."""
    try:
        yield
    except BaseException as error:
        raise InputError(f"{folder}: the chat template does not work ({first_line(error)}). Mend it there.") from None


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """The prompts, or the error."""
    loading, each, _ = asked["limits"]
    try:
        seconds(loading)
        made, prompts, odd = Prompts(asked), [], 0
        seconds(each)
        before, after = made.text(PROBE).partition(PROBE)[::2]
        for name, question in asked["questions"]:
            seconds(each)
            text = made.text(question)
            prompts.append(made.prompt(name, question, text))
            around = text in (before + question + after, before + question.strip() + after)  # many templates strip it
            odd += not around or made.read(prompts[-1]) != seen(text)
    except BaseException as error:
        said = f"{asked['folder']}: the tokenizer does not work ({first_line(error)}). Save it again."
        # by numbers alone: what the template or the tokenizer says of itself proves no fault of the machine
        fault = any(isinstance(one, OSError) and one.errno in FAULTS for one in chain(error))
        return {"error": str(error) if isinstance(error, InputError) else said, "fault": fault}
    return {"prompts": prompts, "frame": frame(before, after), "odd": odd}


def seen(text: str) -> str:
    """A text without what honest tokenizers change of it: case, spaces, accents, and the forms of Unicode."""
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    dropped = ("Mn", "Cc", "Cf")
    return "".join(c for c in text if not (c.isspace() or c == SPACE or unicodedata.category(c) in dropped))


def _even_context(config: Any) -> float:
    """The tokens up to which a model computes a question in the same way whatever is beside it.

    With `longrope` it takes other angles for all positions of a batch once one passes the original length.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return math.inf
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return float(original or math.inf)


def frame(before: str, after: str) -> str:
    """Digest of what a chat template puts before and after a question."""
    return hashlib.sha256(f"{before}\0{after}".encode()).hexdigest()[:16]


def main() -> None:
    limit(resource.RLIMIT_CORE, 0)
    sys.modules["torch"] = None  # type: ignore[assignment]  # nothing here needs it, and it takes seconds
    import transformers  # noqa: F401  # before its memory is limited

    asked = json.load(sys.stdin)
    limit(resource.RLIMIT_AS, asked["limits"][2])
    # where the system does not choose at random where things lie in memory: an address in a prompt then differs as well
    elsewhere = [bytes(size) for size in range(16, 512, 16) for _ in range(secrets.randbelow(1000))]
    with redirect_stdout(sys.stderr):  # where a library prints
        found = answer(asked)
    del elsewhere
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
