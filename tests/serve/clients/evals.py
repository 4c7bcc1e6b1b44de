"""An eval by the official Python client: `evals.py`. Grades answers that stand in the request, and
prints what it has seen as JSON.
"""

import json
import time

import openai

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
CONFIG = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
SAME = {
    "type": "string_check",
    "name": "same",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
LINES = [{"item": {"answer": "7"}, "sample": {"output_text": said}} for said in ("7", "8")]
SOURCE = {"type": "jsonl", "source": {"type": "file_content", "content": LINES}}


def main() -> None:
    client = openai.OpenAI(max_retries=0)
    made = client.evals.create(name="mine", data_source_config=CONFIG, testing_criteria=[SAME])
    made = client.evals.update(made.id, name="ours", metadata={"a": "b"})
    runs = client.evals.runs
    run = runs.create(made.id, name="first", data_source=SOURCE)
    while run.status in ("queued", "in_progress"):
        time.sleep(0.1)
        run = runs.retrieve(run.id, eval_id=made.id)
    items = list(runs.output_items.list(run.id, eval_id=made.id, limit=1))
    one = runs.output_items.retrieve(items[0].id, eval_id=made.id, run_id=run.id)
    try:
        runs.cancel(run.id, eval_id=made.id)
        canceled = "it can be"
    except openai.BadRequestError as error:
        canceled = str(error)
    told = {
        "version": openai.__version__,
        "name": made.name,
        "status": run.status,
        "passed": [run.result_counts.passed, run.result_counts.total],
        "items": [item.status for item in items],
        "score": one.results[0].score,
        "said": one.sample.output[0].content,
        "canceled": "already has status" in canceled,
        "listed": [found.id for found in runs.list(made.id)] == [run.id],
        "gone": [
            runs.delete(run.id, eval_id=made.id).deleted,
            client.evals.delete(made.id).deleted,
        ],
    }
    print(json.dumps(told))


main()
