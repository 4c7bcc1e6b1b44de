"""Criteria of evals: graders, and from which score on an answer passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launcher.core.errors import did_you_mean
from launcher.graders import members
from launcher.serve.grading.workers import Grading
from launcher.serve.http.failure import ApiError

THRESHOLD = "pass_threshold"
#: Types that a threshold belongs to; of the first it is needed.
_WITH_THRESHOLD = ("text_similarity", "python", "score_model")
#: Members by which a schema may allow what `properties` do not name.
_OPEN = ("patternProperties", "allOf", "anyOf", "oneOf", "if", "$ref", "$dynamicRef")


async def require_sound(
    grading: Grading, project_id: str, criteria: Sequence[Mapping[str, Any]], source: Any
) -> None:
    """`ApiError` 400, naming the member, for criteria that cannot grade items of a
    `wire_evals.CustomSource`."""
    where = "data_source_config.item_schema"
    await grading.misfits(project_id, source.item_schema, [], where)
    names: set[str] = set()
    for number, criterion in enumerate(criteria):
        here = f"testing_criteria[{number}]"
        _require_threshold(criterion, here)
        reads = await grading.require_sound(
            project_id, grader_of(criterion), here, is_criterion=True
        )
        require_readable(reads, source.item_schema, here)
        if any(read[0] == "sample" for read in reads) and not source.include_sample_schema:
            found = f"{here} reads 'sample': set data_source_config.include_sample_schema to true."
            raise ApiError(400, found, param=here, code="invalid_grader")
        if criterion["name"] in names:
            found = f"Two criteria are called '{criterion['name']}': results name them."
            raise ApiError(400, found, param=f"{here}.name", code="invalid_grader")
        names.add(criterion["name"])


def require_readable(
    reads: Iterable[Sequence[str | int]], schema: Mapping[str, Any], where: str
) -> None:
    """`ApiError` 400 for what a template reads of items and their schema does not have."""
    properties = schema.get("properties")
    is_open = schema.get("additionalProperties") or any(name in schema for name in _OPEN)
    if not isinstance(properties, Mapping) or is_open:
        return
    for root, name, *_ in reads:
        if root == "item" and name not in properties:
            near = did_you_mean(str(name), properties)
            found = f"{where} reads item.{name}, which item_schema does not have: {near}"
            raise ApiError(400, found, param=where, code="invalid_template")


def _require_threshold(criterion: Mapping[str, Any], where: str) -> None:
    kind, threshold = criterion.get("type"), criterion.get(THRESHOLD)
    here = f"{where}.{THRESHOLD}"
    if kind not in _WITH_THRESHOLD:
        found = f"A criterion of the type '{kind}' has no threshold: it passes by itself."
        if THRESHOLD in criterion:
            raise ApiError(400, found, param=here, code="invalid_grader")
    elif threshold is None:
        if kind == _WITH_THRESHOLD[0]:
            found = f"Missing required parameter: '{here}'."
            raise ApiError(400, found, param=here, code="invalid_grader")
    elif not members.is_number(threshold):
        found = f"{here} is no number, or too large a one."
        raise ApiError(400, found, param=here, code="invalid_grader")


def grader_of(criterion: Mapping[str, Any]) -> dict[str, Any]:
    """The wire form of the grader of a criterion."""
    return {name: value for name, value in criterion.items() if name != THRESHOLD}


def threshold_of(criterion: Mapping[str, Any]) -> float:
    """The least score of an answer that passes: without one, half way up the range of scores."""
    given = criterion.get(THRESHOLD)
    if given is not None:
        return float(given)
    if criterion["type"] in ("score_model", "python"):
        low, high = criterion.get("range") or (0.0, 1.0)
        return float((low + high) / 2)
    return 1.0


def result(criterion: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What a criterion says of an answer, as clients read it, of what its grader has `found`."""
    score, said = found["score"], {}
    if found["reply"] is not None:
        said["reply"] = found["reply"]
    if found["errors"]:
        said["errors"] = [{"code": kind, "message": text} for kind, text in found["errors"]]
    passed = score is not None and score >= threshold_of(criterion)
    return {
        "name": criterion["name"],
        "type": f"{criterion['type'].replace('_', '-')}-grader",
        "score": 0.0 if score is None else score,
        "passed": passed,
        "status": "error" if score is None else "pass" if passed else "fail",
        "sample": said or None,
    }
