"""Prepare chats as TRL's SFTTrainer does: `datasets.map` with the chat template, then packing.

    python prepare_trl.py CHATS.jsonl TOKENIZER_FOLDER MAX_LENGTH PROCESSES

Needs datasets, transformers and trl, not the launcher; `prepare.py side` runs it as a peer.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from typing import Any


def main(data: str, folder: str, max_length: int, processes: int) -> None:
    """Tokenise, pack and say what came of it, as a line of JSON."""
    from datasets import load_dataset
    from pyarrow import compute
    from transformers import AutoTokenizer
    from trl import pack_dataset

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokenise(example: dict[str, Any]) -> dict[str, Any]:
        found = tokenizer.apply_chat_template(
            example["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return {
            "input_ids": found["input_ids"][:max_length],
            "assistant_masks": found["assistant_masks"][:max_length],
        }

    with tempfile.TemporaryDirectory(prefix="bench-trl-") as cache:
        chats = load_dataset("json", data_files=data, split="train", cache_dir=cache)
        tokens = chats.map(tokenise, remove_columns=chats.column_names, num_proc=processes)
        packed = pack_dataset(tokens, max_length, "bfd", {"num_proc": processes})
        # Counted by Arrow: rows as Python lists would cost more than the preparation itself.
        used = compute.sum(compute.list_value_length(packed.data.column("input_ids"))).as_py()
        masks = compute.list_flatten(packed.data.column("assistant_masks"))
        learned = compute.sum(masks).as_py()
    print(
        json.dumps(
            {
                "tokens": used,
                "targets": learned,
                "packs": len(packed),
                "fill": used / (len(packed) * max_length),
                "versions": {name: version(name) for name in ("trl", "datasets", "transformers")},
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
