"""The process in which a checkpoint's tokenizer and chat template work, with limits; see `tbd.checkpoints.prompting`.

Reads what is asked as JSON from standard input, writes prompts or an error to standard output.
"""

import hashlib
import json
import math
import resource
import sys
import time
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
ROLES = ("system", "user", "assistant", "user")


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
                f"{self.folder / 'config.json'}: transformers cannot read it ({first_line(error)})."
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
        self.context = getattr(config, "max_position_embeddings", None) or CONTEXT
        seconds(asked["limits"][1])
        self.compile()
        self.control = self.control_tokens()
        self.usual = self.controls(self.ids(self.text(PLAIN)))

    def compile(self) -> None:
        """Let the template be compiled anew, without the time and without chance."""
        from transformers.utils import chat_template_utils

        chat_template_utils._compile_jinja_template.cache_clear()
        with template_error(self.folder):
            template = self.tokenizer.get_chat_template()
            environment = chat_template_utils._compile_jinja_template(template).environment
        environment.globals["strftime_now"] = lambda form: self.today.strftime(form)
        environment.globals.pop("lipsum", None)
        environment.filters.pop("random", None)

    def control_tokens(self) -> dict[int, str]:
        """The tokens that structure a chat: special ones, and added ones that the template writes.

        Not the one for unknown text, which any text may hold.
        """
        tokenizer = self.tokenizer
        names = set(tokenizer._get_control_tokens(tokenizer.get_chat_template()))
        written = set(self.ids(self.text(PLAIN)))
        with suppress(InputError):  # a template without some of the roles
            written.update(self.ids(self.text(PLAIN, ROLES)))
        written -= set(self.ids(PLAIN))
        return {
            token: str(added.content)
            for token, added in tokenizer.added_tokens_decoder.items()
            if (added.content in names or (token in written and added.content.strip()))
            and token != tokenizer.unk_token_id
        }

    def controls(self, ids: list[int]) -> Counter[int]:
        """How often each token that structures a chat is among these."""
        return Counter(token for token in ids if token in self.control)

    def text(self, question: str, roles: tuple[str, ...] = ("user",)) -> str:
        """The question in the template, up to where the answer begins."""
        messages = [{"role": role, "content": question} for role in roles]
        with template_error(self.folder):
            found: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if len(found) > ADDED + 10 * len(roles) * len(question):
            raise InputError(f"{self.folder}: the chat template makes {len(found)} characters of a question. Mend it.")
        return found

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def prompt(self, name: str, question: str, text: str) -> list[int]:
        """Token ids of the question, which is `text` in the template. Raises InputError if it cannot be asked."""
        ids = self.ids(text)
        if (controls := self.controls(ids)) != self.usual:
            token = self.control[next(iter((controls - self.usual) or (self.usual - controls)))]
            if not self.as_text:
                raise InputError(
                    f"question {name}: holds {token!r}, which structures a chat with {self.folder}. Leave the question "
                    "out, or set generate.control_tokens: text."
                )
            ids = self.sanitized(question)
            if self.controls(ids) != self.usual:
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
        made, texts, prompts, odd = Prompts(asked), [], [], 0
        seconds(each)
        before, after = made.text(PROBE).partition(PROBE)[::2]
        for _, question in asked["questions"]:
            seconds(each)
            texts.append(made.text(question))
        made.compile()
        for (name, question), text in zip(asked["questions"], texts, strict=True):
            seconds(each)
            if made.text(question) != text:
                raise InputError(f"{made.folder}: the chat template makes two prompts of question {name}. Mend it.")
            prompts.append(made.prompt(name, question, text))
            odd += text not in (before + question + after, before + question.strip() + after)  # many templates strip it
    except BaseException as error:
        said = f"{asked['folder']}: the tokenizer does not work ({first_line(error)}). Save it again."
        # by numbers alone: what the template or the tokenizer says of itself proves no fault of the machine
        fault = any(isinstance(one, OSError) and one.errno in FAULTS for one in chain(error))
        return {"error": str(error) if isinstance(error, InputError) else said, "fault": fault}
    return {"prompts": prompts, "frame": frame(before, after), "odd": odd}


def frame(before: str, after: str) -> str:
    """Digest of what a chat template puts before and after a question."""
    return hashlib.sha256(f"{before}\0{after}".encode()).hexdigest()[:16]


def main() -> None:
    limit(resource.RLIMIT_CORE, 0)
    sys.modules["torch"] = None  # type: ignore[assignment]  # nothing here needs it, and it takes seconds
    import transformers  # noqa: F401

    asked = json.load(sys.stdin)
    limit(resource.RLIMIT_AS, asked["limits"][2])
    with redirect_stdout(sys.stderr):  # where a library prints
        found = answer(asked)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
