"""Loading the tokenizer of a model config. transformers is imported on use; torch is not needed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from launcher.config.schema import ModelConfig, TinyModelConfig
from launcher.core import registry, runtime
from launcher.core.errors import ConfigError
from launcher.core.files import require_readable


def hide_torch() -> None:
    """Make `import transformers` work without torch in this process: start-up falls from 5 s to 1
    s.

    transformers takes a module that is None for one that is not installed. Call it before the first
    import of transformers, in a process that needs no model.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    logging.getLogger("transformers").addFilter(
        lambda record: "PyTorch was not found" not in record.getMessage()
    )


@contextmanager
def torch_unhidden() -> Iterator[None]:
    """Within it, nothing stands for a hidden torch: scipy looks into a module of that name."""
    is_hidden = sys.modules.get("torch", torch_unhidden) is None
    if is_hidden:
        del sys.modules["torch"]
    try:
        yield
    finally:
        if is_hidden:
            sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def load_tokenizer(model: ModelConfig) -> Any:
    """The tokenizer that `model` names, with its template replaced and its tokens added.

    A tiny model is made first if there is none yet. Raises `ConfigError` when there is no tokenizer
    at that name, or one that cannot tell where in the text a token lies.
    """
    source = model.tokenizer or model.name
    where = "model.tokenizer" if model.tokenizer else "model.name"
    if isinstance(model, TinyModelConfig) and not model.tokenizer:
        source = str(registry.load("launcher.model.tiny:ensure")(model))
    if not source:
        raise ConfigError("no model given", where=where, hint="give a folder or a hub name")
    tokenizer = _from_pretrained(source, where, model)
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{source} has only a slow tokenizer, which cannot tell where a token lies",
            where=where,
            hint="convert it to tokenizer.json, or give another with model.tokenizer",
        )
    if model.chat_template:
        tokenizer.chat_template = _read_template(model.chat_template)
    if model.add_tokens:
        tokenizer.add_tokens(model.add_tokens, special_tokens=True)
    return tokenizer


class Frame:
    """The special tokens that a tokenizer puts before and behind every text."""

    def __init__(self, tokenizer: Any) -> None:
        backend = tokenizer.backend_tokenizer
        self._eos: int | None = tokenizer.eos_token_id
        samples = ((backend.encode(text, add_special_tokens=False).ids, text) for text in "a0.")
        bare, text = next(((ids, text) for ids, text in samples if ids), ([], "a"))
        full = backend.encode(text).ids
        places = range(len(full) - len(bare) + 1)
        at = next((i for i in places if full[i : i + len(bare)] == bare), len(full))
        self._before, self._after = tuple(full[:at]), tuple(full[at + len(bare) :])
        self._names = {i: backend.id_to_token(i) or "" for i in {*full, self._eos} if i is not None}

    def around(self, text: str, ids: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What is to be put before and behind `text`, whose own tokens are `ids`: nothing of what
        it begins or ends with already, as texts do that were laid out beforehand."""
        before, after = self._before, self._after
        if before and self._has(before[0], ids, text.lstrip().startswith):
            before = ()
        if after and self._has(after[-1], ids, text.rstrip().endswith):
            after = ()
        return before, after

    def is_ended(self, text: str, ids: list[int]) -> bool:
        """Whether the text's last token, but for white space, is the end-of-sequence token."""
        return self._eos is not None and self._has(self._eos, ids, text.rstrip().endswith)

    def _has(self, token: int, ids: list[int], at_border: Callable[[str], bool]) -> bool:
        name = self._names[token]
        return token in ids and bool(name) and at_border(name)


def padding_of(tokenizer: Any) -> int:
    """The token that fills up a batch; some tokenizer has none, or no end either."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in known if token is not None)


def _from_pretrained(source: str, where: str, model: ModelConfig) -> Any:
    from transformers import AutoTokenizer

    folder = runtime.user_path(source)
    try:
        return AutoTokenizer.from_pretrained(
            folder if folder.is_dir() else source,
            revision=None if model.tokenizer else model.revision,
            trust_remote_code=model.trust_remote_code,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        require_readable(folder)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"no tokenizer can be loaded from {source}: {reason[:300]}",
            where=where,
            hint="give a folder with tokenizer.json, or a hub name that can be reached from here",
        ) from error


def _read_template(path: str) -> str:
    try:
        return runtime.user_path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}",
            where="model.chat_template",
            hint="give the path of a file with a Jinja chat template",
        ) from error
