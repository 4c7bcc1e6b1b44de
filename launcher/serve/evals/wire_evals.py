"""Evals and their runs as clients send and read them, with the limits of what they may send."""

# Annotations are not postponed here: pydantic reads them.
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from launcher.serve.chat.wire_chat import ResponseFormat, Tokens, Tool
from launcher.serve.chat.wire_responses import FunctionTool, TextOptions
from launcher.serve.db.tables import Eval, EvalItem, EvalRun
from launcher.serve.grading.wire_graders import GraderForm
from launcher.serve.http.wire import TAG, RequestBody

#: Criteria of one eval.
MOST_CRITERIA = 50
Name = Annotated[str, Field(min_length=1, max_length=256)]
Label = Annotated[str, Field(max_length=64)]
Labels = Annotated[
    dict[Label, Annotated[str, Field(max_length=512, strict=True)]], Field(max_length=16)
]
#: What of a run's state a list can be asked for.
RunState = Literal["queued", "in_progress", "completed", "canceled", "failed"]


def _one_of(what: str, *known: str, why: str = "") -> Discriminator:
    """Tells bodies apart by their `type`; `why` others are not here."""

    def kind(value: Any) -> Any:
        found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        return TAG + str(found)

    said = f"{what} is of the type {' or '.join(map(repr, known))}. {why}".strip()
    return Discriminator(kind, custom_error_type="unknown_type", custom_error_message=said)


class Unlimited(RequestBody):
    """What holds data: texts as long as a body may be."""

    model_config = ConfigDict(str_max_length=None)


# ---- evals


class CustomSource(Unlimited):
    """What items of runs look like."""

    type: Literal["custom"]
    item_schema: dict[str, Any]
    """A JSON Schema."""
    include_sample_schema: bool = False
    """Whether criteria may read `sample`."""


