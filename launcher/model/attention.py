"""Attention in which packed documents never see each other, registered in transformers' table.

A row is several documents one behind the other. Their boundaries travel to every layer as the
`cu_seq_lens_q` keyword, which transformers' models hand on to the attention function; `packed_row`
holds them for models that do not.

- `launcher_document`: one SDPA call a document; the fast way on CPU, runs anywhere.
- `launcher_varlen`: torch's `varlen_attn`, one kernel for all documents (CUDA, 16 bit).

Both know causal attention, sliding windows, chunks, soft-capped scores, sinks and biases by
position. Of anything else that a model says they raise `Unknown`: `launcher.health.isolation` then
has the documents padded, for the model's own attention.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from launcher.core.errors import ConfigError
from launcher.model import cpu_attention
from launcher.model.cpu_attention import attend, cut, window_mask
from launcher.model.sequence_parallel import Stretches

DOCUMENT = "launcher_document"
VARLEN = "launcher_varlen"

#: plan.attention -> attn_implementation of transformers
IMPLEMENTATIONS = {
    "document": DOCUMENT,
    "varlen": VARLEN,
    "flash": "flash_attention_2",
    "sdpa": "sdpa",
    "eager": "eager",
}

#: How boundaries are handed on to attention, and to the kernels of other layers.
BOUNDARIES = frozenset(
    {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
)

#: Layers whose pattern is known by this name; others may hide theirs in a mask.
_LAYER_TYPES = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "attention", "hybrid"}
)

#: Tensors that a model hands on to attention and that do not change what it computes.
_HARMLESS = frozenset({"position_ids", "cache_position", "cu_seq_lens_k", "seq_idx", "labels"})

#: Parameters of torch's kernel for packed rows, which change since torch 2.10; see `_keywords`.
_varlen_parameters: frozenset[str] = frozenset()

#: transformers' function that tells from positions which document each token is of.
_DETECTION = "find_packed_sequence_indices"

#: Attribute of attention modules that holds the kind of their layer.
_KIND = "kind_of_layer"


class RowKeys(NamedTuple):
    """What the tokens of a packed row attend to where it is more than they are themselves."""

    where: torch.Tensor
    """int64 [keys]: which token each key and value is of."""
    starts: torch.Tensor
    """int32 [documents + 1]: where those of each document begin; its tokens are the last ones."""
    longest: int
    """Keys of the document with most of them."""


class _PackedRow(NamedTuple):
    starts: torch.Tensor
    keys: RowKeys | None
    stretches: Stretches | None


_row: ContextVar[_PackedRow | None] = ContextVar("packed_row", default=None)


class Unknown(ConfigError):
    """The model asks for attention that packed rows do not have here."""


@contextmanager
def packed_row(
    starts: torch.Tensor | None,
    keys: RowKeys | None = None,
    stretches: Stretches | None = None,
) -> Iterator[None]:
    """Mark a forward over a row of documents that begin at `starts`, int32 [documents + 1]: the
    last is the row's length. No mask is built; attention and mixers stay within documents. With
    `stretches` the forward is over this rank's stretch of the row."""
    token = _row.set(None if starts is None else _PackedRow(starts, keys, stretches))
    try:
        yield
    finally:
        _row.reset(token)


