"""Stage `distill`: the reference checkpoint. Its contamination is known, because it is planted here."""

from pathlib import Path

from tbd import params, stages
from tbd.progress import Progress
from tbd.reference import planting
from tbd.workspace import set_path

BASE, OUT = Path("checkpoints/base"), Path("checkpoints/reference")


def main(progress: Progress) -> None:
    p = params.load()
    planting.plant(BASE, set_path("members"), OUT, p.distill, p.generate.device, progress)


if __name__ == "__main__":
    stages.run(main, device=True)
