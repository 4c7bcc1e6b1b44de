"""Raw records as their format reads them."""

from typing import Any

from launcher.data.formats import BadRecord, Reader


def read(name: str, record: dict[str, Any], **options: Any) -> Any:
    """The example of a record, or why there is none."""
    result = Reader(name, options.get("columns", {}), options.get("labels", ())).read(record)
    return result if isinstance(result, BadRecord) else result[0]
