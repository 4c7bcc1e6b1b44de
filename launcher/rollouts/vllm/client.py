"""One vLLM server over HTTP: answers with their log-probabilities, and weights to be taken over."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launcher.core.errors import ConfigError
from launcher.evals.decoding import Decoding
from launcher.rollouts.answer import Drawn, Question
from launcher.vllm.connection import GoneError, RefusedError, ServerConnection

#: Time between two tries to have keys and values forgotten.
_AGAIN_S = 0.2


class Server:
    """A server at `url` that knows `token`; its methods may be called from several threads."""

    def __init__(self, url: str, token: str, timeout_s: float) -> None:
        self._connection, self._timeout_s = ServerConnection(url, token, timeout_s), timeout_s

    def answer(
        self,
        question: Question,
        step: int,
        model: str,
        decoding: Decoding,
        stops: Sequence[int],
    ) -> Drawn:
        """An answer to `question`, of the rollout before optimizer step `step`.

        Raises `GoneError`, and `ConfigError` where the server refuses.
        """
        name = (decoding.seed, step, *question.stream)
        body = {
            "model": model,
            "prompt": list(question.tokens),
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": int(np.random.SeedSequence(name).generate_state(1)[0]) >> 1,
            "logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": list(stops),
            "skip_special_tokens": False,
        }
        (choice,) = self._post("/v1/completions", body)["choices"]
        tokens, log_probs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        assert len(tokens) == len(log_probs), "a log-probability for each token"
        return Drawn(tokens, log_probs, bool(tokens) and tokens[-1] in stops)

    def load_adapter(self, name: str, folder: str, before: str | None) -> None:
        """Answer as `name` by the adapter in `folder` from now on, and no more as `before`."""
        if before is not None:
            self._post("/v1/unload_lora_adapter", {"lora_name": before})
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})

    def load_weights(self, folder: str) -> None:
        """Answer by the weights in `folder` from now on."""
        call = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        self._post("/collective_rpc", call)
        # Keys and values of prompts are those of the weights before.
        end = time.monotonic() + self._timeout_s
        while not self._post("/reset_prefix_cache").get("success", True):
            if time.monotonic() > end:
                raise GoneError("keys and values of the weights before are still held")
            time.sleep(_AGAIN_S)

    def sleep(self, *, keeps_weights: bool) -> None:
        """Give up the memory of the GPU; weights are kept in that of the host, or not at all."""
        self._post("/sleep", query={"level": "1" if keeps_weights else "2"})

    def wake(self, part: str) -> None:
        """Take the memory of the `weights`, or of the `kv_cache`, again."""
        self._post("/wake_up", query={"tags": part})

    def _post(
        self, path: str, body: Any = None, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        try:
            return self._connection.post(path, body, query)
        except RefusedError as error:
            raise ConfigError(
                str(error),
                where="rollout",
                hint="rollout=local draws without it; attempts/*/rollout of the run has the logs",
            ) from error
