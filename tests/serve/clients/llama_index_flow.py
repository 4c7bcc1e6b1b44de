"""A job and answers by llama-index's engine: `llama_index_flow.py FILE JOB`, where JOB has
succeeded; the address and key from the environment. Prints what it has seen as JSON.

The engine is loaded without the package around it, which wants torch for other engines.
"""

import importlib.util
import json
import sys
import types

import llama_index.core
import openai

QUESTION = "Anna has 3 apples and gets 4 more. How many?"


def engine() -> type:
    name = "llama_index.finetuning"
    package = types.ModuleType(name)
    package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
    sys.modules[name] = package
    from llama_index.finetuning.openai.base import OpenAIFinetuneEngine

    return OpenAIFinetuneEngine


def main(path: str, finished: str) -> None:
    from llama_index.core.llms import ChatMessage

    make = engine()
    # Its own check of files counts tokens by a table that is fetched from elsewhere.
    made = make("gpt-3.5-turbo", path, validate_json=False)
    made.finetune()
    job = made.get_current_job()
    openai.OpenAI().fine_tuning.jobs.cancel(job.id)
    old = make("gpt-3.5-turbo", path, start_job_id=finished)
    asked = [ChatMessage(role="user", content=QUESTION)]
    model = old.get_finetuned_model(temperature=0, max_tokens=60)
    told = {
        "version": llama_index.core.__version__,
        "made": job.id,
        "states": [job.status, made.get_current_job().status, old.get_current_job().status],
        "model": model.model,
        "text": model.chat(asked).message.content,
        "streamed": "".join(part.delta or "" for part in model.stream_chat(asked)),
    }
    print(json.dumps(told))


main(*sys.argv[1:])
