"""What can go wrong with an A/B test: every fault is named, with the place and the way out."""

from __future__ import annotations

import json
import socket
import sqlite3

import pytest

from launcher.ab import database
from launcher.ab.preparation import make
from launcher.ab.prompts import read_answers, read_prompts
from launcher.ab.result import result
from launcher.ab.study import AnswerPair, Study
from launcher.ab.traffic import Traffic
from launcher.cli import main
from launcher.config.compose import compose
from launcher.core.errors import ConfigError, DataError, ExitCode, StorageError
from support.configs import make_config
from support.studies import write_lines

USER = {"role": "user", "content": "Hi"}


def make_from(tmp_path, one, other, data=None):
    return make((str(one), str(other)), data, tmp_path / "made", question="?", max_new_tokens=8)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a"', "broken JSON"),
        ("[1]", "not a JSON object"),
        ({"question": "a"}, "there is no prompt in it"),
        ({"prompt": "  "}, "there is no prompt in it"),
        ({"messages": []}, "the user does not speak last"),
        ({"messages": [{"role": "user"}]}, "a message without role and content"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "the user does not speak last"),
        ({"messages": [USER, {**USER, "content": " \n"}]}, "the user does not speak last"),
        ({"prompt": "first"}, "the same prompt as"),
        ('{"prompt": "\\ud800"}', "surrogate"),
        ({"prompt": "a", "chat_template_kwargs": ["x"]}, "chat_template_kwargs"),
        ({"prompt": "a", "chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs"),
    ],
)
def test_a_bad_prompt_is_named_by_its_line(tmp_path, line, said):
    path = write_lines(tmp_path / "prompts.jsonl", {"prompt": "first"}, "", line)
    with pytest.raises(DataError, match=said) as caught:
        read_prompts(path)
    assert caught.value.problems[0].where == f"{path}:3"
    assert caught.value.problems[0].hint


def test_a_prompt_may_set_variables_of_the_template(tmp_path):
    options = {"enable_thinking": False, "effort": None}
    lines = ({"prompt": "a", "chat_template_kwargs": options}, {"prompt": "b"})
    first, second = read_prompts(write_lines(tmp_path / "p.jsonl", *lines))
    assert (first.template_options, second.template_options) == ({"enable_thinking": False}, {})


@pytest.mark.parametrize("record", [{"prompt": "a"}, {"prompt": "a", "answer": None}])
def test_a_line_without_answer_is_named(tmp_path, record):
    path = write_lines(tmp_path / "a.jsonl", record)
    with pytest.raises(DataError, match="no answer as text"):
        read_answers(path)


def test_two_answers_to_one_prompt_are_refused(tmp_path):
    twice = ({"prompt": "a", "answer": "1"}, {"prompt": "a", "answer": "2"})
    path = write_lines(tmp_path / "a.jsonl", *twice)
    with pytest.raises(DataError, match="another answer to the same prompt"):
        read_answers(path)


@pytest.mark.parametrize(
    ("content", "kind"), [(None, ConfigError), (b"", DataError), (b"\xff\xfe", DataError)]
)
def test_a_file_that_holds_no_prompts(tmp_path, content, kind):
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind) as caught:
        read_prompts(path)
    assert caught.value.problems[0].hint


def test_conversations_are_shown_up_to_the_users_last_turn(tmp_path):
    turns = [{"role": "system", "content": "Be kind."}, USER]
    ended = {"messages": [*turns, {"role": "assistant", "content": "Hello"}]}
    (prompt,) = read_prompts(write_lines(tmp_path / "p.jsonl", ended))
    assert prompt.messages == turns
    assert prompt.text == "System: Be kind.\n\nUser: Hi"


def test_a_prompt_that_one_file_does_not_answer_is_named(tmp_path):
    one = write_lines(tmp_path / "1.jsonl", *({"prompt": p, "answer": "x"} for p in "abc"))
    other = write_lines(tmp_path / "2.jsonl", {"prompt": "a", "answer": "y"})
    with pytest.raises(DataError, match=r"no answer in .*2\.jsonl \(and 1 others\)") as caught:
        make_from(tmp_path, one, other)
    assert caught.value.problems[0].where == f"{one}:2"
    assert not (tmp_path / "made").exists()


