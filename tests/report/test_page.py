"""report.html: complete, self-contained, and made of whatever the run folder holds."""

import json
import subprocess
import sys

import pytest
import yaml

from launcher.core.rundir import RunDir, State
from launcher.report import build
from launcher.report.collect import collect, series
from launcher.report.view import duration, view
from support.html import Page

SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}"


def page_of(run: RunDir) -> Page:
    assert build(run) == run.report
    return Page(run.report.read_text())


def test_a_finished_run_has_every_section_once(finished_run):
    page = page_of(finished_run)
    sections = {"comparison", "curves", "answers", "plan", "data", "overrides", "config"}
    charts = {"chart-loss", "chart-lr", "chart-throughput", "chart-memory", "chart-grad-norm"}
    assert {*sections, *charts, "environment", "state", "verdict"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "better than the base: exact_match went from 3.5 % to 71.5 %" in page.text
    assert "step 300 of 300" in page.text
    assert "0.958 GiB" in page.text
    assert "7,473" in page.text
    assert "optim.lr" in page.text
    assert "node-7" in page.text


def test_experts_are_drawn_where_there_are_some(finished_run):
    assert "experts" not in page_of(finished_run).ids
    load = {"layers.0.mlp.gate": [0.75, 0.25, 0.0], "layers.1.mlp.gate": [0.5, 0.25, 0.25]}
    finished_run.experts.write_text(json.dumps({"step": 300, "load": load, "use": [0.6, 0.9]}))
    lines = [{"kind": "train", "step": s, "expert_use": 0.6 - s / 1000} for s in (1, 2, 3)]
    with finished_run.metrics.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    page = page_of(finished_run)
    assert {"experts", "chart-experts"} <= set(page.ids)
    cells = [a for tag, a in page.tags if tag == "rect" and "fill-opacity" in a]
    assert [cell["fill-opacity"] for cell in cells[:3]] == ["1.0", "0.333", "0.0"]
    assert "layers.0.mlp.gate, expert 0: 75.00% of the choices" in page.text
    assert "The darker, the more tokens of step 300".lower() in page.text.lower()


def test_links_lead_to_sections_and_nothing_is_fetched(finished_run):
    page = page_of(finished_run)
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "data"):
            target = attributes.get(name, "#")
            assert target.startswith(("#", "data:,")), (tag, target)
            if target.startswith("#") and target != "#":
                assert target[1:] in page.ids
    assert "url(" not in finished_run.report.read_text()
    assert "@import" not in finished_run.report.read_text()


def test_the_first_samples_follow_the_config_and_what_changed_comes_after_them(finished_run):
    page = page_of(finished_run)
    samples = [a for tag, a in page.tags if tag == "article"]
    lines = [line["change"] for line in map(json.loads, predictions_of(finished_run))]
    rest = [kind for wanted in ("better", "worse") for kind in lines[12:] if kind == wanted]
    assert [sample["data-kind"] for sample in samples] == lines[:12] + rest
    assert "The first 12 of 40 held-out prompts" in page.text
    assert "after them others that got better or worse" in page.text


def predictions_of(run: RunDir) -> list[str]:
    return (run.eval / "predictions.jsonl").read_text().splitlines()


def test_words_that_one_answer_lacks_are_marked(finished_run):
    line = {"prompt": "How many?", "reference": "7", "change": "better"}
    answers = {"base": "There are 6 cars & 1 bus.", "tuned": "There are 7 cars & 1 bus."}
    (finished_run.eval / "predictions.jsonl").write_text(json.dumps({**line, **answers}) + "\n")
    page_of(finished_run)
    html = finished_run.report.read_text()
    assert "There are <mark>6</mark> cars &amp; 1 bus." in html
    assert "There are <mark>7</mark> cars &amp; 1 bus." in html


