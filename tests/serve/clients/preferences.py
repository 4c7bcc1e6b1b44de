"""Preferences by the official Python client: `preferences.py MODEL PAIRS HELD_OUT`. Tunes MODEL, by
the name or from conversations in that file first, and prints what it has seen as JSON.
"""

import json
import sys
import time

import openai

ASKED = [{"role": "user", "content": "Anna has 3 apples and gets 4 more. How many?"}]
CHATS = {"n_epochs": 12, "batch_size": 4}


def main(model: str, pairs: str, held_out: str) -> None:
    client = openai.OpenAI(max_retries=0)
    if model.endswith(".jsonl"):
        method = {"type": "supervised", "supervised": {"hyperparameters": CHATS}}
        model = tune(client, "gpt-3.5-turbo", method, model).fine_tuned_model
    before = answer(client, model)
    numbers = {"beta": 0.2, "batch_size": 4, "learning_rate_multiplier": 3}
    method = {"type": "dpo", "dpo": {"hyperparameters": numbers}}
    job = tune(client, model, method, pairs, held_out)
    events = list(client.fine_tuning.jobs.list_events(job.id))[::-1]
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    told = {
        "base": model,
        "job": job.id,
        "model": job.fine_tuned_model,
        "trained_tokens": job.trained_tokens,
        "method": job.method.model_dump(exclude_none=True),
        "before": before,
        "after": answer(client, job.fine_tuned_model),
        "rows": client.files.content(job.result_files[0]).text.splitlines(),
        "metrics": [event.data for event in events if event.type == "metrics"][-1],
        "checkpoints": [found.model_dump()["metrics"] for found in checkpoints],
        "refused": refused(client, model, pairs),
    }
    print(json.dumps(told))


def tune(
    client: openai.OpenAI, model: str, method: dict, training: str, validation: str | None = None
) -> object:
    job = client.fine_tuning.jobs.create(
        model=model,
        training_file=upload(client, training),
        validation_file=upload(client, validation) if validation else None,
        method=method,
        seed=7,
    )
    job = ended(client, job)
    assert job.status == "succeeded", job
    return job


def upload(client: openai.OpenAI, path: str) -> str:
    with open(path, "rb") as content:
        return client.files.create(file=content, purpose="fine-tune").id


def ended(client: openai.OpenAI, job: object) -> object:
    while job.status in ("validating_files", "queued", "running"):
        time.sleep(0.25)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job


def answer(client: openai.OpenAI, model: str) -> str:
    made = client.chat.completions.create(model=model, messages=ASKED, temperature=0)
    return made.choices[0].message.content


def refused(client: openai.OpenAI, model: str, pairs: str) -> dict:
    """What is said of a beta that is none, and of preferences for the other method."""
    file = upload(client, pairs)
    try:
        method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}}
        client.fine_tuning.jobs.create(model=model, training_file=file, method=method)
        at_once = "nothing"
    except openai.BadRequestError as error:
        at_once = error.param
    job = ended(client, client.fine_tuning.jobs.create(model=model, training_file=file))
    return {"beta": at_once, "status": job.status, **job.error.model_dump()}


main(*sys.argv[1:])