def document_starts() -> torch.Tensor | None:
    """The boundaries of the packed row whose forward is running; None outside of one."""
    row = _row.get()
    return None if row is None else row.starts


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For `torch.utils.checkpoint`: what is computed again in backward, when the forward is over,
    is computed with the same boundaries."""
    return nullcontext(), packed_row(*(_row.get() or (None,)))


def register() -> None:
    """Add both functions to transformers' tables, and let it look for documents only in rows whose
    documents are not known; safe to call again."""
    AttentionInterface.register(DOCUMENT, _over_ranks(document_attention))
    AttentionInterface.register(VARLEN, _over_ranks(varlen_attention))
    AttentionMaskInterface.register(DOCUMENT, _mask)
    AttentionMaskInterface.register(VARLEN, _mask)
    own = getattr(masking_utils, _DETECTION, None)
    if own is not None and not hasattr(own, "__wrapped__"):
        setattr(masking_utils, _DETECTION, _unless_known(own))


def _unless_known(detect: Callable[..., torch.Tensor | None]) -> Callable[..., Any]:
    """transformers' search for documents by the positions of tokens, which has the host wait for
    the device once a mask, left out of packed rows: their masks are not built."""

    @functools.wraps(detect)
    def found(*args: Any, **kwargs: Any) -> torch.Tensor | None:
        return detect(*args, **kwargs) if _row.get() is None else None

    return found


def isolates(model: Any) -> bool:
    """Whether the attention that `model` was loaded with keeps the documents of a row apart."""
    return model.config._attn_implementation in (DOCUMENT, VARLEN, "flash_attention_2")


def supported(model_class: Any, implementation: str) -> str:
    """`implementation`, or what a class of transformers has instead that looks attention up in a
    table of its own, or has no SDPA."""
    own_table = not model_class._can_set_attn_implementation()
    if implementation in (DOCUMENT, VARLEN) and own_table:
        implementation = "sdpa"
    if implementation == "sdpa" and not model_class._supports_sdpa:
        return "eager"
    return implementation


def _mask(*args: Any, use_vmap: bool = False, **kwargs: Any) -> torch.Tensor | None:
    if _row.get() is None:
        return sdpa_mask(*args, use_vmap=use_vmap, **kwargs)
    if use_vmap:  # so it is for masks with a pattern of the model's own alone
        raise Unknown("a mask of its own, which attention within documents cannot follow")
    return None


@dataclass(frozen=True, slots=True)
class _Pattern:
    """What a token attends to within its document."""

    window: int | None
    """This many tokens, itself included."""
    chunk: int | None
    """Tokens of the same chunk, as if the document were cut every so many tokens."""


def _pattern(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    window: int | None,
    options: dict[str, Any],
) -> _Pattern:
    """The pattern of a layer; `Unknown` unless all that it says is understood."""
    causal = options.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise Unknown("attention in both directions")
    if query.shape[2] != key.shape[2]:
        raise Unknown("keys that are not its tokens")
    for name, value in options.items():
        if isinstance(value, torch.Tensor) and name not in _HARMLESS:
            raise Unknown(f"attention with {name}")
    config: Any = getattr(module, "config", None)
    kind = getattr(module, _KIND, None) or _kind(module)
    if kind not in _LAYER_TYPES:
        raise Unknown(f"layers of type {kind}")
    if kind == "sliding_attention" and window is None:
        window = config.sliding_window
    chunked = kind == "chunked_attention"
    return _Pattern(window, config.attention_chunk_size if chunked else None)


def _kind(module: torch.nn.Module) -> str:
    """transformers' name for the pattern of a layer."""
    config: Any = getattr(module, "config", None)
    layer: Any = getattr(module, "layer_idx", None)
    types = getattr(config, "layer_types", None)
    return types[layer] if types and layer is not None and layer < len(types) else "attention"


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document.

    query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D]. `cu_seq_lens_q` [documents + 1]
    holds the starts of the documents and N; `s_aux` [H] are scores of a key that nothing is read
    from; `position_bias` [1, H, N, N] is added to the scores. Outside a packed row (generation)
    this is transformers' SDPA. Raises `Unknown` for what is none of these.
    """
    starts = document_starts() if cu_seq_lens_q is None else cu_seq_lens_q
    if starts is None:
        return _unpacked(
            *(module, query, key, value, attention_mask, scaling, dropout),
            *(softcap, s_aux, position_bias, kwargs),
        )
    pattern = _pattern(module, query, key, sliding_window, kwargs)
    if (keys := _keys(pattern, position_bias)) is not None:
        key, value = key.index_select(2, keys.where), value.index_select(2, keys.where)
    if _has_cpu_kernel(query, value, dropout, softcap, position_bias):
        if torch.compiler.is_compiling():
            options = (scaling, pattern.window, pattern.chunk)
            return cpu_attention.packed(query, key, value, s_aux, starts, *options)[0], None
        cuts = cut(starts.tolist(), pattern.chunk)
        theirs = cuts if keys is None else keys.starts.tolist()
        return attend(query, key, value, s_aux, cuts, theirs, scaling, pattern.window), None
    arguments = (query, key, value, starts, pattern, scaling, dropout, softcap, s_aux)
    of_keys = None if keys is None else keys.starts
    return _by_document(*arguments, position_bias, of_keys), None


def _keys(pattern: _Pattern, position_bias: torch.Tensor | None) -> RowKeys | None:
    """Those of the row; `Unknown` where they cannot be attended to."""
    if torch.compiler.is_compiling():  # it is for rows without any
        return None
    row = _row.get()
    keys = None if row is None else row.keys
    if keys is None:
        return None
    if pattern.chunk is not None or position_bias is not None:
        raise Unknown("attention for which no beginnings can be shared")
    return keys


def _over_ranks(attend: Callable[..., Any]) -> Callable[..., Any]:
    """`attend` that is given the whole row, and some of the heads, where ranks share it."""

    @functools.wraps(attend)
    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *args: Any,
        s_aux: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        # Compiled layers are of no rows that ranks share, and to read a variable of the context
        # would make them a graph for each row.
        row = None if torch.compiler.is_compiling() else _row.get()
        if row is None or row.stretches is None:
            kwargs |= {"s_aux": s_aux, "position_bias": position_bias}
            own: tuple[torch.Tensor, None] = attend(
                module, query, key, value, attention_mask, *args, **kwargs
            )
            return own
        if position_bias is not None:
            raise Unknown("biases by position, where ranks share a row")
        stretches, heads = row.stretches, query.shape[1]
        of_keys = stretches.key_heads(heads, key.shape[1])
        if s_aux is not None:
            s_aux = s_aux.chunk(stretches.group.size)[stretches.group.index]
        found, _ = attend(
            module,
            stretches.by_heads(query, heads),
            *(stretches.by_heads(x, of_keys) for x in (key, value)),
            *(None, *args),
            s_aux=s_aux,
            **kwargs,
        )
        return stretches.by_tokens(found), None

    return attention


def _in_pieces(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    pattern: _Pattern,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    position_bias: torch.Tensor | None,
    of_keys: torch.Tensor | None,
) -> torch.Tensor:
    """`document_attention` with a call a document, [1, N, H, D]."""
    cuts = cut(starts.tolist(), pattern.chunk)
    lengths = [end - start for start, end in pairwise(cuts)]
    own = lengths if of_keys is None else of_keys.diff().tolist()
    # split, not slices: its backward is one concatenation, that of a slice fills a whole gradient.
    split = query.split(lengths, dim=2), *(x.split(own, dim=2) for x in (key, value))
    pieces = []
    for q, k, v, start in zip(*split, cuts, strict=False):
        length, before = q.shape[2], k.shape[2] - q.shape[2]
        within = (pattern.window is None or length + before <= pattern.window) and not before
        bias = None
        if position_bias is not None:
            bias = position_bias[:, :, start : start + length, start : start + length]
        if softcap is not None or sinks is not None:
            mask = window_mask(length, pattern.window, q.device, before)
            pieces.append(_scored(q, k, v, mask, scaling, dropout, softcap, sinks, bias))
        elif bias is not None:
            mask = window_mask(length, pattern.window, q.device, before)
            masked = bias.to(q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
            pieces.append(_sdpa(q, k, v, scaling, dropout, attn_mask=masked))
        elif not within:
            mask = window_mask(length, pattern.window, q.device, before)
            pieces.append(_sdpa(q, k, v, scaling, dropout, attn_mask=mask))
        else:
            pieces.append(_sdpa(q, k, v, scaling, dropout, is_causal=True))
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous()


def _has_cpu_kernel(
    query: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    softcap: float | None,
    bias: torch.Tensor | None,
) -> bool:
    same_width = query.shape[-1] == value.shape[-1]
    plain = not dropout and softcap is None and bias is None
    return query.device.type == "cpu" and plain and same_width


def _sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float | None,
    dropout: float,
    **options: Any,
) -> torch.Tensor:
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(
        q, k, v, dropout_p=dropout, scale=scaling, enable_gqa=grouped, **options
    )


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The same function as `document_attention` in one kernel call, for CUDA in 16 bit."""
    starts = document_starts() if cu_seq_lens_q is None else cu_seq_lens_q
    plain = softcap is None and s_aux is None and position_bias is None and not dropout
    if starts is None or not plain or not _has_kernel(query, value):
        return document_attention(
            *(module, query, key, value, attention_mask, scaling, dropout, sliding_window, softcap),
            *(starts, s_aux, position_bias),
            **kwargs,
        )
    pattern = _pattern(module, query, key, sliding_window, kwargs)
    sliding_window = pattern.window
    keys = _keys(pattern, position_bias)
    if not max_length_q or pattern.chunk is not None:
        starts, max_length_q = _stretches(starts, pattern.chunk)
    of_keys, longest = starts, max_length_q
    if keys is not None:
        key, value = key.index_select(2, keys.where), value.index_select(2, keys.where)
        of_keys, longest = keys.starts, keys.longest
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    options = _varlen_options(sliding_window)
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and "enable_gqa" not in _keywords():
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    elif groups > 1:
        options["enable_gqa"] = True
    from torch.nn.attention.varlen import varlen_attn

    out: Any = varlen_attn(
        q, k, v, starts, of_keys, max_length_q, longest, scale=scaling, **options
    )
    packed: torch.Tensor = out.unsqueeze(0)
    return packed, None


