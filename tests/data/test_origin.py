"""The digest of a base, and what is refused where it is another."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from launcher import bases, fingerprint
from launcher.core.errors import ConfigError
from launcher.fingerprint import base as digests
from tests.support.configs import make_config


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "config.json").write_text("{}")
    return folder


def changed(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def test_a_single_bit_of_a_small_model_counts_and_what_is_no_weight_does_not(base):
    before = fingerprint.weights_digest(base)
    (base / "README.md").write_text("new")
    (base / "adapter_model.safetensors").write_bytes(b"another's")
    assert fingerprint.weights_digest(base) == before
    for place in (0, 5000, 256 * 40 - 1):
        changed(base / "model.safetensors", place)
        assert fingerprint.weights_digest(base) != before
        changed(base / "model.safetensors", place)
    assert fingerprint.weights_digest(base) == before


def test_a_large_file_is_sampled(base, monkeypatch):
    monkeypatch.setattr(digests, "_WHOLE", 1000)
    monkeypatch.setattr(digests, "_HEAD", 100)
    monkeypatch.setattr(digests, "_STRIDE", 2000)
    monkeypatch.setattr(digests, "_SAMPLE", 50)
    path = base / "model.safetensors"
    before, size = fingerprint.weights_digest(base), path.stat().st_size
    for place, seen in ((0, True), (99, True), (2010, True), (3000, False), (size - 1, True)):
        changed(path, place)
        assert (fingerprint.weights_digest(base) != before) is seen, place
        changed(path, place)
    with open(path, "ab") as file:
        file.write(b"x")
    assert fingerprint.weights_digest(base) != before


def test_other_base_is_refused_for_adapters_and_said_for_all_weights(base):
    began, now = {"base": "a", "tokenizer": "t"}, {"base": "b", "tokenizer": "t"}
    lora = make_config(peft={"name": "lora"}, model={"name": str(base)})
    with pytest.raises(ConfigError, match="the base's weights of .* changed since the run began"):
        fingerprint.require_same(lora, began, now, base)
    full = make_config(model={"name": str(base)})
    assert "the base's weights" in fingerprint.require_same(full, began, now, base)[0]
    for config in (lora, full):
        with pytest.raises(ConfigError, match="tokenizer or its chat template"):
            fingerprint.require_same(config, began, began | {"tokenizer": "u"}, base)
        assert fingerprint.require_same(config, began, began, base) == []
        # Checkpoints of before, and a base that is not on this machine, say nothing.
        assert fingerprint.require_same(config, {}, now, base) == []
        assert fingerprint.require_same(config, began, now | {"base": ""}, base) == []


def test_an_exported_adapter_knows_its_base(base, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    fingerprint.require_base(adapter, base)  # another tool's
    (adapter / fingerprint.MARKER).touch()  # as it was written once
    fingerprint.require_base(adapter, base)
    fingerprint.note_base(adapter, base)
    assert json.loads((adapter / fingerprint.MARKER).read_text())["base"]
    fingerprint.require_base(adapter, base)
    changed(base / "model.safetensors", 77)
    with pytest.raises(ConfigError, match="trained upon other weights") as refused:
        fingerprint.require_base(adapter, base)
    # The hint's way out.
    assert f"delete {adapter / fingerprint.MARKER}" in str(refused.value)
    (adapter / fingerprint.MARKER).unlink()
    fingerprint.require_base(adapter, base)


def test_a_changed_template_is_another_tokenizer(base):
    config = make_config(model={"name": str(base)})
    (base / "tokenizer.json").write_text("{}")
    before = fingerprint.origin(config, base)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    now = fingerprint.origin(config, base)
    assert now["base"] == before["base"]
    assert now["tokenizer"] != before["tokenizer"]


def test_the_same_weights_computed_with_otherwise_are_another_model(base, tmp_path):
    config = make_config(model={"name": str(base), "trust_remote_code": True})
    about = {"rope_theta": 1e4, "dtype": "float32", "text_config": {"heads": 4, "use_cache": True}}
    path, code = base / "config.json", base / "modeling_own.py"
    path.write_text(json.dumps(about))
    code.write_text("scale = 1")
    began = fingerprint.origin(config, base)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    fingerprint.note_base(adapter, base)
    # What a tool writes anew without a change of the model.
    idle = {"dtype": "bfloat16", "transformers_version": "9", "sliding_window": None}
    path.write_text(json.dumps(idle | {**about, **idle, "text_config": {"heads": 4}}, indent=1))
    assert fingerprint.origin(config, base) == began
    fingerprint.require_base(adapter, base)
    for change in ({"rope_theta": 1e6}, {"text_config": {"heads": 2}}):
        path.write_text(json.dumps(about | change))
        now = fingerprint.origin(config, base)
        for peft in ("lora", "none"):
            other = make_config(model={"name": str(base)}, peft={"name": peft})
            with pytest.raises(ConfigError, match="the base's config.json or code of .* changed"):
                fingerprint.require_same(other, began, now, base)
        with pytest.raises(ConfigError, match=r"upon another config\.json than that in"):
            fingerprint.require_base(adapter, base)
    path.write_text(json.dumps(about))
    code.write_text("scale = 2")
    assert fingerprint.origin(config, base)["model"] != began["model"]
    # Checkpoints of before say nothing of it.
    former = {name: began[name] for name in ("base", "tokenizer")}
    assert fingerprint.require_same(config, former, fingerprint.origin(config, base), base) == []


def test_a_base_that_changed_is_merged_with_its_adapter_anew(base, tmp_path, monkeypatch):
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    adapter, link = tmp_path / "adapter", tmp_path / "link"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    link.symlink_to(base)
    model = make_config(model={"name": str(link), "adapter": str(adapter)}).model
    before = bases.trained_base(model)
    assert bases.trained_base(model) == before
    path = base / "model.safetensors"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    changed = bases.trained_base(model)
    assert changed != before
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"others")
    link.unlink()
    link.symlink_to(other)
    assert bases.trained_base(model) not in (before, changed)


def test_a_base_of_the_hub_that_moved_is_merged_with_its_adapter_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    adapter, refs = tmp_path / "adapter", tmp_path / "hub" / "models--a--b" / "refs"
    adapter.mkdir()
    refs.mkdir(parents=True)
    model = make_config(model={"name": "a/b", "adapter": str(adapter)}).model
    found = []
    for commit in ("1", "2"):
        (refs / "main").write_text(commit)
        found.append(bases.trained_base(model))
    assert len(set(found)) == 2


def test_files_that_nobody_reads_are_no_part_of_the_base(tmp_path):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in shards:
        (tmp_path / name).write_bytes(name.encode())
    before = digests.weights_digest(tmp_path)
    for name in ("consolidated.safetensors", "pytorch_model.bin", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(b"other")
    assert digests.weights_digest(tmp_path) == before
    (tmp_path / shards[1]).write_bytes(b"changed")
    assert digests.weights_digest(tmp_path) != before
