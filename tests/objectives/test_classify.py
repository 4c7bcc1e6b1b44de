"""A classifier: packed texts get what each gets alone, its losses are torch's, new heads are
alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from launcher.core.errors import ConfigError
from launcher.core.files import write_json
from launcher.core.rundir import RunDir
from launcher.data.pack.loader import Row, make_row
from launcher.inference.generate import _outputs
from launcher.model.attention import IMPLEMENTATIONS, register
from launcher.model.classifier import open_classifier
from launcher.objectives.base import of_run
from launcher.objectives.classify.classes import Classes
from launcher.objectives.classify.labels import number
from support import caches
from support.classifiers import classes_of, classify
from support.configs import make_config
from support.models import make_encoder, make_llama

CLASSES = classes_of(["a", "b", "c"], out_of_scope="oos")
HEAD = CLASSES.head(0)
LABELS = [["a"], ["c"], ["oos"], ["b"]]
LENGTHS = [3, 9, 5, 1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    register()
    root = tmp_path_factory.mktemp("models")
    return {"decoder": make_llama(root / "llama"), "encoder": make_encoder(root / "bert")}


def row_of(folder: Path, classes: Classes, labels: list[list[str]]) -> Row:
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(7, 200, (n,), generator=generator).tolist() for n in LENGTHS]
    records = [(own, [0] * (len(own) - 1) + [1]) for own in tokens]
    cache = caches.write(folder, records, labels=labels)
    number(cache, classes)
    return make_row(cache, range(len(records)))


def scored(objective, head, model, row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and probabilities of each text."""
    outputs = head.outputs(model, row).detach()
    several = objective.classes.multi_label
    losses = objective._losses(outputs, row.columns["label"], None)
    return losses, outputs.sigmoid() if several else outputs.softmax(-1)


def alone(model: torch.nn.Module, row: Row) -> torch.Tensor:
    """Logits of every text by itself, through the model's own forward."""
    starts = row.document_starts.tolist()
    with torch.no_grad():
        return torch.cat(
            [
                model(input_ids=row.input_ids[a:b].unsqueeze(0)).logits
                for a, b in zip(starts[:-1], starts[1:], strict=True)
            ]
        )


@pytest.mark.parametrize(
    ("kind", "attention"),
    [("decoder", "document"), ("decoder", "sdpa"), ("encoder", "sdpa"), ("encoder", "eager")],
)
def test_texts_of_a_row_get_what_each_gets_alone(folders, tmp_path, kind, attention) -> None:
    options = {"attn_implementation": IMPLEMENTATIONS[attention]}
    model, fresh = open_classifier(folders[kind], HEAD, **options)
    assert fresh == (("score",) if kind == "decoder" else ("bert.pooler.dense", "classifier"))
    row = row_of(tmp_path, CLASSES, LABELS)
    expected = alone(model.eval(), row)
    objective = classify(CLASSES)
    head = objective.head(model)
    assert head.isolates is (attention == "document")
    losses, chances = scored(objective, head, model, row)
    torch.testing.assert_close(chances, expected.softmax(-1), atol=1e-6, rtol=1e-4)
    truth = torch.tensor([0, 2, -1, 1])
    plain = torch.nn.functional.cross_entropy(expected, truth, ignore_index=-1, reduction="none")
    torch.testing.assert_close(losses, plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        objective.loss(head, model, row).total.detach(), plain.sum(), atol=1e-5, rtol=1e-4
    )
    # What others call remains the model's own.
    torch.testing.assert_close(alone(model, row), expected)