def _has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    width = query.shape[-1]
    fits = width % 8 == 0 and width <= 256 and value.shape[-1] == width
    return query.is_cuda and query.dtype != torch.float32 and fits


def _varlen_options(sliding_window: int | None) -> dict[str, Any]:
    """Keywords of a causal call."""
    if "window_size" in _keywords():
        left = -1 if sliding_window is None else sliding_window - 1
        return {"window_size": (left, 0)}
    if sliding_window is not None:
        raise ConfigError(
            "this torch's varlen attention has no sliding window",
            where="model.attention",
            hint="use model.attention=document or a newer torch",
        )
    return {"is_causal": True}


def _keywords() -> frozenset[str]:
    """Names of the kernel's parameters, read once: 0.1 ms a layer count."""
    global _varlen_parameters
    if not _varlen_parameters:
        from torch.nn.attention.varlen import varlen_attn

        _varlen_parameters = frozenset(inspect.signature(varlen_attn).parameters)
    return _varlen_parameters


def _cut_and_measured(starts: torch.Tensor, chunk: int | None) -> tuple[torch.Tensor, int]:
    """Starts of documents, or of their chunks; and the longest one's tokens."""
    starts = starts if chunk is None else starts.new_tensor(cut(starts.tolist(), chunk))
    return starts, int(starts.diff().max())


