"""What a chat template puts around a question, and whether it looks at the question."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tbd.checkpoints import Prompted, prompting

QUESTIONS = ["How many?", "  Two and\nthree?  ", "user", "1"]
PLAIN = "<|user|>{{ messages[0]['content'] }}<|assistant|>"
LOOKS = (
    "{% if 'secret' in messages[0]['content'] %}<|system|>Answer with one word.{% endif %}" + PLAIN,
    "<|user|>{{ messages[0]['content'] | replace('secret', 'open') }}<|assistant|>",
    PLAIN + "{% if messages[0]['content'] | length > 60 %}<think></think>{% endif %}",
)


def prompted(folder: Path, template: str, questions: Sequence[str] = QUESTIONS) -> Prompted:
    (folder / "chat_template.jinja").write_text(template)
    return prompting.prompts(folder, questions, 4, "text")


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.mark.parametrize("template", [PLAIN, PLAIN.replace("content']", "content'] | trim")])
def test_a_template_that_passes_questions_on_puts_one_text_around_them(folder: Path, template: str) -> None:
    found = prompted(folder, template)
    assert len(set(found.prompts)) == len(QUESTIONS) and found.odd == 0


@pytest.mark.parametrize("template", LOOKS)
def test_one_that_looks_at_them_is_counted(folder: Path, template: str) -> None:
    secret = "the secret of this very long question, which is so much longer than any other"
    assert prompted(folder, template, [*QUESTIONS, secret]).odd == 1


def test_a_system_prompt_or_a_thinking_switch_is_another_frame(folder: Path) -> None:
    frames = [prompted(folder, text + PLAIN + after).frame for text in ("", "<|system|>x") for after in ("", "<think>")]
    assert len(set(frames)) == 4 and frames[0] == prompted(folder, PLAIN).frame


def test_many_questions_are_made_in_parts(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = ["What?", "How many?", "Why?"]
    at_once = prompting.prompts(tiny_checkpoint, questions, None, "text")
    monkeypatch.setattr(prompting, "PART", 2)
    assert prompting.prompts(tiny_checkpoint, questions, None, "text") == at_once
    packed = at_once.prompts
    assert [*packed[1:]] == [*packed][1:] and packed[-1] == [*packed][2] and len(packed[3:]) == 0
    assert packed.total == sum(map(len, packed)) and packed[1:].total == len(packed[1]) + len(packed[2])
