"""Stage `distill`: the reference checkpoint, whose contamination is known because it is planted here."""

from pathlib import Path

from tbd import params, planting, register, stages

BASE, OUT = Path("checkpoints/base"), Path("checkpoints/reference")


def main() -> None:
    p = params.load()
    planting.plant(BASE, register.set_path("members"), OUT, p.distill, p.generate.device)


if __name__ == "__main__":
    stages.run(main, device=True)
