"""Whether an answer is JSON as a schema wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.core.registry import need
from launcher.graders.grader import Grade, Grader, Setting
from launcher.graders.members import Members
from launcher.graders.sample import Sample, parse_json


class JsonSchemaGrader(Grader):
    """1 if the input is one JSON value and nothing else, and fits the schema, else 0."""

    def __init__(self, members: Members, setting: Setting) -> None:
        """Read the schema; `ConfigError` if jsonschema is not installed."""
        super().__init__(members, setting)
        self._input = members.template("input", "{{ sample.output_text }}")
        schema = members.mapping("schema")
        library: Any = need("jsonschema", "json_schema needs", where=members.where, extra="eval")
        kind = library.validators.validator_for(schema)
        try:
            kind.check_schema(schema)
        except library.SchemaError as error:
            members.complain("schema", error.message, "see json-schema.org for what it may say")
        self._validator = kind(schema)

    def score(self, item: Mapping[str, Any], sample: Sample) -> Grade:
        """1 or 0, with what does not fit."""
        try:
            value = parse_json(self._input.fill(item, sample))
        except (ValueError, RecursionError) as error:
            return Grade(0.0, metadata={"misfit": f"no JSON: {error}"})
        misfit = next(self._validator.iter_errors(value), None)
        if misfit is None:
            return Grade(1.0)
        return Grade(0.0, metadata={"misfit": f"{misfit.json_path}: {misfit.message}"[:500]})
