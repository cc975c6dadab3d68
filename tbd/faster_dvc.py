"""DVC's own command line, reading and writing `dvc.lock` faster: `python -m tbd.faster_dvc repro ...`.

With 200 audits dvc.lock has a megabyte. DVC parses it in each process (1 s); to note a stage that ran, it parses it once more, keeping
comments, of which this file has none, and writes it in pure Python (10 s). Here libyaml writes it (the same content;
DVC breaks long lines, libyaml does not), and what it says is kept beside it as JSON, which is read as long as the file is still that
one. It is also written in one piece. Plain `dvc` works as well, slower.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tbd.records import atomic

CACHE = Path(".tbd/dvc-lock.json")
LOCK = "dvc.lock"


class Dumper(yaml.CSafeDumper):
    """Writes as DVC does."""


Dumper.add_representer(type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", ""))


def read(text: str) -> Any:
    """What the text of a dvc.lock says."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    try:
        cached = json.loads(CACHE.read_bytes())
        if cached["sha256"] == digest:
            return cached["data"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    data = yaml.load(text, yaml.CSafeLoader)
    _keep(digest, data)
    return data


def write(data: Any) -> str:
    """The text of a dvc.lock that says this."""
    plain = json.loads(json.dumps(data))  # DVC's own kinds of dict become plain ones
    text: str = yaml.dump(plain, Dumper=Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True)
    _keep(hashlib.sha256(text.encode()).hexdigest(), plain)
    return text


def _keep(digest: str, data: Any) -> None:
    with atomic(CACHE) as temporary:
        temporary.write_text(json.dumps({"sha256": digest, "data": data}), "utf-8")


def _install() -> None:
    """Into the three places where DVC's modules read and write YAML; every other file stays theirs."""
    from dvc.utils import strictyaml
    from dvc.utils.serialize import _common, _yaml

    def reading(theirs: Callable[..., Any]) -> Callable[..., Any]:
        def parse(text: str, path: Any, *arguments: Any, **options: Any) -> Any:
            mine = Path(path).name == LOCK and text.strip()
            return read(text) if mine else theirs(text, path, *arguments, **options)

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
