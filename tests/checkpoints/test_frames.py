"""What a chat template puts around a question, and whether it looks at the question."""

import shutil
from pathlib import Path

import pytest

from tbd.checkpoints.loading import Prompter

QUESTIONS = ["How many?", "  Two and\nthree?  ", "user", "1"]
PLAIN = "<|user|>{{ messages[0]['content'] }}<|assistant|>"
LOOKS = (
    "{% if 'secret' in messages[0]['content'] %}<|system|>Answer with one word.{% endif %}" + PLAIN,
    "<|user|>{{ messages[0]['content'] | replace('secret', 'open') }}<|assistant|>",
    PLAIN + "{% if messages[0]['content'] | length > 60 %}<think></think>{% endif %}",
)


def prompter(folder: Path, template: str) -> Prompter:
    (folder / "chat_template.jinja").write_text(template)
    return Prompter(folder, 4)


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.mark.parametrize("template", [PLAIN, PLAIN.replace("content']", "content'] | trim")])
def test_a_template_that_passes_questions_on_puts_one_text_around_them(folder: Path, template: str) -> None:
    asked = prompter(folder, template)
    assert len({asked(question) for question in QUESTIONS}) == len(QUESTIONS) and asked.odd == 0


@pytest.mark.parametrize("template", LOOKS)
def test_one_that_looks_at_them_is_counted(folder: Path, template: str) -> None:
    asked = prompter(folder, template)
    for question in (*QUESTIONS, "the secret of this very long question, which is so much longer than any other"):
        asked(question)
    assert asked.odd == 1


def test_a_system_prompt_or_a_thinking_switch_is_another_frame(folder: Path) -> None:
    frames = [prompter(folder, text + PLAIN + after).frame for text in ("", "<|system|>x") for after in ("", "<think>")]
    assert len(set(frames)) == 4 and frames[0] == prompter(folder, PLAIN).frame
