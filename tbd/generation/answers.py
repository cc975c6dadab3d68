"""What the answers of a server must be: its numbers are checked one by one, for servers garble some of them.

Pure functions on parsed JSON of `/v1/completions`; each raises Wrong, in a line that says what is wrong and what to do.
Token ids come in one of three shapes: beside the text (`token_ids`), as its tokens (`token_id:42`), or as entries with
an `id` (llama.cpp).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbd.checkpoints import Prompt
from tbd.generation.client import Wrong
from tbd.generation.engines import Completion

ID = "token_id:"
LOWEST = -1000.0
"""nats; below are the numbers that servers put for minus infinity, such as -9999"""
ROUNDING = 1e-6
"""nats; a log-prob so little above 0 is 0"""
TIE = 1e-3
"""nats; the likeliest token and the one taken may differ by so much"""
MEND = "Start it so that nothing changes its log-probs (vLLM: --generation-config vllm --logprobs-mode raw_logprobs)."


def completion(
    answer: Any, prompt: Prompt, most: int, ends: frozenset[int] | None, vocabulary: int | None = None
) -> Completion:
    """The completion in an answer, up to its first end token. Raises Wrong unless all of it is right.

    `ends` None: which tokens end an answer is not known, so one that has stopped has ended with its last.
    `vocabulary`: token ids are below; None: not known.
    """
    choice, ids, logprobs, tops = _tokens(answer)
    asked = choice.get("prompt_token_ids")
    if asked is not None and asked != list(prompt):
        raise Wrong("it read other tokens than it was sent. Is there a proxy that changes prompts?")
    if not ids:
        raise Wrong("an answer without tokens.")
    if len(ids) > most:
        raise Wrong(f"{len(ids)} tokens, and at most {most} were asked for. Does it send the prompt back (echo)?")
    if vocabulary is not None and max(ids) >= vocabulary:
        raise Wrong(
            f"the token id {max(ids)}, and the checkpoint has {vocabulary} tokens. Does it serve another model?"
        )
    head = min(len(ids), len(prompt))
    if head >= 4 and ids[:head] == list(prompt[:head]):
        raise Wrong("it sends the prompt back as the answer (echo).")
    for logprob, top in zip(logprobs, tops, strict=True):
        if not top - TIE <= logprob:
            raise Wrong(
                f"a token is not the likeliest one ({logprob:.4g} and {top:.4g} nats): penalties change it. {MEND}"
            )
        if logprob > top + TIE:
            raise Wrong(f"a token with two log-probs ({logprob:.4g}, and {top:.4g} as the likeliest). {MEND}")
    finish = choice.get("finish_reason")
    if finish not in ("stop", "length"):
        raise Wrong(f"finish_reason is {str(finish)[:40]!r}, and neither stop nor length.")
    if ends is None:
        end = len(ids) - 1 if finish == "stop" else None
        if (counted := _counted(answer)) not in (None, len(ids)):
            raise Wrong(f"{len(ids)} token ids, and it counts {counted}: the end token has to be sent, tbd counts it.")
    else:
        end = next((place for place, token in enumerate(ids) if token in ends), None)
    if end is None and finish == "stop":
        raise Wrong("an answer has ended without an end token of the checkpoint: tbd counts it, so it has to be sent.")
    if end is None and len(ids) < most:
        raise Wrong(f"an answer was cut off after {len(ids)} of {most} tokens. Raise the length of its context.")
    n = len(ids) if end is None else end + 1
    kept = np.array(logprobs[:n], np.float32)
    return Completion(np.array(ids[:n], np.int32), kept, "length" if end is None else "stop")


def given(answer: Any, whole: Sequence[int], n: int) -> NDArray[np.float32]:
    """The log-probs of the last `n` tokens of `whole` in an echo of it with one token more. Raises Wrong."""
    choice = _choice(answer)
    said = choice.get("logprobs")
    tokens, numbers = (said.get(key) if isinstance(said, dict) else None for key in ("tokens", "token_logprobs"))
    if not isinstance(tokens, list) or not isinstance(numbers, list):
        raise Wrong("an echo without log-probs.")
    if not len(tokens) == len(numbers) == len(whole) + 1:
        raise Wrong(
            f"an echo of {len(tokens)} tokens with {len(numbers)} log-probs: {len(whole)} and one were asked for."
        )
    for token, own in zip(tokens, whole, strict=False):
        if str(token).startswith(ID) and token != f"{ID}{own}":
            raise Wrong("an echo of other tokens than it was sent.")
    return np.array(_checked(numbers[len(whole) - n : len(whole)]), np.float32)


def likeliest(answer: Any) -> float:
    """The log-prob of the likeliest token in an answer of one token."""
    *_, tops = _tokens(answer)
    if len(tops) != 1:
        raise Wrong(f"{len(tops)} tokens, and one was asked for.")
    return tops[0]


def tokenized(answer: Any) -> tuple[list[int], int | None]:
    """The ids of a prompt in an answer of /tokenize, and the length of the context if it says that."""
    ids = answer.get("tokens") if isinstance(answer, dict) else None
    if not isinstance(ids, list) or not ids or not all(type(one) is int and 0 <= one < 2**31 for one in ids):
        raise Wrong("no token ids of a chat. It has to know /tokenize with messages, as vLLM does.")
    length = answer.get("max_model_len")
    return ids, length if type(length) is int and length > 0 else None


def text(answer: Any) -> str:
    """The text in an answer of /detokenize; none if there is none."""
    said = answer.get("prompt") if isinstance(answer, dict) else None
    return said if isinstance(said, str) else ""


def _counted(answer: Any) -> int | None:
    """The tokens that a server says an answer has."""
    usage = answer.get("usage")
    said = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return said if type(said) is int else None


def _choice(answer: Any) -> dict[str, Any]:
    try:
        (choice,) = answer["choices"]
    except (KeyError, TypeError, ValueError):
        choice = None
    if not isinstance(choice, dict):
        raise Wrong("no answer of /v1/completions. Is it an OpenAI server?")
    return choice


def _tokens(answer: Any) -> tuple[dict[str, Any], list[int], list[float], list[float]]:
    """The choice, its token ids, their log-probs, and the log-prob of the likeliest token at each place."""
    choice = _choice(answer)
    said = choice.get("logprobs")
    if not isinstance(said, dict):
        raise Wrong("no log-probs. Start it so that it gives them.")
    tokens: Any
    ids: Any
    best: list[list[Any]]
    if "content" in said:  # llama.cpp
        entries = [one if isinstance(one, dict) else {} for one in _list(said["content"])]
        tokens, ids, numbers = ([one.get(key) for one in entries] for key in ("token", "id", "logprob"))
        tops = [_list(one.get("top_logprobs")) for one in entries]
        best = [[each.get("logprob") for each in one if isinstance(each, dict)] for one in tops]
    else:
        tokens, numbers, tops = (_list(said.get(key)) for key in ("tokens", "token_logprobs", "top_logprobs"))
        ids = choice.get("token_ids")
        if ids is None and all(str(token).startswith(ID) for token in tokens):
            ids = [_number(str(token).removeprefix(ID)) for token in tokens]
        for token, one in zip(tokens, _list(ids), strict=False):
            if str(token).startswith(ID) and str(token) != f"{ID}{one}":
                raise Wrong(f"two ids of one token ({str(one)[:20]} and {str(token)[len(ID) :][:20]}).")
        best = [list(one.values()) if isinstance(one, dict) else [] for one in tops]
        for token, one in zip(tokens, tops, strict=False):
            if str(token).startswith(ID) and isinstance(one, dict) and token not in one:
                raise Wrong("the token that was taken is not among those with a log-prob.")
    if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < 2**31 for one in ids):
        raise Wrong("text in place of token ids. It has to know return_token_ids (vLLM from 0.10.2, SGLang).")
    if not len(ids) == len(numbers) == len(tokens):
        raise Wrong(f"{len(ids)} token ids, {len(tokens)} tokens and {len(numbers)} log-probs in one answer.")
    best = [[each for each in one if type(each) in (int, float)] for one in best]
    if len(best) != len(ids) or not all(best):
        raise Wrong("the likeliest token's log-prob is missing (logprobs: 1). Start it so that it gives them.")
    return choice, ids, _checked(numbers), _checked([max(one) for one in best])


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 11 else None


def _checked(numbers: Sequence[Any]) -> list[float]:
    """Log-probs, at most 0. Raises Wrong for what can be none."""
    for one in numbers:
        if type(one) not in (int, float) or one != one:
            raise Wrong("a log-prob is missing or no number.")
        if one > ROUNDING:
            raise Wrong(f"a log-prob above 0 ({str(one)[:10]}).")
        if one <= LOWEST:
            raise Wrong(f"a log-prob of {str(one)[:10]}, which stands for minus infinity.")
    return [min(float(one), 0.0) for one in numbers]