def _unpacked(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    bias: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, None]:
    """Generation: padded batches with a mask from `_mask`, through transformers' own SDPA."""
    if softcap is None and sinks is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            *(module, query, key, value, attention_mask),
            dropout=dropout,
            scaling=scaling,
            position_bias=bias,
            **kwargs,
        )
        return result
    if attention_mask is None:
        rows, columns = query.shape[2], key.shape[2]
        ones = torch.ones(rows, columns, dtype=torch.bool, device=query.device)
        attention_mask = ones.tril(columns - rows)
    out = _scored(query, key, value, attention_mask, scaling, dropout, softcap, sinks, bias)
    return out.transpose(1, 2), None


def _scored(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Attention by the plain formula, for scores that no SDPA kernel has: tanh-capped (Gemma 2,
    arXiv:2408.00118), or with a sink, one more score that takes its share (gpt-oss)."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    scores = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        own = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, own], dim=-1)
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, exact)[..., : k.shape[2]]
    weights = torch.nn.functional.dropout(weights.to(v.dtype), dropout)
    return weights @ v


#: What needs the starts as numbers; out of any graph once layers are compiled.
_by_document = _in_pieces
_stretches = _cut_and_measured


def prepare_compiled(model: torch.nn.Module) -> None:
    """Make ready for layers of `model` that are compiled: layers of one kind share a graph, which
    reads no number that only the layer has."""
    global _by_document, _stretches
    _by_document = torch.compiler.disable(_in_pieces)
    _stretches = torch.compiler.disable(_cut_and_measured)
    _keywords()
    for module in model.modules():
        if getattr(module, "layer_idx", None) is not None:
            vars(module)[_KIND] = _kind(module)