def test_the_same_answers_are_not_shown(tmp_path):
    one = write_lines(tmp_path / "1.jsonl", *({"prompt": p, "answer": p} for p in "abc"))
    other = write_lines(tmp_path / "2.jsonl", *({"prompt": p, "answer": "a"} for p in "abc"))
    study, same = make_from(tmp_path, one, other)
    assert same == 1
    assert result(study.folder)["prompts"] == 2
    with pytest.raises(DataError, match="the same answer to each of 3 prompts"):
        make((str(one), str(one)), None, tmp_path / "new", question="?", max_new_tokens=8)


def test_a_study_is_never_overwritten(tmp_path, study):
    one = write_lines(tmp_path / "1.jsonl", {"prompt": "a", "answer": "1"})
    other = write_lines(tmp_path / "2.jsonl", {"prompt": "a", "answer": "2"})
    with pytest.raises(ConfigError, match="there is a study already"):
        make((str(one), str(other)), None, study.folder, question="?", max_new_tokens=8)
    assert result(study.folder)["prompts"] == 12


def test_models_need_prompts(tmp_path):
    one = write_lines(tmp_path / "1.jsonl", {"prompt": "a", "answer": "1"})
    with pytest.raises(ConfigError, match="models need prompts"):
        make_from(tmp_path, one, "some-run")


@pytest.mark.parametrize(
    ("name", "said"), [("nothing", "no run 'nothing'"), ("made:b", "'b' is no")]
)
def test_a_model_that_does_not_exist_is_named_before_one_is_loaded(
    tmp_path, monkeypatch, name, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    compose.save(make_config(), tmp_path / "made" / "config.yaml")
    with pytest.raises(ConfigError, match=said) as caught:
        make_from(tmp_path, name, "made", tmp_path / "prompts.jsonl")
    assert caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("file", "part", "said"),
    [
        ("adapter_config.json", "", "an adapter only"),
        ("objective.json", "", "trained a classifier"),
        ("objective.json", ":base", "trained a classifier"),
    ],
)
def test_a_model_that_cannot_speak_is_refused(tmp_path, file, part, said):
    folder = tmp_path / "model"
    folder.mkdir()
    compose.save(make_config(objective={"name": "classify"}), folder / "config.yaml")
    (folder / file).touch()
    ready = write_lines(tmp_path / "1.jsonl", {"prompt": "a", "answer": "x"})
    with pytest.raises(ConfigError, match=said) as caught:
        make_from(tmp_path, f"{folder}{part}", ready, ready)
    assert caught.value.problems[0].hint


