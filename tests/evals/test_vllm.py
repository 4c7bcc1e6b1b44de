"""Without vLLM the error names the extra that installs it."""

import importlib.util

import pytest

from launcher.core.errors import ConfigError
from launcher.evals import vllm


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_the_library_the_extra_is_named():
    with pytest.raises(ConfigError, match="--vllm needs vllm(?s:.)*pip install .vllm"):
        vllm.need()
