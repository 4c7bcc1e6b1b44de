"""Files, jobs and answers by litellm: `litellm_flow.py FILE JOB`, where JOB has succeeded; the
address and key from the environment. Prints what it has seen as JSON.
"""

import json
import sys

import litellm

ASKED = [{"role": "user", "content": "Anna has 3 apples and gets 4 more. How many?"}]
SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
FUNCTION = {"name": "move", "parameters": SCHEMA, "strict": True}
HERE = {"custom_llm_provider": "openai"}


def main(path: str, finished: str) -> None:
    with open(path, "rb") as content:
        file = litellm.create_file(file=content, purpose="fine-tune", **HERE)
    listed = [found.id for found in litellm.file_list(**HERE)]
    kept = litellm.file_content(file.id, **HERE).content
    with open(path, "rb") as content:
        assert kept == content.read()
    made = litellm.create_fine_tuning_job(
        model="gpt-3.5-turbo",
        training_file=file.id,
        suffix="lite",
        hyperparameters={"n_epochs": 1, "batch_size": 4},
        **HERE,
    )
    ended = litellm.cancel_fine_tuning_job(made.id, **HERE).status
    job = litellm.retrieve_fine_tuning_job(finished, **HERE)
    asked = {"model": f"openai/{job.fine_tuned_model}", "messages": ASKED, "temperature": 0}
    streamed = litellm.completion(**asked, max_tokens=60, stream=True)
    tools = [{"type": "function", "function": FUNCTION}]
    called = litellm.completion(
        **asked, max_tokens=60, tools=tools, tool_choice="required", parallel_tool_calls=False
    )
    responses = litellm.responses(
        model=asked["model"], input=ASKED[0]["content"], temperature=0, max_output_tokens=60
    )
    try:
        litellm.completion("openai/none", ASKED)
        error = ""
    except litellm.NotFoundError as raised:
        error = raised.message
    told = {
        "listed": file.id in listed,
        "retrieved": litellm.file_retrieve(file.id, **HERE).status,
        "cancelled": ended,
        "jobs": [found.id for found in litellm.list_fine_tuning_jobs(limit=2, **HERE).data],
        "made": made.id,
        "model": job.fine_tuned_model,
        "text": litellm.completion(**asked, max_tokens=60).choices[0].message.content,
        "streamed": "".join(
            chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices
        ),
        "arguments": called.choices[0].message.tool_calls[0].function.arguments,
        "responses": responses.output[0].content[0].text,
        "deleted": litellm.file_delete(file.id, **HERE).deleted,
        "error": error,
    }
    print(json.dumps(told))


main(*sys.argv[1:])