def test_a_folder_of_a_classifier_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"architectures": ["LlamaForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    ready = write_lines(tmp_path / "1.jsonl", {"prompt": "a", "answer": "x"})
    with pytest.raises(ConfigError, match="LlamaForSequenceClassification cannot speak"):
        make_from(tmp_path, str(folder), ready, ready)


@pytest.mark.parametrize("name", ["", "nothing.db"])
def test_no_study(tmp_path, name):
    with pytest.raises(ConfigError, match="no such file"):
        result(tmp_path / name)


def test_a_study_of_another_version_is_refused(study):
    with sqlite3.connect(study.path) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(ConfigError, match="tables are of version 9, this one reads 1"):
        study.check()


def test_a_database_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE a (b)")
    db.close()
    with pytest.raises(ConfigError, match="no A/B study"):
        result(path)


@pytest.mark.parametrize("start", [0, 4096])
def test_a_damaged_study_is_refused(study, start):
    with database.opened(study.path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(study.path.read_bytes())
    content[start : start + 2000] = b"\xa5" * 2000
    study.path.write_bytes(content)
    with pytest.raises(StorageError, match="damaged") as caught:
        study.check()
    assert ".recover" in caught.value.problems[0].hint


def test_a_routers_file_is_no_study_and_the_other_way_round(tmp_path, study):
    Traffic.open(tmp_path / "study.db", ("a", "b"), 0.5)
    with pytest.raises(ConfigError, match="is no study"):
        Study(tmp_path).check()
    with pytest.raises(ConfigError, match="is no file of a router"):
        Traffic.open(study.path, ("a", "b"), 0.5)


@pytest.mark.parametrize(("names", "share"), [(("a", "c"), 0.5), (("a", "b"), 0.1)])
def test_a_routers_file_is_one_comparison(tmp_path, names, share):
    Traffic.open(tmp_path / "x.db", ("a", "b"), 0.5)
    with pytest.raises(ConfigError, match="was .*, not"):
        Traffic.open(tmp_path / "x.db", names, share)


def test_a_port_in_use_is_named(study, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = main(["ab", "serve", str(study.folder), "--port", str(port)])
    said = capsys.readouterr().err
    assert code == ExitCode.usage
    assert f"127.0.0.1:{port}: cannot listen" in said
    assert "--port" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["new", "a", "b", "-o", "c", "--max-new-tokens", "0"], "is too small"),
        (["serve", "nowhere"], "no such file"),
        (["result", "nowhere"], "no such file"),
        (["judges", "nowhere", "alice"], "no such file"),
        (["judges", "nowhere", "alice,,bob"], "no list of different names"),
        (["route", "--a", "x", "--b", "y", "--db", "z", "--share", "1.5"], "is no share"),
        (["serve", "STUDY", "--port", "99999"], "cannot listen"),
        (["serve", "STUDY", "--host", "256.1.1.1"], "cannot listen"),
        (["serve", "STUDY", "--host", "a..b"], "cannot listen"),
        (["serve", "STUDY", "--host", "x" * 64], "cannot listen"),
        (["nothing"], "there is no verb 'ab nothing'"),
    ],
)
def test_wrong_words_are_refused(study, capsys, words, said):
    found = [str(study.folder) if word == "STUDY" else word for word in words]
    assert main(["ab", *found]) == ExitCode.usage
    told = capsys.readouterr().err
    assert said in told
    assert "HINT" in told


@pytest.mark.parametrize(
    "url",
    ["", "x", "host:8000/v1", "ftp://host/v1", "http://", "http:///v1", "http://host:port", "a\nb"]
    + ["http://host:99999999", "http://host/v1?key=1", "http://[::1/v1"],
)
@pytest.mark.parametrize("option", ["--a", "--b"])
def test_what_is_no_endpoint_is_refused_before_a_file_is_made(tmp_path, capsys, option, url):
    urls = {"--a": "http://one:8000/v1", "--b": "https://other/v1", option: url}
    db = tmp_path / "x.db"
    words = ["ab", "route", "--db", str(db), *(f"{key}={value}" for key, value in urls.items())]
    assert main(words) == ExitCode.usage
    told = capsys.readouterr().err
    assert f"{option}: {url!r} is no address" in told
    assert "HINT" in told
    assert not db.exists()


def test_a_study_that_cannot_be_filled_is_not_made(tmp_path):
    with pytest.raises(StorageError):
        Study.create(tmp_path, ("a", "b"), [AnswerPair("p", "1", None)], "?")
    with pytest.raises(ConfigError, match="no A/B study"):
        Study(tmp_path).check()


def test_looking_at_a_result_waits_for_no_writer_and_holds_none_up(study):
    study.invite("alice")
    with database.opened(study.path) as db, database.transaction(db):
        assert result(study.folder)["prompts"] == 12
    with database.opened(study.path) as db, database.snapshot(db):
        db.execute("SELECT count(*) FROM items").fetchone()
        with database.opened(study.path) as other:
            other.execute("PRAGMA busy_timeout = 0")
            with database.transaction(other):
                other.execute("UPDATE judges SET name = 'bob'")
        assert [row["name"] for row in db.execute("SELECT name FROM judges")] == ["alice"]


def test_a_gate_refuses_what_is_not_better(study, capsys):
    assert main(["ab", "result", str(study.folder), "--require", "better"]) == ExitCode.data
    assert main(["ab", "result", str(study.folder), "--require", "not-worse"]) == ExitCode.ok
    capsys.readouterr()
    assert main(["ab", "result", str(study.folder), "--json"]) == ExitCode.ok
    assert json.loads(capsys.readouterr().out)["verdict"] == "no evidence"
