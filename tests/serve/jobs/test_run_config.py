"""From jobs to the configs of their runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.config import create
from launcher.config.compose import compose
from launcher.config.derive import plan
from launcher.config.schema import WandbMode
from launcher.core.errors import ConfigError
from launcher.serve import naming
from launcher.serve.db.tables import Job
from launcher.serve.jobs.methods import DPO, REINFORCEMENT, SUPERVISED
from launcher.serve.jobs.run_config import Inputs, numbers, translate
from launcher.serve.site import GraderSettings, Offer, Queue, Site, SiteJudge
from support.draws import examples

AUTO = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
OFFERS = {
    "tiny": Offer(overrides=["model=tiny", "optim.lr=5e-3"]),
    "adapted": Offer(overrides=["model=tiny", "peft=lora", "peft.rank=4", "data.max_length=64"]),
    "recipe": Offer(overrides=["experiment=quickstart", "launch.processes=1"]),
}


def job(**changes: Any) -> Job:
    made = {"id": "ftjob-a", "model": "tiny", "seed": 7, "asked": AUTO, "method": "supervised"}
    made |= changes
    return Job(**made)


def inputs(folder: Path, examples: int = 20, **changes: Any) -> Inputs:
    for name in ("training", "validation"):
        (folder / f"{name}.jsonl").touch()
    made = {"training": folder / "training.jsonl", "validation": None, **changes}
    return Inputs(runs=folder / "runs", examples=examples, **made)


@pytest.mark.parametrize(
    ("asked", "examples", "ranks", "found"),
    [
        ({}, 10, 1, (15, 1, 1.0)),
        ({}, 50, 1, (3, 1, 1.0)),
        ({}, 1000, 1, (3, 2, 1.0)),
        ({}, 1_000_000, 1, (3, 256, 1.0)),
        ({}, 10, 4, (50, 4, 1.0)),
        ({"n_epochs": 2, "batch_size": 8}, 100, 1, (2, 8, 1.0)),
        ({"batch_size": 256, "n_epochs": 1}, 12, 1, (1, 12, 1.0)),
        ({"batch_size": 7, "n_epochs": 1}, 100, 2, (1, 8, 1.0)),
        ({"learning_rate_multiplier": 0.5}, 50, 1, (3, 1, 0.5)),
    ],
)
def test_numbers(asked, examples, ranks, found):
    used = numbers(SUPERVISED, {**AUTO, **asked}, examples, ranks)
    assert (used.n_epochs, used.batch_size, used.learning_rate_multiplier) == found


@pytest.mark.parametrize(
    ("asked", "examples", "found"),
    [
        ({}, 10, (10, 1, 0.1)),
        ({}, 50, (3, 1, 0.1)),
        ({}, 1000, (1, 2, 0.1)),
        ({"beta": 1, "n_epochs": 4}, 1000, (4, 2, 1.0)),
    ],
)
def test_numbers_of_preferences(asked, examples, found):
    used = numbers(DPO, {**AUTO, "beta": "auto", **asked}, examples, 1)
    assert (used.n_epochs, used.batch_size, used.options["beta"]) == found
    assert list(used.as_dict()) == [*AUTO, "beta"]


def test_a_job_is_a_run(tmp_path):
    asked = {"n_epochs": 4, "batch_size": 6, "learning_rate_multiplier": 2.0}
    validation = tmp_path / "validation.jsonl"
    made = translate(
        Site(models=OFFERS), job(asked=asked), inputs(tmp_path, validation=validation), []
    )
    config = made.config
    assert (config.run.root, config.run.name) == (str(tmp_path / "runs"), "ftjob-a")
    assert (config.data.train, config.data.validation) == (
        str(tmp_path / "training.jsonl"),
        str(validation),
    )
    assert (config.train.epochs, config.train.steps, config.batch.sequences) == (4, None, 6)
    assert (config.optim.lr, config.seed, config.data.packing) == (1e-2, 7, False)
    assert (config.checkpoint.every_steps, config.checkpoint.keep_last) == (4, 3)
    assert (config.eval.every_steps, config.eval.metrics) == (4, ["loss", "token_accuracy"])
    assert config.track.wandb.mode is WandbMode.disabled
    assert made.plan.global_sequences == 6


def test_a_job_of_preferences_is_a_run_of_its_objective(tmp_path):
    asked = {"n_epochs": 4, "batch_size": 6, "learning_rate_multiplier": 2.0, "beta": 0.5}
    validation = tmp_path / "validation.jsonl"
    given = inputs(tmp_path, validation=validation)
    made = translate(Site(models=OFFERS), job(asked=asked, method="dpo"), given, [])
    config = made.config
    assert (config.objective.name, config.objective.beta) == ("dpo", 0.5)
    assert (config.data.format, config.train.token_accuracy) == ("preference", False)
    assert config.optim.lr == pytest.approx(5e-3 / 40 * 2)
    assert "preference_accuracy" in config.eval.metrics
    assert made.plan.global_sequences == 6
    again = compose.compose(made.words)
    assert (again.objective, again.optim.lr) == (config.objective, config.optim.lr)


REWARDED = {**AUTO, "compute_multiplier": "auto", "eval_interval": "auto", "eval_samples": "auto"}


@pytest.mark.parametrize(
    ("asked", "examples", "found"),
    [
        ({}, 10, (10, 8, 1.0, 2, 1)),
        ({}, 100, (10, 8, 1.0, 13, 1)),
        ({}, 10_000, (1, 20, 1.0, 500, 1)),
        ({"batch_size": 5, "eval_interval": 7, "eval_samples": 3}, 100, (8, 5, 1.0, 7, 3)),
        ({"compute_multiplier": 2, "n_epochs": 1}, 100, (1, 8, 2.0, 13, 1)),
    ],
)
def test_numbers_of_questions(asked, examples, found):
    used = numbers(REINFORCEMENT, {**REWARDED, **asked}, examples, 1)
    own = (used.options[name] for name in ("compute_multiplier", "eval_interval", "eval_samples"))
    assert (used.n_epochs, used.batch_size, *own) == found


JUDGED = {"type": "score_model", "name": "kind", "model": "gpt-4o", "input": []}


def rewarded(folder, site, validated=True, **asked):
    given = {"validation": folder / "validation.jsonl"} if validated else {}
    grader = {"type": "multi", "name": "m", "graders": {"a": JUDGED}, "calculate_output": "a"}
    (folder / "grader.yaml").write_text("{}")
    made = job(asked={**REWARDED, "grader": grader, **asked}, method="reinforcement")
    return translate(site, made, inputs(folder, grader=folder / "grader.yaml", **given), [])


def offered(*words, **changes):
    tiny = Offer(overrides=["model=tiny", "optim.lr=5e-3"], reinforcement=list(words))
    judges = {
        "gpt-4o": SiteJudge(url="http://localhost/v1", model="ours"),
        "other": SiteJudge(url="http://x"),
    }
    return Site(models={"tiny": tiny}, judges=judges, **changes)


def test_a_job_of_questions_is_a_run_of_its_objective(tmp_path):
    site = offered("objective.max_new_tokens=32", "objective.temperature=0.7")
    numbers = {"n_epochs": 4, "batch_size": 6, "learning_rate_multiplier": 2.0}
    numbers |= {"compute_multiplier": 1.5, "eval_interval": 5, "eval_samples": 3}
    made = rewarded(tmp_path, site, **numbers)
    config = made.config
    assert (config.objective.name, config.data.format) == ("grpo", "question")
    assert config.objective.grader == str(tmp_path / "grader.yaml")
    assert (config.objective.group_size, config.batch.sequences) == (12, 72)
    assert config.optim.lr == pytest.approx(5e-3 / 10 * 2)
    assert (config.checkpoint.every_steps, config.eval.every_steps) == (5, 5)
    assert config.eval.metrics == [f"grader:{tmp_path / 'grader.yaml'}"]
    assert (config.eval.draws, config.eval.temperature, config.eval.max_new_tokens) == (3, 0.7, 32)
    assert config.eval.generate_limit is None
    # The list of the site has more, and this grader's is all that the run is told of.
    assert list(config.eval.endpoints) == ["gpt-4o"]
    assert config.eval.endpoints["gpt-4o"]["model"] == "ours"
    assert made.numbers.as_dict() == numbers
    again = compose.compose(made.words)
    assert (again.batch, again.optim.lr) == (config.batch, config.optim.lr)


def test_code_of_clients_runs_within_what_the_site_says(tmp_path):
    limits = rewarded(tmp_path, offered(), validated=False).config.eval.graders
    assert limits.sandbox.name == "strict"
    site = offered(graders=GraderSettings(sandbox="auto", timeout_s=3.0, memory_mb=256))
    limits = rewarded(tmp_path, site, validated=False).config.eval.graders
    assert (limits.sandbox.name, limits.timeout_s, limits.memory_mb) == ("auto", 3.0, 256)
    site.overrides = ["eval.graders.timeout_s=20"]
    assert rewarded(tmp_path, site, validated=False).config.eval.graders.timeout_s == 20


def test_without_held_out_questions_nothing_is_drawn_for_them(tmp_path):
    config = rewarded(tmp_path, offered(), validated=False).config
    assert (config.eval.name, config.eval.draws, config.eval.every_steps) == ("none", None, None)


def test_an_effort_is_a_variable_of_the_template(tmp_path):
    config = rewarded(tmp_path, offered(), reasoning_effort="low").config
    assert config.data.template_options == {"reasoning_effort": "low"}
    assert (
        rewarded(tmp_path, offered(), reasoning_effort="default").config.data.template_options == {}
    )


def test_a_judge_that_the_site_has_taken_back_is_told(tmp_path):
    site = offered()
    del site.judges["gpt-4o"]
    with pytest.raises(ConfigError, match="the model gpt-4o, which the grader asks, is no judge"):
        rewarded(tmp_path, site)


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=quickstart", "launch.processes=1"],
        ["model=tiny", "objective=sft", "data=prompt"],
        ["model=tiny", "objective=text", "data=text"],
        ["model=tiny", "train.token_accuracy=true"],
    ],
)
def test_an_offer_for_conversations_is_one_for_preferences_too(tmp_path, words):
    site = Site(models={"tiny": Offer(overrides=words)})
    asked = job(asked={**AUTO, "beta": "auto"}, method="dpo")
    config = translate(site, asked, inputs(tmp_path), []).config
    assert (config.objective.name, config.objective.beta) == ("dpo", 0.1)
    assert (config.data.format, config.data.overlong.name) == ("preference", "truncate")


def test_an_offer_says_the_rest_of_an_objective(tmp_path):
    words = ["model=tiny", "objective.loss=ipo", "objective.beta=0.3"]
    site = Site(models={"tiny": Offer(overrides=words)})
    asked = job(asked={**AUTO, "beta": "auto"}, method="dpo")
    made = translate(site, asked, inputs(tmp_path), [])
    assert made.config.objective.loss.name == "ipo"
    # What a client is told of is what is used.
    assert made.config.objective.beta == made.numbers.options["beta"] == 0.1


def test_what_a_site_makes_of_keys_of_a_job_is_made_of_the_jobs(tmp_path):
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "ours.yaml").write_text("name: cosine\nwarmup: ${train.epochs}\n")
    words = ["model=tiny", "optim.lr=5e-3", "schedule=ours", "launch=slurm"]
    words += ["optim.weight_decay=${optim.lr}", "'cluster.sbatch=[--comment=${run.name}]'"[1:-1]]
    site = Site(
        models={"tiny": Offer(overrides=[*words, "checkpoint.keep_best=${batch.sequences}"])}
    )
    asked = {"n_epochs": 4, "batch_size": 6, "learning_rate_multiplier": 2.0}
    validation = tmp_path / "validation.jsonl"
    made = translate(site, job(asked=asked), inputs(tmp_path, validation=validation), [tmp_path])
    config = made.config
    assert (config.optim.lr, config.optim.weight_decay) == (1e-2, 1e-2)
    assert (config.schedule.warmup, config.checkpoint.keep_best) == (4, 6)
    assert config.cluster.sbatch == ["--comment=ftjob-a"]
    assert (config.run.name, config.data.train) == ("ftjob-a", str(tmp_path / "training.jsonl"))


def test_a_job_is_composed_once_and_its_words_say_what_it_runs_with(tmp_path, monkeypatch):
    composed, real = [], compose.try_compose
    monkeypatch.setattr(compose, "try_compose", lambda *a: composed.append(a) or real(*a))
    validation = tmp_path / "validation.jsonl"
    made = translate(
        Site(models=OFFERS), job(model="recipe"), inputs(tmp_path, validation=validation), []
    )
    assert len(composed) == 1
    again = compose.compose(made.words)
    again.run, again.data = made.config.run, made.config.data
    assert again == made.config


def test_what_the_site_has_wrong_is_told(tmp_path):
    site = Site(models={"tiny": Offer(overrides=["model=tiny", "optm.lr=1"])})
    with pytest.raises(ConfigError, match="optim.lr"):
        translate(site, job(), inputs(tmp_path), [])


def test_without_validation_nothing_is_held_out(tmp_path):
    config = translate(Site(models=OFFERS), job(), inputs(tmp_path), []).config
    assert (config.eval.name, config.eval.metrics, config.data.validation_share) == ("none", [], 0)


def test_adapters_are_folded_in_at_the_end(tmp_path):
    config = translate(Site(models=OFFERS), job(model="adapted"), inputs(tmp_path), []).config
    assert (config.peft.name, config.export.merge) == ("lora", True)


def test_an_offer_may_be_an_experiment(tmp_path):
    made = translate(Site(models=OFFERS), job(model="recipe"), inputs(tmp_path), [])
    assert made.config.train.steps is None
    assert made.config.eval.every_steps is None
    assert made.config.data.train == str(tmp_path / "training.jsonl")


def test_a_job_ends_with_its_last_step_unless_the_site_asks_for_less(tmp_path):
    lora = ["experiment=lora", "model=tiny", "launch.processes=1"]
    site = Site(
        models={
            "recipe": Offer(overrides=lora),
            "early": Offer(overrides=[*lora, "train.early_stop.patience=2"]),
            "best": Offer(overrides=[*lora, "export.weights=best"]),
        }
    )

    def made(name: str, validation: Path | None) -> tuple[int | None, bool]:
        given = inputs(tmp_path, validation=validation)
        config = translate(site, job(model=name), given, []).config
        return config.train.early_stop.patience, plan.exports_best(config)

    held_out = tmp_path / "validation.jsonl"
    assert made("recipe", held_out) == (None, False)
    assert made("early", held_out) == (2, True)
    assert made("best", held_out) == (3, True)
    # Without held-out records nothing could be chosen by.
    assert {made(name, None) for name in site.models} == {(None, False)}


@pytest.mark.parametrize("offer", ["tiny", "recipe"])
def test_a_fine_tuned_model_goes_on_from_its_export(tmp_path, offer):
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text(json.dumps({"model_type": "llama"}))
    model = f"ft:{offer}:local::abcdefgh"
    made = translate(Site(models=OFFERS), job(model=model), inputs(tmp_path, base=export), [])
    assert (made.config.model.kind, made.config.model.name) == ("hf", str(export))
    assert naming.final_name(job(model=model), "local").startswith(f"ft:{offer}:local::")
    with pytest.raises(ConfigError, match="cannot be trained further"):
        translate(Site(models=OFFERS), job(model=model), inputs(tmp_path, base=tmp_path), [])


@pytest.mark.parametrize(("offer", "further"), [("adapted", "peft"), ("tiny", "model")])
def test_a_fine_tuned_model_that_is_an_adapter_goes_on_too(tmp_path, offer, further):
    export = tmp_path / "export"
    export.mkdir()
    about = {"peft_type": "LORA", "r": 5, "target_modules": ["q_proj"]}
    about["base_model_name_or_path"] = "org/base"
    (export / "adapter_config.json").write_text(json.dumps(about))
    model = f"ft:{offer}:local::abcdefgh"
    made = translate(Site(models=OFFERS), job(model=model), inputs(tmp_path, base=export), [])
    config = made.config
    assert (config.model.kind, config.model.name) == ("hf", "org/base")
    assert getattr(config, further).adapter == str(export)
    if further == "peft":
        assert (config.peft.rank, config.peft.targets) == (5, ["q_proj"])
    (export / "adapter_config.json").write_text(json.dumps({**about, "peft_type": "LOHA"}))
    with pytest.raises(ConfigError, match="LOHA"):
        translate(Site(models=OFFERS), job(model=model), inputs(tmp_path, base=export), [])


def test_a_model_that_is_no_longer_offered(tmp_path):
    with pytest.raises(ConfigError, match="no longer offered"):
        translate(Site(models=OFFERS), job(model="gone"), inputs(tmp_path), [])


def test_gpus_are_shared(tmp_path, monkeypatch):
    monkeypatch.setattr("launcher.core.runtime.gpu_count", lambda: 4)
    site = Site(models=OFFERS, queue=Queue(parallel=2))
    made = translate(site, job(), inputs(tmp_path), [])
    assert (made.plan.world_size, made.config.batch.sequences) == (2, 2)


texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40
)
nasty = texts | st.sampled_from(
    [
        "${oc.env:HOME}",
        "a,b",
        "x] optim.lr=9",
        "'",
        '"',
        "\\",
        "null",
        "{a: 1}",
        "\n- b",
        "~",
        "../..",
    ]
)


@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(project=nasty, name=nasty, entity=nasty, tags=st.lists(nasty, max_size=3), suffix=nasty)
def test_what_clients_write_is_only_data(tmp_path, project, name, entity, tags, suffix):
    given_inputs = inputs(tmp_path)
    plain = translate(Site(models=OFFERS), job(), given_inputs, [])
    wandb = {"project": project, "name": name, "entity": entity, "tags": tags}
    asked = job(
        integrations=[{"type": "wandb", "wandb": wandb}], suffix=suffix, labels={suffix[:64]: name}
    )
    made = translate(Site(models=OFFERS), asked, given_inputs, [])
    assert made.words == plain.words
    # As the run reads it.
    path = tmp_path / "config.yaml"
    compose.save(made.config, path)
    config = compose.load(path)
    assert (config.track.wandb.project, config.track.wandb.name) == (project, name)
    assert (config.track.wandb.entity, config.run.tags) == (entity, tags)
    config.track, config.run = plain.config.track, plain.config.run
    assert compose.to_dict(config) == compose.to_dict(plain.config)
    assert set(naming.final_name(asked, "local")) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:._-"
    )


def test_a_home_with_an_odd_name(weird_tmp_path):
    made = translate(Site(models=OFFERS), job(), inputs(weird_tmp_path), [])
    run = create.make(create.named(made.config, made.words), made.config, made.plan, made.words)
    assert run.path == (weird_tmp_path / "runs" / "ftjob-a").resolve()
    assert compose.load(run.config).data.train == str(weird_tmp_path / "training.jsonl")


def test_names():
    named = job(suffix="My bot: v1/2")
    assert naming.final_name(named, "acme corp").startswith("ft:tiny:acme-corp:My-bot-v1-2:")
    assert naming.final_name(named, "a") == naming.final_name(named, "a")
    assert naming.checkpoint_name(named, "a", 20).endswith(":ckpt-step-20")
    assert naming.checkpoint_name(named, "a", 20) != naming.checkpoint_name(named, "a", 40)
    assert naming.checkpoint_id(named, 20).startswith("ftckpt_")
