"""An answer for programs and for pull requests: whole, and as harmless as its names and messages may be not."""

import json
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from markdown_it import MarkdownIt

from tbd.commands import answers
from tbd.errors import InputError
from tbd.gates import NO_RULE, Answer, Gates
from tbd.report import answer as written
from tbd.report import summary
from tests import results
from tests.outcomes import failure, verdict

POISON = "a|b`\x1b[31m<img src=x>\u202e]]>&amp;\ud800\ufffe [x](http://e.org) www.e.org @team"


def answer(*standing, code=None, verdicts=(), **gates) -> Answer:
    asked = Gates(**gates)
    return Answer(
        standing, asked, asked.exit_code(standing) if code is None else code, {one.audit: one for one in verdicts}
    )


def cases(found: Answer) -> list[tuple[str, str]]:
    """Of a JUnit report: each case's name, and what it came to; the counts are right."""
    suite = Xml.fromstring(written.junit(found)).find("testsuite")
    assert suite is not None
    tags = [case[0].tag for case in suite]
    counts = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    assert all(suite.attrib[count] == str(tags.count(tag)) for count, tag in counts.items())
    assert suite.attrib["tests"] == str(len(tags))
    return [(case.attrib["name"], case[0].tag) for case in suite]


def test_json_has_every_field_the_gates_and_the_verdict() -> None:
    judged = verdict(1, "CONTAMINATED", audit="release-7")
    found = answer(judged, failure(2), verdicts=[results.verdict()], require="no-evidence")
    tree = json.loads(written.document(found))
    assert tree["exit_code"] == 1 and [one["fired"] for one in tree["results"]] == [["--require no-evidence"]] * 2
    assert tree["results"][0]["verdict"] == results.verdict().model_dump(mode="json")
    assert tree["results"][1]["verdict"] is None and tree["results"][1]["outcome"] == "FAILED"
    assert judged.model_dump(mode="json").items() <= tree["results"][0].items()


def test_junit_tells_what_passed_what_a_gate_stopped_and_what_was_not_judged() -> None:
    standing = [verdict(1), verdict(2, "CONTAMINATED"), failure(3), verdict(1, on="physics")]
    assert [kind for _, kind in cases(answer(*standing))] == ["system-out", "system-out", "skipped", "system-out"]
    kinds = [kind for _, kind in cases(answer(*standing, fail_on=["contaminated"]))]
    assert kinds == ["system-out", "failure", "skipped", "system-out"]
    kinds = [kind for _, kind in cases(answer(*standing, require="no-evidence"))]
    assert kinds == ["system-out", "failure", "failure", "system-out"]
    assert cases(answer(failure(3), code=2, require="no-evidence")) == [("incoming/model-3", "error")]
    assert len({name for name, _ in cases(answer(*standing))}) == 4  # of two with one name GitLab shows one


def test_markdown_begins_with_the_gates_and_holds_every_verdict_in_full() -> None:
    standing = [verdict(1, "CONTAMINATED", audit="release-7"), verdict(2)]
    found = answer(*standing, verdicts=[results.verdict()], fail_on=["contaminated"], require="no-evidence")
    text = summary.answer(found)
    assert text.startswith("# tbd: `--fail-on contaminated` and `--require no-evidence` fired\n")
    assert summary.verdict_markdown(results.verdict()) in text
    assert "\n| `model-2` | `maths` | NO EVIDENCE | Reason 2. |  |\n" in text
    assert summary.answer(answer(*standing)).startswith("# tbd: no gate fired\n")
    assert summary.answer(answer(failure(1), code=3)).startswith("# tbd: stopped, exit code 3\n")


def test_nothing_in_a_name_or_a_message_is_markup() -> None:
    poison = dict.fromkeys(("checkpoint", "place", "audit", "reason", "outcome"), POISON)
    bad = verdict(1, on=POISON, **poison).model_copy(update={"outcome": NO_RULE})
    warned = results.verdict(checkpoint=POISON, reasons=[POISON], warnings=[POISON])
    found = answer(bad, failure(2, reason=POISON), verdicts=[warned], require="no-evidence")
    text = summary.answer(found)
    shown = MarkdownIt("commonmark").enable("table").render(text)
    assert not set("\x1b\u202e\ud800") & set(shown) and "<img" not in shown and "<a " not in shown
    assert shown.count("&lt;img src=x&gt;") == text.count("img src=x") and "&amp;amp;" in shown
    prose = "".join(text.split("`")[::2])  # what GitHub looks at for addresses and names, beyond CommonMark
    assert not any(mark in prose for mark in ("http://", "www.", "@team"))
    assert shown.count("<td>") == 2 * 5 + 2 * 6  # two results, and the table of a verdict

    assert json.loads(written.document(found))["results"][0]["checkpoint"] == POISON  # as it is, in escapes
    assert written.document(found).isascii()
    ((name, _), _) = cases(found)
    assert "<img src=x>" in name and not set("\x1b\u202e\ufffe\ud800") & set(name)


def test_what_an_earlier_run_left_is_gone_before_this_one_begins(workspace: Path) -> None:
    Path("tbd.md").write_text("NO EVIDENCE")
    files = answers.ready("tbd.md", "new/tbd.xml")
    assert not Path("tbd.md").exists() and list(Path("new").iterdir()) == []
    answers.write(answer(verdict(1)), files)
    assert Path("tbd.md").read_text().startswith("# tbd") and Path("new/tbd.xml").read_bytes().startswith(b"<?xml")
    assert sorted(path.name for path in Path().rglob("*")) == ["new", "tbd.md", "tbd.xml"]
    assert answers.ready(None, None) == (None, None)


def test_a_file_that_cannot_be_written_is_refused_at_once(workspace: Path) -> None:
    Path("folder").mkdir()
    Path("file").write_text("kept")
    for name, said in {
        "folder": "is not a file",
        "/dev/null": "is not a file",
        "file/x.md": "cannot be written",
    }.items():
        with pytest.raises(InputError, match=f"--summary .*{name}: {said}"):
            answers.ready(name, None)
    assert Path("/dev/null").is_char_device()
    with pytest.raises(InputError, match="are both"):
        answers.ready("x.md", "./x.md")
    assert Path("file").read_text() == "kept"
