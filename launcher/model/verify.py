"""Does an export compute what the trained model computes? Compared by logits on a short text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from launcher.core.errors import LauncherError
from launcher.fingerprint import require_base
from launcher.model.classifier import auto_class
from launcher.model.export import Trained
from launcher.model.pretrained import open_pretrained
from launcher.model.rebuild import base_folder, fit
from launcher.model.sequence_head import SequenceHead

PROBE = (
    "A farmer has 17 sheep and buys 25 more. How many sheep are there now?\n"
    'Un été à Zürich, 東京の夏: f(x) = x**2 + 1; {"key": [1, 2.5, null]}'
)
PROBE_TOKENS = 64

#: Largest allowed difference, as a share of the trained logits' norm. Weights that are only copied
#: compute the same; folding an adapter into 16-bit weights rounds them, more so in deep models.
COPIED = 1e-3
MERGED = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def verify(trained: Trained, folder: Path) -> None:
    """Re-open the export `folder` as users will, and compare it with base plus checkpoint.

    Both are loaded, one after the other, on the CPU. Besides staying within the tolerance, it
    must be nearer to the trained model than to the base, as far as the two can be told apart.
    Raises `LauncherError` if they differ.
    """
    tokens = _probe(trained.tokenizer)
    base = base_folder(trained.config.model)
    model = trained.model(base)
    expected = _logits(model, tokens)
    has_adapters = hasattr(model, "disable_adapter")
    untrained = None
    if has_adapters:
        with model.disable_adapter():
            untrained = _logits(model, tokens)
    del model
    found = _logits(load_export(folder, trained, base), tokens)
    if found.shape != expected.shape:
        raise _differs(folder, f"logits of shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    norm = float(expected.norm())
    difference = float((found - expected).norm()) / norm
    is_merged = untrained is not None and not (folder / "adapter_config.json").is_file()
    limit = MERGED[trained.dtype] if is_merged else COPIED
    if untrained is not None:
        gained = float((untrained - expected).norm()) / norm
        # Below this, 16-bit rounding alone can look like the base.
        limit = min(limit, max(0.5 * gained, 0.1 * limit))
    if not difference <= limit:
        raise _differs(
            folder, f"logits differ by {difference:.1e} of their norm (limit {limit:.0e})"
        )


def load_export(folder: Path, trained: Trained, base: Path) -> Any:
    """The exported model (an adapter on its base), ready for inference on the CPU."""
    return open_export(
        folder,
        base,
        dtype=trained.dtype,
        num_tokens=trained.num_tokens,
        trust_remote_code=trained.config.model.trust_remote_code,
        head=trained.head,
    )


def open_export(
    folder: Path,
    base: Path,
    *,
    dtype: torch.dtype,
    num_tokens: int,
    trust_remote_code: bool,
    head: SequenceHead | None = None,
) -> Any:
    """The model of an export folder; an adapter is put on the model in `base`.

    Raises `ConfigError` if an adapter says that it was trained upon other weights.
    """
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if not (folder / "adapter_config.json").is_file():
        if head is not None:
            return auto_class(head).from_pretrained(folder, **options).eval()
        return open_pretrained(folder, None, **options).eval()
    from peft import PeftModel

    require_base(folder, base)
    model = fit(open_pretrained(base, head, **options), num_tokens)
    return PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False).eval()


def _probe(tokenizer: Any) -> torch.Tensor:
    tokens = tokenizer(PROBE, truncation=True, max_length=PROBE_TOKENS)["input_ids"]
    return torch.tensor([tokens])


def _logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    model.config.use_cache = False  # as in training; some models have none outside of generation
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=tokens).logits.float()
    return logits


def _differs(folder: Path, found: str) -> LauncherError:
    return LauncherError(
        f"the export does not compute what the trained model computes: {found}",
        where=str(folder),
        hint="nothing was kept; please report this with the model's config.json",
    )
