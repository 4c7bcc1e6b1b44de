"""`train.deterministic`: set on the ranks, and what cannot be deterministic is refused by name."""

import json
import os
import shutil

import pytest
import torch

from launcher.core.errors import ConfigError, ExitCode
from launcher.health import determinism
from support import project
from support.project import TORCHRUN, Project


@pytest.fixture
def required(monkeypatch):
    for name in ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.setenv(name, "")  # put back as it was
    fills = torch.utils.deterministic.fill_uninitialized_memory
    determinism.require()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills


def put():
    """An operation that writes one place twice, in any order."""
    places = torch.zeros(2, dtype=torch.long)
    torch.zeros(3).put_(places, torch.tensor([1.0, 2.0]))


def test_an_operation_without_a_deterministic_kernel_is_refused_by_name(required):
    with pytest.raises(RuntimeError) as caught:
        put()
    refused = determinism.refusal(caught.value)
    assert isinstance(refused, ConfigError)
    text = str(refused)
    assert text.startswith("train.deterministic: put_ does not have a deterministic")
    assert text.endswith("HINT: set train.deterministic=false")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_other_errors_are_left_alone(required):
    assert determinism.refusal(RuntimeError("shape mismatch")) is None
    assert determinism.refusal(ValueError("not deterministic")) is None


def test_nothing_is_refused_where_nothing_was_asked():
    put()
    assert determinism.refusal(RuntimeError("put_ does not have a deterministic")) is None


#: A Llama that writes one place twice, where it is trained.
MODEL = """
import torch
from transformers import LlamaForCausalLM

class Odd(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        if self.training:
            torch.zeros(3).put_(torch.zeros(2, dtype=torch.long), torch.tensor([1.0, 2.0]))
        return super().forward(*args, **kwargs)
"""


@pytest.mark.slow
def test_the_ranks_of_a_run_are_deterministic(tmp_path):
    here = Project(tmp_path)
    here.write_data(project.conversations(20))
    words = ("train.steps=2", "batch.sequences=4", "eval=none", "launch.processes=2")
    done = here.run(TORCHRUN, *here.words("plain", *words, "train.deterministic=true"))
    assert done.code == ExitCode.ok, done.output
    odd = shutil.copytree(here.model, tmp_path / "odd")
    (odd / "odd.py").write_text(MODEL)
    config = json.loads((odd / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "odd.Odd"}
    (odd / "config.json").write_text(json.dumps(config))
    words += (f"model.name={odd}", "model.trust_remote_code=true")
    done = here.run(TORCHRUN, *here.words("odd", *words, "train.deterministic=true"))
    assert done.code != ExitCode.ok
    assert "train.deterministic: put_ does not have a deterministic" in done.output
    assert here.folder_of("odd").status().exit_code == ExitCode.usage
    done = here.run(TORCHRUN, *here.words("free", *words))
    assert done.code == ExitCode.ok, done.output
