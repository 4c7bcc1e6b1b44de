"""The part of vLLM's server that the launcher asks, by transformers on a CPU.

It loads real folders of weights and adapters and draws real answers, each from its own seed. What
it was asked beside answers is noted in the file STAND_IN_CALLS, a JSON line a call.
"""

import argparse
import asyncio
import importlib
import json
import os
import sys
import threading

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from transformers import AutoModelForCausalLM, AutoTokenizer


def options():
    parser = argparse.ArgumentParser()
    texts = ("model", "served-model-name", "dtype", "host", "uds", "middleware", "logprobs-mode")
    for name in (*texts, "tokenizer", "structured-outputs-config"):
        parser.add_argument(f"--{name}")
    numbers = ("port", "max-model-len", "seed", "max-lora-rank", "max-loras", "max-logprobs")
    for name in numbers:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--generation-config")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--gpu-memory-utilization", type=float)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--enable-sleep-mode", action="store_true")
    parser.add_argument("--enforce-eager", action="store_true")
    return parser.parse_args()


class Served:
    """The model, and its adapters: one of them where it has room for one."""

    def __init__(self, given):
        self.given, self.lock = given, threading.Lock()
        self.dtype = getattr(torch, given.dtype)
        self.base = self.load(given.model)
        self.adapted = {}
        self.known = None
        self.asked_to_forget = 0
        self.sleeps = False

    def load(self, folder):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype).eval()

    def load_adapter(self, name, folder):
        from peft import PeftModel

        is_full = self.given.max_loras == 1 and self.adapted
        assert not is_full, "the one before was not unloaded"
        base = self.load(self.given.model)
        adapted = PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False)
        self.adapted[name] = adapted.eval()

    def answer(self, body):
        drawn = [*self.drawn(body)]
        log_probs = [log_prob for _, log_prob, _ in drawn]
        tokens = [token for token, _, _ in drawn]
        return {"token_ids": tokens, "logprobs": {"token_logprobs": log_probs}}

    def events(self, body):
        """The same piece by piece, as the client reads them."""
        for token, log_prob, likely in self.drawn(body):
            choice = {"index": 0, "text": "", "token_ids": [token], "logprobs": None}
            if body.get("logprobs") is not None:
                names = {f"token_id:{other}": value for other, value in likely}
                told = {f"token_id:{token}": log_prob, **names}
                choice["logprobs"] = {"token_logprobs": [log_prob], "top_logprobs": [told]}
            yield f"data: {json.dumps({'choices': [choice]})}\n\n"
        yield "data: [DONE]\n\n"

    @torch.no_grad()
    def drawn(self, body):
        """Token, its log-probability and the likeliest, one after the other."""
        model = self.base if body["model"] == "base" else self.adapted[body["model"]]
        draw = torch.Generator().manual_seed(body["seed"] % 2**63)
        tokens, found = list(body["prompt"]), []
        matcher = self.matcher(body.get("structured_outputs"))
        while len(found) < body["max_tokens"] and (
            not found or found[-1] not in body["stop_token_ids"]
        ):
            with self.lock:
                logits = model(torch.tensor([tokens])).logits[0, -1].float()
            if matcher is not None:
                allowed = int.from_bytes(matcher.compute_bitmask(), "little")
                left = [place for place in range(len(logits)) if not allowed >> place & 1]
                logits[left] = -torch.inf
            raw = logits.log_softmax(-1)
            token = self.chosen(logits, found, body, draw)
            if matcher is not None:
                matcher.consume_token(token)
            tokens.append(token)
            found.append(token)
            top = raw.topk(body.get("logprobs") or 1)
            likely = [*zip(top.indices.tolist(), top.values.clamp(min=-9999).tolist(), strict=True)]
            heat = body["temperature"] or 1.0
            is_raw = self.given.logprobs_mode == "raw_logprobs"
            own = raw if is_raw else (logits / heat).log_softmax(-1)
            yield token, float(own[token]), likely

    def chosen(self, logits, found, body, draw):
        for token in {*found}:
            count = found.count(token)
            logits[token] -= body.get("presence_penalty", 0)
            logits[token] -= body.get("frequency_penalty", 0) * count
        for token, bias in body.get("logit_bias", {}).items():
            logits[int(token)] += bias
        if not body["temperature"]:
            return int(logits.argmax())
        shares = (logits / body["temperature"]).log_softmax(-1)
        return int(torch.multinomial(shares.exp(), 1, generator=draw))

    def matcher(self, wanted):
        if not wanted:
            return None
        from llguidance import LLMatcher, grammar_from
        from llguidance.hf import from_tokenizer

        if self.known is None:
            tokenizer = AutoTokenizer.from_pretrained(self.given.tokenizer)
            self.known = from_tokenizer(tokenizer, n_vocab=self.base.config.vocab_size)
        return LLMatcher(self.known, grammar_from("grammar", wanted["grammar"]), log_level=0)


def note(name, value=None):
    if path := os.environ.get("STAND_IN_CALLS"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps([name, value]) + "\n")


def application(served):
    app = FastAPI()

    @app.get("/health")
    async def health():
        return {}

    async def locked(call, *arguments):
        def work():
            with served.lock:
                return call(*arguments)

        return await asyncio.to_thread(work)

    @app.post("/v1/completions")
    async def completions(request: Request):
        assert not served.sleeps, "whoever sleeps gives no answers"
        body = await request.json()
        if body.get("stream"):
            return StreamingResponse(served.events(body), media_type="text/event-stream")
        return {"choices": [await asyncio.to_thread(served.answer, body)]}

    @app.get("/v1/models")
    async def models():
        longest = served.given.max_model_len or served.base.config.max_position_embeddings
        names = ["base", *served.adapted]
        return {"data": [{"id": name, "max_model_len": longest} for name in names]}

    @app.post("/v1/load_lora_adapter")
    async def adapter(request: Request):
        body = await request.json()
        note("adapter", sorted(os.listdir(body["lora_path"])))
        await locked(served.load_adapter, body["lora_name"], body["lora_path"])
        return "loaded"

    @app.post("/v1/unload_lora_adapter")
    async def unload(request: Request):
        del served.adapted[(await request.json())["lora_name"]]
        return "unloaded"

    @app.post("/collective_rpc")
    async def rpc(request: Request):
        body = await request.json()
        assert body["method"] == "reload_weights"
        note("weights", sorted(os.listdir(body["kwargs"]["weights_path"])))
        served.base = await locked(served.load, body["kwargs"]["weights_path"])
        return {"results": [None]}

    @app.post("/reset_prefix_cache")
    async def forget():
        note("forget")
        served.asked_to_forget += 1
        return {"success": served.asked_to_forget % 2 == 0}  # the first time it still holds some

    @app.post("/sleep")
    async def sleep(level: int):
        note("sleep", level)
        served.sleeps = True
        return {}

    @app.post("/wake_up")
    async def wake(tags: str):
        note("wake", tags)
        served.sleeps = tags != "kv_cache"
        return {}

    return app


def main():
    given = options()
    if given.max_model_len and given.max_model_len > 100_000:
        raise ValueError(f"max_model_len ({given.max_model_len}) is greater than the model has")
    torch.set_num_threads(1)
    app = application(Served(given))
    module, _, name = given.middleware.rpartition(".")
    app.add_middleware(getattr(importlib.import_module(module), name))
    where = {"uds": given.uds} if given.uds else {"host": given.host, "port": given.port}
    uvicorn.run(app, log_level="warning", **where)


if __name__ == "__main__":
    sys.exit(main())
