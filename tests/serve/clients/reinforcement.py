"""Reinforcement by the official Python client: `reinforcement.py QUESTIONS HELD_OUT CHATS JUDGE`.
Tries a grader, makes a model answer by it, and prints what it has seen as JSON.
"""

import json
import sys
import time

import openai

WORD = {
    "type": "string_check",
    "name": "has its letter",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.label }}",
    "operation": "ilike",
}
SHORT = {
    "type": "python",
    "name": "is short",
    "source": "def grade(sample, item):\n    return float(len(sample['output_text']) < 12)",
}
BOTH = {
    "type": "multi",
    "name": "both",
    "graders": {"word": WORD, "short": SHORT},
    "calculate_output": "0.75 * word + 0.25 * short",
}
NUMBERS = {
    "n_epochs": 2,
    "batch_size": 8,
    "learning_rate_multiplier": 4,
    "compute_multiplier": 0.5,
    "eval_interval": 3,
    "eval_samples": 2,
    "reasoning_effort": "default",
}
ITEM = {"label": "e"}


def main(questions: str, held_out: str, chats: str, judge: str) -> None:
    client = openai.OpenAI(max_retries=0)
    graders = client.fine_tuning.alpha.graders
    assert graders.validate(grader=BOTH).grader.to_dict() == BOTH
    training, validation = upload(client, questions), upload(client, held_out)
    method = {"type": "reinforcement", "reinforcement": {"grader": BOTH}}
    method["reinforcement"]["hyperparameters"] = NUMBERS
    job = client.fine_tuning.jobs.create(
        model="gpt-3.5-turbo",
        training_file=training,
        validation_file=validation,
        method=method,
        seed=7,
    )
    asked = job.method.to_dict()
    tried = {
        "both": graders.run(grader=BOTH, model_sample="Yes, he said.", item=ITEM).to_dict(),
        "judged": graders.run(grader=judged(judge), model_sample="Hello.", item=ITEM).to_dict(),
    }
    told = {
        "tried": tried,
        "refused": refused(client, training, upload(client, chats)),
        "asked": asked,
        **finished(client, job),
    }
    print(json.dumps(told))


def judged(model: str) -> dict:
    question = {"role": "user", "content": "Is this kind? {{ sample.output_text }}"}
    form = {"type": "score_model", "name": "kind", "model": model, "input": [question]}
    return {**form, "range": [0, 1]}


def finished(client: openai.OpenAI, job: object) -> dict:
    job = ended(client, job)
    assert job.status == "succeeded", job
    events = list(client.fine_tuning.jobs.list_events(job.id))[::-1]
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    messages = [{"role": "user", "content": "Say e."}]
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=messages, max_tokens=8
    )
    return {
        "job": job.id,
        "model": job.fine_tuned_model,
        "trained_tokens": job.trained_tokens,
        "method": job.method.to_dict(),
        "hyperparameters": job.hyperparameters.to_dict(),
        "rows": client.files.content(job.result_files[0]).text.splitlines(),
        "steps": [event.to_dict() for event in events if event.type == "metrics"],
        "checkpoints": [found.to_dict() for found in checkpoints],
        "answer": answer.choices[0].message.content,
    }


def upload(client: openai.OpenAI, path: str) -> str:
    with open(path, "rb") as content:
        return client.files.create(file=content, purpose="fine-tune").id


def ended(client: openai.OpenAI, job: object) -> object:
    while job.status in ("validating_files", "queued", "running"):
        time.sleep(0.25)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job


def refused(client: openai.OpenAI, questions: str, chats: str) -> dict:
    """What is said at once of a job that cannot be had, by parameter; and of a file for another
    method."""

    def of(grader: dict, file: str = questions, **beside: object) -> dict:
        form = {"grader": grader, **beside}
        return {
            "model": "gpt-3.5-turbo",
            "training_file": file,
            "method": {"type": "reinforcement", "reinforcement": form},
        }

    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    found = {}
    for name, wanted in {
        "judge": of(judged("gpt-4o")),
        "part": of({**BOTH, "graders": {"word": WORD, "short": judged("gpt-4o")}}),
        "form": of({**WORD, "operation": "same"}),
        "ours": of({"type": "reward_model", "name": "x", "model": "/etc"}),
        "effort": of(WORD, hyperparameters={"reasoning_effort": "high"}),
        "response_format": of(WORD, response_format=schema),
    }.items():
        try:
            client.fine_tuning.jobs.create(**wanted)
        except openai.BadRequestError as error:
            found[name] = [error.param, error.message]
    try:
        client.fine_tuning.alpha.graders.run(grader=judged("gpt-4o"), model_sample="x")
    except openai.BadRequestError as error:
        found["run"] = [error.param, error.message]
    job = ended(client, client.fine_tuning.jobs.create(**of(WORD, chats)))
    return {**found, "file": [job.status, *job.error.to_dict().values()]}


main(*sys.argv[1:])
