"""What an exported classifier's folder says beside the model: classes, threshold, and code."""

from __future__ import annotations

from pathlib import Path

from launcher.config.schema import Config
from launcher.core.files import read_json, write_json
from launcher.model.sequence_head import OUTPUTS
from launcher.objectives.classify.classes import Classes

#: README.md of a classifier's folder.
_README = """# A text classifier

Names the class of each text in `texts` as `launcher generate` does; run it in this folder. A
`pipeline("text-classification")` takes the likeliest class and knows no threshold.

```python
CODE```
"""
_OPEN_MODEL = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(".").eval()
names = [model.config.id2label[i] for i in range(model.config.num_labels)]
threshold = getattr(model.config, "out_of_scope_threshold", None)
"""
_OPEN_ADAPTER = """import json

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

about = json.load(open("classes.json"))
names, threshold = about["names"], about.get("out_of_scope_threshold")
base = json.load(open("adapter_config.json"))["base_model_name_or_path"]
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(names))
model = PeftModel.from_pretrained(model, ".").eval()
"""
_SCORE = """tokenizer = AutoTokenizer.from_pretrained(".")

texts = ["I was charged twice"]
for text in texts:
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=LONGEST)
    with torch.no_grad():
        logits = model(**inputs).logits[0].float()
"""
_ONE_LABEL = """    chance, index = logits.softmax(-1).max(-1)
    print(names[index], f"{chance:.3f}", sep="\\t")
"""
_OUT_OF_SCOPE = """    chance, index = logits.softmax(-1).max(-1)
    name = OUTSIDE if chance < threshold else names[index]
    print(name, f"{chance:.3f}", sep="\\t")
"""
_SEVERAL_LABELS = """    chances = logits.sigmoid()
    named = [name for name, chance in zip(names, chances) if chance > 0.5]
    print(", ".join(named) or "(none)", f"{chances.max():.3f}", sep="\\t")
"""


def describe(folder: Path, config: Config, classes: Classes, threshold: float | None) -> None:
    """Say the threshold in config.json; for an adapter, which has none, the labels too. And how to
    name classes with the folder as the launcher does, threshold included, in README.md."""
    about = {} if threshold is None else {"out_of_scope_threshold": threshold}
    is_adapter = (folder / "adapter_config.json").is_file()
    if is_adapter:
        write_json(folder / OUTPUTS, {"names": classes.names, **about})
    elif about:
        write_json(folder / "config.json", {**read_json(folder / "config.json"), **about})
    opened = _OPEN_ADAPTER if is_adapter else _OPEN_MODEL
    rules = _ONE_LABEL if threshold is None else _OUT_OF_SCOPE
    if classes.multi_label:
        rules = _SEVERAL_LABELS
    code = (opened + _SCORE + rules).replace("LONGEST", str(config.data.max_length))
    code = code.replace("OUTSIDE", repr(classes.out_of_scope))
    (folder / "README.md").write_text(_README.replace("CODE", code), encoding="utf-8")
