"""What goes over the wire, as the official clients' types say: files, uploads, pages, errors."""

# Annotations are not postponed here: pydantic reads them.
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from launcher.core.errors import did_you_mean

Item = TypeVar("Item")

#: What clients may upload for.
PURPOSES = ("fine-tune", "assistants", "batch", "user_data", "vision", "evals")
#: Of a file, after which it goes; in seconds.
SHORTEST_S, LONGEST_S = 3600, 2_592_000


#: Type of the error about a member that nobody knows; its context has the member's name.
UNKNOWN = "unknown_parameter"
#: Begins the tags of bodies that are told apart by their type: no member is called so.
TAG = "type="


class RequestBody(BaseModel):
    """Base of what clients send. Nothing is dropped unsaid: a member that nobody knows is refused,
    with the names that are near."""

    model_config = ConfigDict(str_max_length=1 << 20, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        known = {field.alias or own for own, field in cls.model_fields.items()}
        for name in data if isinstance(data, dict) else ():
            if name not in known:
                place = _place(cls, name)
                near = did_you_mean(name, known)
                near = f"did you mean '{place}'?" if place else near
                raise PydanticCustomError(UNKNOWN, "{near}", {"near": near, "name": name})
        return data


def _place(model: type[BaseModel], name: str) -> str | None:
    """Where below a model a member of this name stands."""
    for own, field in model.model_fields.items():
        for inner in get_args(field.annotation) or (field.annotation,):
            if not (isinstance(inner, type) and issubclass(inner, RequestBody)):
                continue
            below = name if name in inner.model_fields else _place(inner, name)
            if below:
                return f"{own}.{below}"
    return None


class Page(BaseModel, Generic[Item]):
    """A page of a list. Clients ask for the next one with `after=<id of the last>`."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


class Bounded(Page[Item], Generic[Item]):
    """A page that also names its first and last; null if it is empty."""

    first_id: str | None
    last_id: str | None


class ErrorView(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Envelope(BaseModel):
    """Every answer that is an error."""

    error: ErrorView


class FileView(BaseModel):
    """A file of the project."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: Annotated[int | None, Field(exclude_if=lambda value: value is None)] = None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None = None


class Deleted(BaseModel):
    """What is gone."""

    id: str
    object: str
    deleted: bool = True


class ExpiresAfter(RequestBody):
    """When a file is to go."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=SHORTEST_S, le=LONGEST_S)]


class UploadView(BaseModel):
    """A file that comes in parts."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileView | None = None


class PartView(BaseModel):
    """A part of an upload."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class NewUpload(RequestBody):
    """Body of POST /v1/uploads."""

    bytes: Annotated[int, Field(ge=1, strict=True)]
    filename: Annotated[str, Field(min_length=1, max_length=1024)]
    mime_type: Annotated[str, Field(max_length=255)]
    purpose: Annotated[str, Field(json_schema_extra={"enum": list(PURPOSES)})]
    expires_after: ExpiresAfter | None = None


class Completion(RequestBody):
    """Body of POST /v1/uploads/{id}/complete."""

    part_ids: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    md5: Annotated[str | None, Field(max_length=64)] = None
