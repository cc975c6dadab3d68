"""Stage `halfway`: the reference as it was after some of its epochs, a second and weaker one."""

from pathlib import Path

from tbd import params, stages
from tbd.progress import Progress
from tbd.reference import planting
from tbd.stages.distill import BASE, SNAPSHOT
from tbd.workspace import set_path

OUT = Path("checkpoints/halfway")


def main(progress: Progress) -> None:
    p = params.load()
    planting.plant_halfway(
        BASE, set_path("members"), OUT, p.distill, p.generate.device, progress, (p.halfway.epochs, SNAPSHOT)
    )


if __name__ == "__main__":
    stages.run(main, device=True)
