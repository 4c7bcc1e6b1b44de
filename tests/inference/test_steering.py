"""Penalties, biases, and how likely what was said was."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.inference.batching import _Told
from launcher.inference.speaker import Speaker
from launcher.inference.steering import Steered, Steering, TokenNames
from support.asking import ask_all

HELLO = [{"role": "user", "content": "How many apples?"}]
GREEDY = {"id": "a", "messages": HELLO, "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def speaker(tiny_llama: Path) -> Speaker:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    return Speaker(model, AutoTokenizer.from_pretrained(tiny_llama), None, pairs=False)


def test_likelihoods_are_the_models_own(speaker: Speaker) -> None:
    end = ask_all(speaker, {**GREEDY, "logprobs": 3})["a/0"]
    told = end["logprobs"]
    assert len(told) == end["completion_tokens"] == 12
    assert b"".join(bytes(one["bytes"]) for one in told).decode(errors="replace") == end["text"]
    prompt = speaker.tokens(HELLO)
    said = speaker.tokenizer.convert_tokens_to_ids(
        [speaker.tokenizer.tokenize(one["token"])[0] for one in told[:1]]
    )
    with torch.no_grad():
        logits = speaker.model(torch.tensor([prompt])).logits[0, -1]
    expected = torch.log_softmax(logits.float(), -1)
    assert math.isclose(told[0]["logprob"], float(expected[said[0]]), abs_tol=1e-5)
    for one in told:
        values = [other["logprob"] for other in one["top_logprobs"]]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert one["logprob"] == values[0]  # the likeliest is what was taken
    # Temperature, bias and penalties change what is said, not how likely the model finds it.
    biased = ask_all(speaker, {**GREEDY, "logprobs": 0, "logit_bias": {str(said[0]): 50}})["a/0"]
    assert biased["logprobs"][0]["logprob"] == told[0]["logprob"]
    assert biased["logprobs"][0]["top_logprobs"] == []


def test_likelihoods_end_with_the_text_before_a_stop_string(speaker: Speaker) -> None:
    text = ask_all(speaker, GREEDY)["a/0"]["text"]
    end = ask_all(speaker, {**GREEDY, "logprobs": 1, "stop": [text[5:8]]})["a/0"]
    said = b"".join(bytes(one["bytes"]) for one in end["logprobs"]).decode(errors="replace")
    assert said.startswith(end["text"])
    last = bytes(end["logprobs"][-1]["bytes"])
    assert len(said.encode()) - len(last) < len(end["text"].encode())


def test_a_bias_forbids_or_forces_tokens(speaker: Speaker) -> None:
    plain = ask_all(speaker, {**GREEDY, "logprobs": 0})["a/0"]
    ids = speaker.tokenizer.convert_tokens_to_ids
    token = ids(speaker.tokenizer.tokenize("z")[-1])
    forced = ask_all(speaker, {**GREEDY, "logprobs": 0, "logit_bias": {str(token): 100}})["a/0"]
    assert len({one["token"] for one in forced["logprobs"]}) == 1
    assert forced["text"] != plain["text"]
    free = [i for i in range(speaker.width) if i != token]
    banned = {**GREEDY, "logit_bias": {**{str(i): -100 for i in free}, str(token): -100}}
    assert ask_all(speaker, banned)["a/0"]["text"] == plain["text"]  # all the same


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (Steering(presence=1.5), [-1.5, -1.5, 0]),
        (Steering(frequency=0.5), [-1.0, -0.5, 0]),
        (Steering(presence=1, frequency=-2), [3.0, 1.0, 0]),
        (Steering(biases=(torch.tensor([2, 0]), torch.tensor([7.0, -100.0]))), [-100, 0, 7]),
    ],
)
def test_what_is_added_to_logits(speaker: Speaker, own: Steering, expected: list[float]) -> None:
    """After the tokens 0, 1, 0; a row beside it keeps its own."""
    steered = Steered([own, Steering()], 2, TokenNames(speaker.tokenizer))
    said = torch.tensor([[2, 2, 0, 1, 0], [2, 2, 0, 1, 0]])
    assert steered(said, torch.zeros(2, 3)).tolist() == [expected, [0, 0, 0]]


def test_a_penalty_ends_a_repetition(speaker: Speaker) -> None:
    text = ask_all(speaker, {**GREEDY, "max_tokens": 40, "logprobs": 0})["a/0"]
    varied = ask_all(speaker, {**GREEDY, "max_tokens": 40, "logprobs": 0, "presence_penalty": 2})
    assert _kinds(varied["a/0"]) >= _kinds(text)
    assert _kinds(varied["a/0"]) == 40  # the logits of a random model are close


def _kinds(end: dict[str, Any]) -> int:
    return len({tuple(one["bytes"]) for one in end["logprobs"]})


@given(st.lists(st.sampled_from(["a", "bc", "é", "東", "xyz"]), max_size=9), st.data())
def test_tokens_are_told_with_the_text_that_they_begin(
    texts: list[str], data: st.DataObject
) -> None:
    """Text may come late, in pieces of any size."""

    class Names:
        def is_shown(self, token: int) -> bool:
            return True

    told = _Told(Names())  # type: ignore[arg-type]
    whole = "".join(texts)
    shown = begun = 0
    found: list[Any] = []
    said = ""
    for i, text in enumerate(texts):
        told.add(i, {"bytes": list(text.encode())})
        said += text
        upto = data.draw(st.integers(shown, len(said)))
        found += told.behind(whole[shown:upto], is_all=False)
        shown = upto
        begun = len(whole[:shown].encode())
        starts = [len("".join(texts[:n]).encode()) for n in range(i + 1)]
        assert len(found) == sum(start < begun for start in starts)
    found += told.behind(whole[shown:], is_all=True)
    assert [bytes(one["bytes"]).decode() for one in found] == texts


def test_names_of_tokens_of_other_tokenizers() -> None:
    class Pieces:
        """A tokenizer that spells with blanks for bytes."""

        added_tokens_decoder: dict[int, Any] = {}
        all_special_ids: list[int] = []

        class backend_tokenizer:
            @staticmethod
            def to_str() -> str:
                return '{"model": {"type": "Unigram"}, "normalizer": null, "decoder": null}'

        def convert_ids_to_tokens(self, token: int) -> str | None:
            return ["\u2581Hi", "<0xE2>", None][token]

    names = TokenNames(Pieces())
    assert [names.content(token) for token in range(3)] == [b" Hi", b"\xe2", b""]
    told = names.likelihood(torch.tensor([-0.1, -3.0]), 1, 1)
    assert told["token"] == "\\xe2"
    assert told["top_logprobs"][0]["token"] == " Hi"
