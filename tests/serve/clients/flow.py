"""Fine-tuning by the official Python client: `flow.py FILE [JOB]`, the address and key from the
environment as always. With JOB, which has succeeded, what is created here is cancelled at once.
Prints what it has seen as JSON.
"""

import json
import sys
import time

import openai

ASKED = [{"role": "user", "content": "Anna has 3 apples and gets 4 more. How many?"}]
NUMBERS = {"n_epochs": 12, "batch_size": 4, "learning_rate_multiplier": "auto"}


def main(path: str, finished: str = "") -> None:
    client = openai.OpenAI(max_retries=0)
    with open(path, "rb") as content:
        file = client.files.create(file=content, purpose="fine-tune")
    client.files.wait_for_processing(file.id, poll_interval=0.2)
    assert client.files.retrieve(file.id).filename == "training_data.jsonl"
    with open(path, "rb") as content:
        assert client.files.content(file.id).read() == content.read()
    assert file.id in [found.id for found in client.files.list(limit=1)]
    job = client.fine_tuning.jobs.create(
        training_file=file.id,
        model="gpt-3.5-turbo",
        suffix="pirate",
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": NUMBERS}},
        metadata={"by": openai.__version__},
    )
    states = [job.status]
    if finished:
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        job = client.fine_tuning.jobs.retrieve(finished)
    while job.status in ("validating_files", "queued", "running"):
        time.sleep(0.25)
        job = client.fine_tuning.jobs.retrieve(job.id)
        states += [job.status] if job.status != states[-1] else []
    assert job.status == "succeeded", job
    assert job.id in [found.id for found in client.fine_tuning.jobs.list(limit=1)]
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    rows = client.files.content(job.result_files[0]).text.splitlines()
    assert client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
    told = {
        "version": openai.__version__,
        "job": job.id,
        "model": job.fine_tuned_model,
        "trained_tokens": job.trained_tokens,
        "states": states,
        "messages": [event.message for event in events][::-1],
        "checkpoints": [found.fine_tuned_model_checkpoint for found in checkpoints],
        "rows": rows,
        "models": [model.id for model in client.models.list()],
        **chat(client, job.fine_tuned_model),
        **errors(client, job.id),
    }
    assert client.files.delete(file.id).deleted
    print(json.dumps(told))


def chat(client: openai.OpenAI, model: str) -> dict:
    whole = client.chat.completions.create(model=model, messages=ASKED, temperature=0)
    stream = client.chat.completions.create(
        model=model,
        messages=ASKED,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[-1].usage == whole.usage
    plain = client.completions.create(model=model, prompt="Arr", max_tokens=3, temperature=0)
    return {
        "answer": whole.choices[0].message.content,
        "reason": whole.choices[0].finish_reason,
        "streamed": "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
        "plain": plain.usage.completion_tokens,
    }


def errors(client: openai.OpenAI, job: str) -> dict:
    found = []
    for ask in (
        lambda: client.files.retrieve("file-none"),
        lambda: client.fine_tuning.jobs.retrieve("ftjob-none"),
        lambda: client.fine_tuning.jobs.cancel(job),
        lambda: client.fine_tuning.jobs.create(training_file="file-none", model="gpt-3.5-turbo"),
        lambda: client.chat.completions.create(model="none", messages=ASKED),
        lambda: openai.OpenAI(api_key="sk-wrong").models.list(),
    ):
        try:
            ask()
        except openai.APIStatusError as error:
            found.append(f"{error.status_code} {type(error).__name__} {error.code}")
    return {"errors": found}


main(*sys.argv[1:])
