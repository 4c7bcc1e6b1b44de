"""Jobs as clients send and read them, with the limits of what they may send."""

# Annotations are not postponed here: FastAPI reads them.
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    PlainSerializer,
    StrictFloat,
    StrictInt,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)

from launcher.serve.db.tables import Event, Job, JobState, Model, now
from launcher.serve.grading.wire_graders import GraderForm
from launcher.serve.http.wire import RequestBody
from launcher.serve.jobs.methods import METHODS


def _or_auto(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    return value if value == "auto" else check(value)


def _as_it_is(value: Any) -> Any:
    return value


def _described(**number: Any) -> WithJsonSchema:
    """For OpenAPI, what a number or "auto" is."""
    return WithJsonSchema({"anyOf": [{"const": "auto", "type": "string"}, number]})


#: Beside a number, "auto" will do. A union of both would say of a number that it is not "auto".
_OR_AUTO, _PLAIN = WrapValidator(_or_auto), PlainSerializer(_as_it_is)
_AUTO: Any = "auto"
Label = Annotated[str, Field(max_length=64)]


class Hyperparameters(RequestBody):
    """How long and how fast to train; `auto` follows from the number of examples."""

    n_epochs: Annotated[
        StrictInt,
        Field(ge=1, le=50),
        _OR_AUTO,
        _PLAIN,
        _described(type="integer", minimum=1, maximum=50),
    ] = _AUTO
    batch_size: Annotated[
        StrictInt,
        Field(ge=1, le=256),
        _OR_AUTO,
        _PLAIN,
        _described(type="integer", minimum=1, maximum=256),
    ] = _AUTO
    learning_rate_multiplier: Annotated[
        StrictFloat,
        Field(gt=0, le=1000, allow_inf_nan=False),
        _OR_AUTO,
        _PLAIN,
        _described(type="number", exclusiveMinimum=0, maximum=1000),
    ] = _AUTO


class DpoHyperparameters(Hyperparameters):
    """The same, and what a step away from the model before training costs."""

    beta: Annotated[
        StrictFloat,
        Field(gt=0, le=2, allow_inf_nan=False),
        _OR_AUTO,
        _PLAIN,
        _described(type="number", exclusiveMinimum=0, maximum=2),
    ] = _AUTO


class ReinforcementHyperparameters(Hyperparameters):
    """The same, how much is tried, and how held-out questions are answered on the way."""

    compute_multiplier: Annotated[
        StrictFloat,
        Field(gt=0, le=10, allow_inf_nan=False),
        _OR_AUTO,
        _PLAIN,
        _described(type="number", exclusiveMinimum=0, maximum=10),
    ] = _AUTO
    eval_interval: Annotated[
        StrictInt,
        Field(ge=1, le=1_000_000),
        _OR_AUTO,
        _PLAIN,
        _described(type="integer", minimum=1, maximum=1_000_000),
    ] = _AUTO
    eval_samples: Annotated[
        StrictInt,
        Field(ge=1, le=64),
        _OR_AUTO,
        _PLAIN,
        _described(type="integer", minimum=1, maximum=64),
    ] = _AUTO
    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"


class Supervised(RequestBody):
    """The method `supervised`: conversations are learned."""

    hyperparameters: Hyperparameters | None = None


class DpoMethod(RequestBody):
    """The method `dpo`: of two answers to one input, the better one is learned."""

    hyperparameters: DpoHyperparameters | None = None


class ReinforcementMethod(RequestBody):
    """The method `reinforcement`: the model answers, and a grader rewards."""

    grader: GraderForm
    hyperparameters: ReinforcementHyperparameters | None = None
    response_format: Any = None

    @field_validator("response_format")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if value not in (None, {"type": "text"}):
            raise ValueError(
                "no form of answers is enforced in training: leave it out, describe the form in the"
                " messages, and let the grader read output_json"
            )
        return value


class Method(RequestBody):
    """How to fine-tune."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: DpoMethod | None = None
    reinforcement: ReinforcementMethod | None = None

    @model_validator(mode="after")
    def _of_its_type(self) -> "Method":
        if self.type == "reinforcement" and self.reinforcement is None:
            raise ValueError("'reinforcement' with a 'grader' is a required property")
        for name in ("supervised", "dpo", "reinforcement"):
            if getattr(self, name) is not None and name != self.type:
                raise ValueError(f"has '{name}', but its type is '{self.type}'")
        return self


class WandbIntegration(RequestBody):
    """Where the run is shown in Weights & Biases."""

    project: Annotated[str, Field(min_length=1, max_length=128)]
    name: Annotated[str, Field(max_length=128)] | None = None
    entity: Annotated[str, Field(max_length=128)] | None = None
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]] | None = Field(
        default=None, max_length=50
    )


class Integration(RequestBody):
    """A service that follows the job."""

    type: Literal["wandb"]
    wandb: WandbIntegration


class NewJob(RequestBody):
    """What a client asks for."""

    training_file: Annotated[str, Field(max_length=256)]
    model: Annotated[str, Field(max_length=512)]
    validation_file: Annotated[str, Field(max_length=256)] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, le=2147483647)] | None = None
    metadata: (
        Annotated[
            dict[Label, Annotated[str, Field(max_length=512, strict=True)]], Field(max_length=16)
        ]
        | None
    ) = None
    integrations: Annotated[list[Integration], Field(max_length=5)] | None = None

    @model_validator(mode="after")
    def _one_of_a_kind(self) -> "NewJob":
        if len(self.integrations or []) > 1:
            raise ValueError("one wandb integration at most")
        inside, beside = self._inside(), self.hyperparameters
        if inside and beside and any(getattr(inside, name) != said for name, said in beside):
            raise ValueError("'hyperparameters' and those of 'method' say different things")
        return self

    def _inside(self) -> Hyperparameters | None:
        """The hyperparameters in `method`."""
        chosen = self.method and getattr(self.method, self.method.type)
        return chosen.hyperparameters if chosen else None

    @property
    def kind(self) -> str:
        """The name of the method."""
        return self.method.type if self.method else "supervised"

    @property
    def grader(self) -> dict[str, Any] | None:
        """What rewards, if the method has such."""
        chosen = self.method and self.method.reinforcement
        return chosen.grader if chosen else None

    def asked(self) -> dict[str, Any]:
        """The hyperparameters, wherever they were given, and the grader."""
        numbers = dict(self._inside() or self.hyperparameters or ())
        chosen = self.method and self.method.reinforcement
        beside: dict[str, Any] = {"grader": chosen.grader} if chosen else {}
        if chosen and chosen.response_format:
            beside["response_format"] = chosen.response_format
        return {**_HYPERPARAMETERS[self.kind]().model_dump(), **numbers, **beside}


#: Method -> its hyperparameters.
_HYPERPARAMETERS: dict[str, type[Hyperparameters]] = {
    "supervised": Hyperparameters,
    "dpo": DpoHyperparameters,
    "reinforcement": ReinforcementHyperparameters,
}


class Fault(BaseModel):
    """Why a job has failed."""

    code: str
    message: str
    param: str | None


class JobView(BaseModel):
    """A job as clients see it."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    status: JobState
    model: str
    fine_tuned_model: str | None
    organization_id: str
    training_file: str
    validation_file: str | None
    result_files: list[str]
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    trained_tokens: int | None
    error: Fault | None
    seed: int
    metadata: dict[str, str] | None
    integrations: list[dict[str, Any]] | None
    estimated_finish: int | None
    user_provided_suffix: str | None


class EventView(BaseModel):
    """Something that happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class CheckpointView(BaseModel):
    """A model as it was on the way."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, int | float]


def job_view(job: Job, organization: str) -> dict[str, Any]:
    """The row as a `JobView`."""
    shared = {name: job.asked.get(name, "auto") for name in Hyperparameters.model_fields}
    own = {name: job.asked.get(name, "auto") for name in METHODS[job.method].options}
    numbers = {**shared, **own, **job.hyperparameters}
    kept = {name: job.asked[name] for name in ("reasoning_effort",) if name in job.asked}
    beside = {name: job.asked[name] for name in ("grader", "response_format") if name in job.asked}
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "status": job.state,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": organization,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": [job.result_file] if job.result_file else [],
        "hyperparameters": {name: numbers[name] for name in shared},
        "method": {
            "type": job.method,
            job.method: {**beside, "hyperparameters": {**numbers, **kept}},
        },
        "trained_tokens": job.trained_tokens,
        "error": job.error,
        "seed": job.seed,
        "metadata": job.labels,
        "integrations": job.integrations or [],
        "estimated_finish": _estimated_finish(job),
        "user_provided_suffix": job.suffix,
    }


def _estimated_finish(job: Job) -> int | None:
    """Null unless the job runs. After the last step come comparison and export: not in the past."""
    if job.state is not JobState.running or job.estimated_finish is None:
        return None
    return max(job.estimated_finish, now())


def event_view(event: Event) -> dict[str, Any]:
    """The row as an `EventView`."""
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data,
    }


def checkpoint_view(model: Model) -> dict[str, Any]:
    """The row as a `CheckpointView`."""
    return {
        "id": model.checkpoint_id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": model.created_at,
        "fine_tuned_model_checkpoint": model.name,
        "fine_tuning_job_id": model.job_id,
        "step_number": model.step,
        "metrics": model.metrics,
    }
