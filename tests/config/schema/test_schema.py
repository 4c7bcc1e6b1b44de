"""The config classes obey their rules, and the reference page tells them all."""

from __future__ import annotations

import dataclasses
import json
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from launcher.config import reference, schema
from launcher.config.schema import conversion, variants
from support.configs import config_classes

CLASSES = list(dict.fromkeys(cls for _, cls in config_classes()))
ENUMS = {
    kind
    for hint in conversion.leaves().values()
    for kind in (hint, *typing.get_args(hint))
    if isinstance(kind, type) and issubclass(kind, Enum)
}
PAGE = Path(__file__).resolve().parents[3] / "docs" / "config.md"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_config_class(cls: type) -> None:
    assert cls.__doc__
    assert "__slots__" in vars(cls)
    assert all(field.kw_only for field in dataclasses.fields(cls))
    undocumented = [f.name for f in dataclasses.fields(cls) if not reference.docstring(cls, f.name)]
    assert undocumented == []
    cls()  # every field has a default


@pytest.mark.parametrize("cls", sorted(ENUMS, key=str), ids=lambda cls: cls.__name__)
def test_enum_members_are_lowercase_names(cls: type[Enum]) -> None:
    assert all(member.name == member.value == member.name.lower() for member in cls)


def test_every_variant_extends_the_class_of_its_section_and_has_its_name() -> None:
    for section, options in variants.OPTIONS.items():
        default = getattr(schema.Config(), section)
        base = conversion.fields(schema.Config)[section]
        name_field = variants.NAME_FIELD.get(section, "name")
        assert getattr(default, name_field) in options
        for name, cls in options.items():
            assert issubclass(cls, base)
            if list(options.values()).count(cls) == 1:
                assert getattr(cls(), name_field) == name


def test_omegaconf_takes_the_classes() -> None:
    for _, cls in config_classes():
        assert OmegaConf.to_object(OmegaConf.structured(cls)) == cls()


def test_every_optimizer_says_what_it_keeps() -> None:
    kept = {name: cls.moment_bytes for name, cls in variants.OPTIONS["optim"].items()}  # type: ignore[attr-defined]
    assert kept == {"adamw": 8, "adamw8bit": 2, "muon": 4}


def test_every_type_can_be_converted_and_described() -> None:
    for key, kind in conversion.leaves().items():
        assert conversion.describe(kind), key
    config = schema.Config()
    assert conversion.build(conversion.to_dict(config)) == (config, [])


@pytest.mark.parametrize(
    ("value", "found"),
    [("auto", schema.MicroBatch.auto), (4, 4), ("4", 4), (None, None)],
    ids=str,
)
def test_a_number_a_word_or_null(value: Any, found: Any) -> None:
    config, problems = conversion.build({"batch": {"micro": value}})
    assert (config.batch.micro, problems) == (found, [])
    plain = conversion.to_dict(config)
    assert json.loads(json.dumps(plain)) == plain
    assert conversion.build(plain)[0] == config


@pytest.mark.parametrize("value", ["aut", 1.5, True, [1]], ids=str)
def test_neither_a_number_nor_the_word(value: Any) -> None:
    _, (problem,) = conversion.build({"batch": {"micro": value}})
    assert problem.where == "batch.micro"
    assert problem.found == f"expected a whole number or auto, got {value!r}"
    assert problem.hint == "write digits only, e.g. 8 or auto"


def test_docs_config_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference.render(), (
        "run python -m launcher.config.reference"
    )


def test_the_page_has_every_key_and_every_option() -> None:
    from launcher.config.compose import groups

    page = reference.render()
    by_group = {conversion.name_key(section) for section in variants.OPTIONS}
    for key in set(conversion.leaves()) - by_group:
        assert f"| `{key}` |" in page
    for group, options in groups.list_groups().items():
        for option in options:
            assert f"`{group}={option}`" in page


def test_the_check_of_the_page_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "config.md"
    assert reference.main(["--check", str(file)]) == 1
    assert reference.main([str(file)]) == 0
    assert reference.main(["--check", str(file)]) == 0
    file.write_text(file.read_text() + "x")
    assert reference.main(["--check", str(file)]) == 1


def test_every_option_file_says_what_it_is() -> None:
    from launcher.config.compose import groups
    from launcher.core import runtime

    for group, options in groups.list_groups().items():
        for option in options:
            assert reference.comment(runtime.conf_dir() / group / f"{option}.yaml"), (group, option)
