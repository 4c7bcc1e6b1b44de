"""Prepare chats as LLaMA-Factory does for supervised fine-tuning with packing.

    python prepare_llamafactory.py CHATS.jsonl TOKENIZER_FOLDER MAX_LENGTH PROCESSES

Needs llamafactory, not the launcher; `prepare_side.py` runs it as a peer. TOKENIZER_FOLDER has
ChatML's template, which LLaMA-Factory knows by name.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

#: What its labels hold where nothing is learned.
IGNORED = -100


def main(data: str, folder: str, max_length: int, processes: int) -> None:
    """Tokenise, pack and say what came of it, as a line of JSON."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer
    from pyarrow import compute

    with tempfile.TemporaryDirectory(prefix="bench-lf-") as cache:
        Path(cache, "dataset_info.json").write_text(json.dumps({"chats": _described(data)}))
        model, options, training, _, _ = get_train_args(
            {
                "model_name_or_path": folder,
                "stage": "sft",
                "do_train": True,
                "use_cpu": True,
                "dataset": "chats",
                "dataset_dir": cache,
                "cache_dir": cache,
                "output_dir": cache,
                "template": "chatml",
                "cutoff_len": max_length,
                "packing": True,
                "neat_packing": True,
                "preprocessing_num_workers": processes,
            }
        )
        loaded = load_tokenizer(model)
        template = get_template_and_fix_tokenizer(loaded["tokenizer"], options)
        made = get_dataset(template, model, options, training, stage="sft", **loaded)
        packed = made["train_dataset"]
        # A pack is filled with zeros of its attention mask; documents are numbered from 1.
        masks = compute.list_flatten(packed.data.column("attention_mask"))
        labels = compute.list_flatten(packed.data.column("labels"))
        used = compute.sum(compute.greater(masks, 0)).as_py()
        learned = compute.sum(compute.not_equal(labels, IGNORED)).as_py()
    print(
        json.dumps(
            {
                "tokens": used,
                "targets": learned,
                "packs": len(packed),
                "fill": used / (len(packed) * max_length),
                "versions": {
                    name: version(name) for name in ("llamafactory", "datasets", "transformers")
                },
            }
        )
    )


def _described(data: str) -> dict[str, Any]:
    """The file as LLaMA-Factory wants it named: OpenAI's messages."""
    tags = {"role_tag": "role", "content_tag": "content"}
    tags |= {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}
    columns = {"messages": "messages"}
    return {"file_name": data, "formatting": "sharegpt", "columns": columns, "tags": tags}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
