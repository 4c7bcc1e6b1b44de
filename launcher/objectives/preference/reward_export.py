"""A reward model in use: the tokens of one answer, and what its folder says beside the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher.config.schema import Config, SpecialTokens, Thoughts
from launcher.core.errors import ConfigError, DataError
from launcher.core.files import read_json, write_json
from launcher.data.chat.masking import ChatOptions
from launcher.data.formats import Reader, load
from launcher.data.formats.base import BadRecord
from launcher.data.prepare.encoding import ExampleEncoder
from launcher.model.sequence_head import OUTPUTS

#: In the folder: how its answers are laid out, with which `rewarded_tokens` does the same again.
LAYOUT = "reward.json"
#: Formats of records with one answer, in the order in which they are looked for.
_FORMATS = ("chat", "sharegpt", "alpaca", "prompt")
_HINT = (
    'a line is a record with one answer, {"prompt": "...", "completion": "..."} or'
    ' {"messages": [...]}'
)

_README = """# A reward model

Prints the reward of each answer in `records`, the higher the better, as `launcher generate` does;
run it in this folder. Only differences between answers to one prompt have been learned.

```python
CODE```
"""
_OPEN_MODEL = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(".").eval()
"""
_OPEN_ADAPTER = """import json

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base = json.load(open("adapter_config.json"))["base_model_name_or_path"]
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
model = PeftModel.from_pretrained(model, ".").eval()
"""
_RECORDS = """tokenizer = AutoTokenizer.from_pretrained(".")

records = [("What is 2 + 3?", "It is 5."), ("What is 2 + 3?", "It is 6.")]
for prompt, completion in records:
"""
_CHAT = """    messages = SYSTEM + [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": completion},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, **OPTIONS)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
"""
_PLAIN = """    prompt = BEFORE + prompt
    between = "" if prompt[-1:].isspace() or completion[:1].isspace() else "\n"
    tokens = tokenizer(prompt + between + completion)["input_ids"]
    if tokenizer.eos_token_id is not None and tokens[-1] != tokenizer.eos_token_id:
        tokens.append(tokenizer.eos_token_id)
"""
_SCORE = """    inputs = torch.tensor([tokens[-LONGEST:]])
    with torch.no_grad():
        outputs = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits
    print(f"{float(outputs[0, 0]):.4f}")
"""


def tokens_of(tokenizer: Any, config: Config, text: str) -> list[int]:
    """Tokens of a record with one answer, given as JSON, the last `data.max_length` of them.

    Raises `DataError` for a text that is no such record.
    """
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise DataError(f"{text[:100]!r} is no record", where="prompt", hint=_HINT)
    name = next((name for name in _FORMATS if load(name).matches(record)), None)
    found: Any = BadRecord(f"the record has {', '.join(map(repr, record))}", hint=_HINT)
    if name is not None:
        found = Reader(name, {}).read(record)
    if isinstance(found, BadRecord):
        raise DataError(found.found, where="prompt", hint=found.hint)
    return _laid_out(tokenizer, ChatOptions.of(config.data), config.data.max_length, found[0])


def _laid_out(tokenizer: Any, chat: ChatOptions, longest: int, example: Any) -> list[int]:
    found = ExampleEncoder(tokenizer, chat=chat).encode([example])[0]
    if isinstance(found, BadRecord):
        raise DataError(found.found, where="prompt", hint=found.hint)
    tokens: list[int] = found.pieces[-1].tokens.tolist()
    return tokens[-longest:]


def rewarded_tokens(folder: Path, tokenizer: Any, prompt: str, answer: str) -> list[int]:
    """Tokens of an answer, as the run of the folder's model laid them out.

    Raises `ConfigError` for a folder that says nothing of it, `DataError` for what cannot be put.
    """
    kept = read_json(folder / LAYOUT)
    if kept is None:
        raise ConfigError(
            f"{folder} has no {LAYOUT}: it is no export of objective=reward",
            where="model",
            hint="give the export/ of such a run; an older one: launcher export RUN",
        )
    chat = ChatOptions(
        kept["system"],
        kept["template_options"],
        Thoughts[kept["thoughts"]],
        special_tokens=SpecialTokens[kept["special_tokens"]],
    )
    found: Any = Reader("prompt", {}).read({"prompt": prompt, "completion": answer})
    if isinstance(found, BadRecord):
        raise DataError(found.found, where="prompt", hint=found.hint)
    return _laid_out(tokenizer, chat, kept["max_length"], found[0])


def describe(folder: Path, config: Config) -> None:
    """How to reward answers with the folder as the launcher does, in README.md for people and in
    `LAYOUT` for the launcher; for an adapter the name of its output too."""
    from transformers import AutoTokenizer

    is_adapter = (folder / "adapter_config.json").is_file()
    if is_adapter:
        write_json(folder / OUTPUTS, {"names": ["reward"]})
    data = config.data
    layout = {
        "system": data.system,
        "template_options": dict(data.template_options),
        "thoughts": data.thoughts.name,
        "special_tokens": data.special_tokens.name,
        "max_length": data.max_length,
    }
    write_json(folder / LAYOUT, layout)
    system = data.system
    has_template = bool(AutoTokenizer.from_pretrained(folder).chat_template)
    code = _OPEN_ADAPTER if is_adapter else _OPEN_MODEL
    code += _RECORDS + (_CHAT if has_template else _PLAIN) + _SCORE
    first = [{"role": "system", "content": system}] if system else []
    code = code.replace("SYSTEM + [", f"{first!r} + [" if first else "[")
    code = code.replace("**OPTIONS", f"**{dict(config.data.template_options)!r}")
    code = code.replace("BEFORE", repr(f"{system}\n\n" if system else ""))
    code = code.replace("LONGEST", str(config.data.max_length))
    (folder / "README.md").write_text(_README.replace("CODE", code), encoding="utf-8")
