"""What a command came to, as other programs read it: JSON, and JUnit's XML. For people there is `summary.answer`."""

import json
from xml.etree import ElementTree as Xml

from tbd.gates import Answer
from tbd.history import Outcome
from tbd.report.text import plain

NO_XML = {0xFFFE: "\ufffd", 0xFFFF: "\ufffd"}
"""characters that `plain` keeps and XML 1.0 does not have"""


def document(answer: Answer) -> str:
    """One JSON object: `exit_code`, and `results`, one for everything that stands.

    A result has the fields of an outcome as `tbd history --json` has them, `fired` (the gates that it does not pass)
    and `verdict` (as in verdict.json; null for what `tbd check` did not judge). ASCII alone, whatever the terminal is.
    """
    results = []
    for one in answer.standing:
        verdict = answer.verdicts.get(one.audit or "")
        own = {"fired": answer.gates.fired(one.outcome), "verdict": verdict and verdict.model_dump(mode="json")}
        results.append(one.model_dump(mode="json") | own)
    return json.dumps({"exit_code": answer.code, "results": results}, indent=2, allow_nan=False)


def junit(answer: Answer) -> bytes:
    """A test suite with a case for everything that stands, as GitLab, Jenkins and the like show it.

    A gate that fires is a failure, a command that was stopped an error; what has no verdict, and no gate minds, is
    skipped.
    """
    suite = Xml.Element("testsuite", name="tbd", tests=str(len(answer.standing)))
    kinds = {"failure": 0, "error": 0, "skipped": 0}
    for one in answer.standing:
        case = Xml.SubElement(suite, "testcase", classname=_benchmark(one), name=_case(one))
        fired = answer.gates.fired(one.outcome)
        if answer.code > 1:
            kind, said = "error", one.outcome
        elif fired:
            kind, said = "failure", f"{one.outcome} ({', '.join(fired)})"
        else:
            kind, said = "skipped" if one.p_value is None else "system-out", one.outcome
        text = _text(one.reason)
        if kind == "system-out":
            Xml.SubElement(case, kind).text = f"{said}: {text}"
        else:
            Xml.SubElement(case, kind, message=f"{said}: {text}").text = text
            kinds[kind] += 1
    suite.attrib |= {"failures": str(kinds["failure"]), "errors": str(kinds["error"]), "skipped": str(kinds["skipped"])}
    suites = Xml.Element("testsuites")
    suites.append(suite)
    Xml.indent(suites)
    whole: bytes = Xml.tostring(suites, encoding="utf-8", xml_declaration=True)
    return whole + b"\n"


def _case(one: Outcome) -> str:
    """A name that no other has: of two with one name GitLab shows one."""
    return _text(f"{one.place} ({one.audit})" if one.audit else one.place)


def _benchmark(one: Outcome) -> str:
    return _text(one.benchmark.name) if one.benchmark else "tbd"


def _text(text: str) -> str:
    return plain(text).translate(NO_XML)