def _is_custom(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") != "custom":
        found = "There are no stored completions and no logs here: the type is 'custom'."
        raise PydanticCustomError("unknown_type", "{found}", {"found": found})
    return value


class NewEval(Unlimited):
    """Body of POST /v1/evals."""

    data_source_config: Annotated[CustomSource, BeforeValidator(_is_custom)]
    testing_criteria: Annotated[list[GraderForm], Field(min_length=1, max_length=MOST_CRITERIA)]
    name: Name | None = None
    metadata: Labels | None = None


class ChangedEval(RequestBody):
    """Body of POST /v1/evals/{id}: what is not there stays."""

    name: Name | None = None
    metadata: Labels | None = None


class EvalView(BaseModel):
    """An eval of the project."""

    id: str
    object: Literal["eval"] = "eval"
    created_at: int
    name: str
    metadata: dict[str, str] | None
    data_source_config: dict[str, Any]
    testing_criteria: list[dict[str, Any]]


class DeletedEval(BaseModel):
    """An eval that is gone, with its runs."""

    object: Literal["eval.deleted"] = "eval.deleted"
    deleted: bool = True
    eval_id: str


# ---- runs


class SourceLine(Unlimited):
    """An item, and perhaps an answer to it."""

    item: dict[str, Any]
    sample: dict[str, Any] | None = None


class FileContent(Unlimited):
    """Items in the request itself."""

    type: Literal["file_content"]
    content: Annotated[list[SourceLine], Field(min_length=1)]


class FileId(RequestBody):
    """Items in a file of the project: a line each."""

    type: Literal["file_id"]
    id: Annotated[str, Field(min_length=1, max_length=256)]


_NOT_STORED = "Nothing is stored here: 'stored_completions' and 'responses' are no sources."
Source = Annotated[
    Annotated[FileContent, Tag(TAG + "file_content")] | Annotated[FileId, Tag(TAG + "file_id")],
    _one_of("A source of items", "file_content", "file_id", why=_NOT_STORED),
]


class InputText(Unlimited):
    """A part of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class TemplateMessage(Unlimited):
    """A message whose text has places such as `{{ item.question }}`. Only texts are supported."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | InputText | list[str | InputText]
    type: Literal["message"] = "message"

    @property
    def text(self) -> str:
        """The template."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return "\n".join(part if isinstance(part, str) else part.text for part in parts)


class MessageTemplate(Unlimited):
    """Messages that are made of each item."""

    type: Literal["template"]
    template: Annotated[list[TemplateMessage], Field(min_length=1, max_length=100)]


class ItemReference(RequestBody):
    """Messages that stand in each item."""

    type: Literal["item_reference"]
    item_reference: Annotated[str, Field(min_length=1, max_length=1000)]
    """Such as `item.messages`."""


InputMessages = Annotated[
    Annotated[MessageTemplate, Tag(TAG + "template")]
    | Annotated[ItemReference, Tag(TAG + "item_reference")],
    _one_of("What is asked", "template", "item_reference"),
]


class ChatSampling(Unlimited):
    """How a chat answers."""

    max_completion_tokens: Tokens | None = None
    reasoning_effort: str | None = None
    response_format: ResponseFormat | None = None
    seed: int | None = None
    temperature: float | None = None
    tools: list[Tool] | None = None
    top_p: float | None = None


class ResponsesSampling(Unlimited):
    """How a response answers."""

    max_completion_tokens: Tokens | None = None
    reasoning_effort: str | None = None
    seed: int | None = None
    temperature: float | None = None
    text: TextOptions | None = None
    tools: list[FunctionTool] | None = None
    top_p: float | None = None


class JsonlRun(Unlimited):
    """The answers stand in the data, if there are any."""

    type: Literal["jsonl"]
    source: Source


class CompletionsRun(Unlimited):
    """A model answers each item, as in a chat."""

    type: Literal["completions"]
    source: Source
    input_messages: InputMessages
    model: Annotated[str, Field(min_length=1, max_length=512)]
    sampling_params: ChatSampling | None = None


class ResponsesRun(Unlimited):
    """The same as in /v1/responses."""

    type: Literal["responses"]
    source: Source
    input_messages: InputMessages
    model: Annotated[str, Field(min_length=1, max_length=512)]
    sampling_params: ResponsesSampling | None = None


DataSource = Annotated[
    Annotated[JsonlRun, Tag(TAG + "jsonl")]
    | Annotated[CompletionsRun, Tag(TAG + "completions")]
    | Annotated[ResponsesRun, Tag(TAG + "responses")],
    _one_of("A data source", "jsonl", "completions", "responses"),
    # For OpenAPI no more than its beginning: all of it would be half of the document.
    WithJsonSchema(
        {
            "type": "object",
            "required": ["type", "source"],
            "properties": {
                "type": {"type": "string", "enum": ["jsonl", "completions", "responses"]},
                "source": {"type": "object"},
                "input_messages": {"type": "object"},
                "model": {"type": "string"},
                "sampling_params": {"type": "object"},
            },
        }
    ),
]


class NewRun(Unlimited):
    """Body of POST /v1/evals/{id}/runs."""

    data_source: DataSource
    name: Name | None = None
    metadata: Labels | None = None


class RunErrorView(BaseModel):
    """What has gone wrong."""

    code: str
    message: str


class CountsView(BaseModel):
    """Items: those that pass all criteria, fail one, or could not be answered or graded."""

    total: int
    passed: int
    failed: int
    errored: int


class CriterionView(BaseModel):
    """Items by what one criterion says of them."""

    testing_criteria: str
    """Its name."""
    passed: int
    failed: int
    errored: int


class UsageView(BaseModel):
    """Questions to a model, and their tokens."""

    model_name: str
    invocation_count: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    total_tokens: int


class EvalRunView(BaseModel):
    """A run of an eval."""

    id: str
    object: Literal["eval.run"] = "eval.run"
    eval_id: str
    created_at: int
    name: str
    model: str
    status: RunState
    report_url: str
    result_counts: CountsView
    per_testing_criteria_results: list[CriterionView]
    per_model_usage: list[UsageView]
    data_source: dict[str, Any]
    metadata: dict[str, str] | None
    error: RunErrorView | None


class DeletedRun(BaseModel):
    """A run that is gone, with its items."""

    object: Literal["eval.run.deleted"] = "eval.run.deleted"
    deleted: bool = True
    run_id: str


class ItemView(BaseModel):
    """An item of a run that has been graded."""

    id: str
    object: Literal["eval.run.output_item"] = "eval.run.output_item"
    created_at: int
    run_id: str
    eval_id: str
    status: Literal["pass", "fail", "error"]
    datasource_item_id: int
    datasource_item: dict[str, Any]
    results: list[dict[str, Any]]
    sample: dict[str, Any] | None


def eval_view(row: Eval) -> dict[str, Any]:
    """An `EvalView`: the schema is that of what criteria can read, as at OpenAI."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"item": row.source["item_schema"]},
        "required": ["item"],
    }
    if row.source.get("include_sample_schema"):
        schema["properties"]["sample"] = _SAMPLE
        schema["required"] = ["item", "sample"]
    return {
        "id": row.id,
        "object": "eval",
        "created_at": row.created_at,
        "name": row.name,
        "metadata": row.labels,
        "data_source_config": {"type": "custom", "schema": schema},
        "testing_criteria": row.criteria,
    }


_SAMPLE = {
    "type": "object",
    "properties": {
        "output_text": {"type": "string"},
        "output_json": {},
        "output_tools": {"type": "array"},
    },
    "required": ["output_text"],
}


def run_view(row: EvalRun, report_url: str) -> dict[str, Any]:
    """A `EvalRunView`."""
    counts = row.counts
    return {
        "id": row.id,
        "object": "eval.run",
        "eval_id": row.eval_id,
        "created_at": row.created_at,
        "name": row.name,
        "model": row.model,
        "status": row.state,
        "report_url": report_url,
        "result_counts": {
            "total": counts.get("total", 0),
            "passed": counts.get("pass", 0),
            "failed": counts.get("fail", 0),
            "errored": counts.get("error", 0),
        },
        "per_testing_criteria_results": [
            {
                "testing_criteria": name,
                "passed": found.get("pass", 0),
                "failed": found.get("fail", 0),
                "errored": found.get("error", 0),
            }
            for name, found in row.verdicts.items()
        ],
        "per_model_usage": [{"model_name": name, **used} for name, used in row.usage.items()],
        "data_source": row.source,
        "metadata": row.labels,
        "error": row.error,
    }


def item_view(row: EvalItem, eval_id: str) -> dict[str, Any]:
    """An `ItemView`."""
    return {
        "id": row.id,
        "object": "eval.run.output_item",
        "created_at": row.created_at,
        "run_id": row.run_id,
        "eval_id": eval_id,
        "status": row.state,
        "datasource_item_id": row.place,
        "datasource_item": row.item,
        "results": row.results,
        "sample": row.sample,
    }
