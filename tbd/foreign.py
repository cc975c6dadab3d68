"""Text from outside (names of files, questions, messages of other programs), made harmless where it leaves."""

import hashlib
import logging
import re
import sys
import traceback
import unicodedata
from collections.abc import Iterable
from typing import Any, TextIO

JOINERS = "\u200c\u200d"
"""invisible, but Persian, Indic scripts and emoji are spelt with them"""
DECEIVING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories: control, format (bidi overrides among them), lone surrogates (which UTF-8 cannot hold), breaks of
a line or a paragraph"""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""what a terminal may obey, an encoder refuse, or a reader see in another order; line breaks and tabs are left"""
CREDENTIALS = re.compile(r"://([^/@\s]+|[^/@:\s]*:(?!\d+(/|$))[^@\s'\"]*)@")
"""of an address; a password may hold a slash that nobody escaped, a port is none"""
QUERY = re.compile(r"(://[^\s?'\"]*?)(\?|[;#](?=[^\s?='\"]*=))(?!…)([^\s'\"]+)")
"""of an address: signatures and tokens stand there"""
MARKUP = re.compile(r"<(?=[!@#/\w])|(?<=\])\(|@")
"""what starts a mention or a link in a chat"""


def deceives(text: str) -> bool:
    """Whether it holds what breaks a line, is not seen, or turns the order of what is."""
    return any(unicodedata.category(c) in DECEIVING and c not in JOINERS for c in text)


def plain(text: str) -> str:
    """`text` on one line, with control, bidi-override and other invisible characters replaced by U+FFFD, so that they
    show.

    >>> plain("a\\n b\\u202ec")
    'a b\ufffdc'
    """
    folded = " ".join(text.split())
    return "".join("\ufffd" if deceives(c) else c for c in folded)


def secretless(text: str) -> str:
    """Without the credentials of addresses in it; a query, or a value behind `;` or `#`, is told by a digest alone.

    >>> secretless("s3 at https://me:word@host/a?sig=abc failed")
    's3 at https://host/a?…6f62c failed'
    """
    return QUERY.sub(
        lambda found: f"{found[1]}{found[2]}…{hashlib.sha256(found[3].encode()).hexdigest()[:5]}",
        CREDENTIALS.sub("://", text),
    )


def chat(text: str) -> str:
    """A line for a chat service, in which nothing notifies anybody or hides where a link leads.

    >>> chat("<!channel> [a](b) p <= 1")
    '‹!channel> [a]\u2060(b) p <= 1'
    """
    change = {"<": "‹", "(": "\u2060(", "@": "@\u2060"}
    return MARKUP.sub(lambda found: change[found[0]], plain(secretless(text)))


class Terminal:
    """A text stream that passes no control character on, nor one that turns the order of others."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(CONTROL.sub("\ufffd", text))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Line(logging.LogRecord):
    """A record whose message and traceback have none either."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info:
            self.exc_text = CONTROL.sub("\ufffd", logging.Formatter().formatException(self.exc_info))

    def getMessage(self) -> str:  # noqa: N802
        return CONTROL.sub("\ufffd", super().getMessage())


def guard() -> None:
    """In a process of tbd's own: from now on, what is printed and logged obeys nobody but tbd."""
    sys.stdout = Terminal(sys.stdout)
    sys.excepthook = lambda *raised: print("".join(traceback.format_exception(*raised)), file=Terminal(sys.stderr))
    logging.setLogRecordFactory(Line)
