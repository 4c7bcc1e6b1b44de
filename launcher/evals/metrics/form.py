"""Form of generated answers: JSON, a schema, a pattern, a length. References are not looked at."""

from __future__ import annotations

import json
import re
from typing import Any

from launcher.config.schema import EvalConfig
from launcher.core import runtime
from launcher.core.errors import ConfigError
from launcher.evals.metric import Mean
from launcher.evals.metrics.libraries import need


class JsonValid(Mean):
    """Share of answers that are one JSON value and nothing else."""

    name = "json_valid"
    binary = True

    def of(self, answer: str, reference: str) -> float | None:
        """1 if the answer is JSON."""
        return float(parse(answer) is not None)


class JsonSchema(Mean):
    """Share of answers that are JSON as `eval.json_schema` wants it."""

    name = "json_schema"
    binary = True

    def __init__(self, config: EvalConfig) -> None:
        """Raises `ConfigError` if the schema is not there or none, or jsonschema not installed."""
        super().__init__(config)
        library: Any = need("jsonschema", self.name)
        where, path = "eval.json_schema", config.json_schema or ""
        try:
            schema = json.loads(runtime.user_path(path).read_text(encoding="utf-8"))
            kind = library.validators.validator_for(schema)
            kind.check_schema(schema)
        except (OSError, ValueError) as error:
            hint = "give a JSON file that can be read"
            raise ConfigError(f"{path}: {error}", where=where, hint=hint) from error
        except library.SchemaError as error:
            hint = "see json-schema.org for what a schema may say"
            raise ConfigError(f"{path}: {error.message}", where=where, hint=hint) from error
        self._validator = kind(schema)

    def of(self, answer: str, reference: str) -> float | None:
        """1 if the answer fits the schema."""
        found = parse(answer)
        return float(found is not None and self._validator.is_valid(found[0]))


class Pattern(Mean):
    """Share of answers in which `eval.convention` is found."""

    name = "convention"
    binary = True

    def __init__(self, config: EvalConfig) -> None:
        """Compile the pattern."""
        super().__init__(config)
        self._pattern = re.compile(config.convention or "")

    def of(self, answer: str, reference: str) -> float | None:
        """1 if the pattern is found."""
        return float(self._pattern.search(answer) is not None)


class Length(Mean):
    """Share of answers with as many words as `eval.answer_words` allows."""

    name = "length"
    binary = True

    def __init__(self, config: EvalConfig) -> None:
        """Take the limits."""
        super().__init__(config)
        self._least, self._most = config.answer_words or (0, 0)

    def of(self, answer: str, reference: str) -> float | None:
        """1 if the number of words is within the limits."""
        return float(self._least <= len(answer.split()) <= self._most)


def parse(text: str) -> tuple[Any] | None:
    """The JSON value of a text, in a tuple since it may be null; None if the text is no JSON."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        return (json.loads(text, parse_constant=refuse),)
    except (ValueError, RecursionError):
        return None