def test_slices_of_a_kind_share_a_scale_and_small_ones_are_named(finished_run):
    path = finished_run.eval / "comparison.json"
    comparison = json.loads(path.read_text())
    match = comparison["metrics"]["exact_match"]
    tenth = {**match, "difference": 0.068, "interval": [0.061, 0.075], "needed": 1234}
    parts = [("a.jsonl", 200, {"exact_match": match}), ("b.jsonl", 90, {"exact_match": tenth})]
    parts.append(("c.jsonl", 7, {}))
    comparison["slices"] = [
        {"by": "source", "value": value, "records": records, "metrics": metrics}
        for value, records, metrics in parts
    ]
    path.write_text(json.dumps(comparison))
    page = page_of(finished_run)
    assert "By source: exact_match" in page.text
    assert "about 1,300 would decide" in page.text
    assert "Too few records to judge: c.jsonl (7)." in page.text
    first, second = view(collect(finished_run))["slices"][0]["rows"]
    assert first["plot"]["at"] - 500 == pytest.approx(10 * (second["plot"]["at"] - 500), abs=1)


def test_what_was_forgotten_is_flagged_below_the_verdict(finished_run):
    path = finished_run.eval / "comparison.json"
    comparison = json.loads(path.read_text())
    loss = comparison["metrics"]["loss"]
    forgot = {**loss, "base": 1.5, "tuned": 2.5, "verdict": "worse", "interval": [0.8, 1.2]}
    comparison["further"] = {"general": {"metrics": {"loss": forgot}, "confidence": 0.95}}
    gap = {"base": 0.0, "tuned": 0.4, "difference": 0.4, "interval": [0.3, 0.5], "records": 200}
    comparison["gap"] = {**gap, "verdict": "worse", "train": [3.2, 0.6]}
    path.write_text(json.dumps(comparison))
    page = page_of(finished_run)
    assert "beyond" in page.ids
    assert "forgetting: general loss 1.500 -> 2.500, worse" in page.text
    assert "Held-out loss minus loss on training records" in page.text
    row = view(collect(finished_run))["beyond"]["sets"][1][1][0]
    assert row["plot"]["at"] < 500


def test_a_page_does_not_say_where_models_that_grade_are(finished_run):
    where = {
        "url": "http://judge-7.example/v1",
        "key_variable": "A_KEY",
        "extra": {"from": "our-site"},
    }
    config = yaml.safe_load(finished_run.config.read_text())
    config["eval"] |= {"judge": where, "endpoints": {"ours": {**where, "model": "qwen"}}}
    finished_run.config.write_text(yaml.safe_dump(config))
    words = [f"eval.judge.{name}=judge-7.example" for name in where]
    words += ["+eval.endpoints={ours: {url: judge-7.example}}", "eval.judge={url: judge-7.example}"]
    shown = ["eval=default", "eval.judge.model=qwen"]
    finished_run.overrides.write_text(yaml.safe_dump(words + shown))
    text = page_of(finished_run).text
    assert not [word for word in ("judge-7.example", "A_KEY", "our-site") if word in text]
    assert all(word in text for word in shown)


def test_hostile_text_stays_text(finished_run):
    line = dict.fromkeys(("where", "prompt", "reference", "base", "tuned"), SCRIPT)
    (finished_run.eval / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    finished_run.environment.write_text(json.dumps({SCRIPT: SCRIPT, "host": SCRIPT}))
    finished_run.overrides.write_text(json.dumps([SCRIPT]))
    finished_run.config.write_text(json.dumps({SCRIPT: {SCRIPT: SCRIPT}}))
    finished_run.set_status(State.failed, reason=SCRIPT)
    comparison = json.loads((finished_run.eval / "comparison.json").read_text())
    comparison["metrics"] = {SCRIPT: {**comparison["metrics"]["loss"], "verdict": SCRIPT}}
    (finished_run.eval / "comparison.json").write_text(json.dumps(comparison))
    page = page_of(finished_run)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in [tag for tag, _ in page.tags]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("alert(2)") >= 10
    assert page.text.count("{{ 7 * 7 }}") >= 10


def test_a_run_that_failed_at_once_has_a_page_with_the_reason(tmp_path):
    run = RunDir(tmp_path / "broken")
    run.path.mkdir()
    run.log(1, 0).parent.mkdir(parents=True)
    run.log(1, 0).write_text("traceback\n")
    run.set_status(State.failed, reason="data.train: no such file\n  HINT: mend it", exit_code=3)
    page = page_of(run)
    assert "data.train: no such file" in page.text
    assert str(run.log(1, 0)) in page.text
    assert "Not compared with the base model yet" in page.text
    assert not {"comparison", "curves", "answers", "plan", "data", "config"} & set(page.ids)


def test_an_empty_folder_has_a_page(tmp_path):
    assert "preparing" in page_of(RunDir(tmp_path)).text


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '"text"', "null", "\x00\xff", "- a\n- b"])
def test_damaged_files_count_as_missing(finished_run, content):
    for path in finished_run.path.rglob("*"):
        if path.is_file():
            path.write_text(content)
    page_of(finished_run)


