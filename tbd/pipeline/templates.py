"""The stages of an audit: one `dvc.yaml` in its folder, made from a template.

Values are written out, not left to DVC's own templating: with some hundred audits that takes DVC twice as long to read.
"""

import json
from pathlib import Path
from string import Template

from tbd import audits, params
from tbd.audits import Audit
from tbd.checkpoints.served import is_served
from tbd.records import atomic
from tbd.workspace import AUDITS, DETECTOR

MOST = "generate.max_new_tokens"
NEEDED = f"{{params.yaml: [{MOST}, generate.tokens], {DETECTOR}: [tokens%s]}}"
"""what says how many tokens an answer has: of a reference, of which the detector is made, and of any other audit"""
TWO_STEPS = ("detection/cascade", "generation/two_steps", "scores/methods", "scores/tokens")
"""modules that have a part in answers only where there is a cascade"""
SERVED = ("command", "model")
"""what of `generate.server` says which model answers; the rest is how it is asked"""
ANOTHER = ".py\n      - tbd/generation/engines/"
"""between two engines of one audit"""
TEMPLATE = Path(__file__).with_name("audit.dvc.yaml")


def add(name: str, audit: Audit) -> None:
    """Write `audit.yaml` and `dvc.yaml`. Raises InputError for a name that cannot be one."""
    audits.write(name, audit)
    refresh(name)


def refresh(name: str) -> None:
    """Write the `dvc.yaml` of an audit, unless it is what it should be: another engine or version of tbd has others."""
    file, text = AUDITS / name / "dvc.yaml", stages(name, audits.get(name))
    if not file.is_file() or file.read_text("utf-8") != text:
        with atomic(file) as temporary:
            temporary.write_text(text, "utf-8")


def stages(name: str, audit: Audit) -> str:
    """The text of that file. The folder of the checkpoint may be called anything, the rest are plain names."""
    tree = params.load_yaml(params.FILE)
    calibrate, generate = tree.get("calibrate", {}), tree["generate"]
    reference = name in calibrate.get("references", [])
    cascade = calibrate.get("cascade") is not None and not reference
    served = [f"generate.server.{key}" for key in SERVED if key in generate.get("server", {})]
    how = ["generate.engine", *(served if generate["engine"] == "openai" else [])]
    models = [Path(one) for one in (audit.checkpoint, audit.base) if one is not None]
    own = {generate["engine"] for model in models if not is_served(model)}
    engines = own | {one for one in ("openai", "served") if any(map(is_served, models))}
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        audit=name,
        benchmark=audit.benchmark,
        unseen=audit.unseen,
        checkpoint=json.dumps(audit.checkpoint.replace("${", "\\${"), ensure_ascii=False),
        engine=ANOTHER.join(sorted(engines)),
        how=how[0] if len(how) == 1 else f"{{params.yaml: [{', '.join(how)}]}}",
        tokens=MOST if reference else NEEDED % (", cascade" if cascade else ""),
        two_steps="".join(f"\n      - tbd/{module}.py" for module in TWO_STEPS) if cascade else "",
        score="{params.yaml: [score, calibrate.cascade]}" if "cascade" in calibrate else "score",
    )
