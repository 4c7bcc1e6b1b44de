"""The tiny model: a small, randomly initialised Llama and its tokenizer, made at first use.

It needs no network, and of the heavy libraries only tokenizers, numpy and safetensors, not torch.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import bases, word_problems
from launcher.config.schema import TinyModelConfig
from launcher.core import runtime
from launcher.core.files import fsync_folder, give_usual_permissions, open_lock, storage_errors
from launcher.word_problems import END, TURN

if TYPE_CHECKING:
    import numpy as np

PAD = "<|pad|>"
SAMPLE_STORIES = 2_000

#: A turn is `<|turn|>role`, a new line, the text, `<|end|>`. What the assistant says, its end
#: included, is marked as generated.
CHAT_TEMPLATE = """\
{%- if tools %}
{{- '<|turn|>system\\nTools:' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor %}
{{- '<|end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
{{- raise_exception('unknown role ' + message.role) }}
{%- elif message.role == 'system' and not loop.first %}
{{- raise_exception('a system message must be the first') }}
{%- endif %}
{{- '<|turn|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}{{- '\\nCall: ' + (call.function | tojson) }}{% endfor %}
{{- '<|end|>' }}
{%- endgeneration %}
{%- else %}
{{- message.content + '<|end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|turn|>assistant\\n' }}
{%- endif %}
"""


def ensure(config: TinyModelConfig, cache_dir: Path | None = None) -> Path:
    """The folder of the tiny model of these options, in Hugging Face format; made now if missing.

    Processes that ask at the same time wait for the one that makes it. That the sizes fit together
    has been checked with the config. Raises `StorageError` if the cache cannot be written.
    """
    folder = bases.tiny_folder(config, cache_dir or runtime.cache_dir())
    with storage_errors(folder):
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open_lock(folder.with_suffix(".lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                _make(config, folder)
    return folder


def _make(config: TinyModelConfig, folder: Path) -> None:
    from safetensors.numpy import save_file

    work = folder.with_suffix(".tmp")
    shutil.rmtree(work, ignore_errors=True)  # left by a process that was killed; we hold the lock
    work.mkdir()
    _write_tokenizer(config, work)
    save_file(_weights(config), work / "model.safetensors", metadata={"format": "pt"})
    give_usual_permissions(work)
    (work / "config.json").write_text(
        json.dumps(_model_config(config), indent=2) + "\n", encoding="utf-8"
    )
    for file in work.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    work.rename(folder)
    fsync_folder(folder.parent)


def _write_tokenizer(config: TinyModelConfig, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[PAD, TURN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_positions,
        "pad_token": PAD,
        "eos_token": END,
        "additional_special_tokens": [TURN],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(options, indent=2) + "\n", encoding="utf-8"
    )


def _sample() -> list[str]:
    rng = random.Random("tokenizer")  # noqa: S311 - reproducible text, no secret
    told = islice(word_problems.stories(rng, held_out=False), SAMPLE_STORIES)
    return [text for story in told for text in (story.as_prose(rng), *_turns(story))]


def _turns(story: word_problems.Story) -> list[str]:
    return [f"{turn['role']}\n{turn['content']}\n" for turn in story.as_chat()]


def _model_config(config: TinyModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.hidden_size // config.heads,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": _std(config),
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "dtype": "float32",
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 2,
    }


def _std(config: TinyModelConfig) -> float:
    """Initial spread. At so small a width the usual 0.02 delays attention by hundreds of steps."""
    return float(config.hidden_size**-0.5)


def _weights(config: TinyModelConfig) -> dict[str, np.ndarray]:
    """Tensors by their Hugging Face names: normally distributed matrices, norms one."""
    import numpy as np

    rng = np.random.Generator(np.random.PCG64(0))
    std = np.float32(_std(config))

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.standard_normal((rows, columns), dtype=np.float32) * std

    width, inner = config.hidden_size, config.intermediate_size
    kv_width = width // config.heads * config.kv_heads
    weights = {"model.embed_tokens.weight": matrix(config.vocab_size, width)}
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.q_proj", width, width),
            ("self_attn.k_proj", kv_width, width),
            ("self_attn.v_proj", kv_width, width),
            ("self_attn.o_proj", width, width),
            ("mlp.gate_proj", inner, width),
            ("mlp.up_proj", inner, width),
            ("mlp.down_proj", width, inner),
        ):
            weights[f"{prefix}{name}.weight"] = matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{name}.weight"] = np.ones(width, np.float32)
    weights["model.norm.weight"] = np.ones(width, np.float32)
    if not config.tie_embeddings:
        weights["lm_head.weight"] = matrix(config.vocab_size, width)
    return weights
