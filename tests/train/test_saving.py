"""Which checkpoints count, which are kept, and what is found damaged; without an engine."""

import hashlib
import json
import math

import pytest
import torch

from launcher.config.schema import CheckpointConfig
from launcher.core.errors import StorageError
from launcher.core.ranks import Ranks
from launcher.core.rundir import RunDir
from launcher.inference.export import find_checkpoint
from launcher.model import digests
from launcher.model.checkpoint import VERSION, checkpoints, newest_valid
from launcher.model.fragments import Fragment, write_fragments
from launcher.train import restoring, saving


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


def write(run, step, eval_loss=None):
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True)
    content = f"weights of step {step}".encode()
    (folder / "weights-rank-00000.safetensors").write_bytes(content)
    digest = hashlib.blake2b(content, digest_size=32).hexdigest()
    manifest = {
        "version": VERSION,
        "step": step,
        "state": {"eval_loss": eval_loss},
        "files": {"weights-rank-00000.safetensors": {"bytes": len(content), "blake2b": digest}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def steps(run):
    return [c.step for c in checkpoints(run)]


def test_a_folder_without_manifest_is_no_checkpoint(run):
    write(run, 1)
    (write(run, 2) / "manifest.json").unlink()
    assert steps(run) == [1]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_the_newest_undamaged_one_is_found(run, damage):
    write(run, 1)
    path = write(run, 2) / "weights-rank-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-1])
    warnings = []
    assert newest_valid(run, warnings.append).step == 1
    assert len(warnings) == 1
    assert "step-00000002" in warnings[0]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("at", [0, 3, 9, 10, 24, 25])
def test_ranks_find_in_shares_what_one_finds_alone(run, monkeypatch, world_size, at):
    monkeypatch.setattr(digests, "BLOCK", 10)
    folder = write(run, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    content = bytes(range(26))
    (folder / "optimizer-rank-00000.safetensors").write_bytes(content)
    entry = {"bytes": 26, "blake2b": digests.of(content)}
    manifest["files"]["optimizer-rank-00000.safetensors"] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))

    def found():
        (checkpoint,) = checkpoints(run)
        answers = [checkpoint.damage(rank, world_size) for rank in range(world_size)]
        first = min((answer for answer in answers if answer), default=None)
        assert first == checkpoint.damage()
        return first, len([answer for answer in answers if answer])

    assert found() == (None, 0)
    spoilt = bytearray(content)
    spoilt[at] ^= 1
    (folder / "optimizer-rank-00000.safetensors").write_bytes(spoilt)
    changed = "the content of optimizer-rank-00000.safetensors has changed"
    assert found() == ((3, changed), 1)  # by the one rank in whose share it is
    (folder / "optimizer-rank-00000.safetensors").write_bytes(content[:at])
    short = f"optimizer-rank-00000.safetensors has {at} bytes, not 26"
    assert found() == ((1, short), world_size)


def test_digests_are_those_of_blocks_however_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "BLOCK", 10)
    for size in (0, 1, 9, 10, 11, 20, 35):
        content = bytes(range(size))
        expected = [
            hashlib.blake2b(content[start : start + 10], digest_size=32).hexdigest()
            for start in range(0, size, 10)
        ]
        path = tmp_path / "file"
        path.write_bytes(content)
        assert digests.of(content) == expected
        assert [digests.of_block(path, 10 * n, 10) for n in range(len(expected))] == expected
        for cut in range(size):
            digest = digests.Digest()
            digest.update(content[:cut])
            digest.update(memoryview(content)[cut:])
            assert digest.blocks() == expected


