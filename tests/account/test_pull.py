"""An account is taken out whole, whatever its server does, and its key goes nowhere."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.account import answers, connection, manifest, page
from launcher.account.connection import Connection, duration_s
from launcher.account.layout import Folder
from launcher.account.pull import Pull
from launcher.account.succession import settle
from launcher.cli import main
from launcher.core.errors import ConfigError, DataError, ExitCode
from launcher.core.files import read_json, write_json
from launcher.serve.site import Offer, Site
from support import account as accounts
from support.account import KEY, Account, Said
from support.project import LAUNCHER
from support.ranks import environment


def pulled(account: Account, folder: Path, **options: Any) -> dict[str, Any]:
    """The manifest after a pull with short waits."""
    reader = Connection(account.url, KEY, first_wait_s=0.01, **options)
    found = Pull(reader, Folder(folder), threads=4).run()
    return manifest.make(Folder(folder), account.url, found)


def require_whole(account: Account, folder: Path) -> None:
    """All that the account holds is there, once."""
    kept = Folder(folder)
    for name, sent in account.content.items():
        content = kept.kept(name)
        assert content is not None, name
        assert content.path.read_bytes() == sent
        assert content.sha256 == hashlib.sha256(sent).hexdigest()
    for path, listed in account.lists.items():
        parts = path.strip("/").split("/")
        if parts == ["fine_tuning", "jobs"]:
            assert [job["id"] for job in reversed(listed)] == [
                j["id"] for j in kept.records("jobs")
            ]
        elif parts[-1] in ("events", "checkpoints"):
            assert list(kept.lines("jobs", parts[2], f"{parts[-1]}.jsonl")) == listed
        elif parts[-1] == "output_items":
            assert list(kept.lines(f"evals/{parts[1]}/runs", parts[3], "items.jsonl")) == listed
    assert not list(folder.rglob("*.part"))


def test_an_account_is_taken_out_whole_and_read_once(tmp_path):
    with accounts.served(accounts.small(4, events=230)) as account:
        made = pulled(account, tmp_path)
        require_whole(account, tmp_path)
        assert made["complete"]
        assert [one["what"] for one in made["unread"]] == ["batches"]
        assert {one["state"] for one in made["files"]} == {"kept"}
        assert made["jobs"][0]["events"] == 230
        account.asked.clear()
        assert pulled(account, tmp_path)["files"] == made["files"]
        lists = ["/models", "/files", "/fine_tuning/jobs", "/evals", "/evals/eval_1/runs"]
        assert set(account.asked) == {*lists, "/batches"}


def test_results_in_base64_are_kept_as_they_came_and_decoded_beside(tmp_path):
    with accounts.served(accounts.small(1)) as account:
        account.add_file("file-plain", b"step,train_loss\n1,2\n", "fine-tune-results")
        made = pulled(account, tmp_path)
    kept = Folder(tmp_path).kept("file-r0000")
    assert kept is not None
    assert kept.plain.read_bytes() == base64.b64decode(kept.path.read_bytes())
    assert kept.plain.name == "decoded.csv"
    plain = Folder(tmp_path).kept("file-plain")
    assert plain is not None
    assert plain.decoded is None
    assert made["complete"]


def test_what_changed_or_came_is_read_and_what_went_stays(tmp_path):
    with accounts.served(accounts.small(2)) as account:
        running = account.add_job("ftjob-run", "file-t0000", status="running")
        pulled(account, tmp_path)
        running["status"] = "succeeded"
        account.lists["/fine_tuning/jobs/ftjob-run/events"].insert(0, {"id": "ftevent-last"})
        account.lists["/fine_tuning/jobs"].remove(account.lists["/fine_tuning/jobs"][-1])
        account.lists["/files"] = [f for f in account.lists["/files"] if f["id"] != "file-t0000"]
        made = pulled(account, tmp_path)
    events = list(Folder(tmp_path).lines("jobs", "ftjob-run", "events.jsonl"))
    assert events[0]["id"] == "ftevent-last"
    gone = [one["id"] for kind in ("jobs", "files") for one in made[kind] if one["gone"]]
    assert gone == ["ftjob-0000", "file-t0000"]
    assert Folder(tmp_path).kept("file-t0000") is not None
    # The running job names the file that the list has no more.
    assert [one["what"] for one in made["unread"]] == ["files/file-t0000", "batches"]


def test_damage_in_the_folder_is_found_by_its_hash_and_mended(tmp_path):
    with accounts.served(accounts.small(2)) as account:
        pulled(account, tmp_path)
        path = Folder(tmp_path).kept("file-t0001").path
        text = path.read_bytes()
        path.write_bytes(text.replace(b"1", b"2"))  # of the same size
        (tmp_path / "files" / "file-t0000" / "kept.json").write_text("{half")
        (tmp_path / "jobs" / "ftjob-0001" / "record.json").write_text("")
        pulled(account, tmp_path)
        require_whole(account, tmp_path)
        assert path.read_bytes() == text


# ---- servers that fail, throttle, cut, lie


def test_trouble_that_passes_is_waited_out(tmp_path):
    """Each path fails twice, in one way or another, and content is cut in the middle."""
    chance = random.Random(3)
    ways = [
        Said(500, body={"error": {"message": "down"}}),
        Said(503, {"Retry-After": "0"}, b"<html>"),
        Said(429, {"retry-after-ms": "20"}, {"error": {"message": "slow", "code": "rate"}}),
        Said(200, body=b'{"object": "list", "data": ['),
        Said(200, cut=30),
    ]

    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        # Twice the same half answer would be content.
        some = ways[:3] if path.endswith("/content") else ways
        return chance.choice(some) if before < 2 else None

    with accounts.served(accounts.small(3)) as account:
        account.behave = behave
        account.add_file("file-large", random.Random(1).randbytes(300_000))
        made = pulled(account, tmp_path)
        assert made["complete"], made["unread"]
        require_whole(account, tmp_path)


@pytest.mark.parametrize("ranges", [True, False])
def test_content_that_is_cut_again_and_again_goes_on_from_there(tmp_path, ranges):
    content = random.Random(1).randbytes(100_000)

    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        return Said(cut=20_000) if path.endswith("/content") and before < 4 else None

    with accounts.served(Account()) as account:
        account.ranges = ranges
        account.add_file("file-1", content)
        account.behave = behave
        pulled(account, tmp_path)
        assert Folder(tmp_path).kept("file-1").path.read_bytes() == content


def test_a_server_that_stays_down_is_left_after_a_while_and_nothing_is_lost(tmp_path):
    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        down = "ftjob-0001" in path or path == "/files/file-t0000/content"
        return Said(502, body=b"bad gateway") if down else None

    with accounts.served(accounts.small(3)) as account:
        account.behave = behave
        made = pulled(account, tmp_path)
        unread = [one["what"] for one in made["unread"] if not one["refused"]]
        assert sorted(unread) == [
            "files/file-t0000",
            "jobs/ftjob-0001/checkpoints",
            "jobs/ftjob-0001/events",
        ]
        assert account.asked["/files/file-t0000/content"] == connection.TRIES
        assert not made["complete"]
        account.behave = lambda path, query, before: None
        assert pulled(account, tmp_path)["complete"]
        require_whole(account, tmp_path)


def test_a_list_that_breaks_later_does_not_replace_what_was_read(tmp_path):
    with accounts.served(accounts.small(1, events=250)) as account:
        pulled(account, tmp_path)
        account.lists["/fine_tuning/jobs"][0]["metadata"] = {"new": "label"}

        def behave(path: str, query: dict[str, str], before: int) -> Said | None:
            return Said(400, body={}) if path.endswith("/events") and "after" in query else None

        account.behave = behave
        made = pulled(account, tmp_path)
        assert len(list(Folder(tmp_path).lines("jobs", "ftjob-0000", "events.jsonl"))) == 250
        assert made["jobs"][0]["events"] is None


def test_sizes_that_are_lies_are_told_and_the_bytes_kept(tmp_path):
    with accounts.served(Account()) as account:
        account.add_file("file-lie", b"abc", sent=b"abcdef")
        made = pulled(account, tmp_path)
        assert made["files"][0]["state"] == "differs"
        assert "the account says 3 bytes, 6 came" in made["unread"][0]["why"]
        assert not made["complete"]
        assert Folder(tmp_path).kept("file-lie").path.read_bytes() == b"abcdef"


def test_a_hash_that_is_a_lie_is_found(tmp_path):
    digest = base64.b64encode(hashlib.sha256(b"other").digest()).decode()

    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        lies = path == "/files/file-1/content" or before == 0
        stated = {"Repr-Digest": f"sha-256=:{digest}:"}
        return Said(headers=stated) if path.endswith("/content") and lies else None

    with accounts.served(Account()) as account:
        account.add_file("file-1", b"first")
        account.add_file("file-2", b"second")
        account.behave = behave
        made = pulled(account, tmp_path)
        assert Folder(tmp_path).kept("file-1") is None
        assert Folder(tmp_path).kept("file-2").path.read_bytes() == b"second"
        assert "SHA-256" in made["unread"][0]["why"]


@pytest.mark.parametrize("name", ["../../up", "a/b", ".", "..", "-x", "", "a" * 300, "x\0y"])
def test_ids_that_would_be_paths_are_refused(tmp_path, name):
    with accounts.served(accounts.small(1)) as account:
        account.add_job("ftjob-bad", "file-t0000")["id"] = name
        account.lists["/files"].append({"id": name, "purpose": "fine-tune", "bytes": 0})
        made = pulled(account, tmp_path / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"folder"}
    assert not made["complete"]
    assert len(Folder(tmp_path / "folder").records("jobs")) <= 1


@pytest.mark.parametrize("value", [None, 3, -1.5, True, "x", "../..", [], [{}], {}, {"a": [None]}])
def test_members_of_any_kind_are_kept_and_stop_nothing(tmp_path, value):
    """Whatever a server puts into records: the pull ends, and so do its page and a plan."""
    with accounts.served(accounts.small(2)) as account:
        for listed in account.lists.values():
            for record in listed:
                record |= {name: value for name in record if name not in ("id", "purpose")}
        made = pulled(account, tmp_path)
        require_records(account, tmp_path)
    write_json(tmp_path / "manifest.json", made)
    assert page.build(Folder(tmp_path), made).is_file()
    assert manifest.told(made)
    site = Site(models={str(value): Offer()})
    with contextlib.suppress(ConfigError):  # a model that is none
        jobs, left = settle(Folder(tmp_path), site, also=["failed", "cancelled"])
        assert len(jobs) + len(left) == 2
    with contextlib.suppress(DataError):  # no answers
        answers.file_of(Folder(tmp_path), "evalrun_1")


def require_records(account: Account, folder: Path) -> None:
    """The records are as the server tells them."""
    for kind, path in (("files", "/files"), ("jobs", "/fine_tuning/jobs"), ("evals", "/evals")):
        told = account.lists[path]
        assert sorted(Folder(folder).records(kind), key=str) == sorted(told, key=str)


def test_servers_with_smaller_pages_are_read_in_those(tmp_path):
    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        return Said(400, body={}) if int(query.get("limit", 0)) > 20 else None

    with accounts.served(accounts.small(30, events=50)) as account:
        account.behave = behave
        assert pulled(account, tmp_path)["complete"]
        require_whole(account, tmp_path)


def test_lists_that_go_round_are_left_and_what_came_is_kept(tmp_path):
    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        if not path.endswith("/events"):
            return None
        page = [{"id": f"ftevent-{i}"} for i in range(5)]
        return Said(body={"object": "list", "data": page, "has_more": True})

    with accounts.served(accounts.small(1)) as account:
        account.behave = behave
        made = pulled(account, tmp_path)
        assert account.asked["/fine_tuning/jobs/ftjob-0000/events"] == 2
    assert len(list(Folder(tmp_path).lines("jobs", "ftjob-0000", "events.jsonl"))) == 5
    assert not made["complete"]


def test_refusals_are_told_and_are_no_failure(tmp_path):
    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        if path.startswith("/evals"):
            return Said(403, body={"error": {"message": "read-only keys may not", "code": None}})
        if path == "/files/file-t0000/content":
            return Said(400, body={"error": {"message": "Not allowed to download"}})
        return None

    with accounts.served(accounts.small(1)) as account:
        account.behave = behave
        made = pulled(account, tmp_path)
        assert account.asked["/files/file-t0000/content"] == 1
    assert made["complete"]
    assert {one["what"]: one["why"] for one in made["unread"]} == {
        "files/file-t0000": "HTTP 400: Not allowed to download",
        "evals": "HTTP 403: read-only keys may not",
        "batches": "HTTP 404: no /batches",
    }


def refusing(status: int, message: str, *paths: str) -> accounts.Behaviour:
    """A server that refuses these paths, or all."""

    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        is_meant = not paths or path in paths
        return Said(status, body={"error": {"message": message}}) if is_meant else None

    return behave


@pytest.mark.parametrize(
    ("path", "what"), [("/models", "models"), ("/evals", "evals"), ("/batches", "batches")]
)
def test_a_key_that_may_not_read_all_reads_the_rest(tmp_path, path, what):
    said = "You have insufficient permissions for this operation. Missing scopes: api.x.read."
    with accounts.served(accounts.small(2)) as account:
        account.lists["/batches"] = []
        account.behave = refusing(401, said, path)
        made = pulled(account, tmp_path)
        assert made["complete"]
        assert [(one["what"], one["refused"]) for one in made["unread"]] == [(what, True)]
        assert len(made["jobs"]) == 2


def test_a_key_that_was_good_is_refused_what_it_may_not_read(tmp_path):
    with accounts.served(accounts.small(2)) as account:
        account.behave = refusing(401, "no", "/evals", "/fine_tuning/jobs/ftjob-0001/events")
        made = pulled(account, tmp_path)
        assert made["complete"]
        assert [job["events"] for job in made["jobs"]] == [3, None]


def test_a_key_that_is_withdrawn_in_the_middle_is_no_end(tmp_path):
    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        is_gone = path.endswith(("/content", "/events")) or (path == "/models" and before)
        return Said(401, body={"error": {"message": "Incorrect API key"}}) if is_gone else None

    with accounts.served(accounts.small(2)) as account:
        account.behave = behave
        made = pulled(account, tmp_path)
        assert not made["complete"]
        assert "the key reads no more" in made["unread"][-1]["why"]


@pytest.mark.parametrize("path", ["/files", "/fine_tuning/jobs"])
def test_without_files_or_jobs_nothing_is_complete(tmp_path, path):
    with accounts.served(accounts.small(1)) as account:
        account.behave = refusing(403, "not yours", path)
        assert not pulled(account, tmp_path)["complete"]


def test_an_address_where_there_is_no_account_is_told(tmp_path):
    with accounts.served(Account()) as account:
        account.behave = refusing(404, "Invalid URL")
        with pytest.raises(ConfigError, match="end in /v1"):
            pulled(account, tmp_path)


@pytest.mark.parametrize("times", [1, 99])
def test_a_list_whose_later_page_is_refused_is_read_from_its_beginning_once(tmp_path, times):
    """Such as after an object that was deleted since the first page."""

    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        if path.endswith(("/jobs", "/events")) and "after" in query and before <= times:
            return Said(404, body={"error": {"message": "no such object"}})
        return None

    with accounts.served(accounts.small(120, events=120)) as account:
        account.lists["/files"] = account.lists["/files"][:2]
        for job in account.lists["/fine_tuning/jobs"]:
            job |= {"training_file": None, "result_files": []}
        account.lists |= {
            path: [] for path in account.lists if path.endswith("/events") and "0001" not in path
        }
        account.behave = behave
        made = pulled(account, tmp_path)
        events = "jobs/ftjob-0001/events"
        lost = {one["what"] for one in made["unread"]} & {"jobs", events}
        assert made["complete"] == (times == 1)
        assert len(made["jobs"]) == (120 if times == 1 else 100)
        assert account.asked["/fine_tuning/jobs"] == 4
        assert lost == (set() if times == 1 else {"jobs"})
        listed = list(Folder(tmp_path).lines("jobs", "ftjob-0119", "events.jsonl"))
        assert len({one["id"] for one in listed}) == len(listed)


def test_what_a_list_has_no_more_stays_and_what_was_lost_comes_again(tmp_path):
    with accounts.served(accounts.small(3)) as account:
        made = pulled(account, tmp_path)
        lists = [tmp_path / "jobs" / f"ftjob-000{i}" / "events.jsonl" for i in range(3)]
        before = [path.read_text() for path in lists]
        lists[0].unlink()
        lists[1].write_text("")
        account.lists["/fine_tuning/jobs"][0]["metadata"] = {"a": "label"}
        account.lists["/fine_tuning/jobs/ftjob-0002/events"] = [{"id": "ftevent-new"}]
        again = pulled(account, tmp_path)
        assert [path.read_text() for path in lists[:2]] == before[:2]
        assert lists[2].read_text() == '{"id":"ftevent-new"}\n' + before[2]
        assert [job["events"] for job in again["jobs"]] == [3, 3, 4]
        assert again["complete"]
        assert made["complete"]


def test_a_record_that_changed_under_its_id_has_its_content_read_again(tmp_path):
    with accounts.served(Account()) as account:
        account.add_file("file-1", b"first")
        pulled(account, tmp_path)
        account.lists["/files"].clear()
        account.add_file("file-1", b"another")
        account.behave = refusing(403, "not now", "/files/file-1/content")
        assert pulled(account, tmp_path)["files"][0]["state"] == "differs"
        account.behave = lambda path, query, before: None
        assert pulled(account, tmp_path)["files"][0]["state"] == "kept"
        assert Folder(tmp_path).kept("file-1").path.read_bytes() == b"another"


def test_a_beginning_that_lies_there_is_no_part_of_a_file(tmp_path):
    part = tmp_path / "files" / "file-1" / ".content.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"A" * 20)
    with accounts.served(Account()) as account:
        account.add_file("file-1", b"B" * 50)
        pulled(account, tmp_path)
    assert Folder(tmp_path).kept("file-1").path.read_bytes() == b"B" * 50


def test_links_are_not_written_through(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "account"
    outside.mkdir()
    (outside / "victim").write_text("mine")
    for path in ("files/file-1/.content.part", "jobs/ftjob-0000/.events.jsonl.part"):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).symlink_to(outside / "victim")
    (folder / "jobs" / "ftjob-0001").symlink_to(outside)
    with accounts.served(accounts.small(2)) as account:
        account.add_file("file-1", b"B" * 50)
        made = pulled(account, folder)
    assert [path.name for path in outside.iterdir()] == ["victim"]
    assert (outside / "victim").read_text() == "mine"
    unread = {one["what"] for one in made["unread"]}
    assert unread == {"jobs/ftjob-0000/events", "jobs/ftjob-0001", "batches"}
    assert not made["complete"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("created_at", 10**400),
        ("created_at", float("nan")),
        ("status", "\ud800"),
        ("metadata", {"\udfff": "x"}),
        ("model", "\x1b[31mred"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_nobody_expects_stop_nothing(tmp_path, name, value):
    with accounts.served(accounts.small(2)) as account:
        account.lists["/fine_tuning/jobs"][0][name] = value
        account.behave = refusing(403, "\ud800 \x1b[31mboo", "/evals")
        made = pulled(account, tmp_path)
        write_json(tmp_path / "manifest.json", made)
    assert len(made["jobs"]) == 2
    assert page.build(Folder(tmp_path), made).is_file()
    assert "\x1b" not in manifest.told(made)


@pytest.mark.parametrize("levels", [150, 250, 450, 900, 100_000])
def test_a_record_that_is_nested_too_deep_is_told(tmp_path, levels):
    text = f'{{"data": [{{"id": "eval_x", "name": {"[" * levels}{"]" * levels}}}]}}'
    with accounts.served(accounts.small(1)) as account:

        def behave(path: str, query: dict[str, str], before: int) -> Said | None:
            return Said(body=text.encode()) if path == "/evals" else None

        account.behave = behave
        made = pulled(account, tmp_path)
        assert account.asked["/evals"] == 1
    assert len(made["jobs"]) == 1
    write_json(tmp_path / "manifest.json", made)
    unread = {one["what"]: one["why"] for one in made["unread"]}
    assert (unread.get("evals") == "an answer that is nested too deep") == (levels > 200)


def test_a_result_of_empty_lines_is_looked_at_once(tmp_path):
    """Looking for base64 took a time that grew with the square of them: hours for these."""
    with accounts.served(Account()) as account:
        account.add_file("file-r", b"\n" * 3_000_000 + b",", "fine-tune-results")
        made = pulled(account, tmp_path)
    assert made["files"][0]["decoded"] is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "1"},
        {"retry-after-ms": "700"},
        {"x-ratelimit-reset-requests": "700ms"},
    ],
)
def test_nobody_asks_while_the_server_asks_to_wait(tmp_path, headers):
    limit = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}

    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        is_first = path == "/fine_tuning/jobs" and before == 0
        return Said(429, dict(headers), limit) if is_first else None

    with accounts.served(accounts.small(2)) as account:
        account.behave = behave
        assert pulled(account, tmp_path)["complete"]
        times = [at for at, path in account.at if path == "/fine_tuning/jobs"]
        assert times[1] - times[0] >= 0.69


def test_the_last_request_of_a_limit_is_followed_by_a_wait(tmp_path):
    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "600ms"}
        return Said(headers=left) if path == "/models" else None

    with accounts.served(accounts.small(1)) as account:
        account.behave = behave
        pulled(account, tmp_path)
        assert account.at[1][0] - account.at[0][0] >= 0.59


def test_waits_that_are_too_long_and_used_up_quotas_are_told(tmp_path):
    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        if path == "/evals":
            return Said(429, {"Retry-After": "86400"}, {"error": {"message": "tomorrow"}})
        if path == "/batches":
            used = {"message": "no credit", "code": "insufficient_quota"}
            return Said(429, body={"error": used})
        return None

    with accounts.served(accounts.small(1)) as account:
        account.behave = behave
        made = pulled(account, tmp_path)
        assert account.asked["/evals"] == account.asked["/batches"] == 1
    assert not made["complete"]
    assert "asks to wait 86,400 s" in made["unread"][0]["why"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("17ms", 0.017), ("1h2m3.5s", 3723.5), ("", 0), ("soon", 0)],
)
def test_durations(text, seconds):
    assert duration_s(text) == pytest.approx(seconds)


# ---- the key


def test_a_refused_key_ends_it_and_is_not_shown(tmp_path):
    said = {"error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}}
    with accounts.served(accounts.small(1)) as account:
        account.behave = lambda path, query, before: Said(401, body=said)
        with pytest.raises(ConfigError) as caught:
            pulled(account, tmp_path)
        assert account.asked.total() == 1
    assert KEY not in str(caught.value)
    assert "OPENAI_API_KEY" in str(caught.value)


def test_the_key_is_in_no_file_whatever_the_server_says(tmp_path, capsys, monkeypatch):
    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        if path == "/batches":
            return Said(500, body={"error": {"message": f"boom {KEY}"}})
        if path == "/evals":
            return Said(body=evals.encode())
        return Said(body=f"<{KEY}>".encode()) if path == "/evals/eval_x/runs" else None

    monkeypatch.setattr(connection, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(connection, "TRIES", 1)
    with accounts.served(accounts.small(1)) as account:
        account.lists["/models"].append({"id": "m", "owned_by": KEY})
        account.lists["/fine_tuning/jobs"][0]["metadata"] = {"key": KEY}
        escaped = "".join(f"\\u{ord(sign):04x}" for sign in KEY)
        evals = f'{{"data": [{{"id": "eval_x", "name": "{escaped}"}}], "has_more": false}}'
        account.behave = behave
        code = main(["openai", "pull", str(tmp_path / "out"), "--base-url", account.url])
        assert account.keys == {f"Bearer {KEY}"}
    assert code == ExitCode.data
    said = capsys.readouterr()
    assert "boom [key]" in said.out
    assert KEY not in said.out + said.err
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_a_key_that_is_a_word_is_left_in_its_words(tmp_path):
    with accounts.served(accounts.small(1)) as account:
        Pull(Connection(account.url, "file"), Folder(tmp_path)).run()
    assert Folder(tmp_path).kept("file-t0000") is not None


def test_the_key_goes_to_no_other_host(tmp_path):
    with accounts.served(accounts.small(1)) as other, accounts.served(accounts.small(1)) as account:

        def behave(path: str, query: dict[str, str], before: int) -> Said | None:
            there = {"Location": f"{other.url}{path}"}
            return Said(302, there, b"") if path.endswith("/content") else None

        account.behave = behave
        assert pulled(account, tmp_path)["complete"]
        assert other.keys == {None}


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("ftp://u:p@x/v1", KEY),
        ("no url", KEY),
        ("http://u:p@h/v1", KEY),
        ("http://[::1", KEY),
        ("http://h:abc/v1", KEY),
        ("http://h:99999/v1", KEY),
        (None, "a\nb"),
    ],
)
def test_addresses_and_keys_that_will_not_do(url, key):
    with pytest.raises(ConfigError) as caught:
        Connection(url or "http://127.0.0.1/v1", key)
    assert "u:p" not in str(caught.value)
    assert "a\nb" not in str(caught.value)


# ---- the command


def test_the_command_tells_what_is_there_and_writes_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with accounts.served(accounts.small(2)) as account:
        account.lists["/fine_tuning/jobs"][0]["model"] = "<script>alert(1)</script>"
        monkeypatch.setenv("OPENAI_BASE_URL", account.url)
        assert main(["openai", "pull", str(tmp_path)]) == ExitCode.ok
        out = capsys.readouterr().out
        assert "jobs     2, 2 of them succeeded" in out
        assert "the first stop on 2027-01-14" in out
        assert "not read batches: HTTP 404" in out
        assert main(["openai", "pull", str(tmp_path), "--json"]) == ExitCode.ok
    assert json.loads(capsys.readouterr().out) == read_json(tmp_path / "manifest.json")
    page = (tmp_path / "page.html").read_text()
    assert "second-hand" in page
    assert "no /batches" in page
    assert "<script>alert" not in page


def test_without_a_key_or_beside_another_command_nothing_begins(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(["openai", "pull", str(tmp_path)]) == ExitCode.usage
    assert "OPENAI_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Folder(tmp_path).lock():
        assert main(["openai", "pull", str(tmp_path)]) == ExitCode.usage
    assert "another command" in capsys.readouterr().err


def test_a_folder_is_that_of_one_account(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with accounts.served(accounts.small(1)) as one, accounts.served(Account()) as other:
        words = ["openai", "pull", str(tmp_path), "--base-url"]
        one.lists["/evals"].clear()
        assert main([*words, one.url]) == ExitCode.ok
        assert main([*words, other.url]) == ExitCode.usage
        assert "name another folder" in capsys.readouterr().err
        assert not other.asked
        (tmp_path / "origin.json").unlink()  # as the hint says
        other.lists = one.lists
        other.content = one.content
        assert main([*words, other.url]) == ExitCode.ok


def test_a_server_that_is_not_there_is_told_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(connection, "TRIES", 2)
    with accounts.served(Account()) as account:
        url = account.url
    code = main(["openai", "pull", str(tmp_path), "--base-url", url])
    assert code == ExitCode.usage
    assert "does not answer" in capsys.readouterr().err
    with accounts.served(accounts.small(1)) as account:  # the folder is not that of the other one
        assert main(["openai", "pull", str(tmp_path), "--base-url", account.url]) == ExitCode.ok


def test_organization_and_project_are_told_as_clients_tell_them(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj_2")
    with accounts.served(accounts.small(1)) as account:
        main(["openai", "pull", str(tmp_path), "--base-url", account.url])
    assert account.scopes == {("org-1", "proj_2")}


@pytest.mark.slow
def test_a_disk_that_is_full_ends_it_and_the_rest_comes_later(tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    with accounts.served(accounts.small(2)) as account:
        account.add_file("file-large", random.Random(1).randbytes(300_000))
        words = (*LAUNCHER, "openai", "pull", str(tmp_path / "out"), "--base-url", account.url)
        environ = environment(OPENAI_API_KEY=KEY)
        done = subprocess.run(words, env=environ, capture_output=True, preexec_fn=limit)
        assert done.returncode == ExitCode.storage, done.stderr
        assert subprocess.run(words, env=environ, capture_output=True).returncode == ExitCode.ok
        require_whole(account, tmp_path / "out")


def kill_and_go_on(
    account: Account, folder: Path, kills: int, chance: random.Random, within_s: float
) -> int:
    """Kill the command at random moments, then let it come to its end; returns how often it was
    killed before it had."""
    words = (*LAUNCHER, "openai", "pull", str(folder), "--base-url", account.url)
    killed = 0
    for _ in range(kills):
        process = subprocess.Popen(
            words,
            env=environment(OPENAI_API_KEY=KEY),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = account.asked.total()
        end = time.monotonic() + 30
        while account.asked.total() == before and time.monotonic() < end:
            time.sleep(0.005)  # it has begun
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, within_s))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    done = subprocess.run(
        words, env=environment(OPENAI_API_KEY=KEY), capture_output=True, text=True
    )
    assert done.returncode == ExitCode.ok, done.stderr
    return killed


@pytest.mark.slow
def test_ten_kills_lose_and_double_nothing(tmp_path):
    def behave(path: str, query: dict[str, str], before: int) -> Said | None:
        time.sleep(0.03)
        return None

    with accounts.served(accounts.small(12, events=120)) as account:
        account.add_file("file-large", random.Random(1).randbytes(3_000_000))
        account.behave = behave
        killed = kill_and_go_on(account, tmp_path / "out", 10, random.Random(5), 0.4)
        assert killed >= 4  # what is left becomes short
        require_whole(account, tmp_path / "out")
        made = read_json(tmp_path / "out" / "manifest.json")
        assert len(made["jobs"]) == 12
        assert len(made["files"]) == 25
