"""Stage `distill`: the reference checkpoint. Its contamination is known, because it is planted here."""

from pathlib import Path

from tbd import params, stages
from tbd.progress import Progress
from tbd.reference import planting
from tbd.workspace import STATE, set_path

BASE, OUT = Path("checkpoints/base"), Path("checkpoints/reference")
SNAPSHOT = STATE / "halfway"
"""the model on its way, for the stage `halfway`, so that nothing is trained twice"""


def main(progress: Progress) -> None:
    p = params.load()
    STATE.mkdir(exist_ok=True)
    snapshot = p.halfway.epochs, SNAPSHOT
    planting.plant(BASE, set_path("members"), OUT, p.distill, p.generate.device, progress, snapshot)


if __name__ == "__main__":
    stages.run(main, device=True)