def test_a_running_run_shows_what_is_there_and_torn_lines_are_left_out(finished_run):
    lines = finished_run.metrics.read_text().splitlines()[:20]
    finished_run.metrics.write_text("\n".join(lines) + '\n{"step": 21, "lo')
    for path in finished_run.eval.iterdir():
        path.unlink()
    finished_run.set_status(State.running, step=20)
    page = page_of(finished_run)
    assert "step 20 of 300" in page.text
    assert "curves" in page.ids
    assert "comparison" not in page.ids


def test_steps_done_again_count_once_and_nan_is_a_gap(finished_run):
    lines = [(1, 3.0), (2, "nan"), (3, 2.0), (3, 1.5), (4, None), (5, True)]
    finished_run.metrics.write_text(
        "".join(json.dumps({"step": s, "kind": "train", "loss": v}) + "\n" for s, v in lines)
    )
    assert series(collect(finished_run).train, "loss") == [(1.0, 3.0), (3.0, 1.5)]


def marks_of(run: RunDir) -> list[str]:
    loss = next(chart for chart in view(collect(run))["charts"] if chart.name == "loss")
    return [label for label, kind, _ in loss.legend if kind == "mark"]


def test_the_best_evaluation_is_marked_and_where_the_run_was_stopped(finished_run):
    scores = ((100, 2.0), (200, 1.5), (300, 1.6))
    lines = [{"step": s, "kind": "eval", "eval/loss": v} for s, v in scores]
    finished_run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert marks_of(finished_run) == ["best held-out, step 200"]
    found = {"metric": "loss", "weights": "best", "step": 200, "stopped": 300, "result": 200}
    finished_run.best.write_text(json.dumps(found))
    finished_run.set_status(State.succeeded, reason="stopped early at step 300: no progress")
    assert marks_of(finished_run) == ["best held-out, step 200", "stopped early, step 300"]
    page = page_of(finished_run)
    assert page.text.count("stopped early at step 300: no progress") == 1
    assert "reason" not in page.ids  # the box for what went wrong
    # By another metric, at the loss of its step.
    found = {"metric": "token_accuracy", "weights": "last", "step": 300, "stopped": None}
    finished_run.best.write_text(json.dumps(found))
    assert marks_of(finished_run) == ["best eval.token_accuracy, step 300"]


def test_tuned_scores_alone_are_shown_without_a_base(finished_run):
    (finished_run.eval / "comparison.json").unlink()
    (finished_run.eval / "base.json").unlink()
    tiles = view(collect(finished_run))["tiles"]
    assert tiles[0] == ("loss", "1.013", "tuned")
    assert "Not compared with the base model." in page_of(finished_run).text


def test_building_needs_no_heavy_library(finished_run):
    code = (
        "import sys; from launcher.report import build; from launcher.core.rundir import RunDir\n"
        "assert 'jinja2' not in sys.modules and 'yaml' not in sys.modules\n"
        "build(RunDir(sys.argv[1]))\n"
        "heavy = {'torch', 'numpy', 'transformers', 'hydra', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code, str(finished_run)]
    subprocess.run(command, check=True, cwd=finished_run.path.parent)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(42.4, "42 s"), (200, "3 min 20 s"), (1021, "17 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds, expected):
    assert duration(seconds) == expected