def test_weights_of_another_shape_are_not_read_as_if_they_fitted(run):
    folder = write(run, 1)
    model = torch.nn.Linear(2, 3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    path = folder / "weights-rank-00000.safetensors"
    for shape, names in (((3, 3), "weight"), ((2, 3), "weight"), ((3, 2), "")):
        numel = math.prod(shape)
        parts = [
            Fragment("weight", shape, 0, numel, lambda numel=numel: torch.ones(numel)),
            Fragment("bias", (3,), 0, 3, lambda: torch.ones(3)),
        ]
        write_fragments(path, parts)
        (checkpoint,) = checkpoints(run)
        if names:
            with pytest.raises(StorageError, match=f"are not this model's: {names}"):
                restoring.load_weights(checkpoint, model)
            assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    restoring.load_weights(checkpoint, model)
    assert all(bool((p == 1).all()) for p in model.parameters())


@pytest.mark.parametrize(("free", "fits"), [(8000, False), (9999, False), (10_000, True)])
def test_a_copy_needs_room_for_all_ranks_of_the_host(monkeypatch, free, fits):
    monkeypatch.setattr(saving, "available_memory", lambda: free)
    ranks = Ranks(0, 4, 0, 2, "here", "")
    part = Fragment("w", (1000,), 0, 1000, lambda: torch.arange(1000.0))
    copy = saving._Copy()
    # 4,000 bytes on each of two ranks, of which four fifths of what is free may be taken.
    assert copy.fits({"weights": [part]}, ranks) is fits


def test_a_copy_is_what_the_tensors_were_and_is_kept_for_the_next_one(monkeypatch):
    tensors = [torch.full((3,), 1.0), torch.full((2,), 2.0, dtype=torch.bfloat16)]
    files = {
        name: [Fragment(name, tuple(tensor.shape), 0, tensor.numel(), lambda tensor=tensor: tensor)]
        for name, tensor in zip("ab", tensors, strict=True)
    }
    copy = saving._Copy()
    copied = copy.take(files)
    for tensor in tensors:
        tensor.zero_()
    assert {name: parts[0].read().tolist() for name, parts in copied.items()} == {
        "a": [1.0] * 3,
        "b": [2.0] * 2,
    }
    monkeypatch.setattr(saving, "available_memory", lambda: 0)
    assert copy.fits(files, Ranks(0, 1, 0, 1, "here", ""))
    again = copy.take(files)
    assert again["a"][0].read().data_ptr() == copied["a"][0].read().data_ptr()
    assert again["b"][0].read().tolist() == [0.0, 0.0]


def test_rotation_keeps_the_newest_and_the_best(run):
    for step, loss in ((1, 3.0), (2, 1.0), (3, None), (4, float("nan")), (5, 2.0), (6, 2.5)):
        write(run, step, loss)
    saving.rotate(run, CheckpointConfig(keep_last=2, keep_best=1), 6)
    assert steps(run) == [2, 5, 6]


def test_rotation_keeps_what_the_run_may_end_with(run):
    for step in (10, 20, 30, 40):
        write(run, step)
    saving.rotate(run, CheckpointConfig(keep_last=1), 40, best=20)
    assert steps(run) == [20, 40]
    saving.rotate(run, CheckpointConfig(keep_last=1), 40, best=40)
    assert steps(run) == [40]


def test_the_best_one_counts_where_it_is_the_result(run):
    for step in (10, 20, 30):
        write(run, step)
    assert find_checkpoint(run, None, print).step == 30
    run.eval.mkdir()
    run.best.write_text(json.dumps({"weights": "last", "step": 10}))
    assert find_checkpoint(run, None, print).step == 30
    run.best.write_text(json.dumps({"weights": "best", "step": 10}))
    assert find_checkpoint(run, None, print).step == 10
    assert find_checkpoint(run, 20, print).step == 20
    (run.checkpoints / "step-00000010" / "weights-rank-00000.safetensors").unlink()
    warnings = []
    assert find_checkpoint(run, None, warnings.append).step == 30
    assert "step-00000010" in warnings[0]


def test_rotation_never_trusts_what_a_resume_passed_over(run):
    for step in (200, 250, 300):
        write(run, step)
    saving.rotate(run, CheckpointConfig(keep_last=1), 250)
    assert steps(run) == [250]


def test_leftovers_of_an_interrupted_save_are_cleaned_up(run):
    write(run, 1)
    (run.checkpoints / ".writing-step-00000002").mkdir()
    saving.clean_up(run)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000001"]
