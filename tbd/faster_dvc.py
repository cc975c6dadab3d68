"""DVC's own command line, reading and writing `dvc.lock` faster: `python -m tbd.faster_dvc repro ...`.

With 200 audits dvc.lock has a megabyte. DVC parses it in each process (1 s); to note a stage that ran, it parses it once more, keeping
comments, of which this file has none, and writes it in pure Python (10 s). Here libyaml writes what changed (the same content,
long lines broken elsewhere), and what it says is kept beside it as JSON, which is read as long as the file is still that
one. It is also written in one piece. Plain `dvc` works as well, slower.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tbd.records import atomic

CACHE = Path(".tbd/dvc-lock.json")
LOCK = "dvc.lock"


YAML_12 = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
"""what is no string without quotes, in the order to try"""


class Loader(yaml.CSafeLoader):
    """YAML 1.2, as DVC reads it: `1e-05` is a number, `no` is a word; PyYAML's own is 1.1."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 -- the parent's declaration


class Dumper(yaml.CSafeDumper):
    """Quotes what either of the two would not read back as a string."""


for _tag, _pattern in YAML_12.items():
    for _kind in (Loader, Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None)
Dumper.add_representer(type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", ""))


def known(text: str, workspace: Path = Path()) -> Any:
    """What the text of a dvc.lock says, if that is kept; else None."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    try:
        cached = json.loads((workspace / CACHE).read_bytes())
        return cached["data"] if cached["sha256"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read(text: str) -> Any:
    """What the text of a dvc.lock says; kept from now on."""
    data = known(text)
    if data is None:
        data = yaml.load(text, Loader)
        _keep(text, data)
    return data


def write(data: Any) -> str:
    """The text of a dvc.lock that says this."""
    plain = json.loads(json.dumps(data))  # DVC's own kinds of dict become plain ones
    stages = plain.pop("stages", {})
    lines = "".join(_stage(json.dumps({name: stages[name]})) for name in stages)
    text = _yaml(plain) + (f"stages:\n{lines}" if stages else "stages: {}\n")
    _keep(text, plain | {"stages": stages})
    return text


@cache
def _stage(entry: str) -> str:
    """The lines of one stage, from JSON: of all of them, a run of DVC changes a few."""
    return _yaml({"stages": json.loads(entry)}).removeprefix("stages:\n")


def _yaml(data: Any) -> str:
    text: str = yaml.dump(data, Dumper=Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True)
    return text


def _keep(text: str, data: Any) -> None:
    with atomic(CACHE) as temporary:
        temporary.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "data": data}), "utf-8")


def _install() -> None:
    """Into the three places where DVC's modules read and write YAML; every other file stays theirs."""
    from dvc.utils import strictyaml
    from dvc.utils.serialize import _common, _yaml

    def reading(theirs: Callable[..., Any]) -> Callable[..., Any]:
        def parse(text: str, path: Any, *arguments: Any, **options: Any) -> Any:
            if Path(path).name == LOCK and text.strip():
                with suppress(yaml.YAMLError):  # DVC's own message says more
                    return read(text)
            return theirs(text, path, *arguments, **options)

        return parse

    dump = _common._dump_data

    def writing(path: Any, data: Any, *arguments: Any, **options: Any) -> None:
        if Path(path).name != LOCK:
            dump(path, data, *arguments, **options)
            return
        with atomic(Path(path)) as temporary:  # DVC empties the file first: a kill then would lose what every stage was made from
            temporary.write_text(write(data), "utf-8")

    strictyaml.parse_yaml = reading(strictyaml.parse_yaml)
    _yaml.parse_yaml_for_update = reading(_yaml.parse_yaml_for_update)
    _common._dump_data = writing


if __name__ == "__main__":
    from dvc.cli import main

    _install()
    sys.exit(main(sys.argv[1:]))