def test_several_classes_have_losses_of_their_own(folders, tmp_path) -> None:
    classes = replace(CLASSES, multi_label=True, out_of_scope=None, weights=[1.0, 2.0, 5.0])
    model, _ = open_classifier(
        folders["decoder"], classes.head(0), attn_implementation=IMPLEMENTATIONS["document"]
    )
    row = row_of(tmp_path, classes, [["a", "c"], [], ["b"], ["a"]])
    expected = alone(model.eval(), row)
    objective = classify(classes)
    head = objective.head(model)
    flags = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]])
    for weights, found in (
        (None, scored(objective, head, model, row)[0].sum()),
        (classes.weights, objective.loss(head, model, row).total),
    ):
        criterion = torch.nn.BCEWithLogitsLoss(
            pos_weight=None if weights is None else torch.tensor(weights)
        )
        torch.testing.assert_close(
            found.detach(), criterion(expected, flags) * len(flags), atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(
        scored(objective, head, model, row)[1], expected.sigmoid(), atol=1e-6, rtol=1e-4
    )


def test_a_fresh_head_depends_on_the_seed_alone(folders) -> None:
    torch.manual_seed(1)
    one, _ = open_classifier(folders["encoder"], HEAD)
    torch.manual_seed(2)
    same, _ = open_classifier(folders["encoder"], HEAD)
    other, _ = open_classifier(folders["encoder"], replace(HEAD, seed=1))
    for name in ("classifier.weight", "bert.pooler.dense.weight"):
        weights = [model.get_parameter(name) for model in (one, same, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert 0.01 < float(weights[0].detach().std()) < 0.03
    assert not one.get_parameter("classifier.bias").any()


def test_a_head_of_the_model_is_kept_for_the_same_classes(folders, tmp_path) -> None:
    first, _ = open_classifier(folders["encoder"], HEAD)
    first.save_pretrained(tmp_path)
    again, fresh = open_classifier(tmp_path, replace(HEAD, seed=5))
    assert fresh == ()
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    two = replace(HEAD, names=("x", "y"))
    other, fresh = open_classifier(tmp_path, two)
    assert (fresh, other.config.num_labels) == (("classifier",), 2)
    assert other.config.id2label == {0: "x", 1: "y"}


def test_a_new_head_is_begun_for_as_many_classes_too(folders, tmp_path) -> None:
    for kind, name in (("encoder", "classifier"), ("decoder", "score")):
        first, _ = open_classifier(folders[kind], HEAD)
        first.save_pretrained(tmp_path / kind)
        again, fresh = open_classifier(tmp_path / kind, replace(HEAD, seed=5, is_new=True))
        assert fresh == (name,)
        old, new = (model.get_parameter(f"{name}.weight") for model in (first, again))
        assert not torch.equal(old, new)
        body = [next(model.base_model.parameters()) for model in (first, again)]
        assert torch.equal(*body)


@pytest.mark.parametrize("attention", ["document", "sdpa"])
def test_a_text_that_ends_with_the_padding_token_is_read_before_it(
    folders, tmp_path, attention
) -> None:
    """As transformers reads it: some tokenizer appends the token that also fills up batches."""
    options = {"attn_implementation": IMPLEMENTATIONS[attention]}
    model, _ = open_classifier(folders["decoder"], CLASSES.head(2), **options)
    tokens = [[9, 17, 2], [2, 30, 2, 41, 2, 2], [2, 2], [50]]
    records = [(own, [0] * (len(own) - 1) + [1]) for own in tokens]
    cache = caches.write(tmp_path, records, labels=LABELS)
    number(cache, CLASSES)
    row = make_row(cache, range(len(records)))
    expected = alone(model.eval(), row)
    objective = classify(CLASSES)
    _, chances = scored(objective, objective.head(model), model, row)
    torch.testing.assert_close(chances, expected.softmax(-1), atol=1e-6, rtol=1e-4)


def test_an_encoder_does_without_attention_for_packed_rows(folders, tmp_path) -> None:
    options = {"attn_implementation": IMPLEMENTATIONS["document"]}
    model, _ = open_classifier(folders["encoder"], HEAD, **options)
    objective = classify(CLASSES)
    head = objective.head(model.eval())
    assert (head.isolates, model.config._attn_implementation) == (False, "sdpa")
    row = row_of(tmp_path, CLASSES, LABELS)
    expected = alone(model, row)
    torch.testing.assert_close(scored(objective, head, model, row)[1], expected.softmax(-1))


def test_a_text_is_named_as_the_threshold_of_its_run_says(folders, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["decoder"])
    texts = ["Nine apples are left. " * 9, "a"]
    run = RunDir(tmp_path / "run")

    def named(classes: Classes, bias: float) -> list[tuple[str, str]]:
        torch.manual_seed(0)
        model = open_classifier(folders["decoder"], classes.head(0))[0].eval()
        line = classify(classes).output_line(run)
        found = []
        config = make_config(data={"max_length": 8})
        documents = [classify(classes).tokens_of(tokenizer, config, text) for text in texts]
        for text, outputs in zip(texts, _outputs(model, documents), strict=True):
            with torch.no_grad():
                tokens = torch.tensor([tokenizer(text)["input_ids"][:8]])
                torch.testing.assert_close(outputs, model(input_ids=tokens).logits[0])
            outputs = outputs + bias
            chances = outputs.sigmoid() if classes.multi_label else outputs.softmax(-1)
            label, said = line(outputs).split("\t")
            assert float(said) == pytest.approx(float(chances.max()), abs=1e-3)
            found.append((label, classes.names[int(chances.argmax())]))
        return found

    write_json(run.eval / "tuned.json", {"threshold": 0.1})
    assert all(label == right for label, right in named(CLASSES, 0.0))
    write_json(run.eval / "tuned.json", {"threshold": 1.0})
    assert [label for label, _ in named(CLASSES, 0.0)] == ["oos", "oos"]
    several = classes_of(["a", "b"], multi_label=True)
    assert [label for label, _ in named(several, 50.0)] == ["a, b", "a, b"]
    assert [label for label, _ in named(several, -50.0)] == ["(none)", "(none)"]


def test_a_run_that_does_not_say_its_outputs_is_no_language_model(tmp_path) -> None:
    run = RunDir(tmp_path)
    config = make_config(objective={"name": "classify"})
    with pytest.raises(ConfigError, match=r"objective\.json is missing(?s:.)*HINT"):
        of_run(run, config)
    classify(CLASSES).save(run)
    found = of_run(run, config)
    assert (found.state, found.spec) == (CLASSES.as_dict(), HEAD)


@pytest.mark.parametrize(
    ("classes", "outputs", "line"),
    [
        (CLASSES, [2.0, 0.0, 0.0], "a\t0.787"),
        (CLASSES, [0.5, 0.0, 0.0], "oos\t0.452"),
        (classes_of(["a", "b", "c"], multi_label=True), [2.0, -2.0, 1.0], "a, c\t0.881"),
        (classes_of(["a", "b", "c"], multi_label=True), [-2.0, -2.0, -1.0], "(none)\t0.269"),
    ],
)
def test_what_is_said_of_a_text_follows_from_its_outputs(classes, outputs, line, tmp_path) -> None:
    run, told = RunDir(tmp_path), []
    write_json(run.eval / "tuned.json", {"threshold": 0.6})
    says = classify(classes).output_line(run, warn=told.append)
    assert says(torch.tensor(outputs)) == line
    assert told == []
    classify(classes).output_line(run, base=True, warn=told.append)
    assert ["base.json has no threshold" in text for text in told] == [True] * (classes is CLASSES)
