"""Text for Slurm and from Slurm: templates, quoting, states, sizes. No process but bash."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import entry
from launcher.config.schema.launch import (
    ClusterConfig,
    ContainerConfig,
    ContainerRuntime,
    SlurmAgent,
    SlurmConfig,
)
from launcher.core.errors import ConfigError
from launcher.launch.slurm import check as slurm_check
from launcher.launch.slurm import text as slurm_text
from launcher.launch.slurm.backend import SlurmBackend, array_script
from launcher.launch.spec import AttemptState, LaunchPlan, LaunchSpec
from launcher.train.signals import too_slow_for_grace


def make_spec(folder: Path = Path("/data/runs/r"), **changes) -> LaunchSpec:
    launch, cluster = changes.pop("launch", {}), changes.pop("cluster", {})
    known = {
        "run": folder,
        "attempt": 1,
        "python": "/py",
        "cwd": Path("/home/me"),
        "options": SlurmConfig(**launch),
        "cluster": ClusterConfig(**cluster),
        "nodes": 2,
        "processes": 4,
        "threads": 3,
    }
    return LaunchSpec(**{**known, **changes})


def script(**changes) -> str:
    return SlurmBackend().plan(make_spec(**changes)).script or ""


def header(text: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", text, flags=re.MULTILINE)


# ---- the script


def test_every_field_of_the_cluster_is_in_the_script():
    values = {
        "partition": "gpu",
        "account": "me",
        "qos": "high",
        "constraint": "a100&ib",
        "reservation": "mine",
        "exclude": "n[1-3]",
        "time": "1-00:00:00",
        "gpus_per_node": 4,
        "gpu_type": "h100",
        "cpus_per_rank": 8,
        "memory": "64G",
        "network_interface": "ib0",
        "environment": {"NCCL_IB_HCA": "mlx5"},
        "modules": ["cuda/12"],
        "setup": ["ulimit -l unlimited"],
        "scratch": "/scratch",
        "sbatch": ["--switches=1"],
    }
    left = {f.name for f in dataclasses.fields(ClusterConfig)} - values.keys()
    assert left == {"name", "container", "scale"}  # the last is for `plan --simulate`
    text = script(cluster=values)
    for key in ("partition", "account", "qos", "constraint", "reservation", "exclude", "time"):
        assert f"--{key}={values[key]}" in header(text)
    for line in ("--gpus-per-node=h100:4", "--cpus-per-task=8", "--mem=64G", "--switches=1"):
        assert line in header(text)
    for line in (
        "export NCCL_SOCKET_IFNAME=ib0",
        "export GLOO_SOCKET_IFNAME=ib0",
        "export NCCL_IB_HCA=mlx5",
        "export TMPDIR=/scratch",
        "export OMP_NUM_THREADS=3",
        "module load cuda/12 || exit 2",
        "ulimit -l unlimited",
        "    --cpus-per-task=8 \\",
        "    --gpu-bind=none \\",
        "    --cpu-bind=cores \\",
    ):
        assert line in text.splitlines()


def test_job_that_needs_nothing_asks_for_nothing():
    assert header(script()) == [
        "--job-name=r",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--signal=USR1@120",
        "--requeue",
        "--open-mode=append",
        "--output=slurm.log",
    ]
    assert "--no-requeue" in header(script(launch={"max_requeues": 0}))


def test_options_of_sbatch_in_the_environment_are_told_with_their_key():
    text = script(cluster={"partition": "gpu"})
    variables = {"SBATCH_ACCOUNT": "my group", "SBATCH_PARTITION": "old", "SLURM_CLUSTERS": "b"}
    assert slurm_text.unread(text, {**variables, "SBATCH_WAIT": "1"}) == [
        "note: SBATCH_ACCOUNT is not read: give cluster.account='my group'",
        "note: SLURM_CLUSTERS is not read: SLURM_CONF says which cluster",
        "note: not read: SBATCH_WAIT; options of sbatch stand in cluster.sbatch",
    ]
    assert slurm_text.unread(text, {}) == []


def test_torchrun_is_one_task_a_node():
    text = script(launch={"agent": SlurmAgent.torchrun}, cluster={"cpus_per_rank": 2})
    assert "--ntasks-per-node=1" in header(text)
    assert "--cpus-per-task=8" in header(text)
    assert "    --nproc-per-node=4 \\" in text
    assert '--rdzv-endpoint="$endpoint"' in text


def test_planning_is_pure_and_survives_json(weird_tmp_path):
    spec = make_spec(weird_tmp_path / "r")
    plans = [SlurmBackend().plan(spec) for _ in range(2)]
    assert plans[0] == plans[1]
    assert list(weird_tmp_path.iterdir()) == []
    assert LaunchPlan.from_json(plans[0].to_json()) == plans[0]
    assert plans[0].script in plans[0].describe()


HOSTILE = st.text(
    st.sampled_from("ab \t'\"`$(){}[]\\;&|<>*?!#~=%\n") | st.characters(codec="utf-8"), min_size=1
).filter(lambda text: "\0" not in text and "\r" not in text)


@settings(max_examples=30, deadline=None)
@given(value=HOSTILE)
def test_bash_reads_back_what_was_quoted(value):
    """Variables, words of srun and the run folder, as bash sees them."""
    text = script(cluster={"environment": {"HOSTILE": value}}, cwd=Path("/"))
    (export,) = re.findall(r"^(export HOSTILE=.*?)\nexport OMP_NUM", text, re.MULTILINE | re.S)
    check = f'{export}\nprintf "%s" "$HOSTILE"\nprintf "%s" {slurm_text.quote(value)}'
    done = subprocess.run(["bash", "-c", check], capture_output=True, check=True)
    assert done.stdout == 2 * value.encode()


@settings(max_examples=15, deadline=None)
@given(name=HOSTILE.filter(lambda text: not set(text) & set("\\%\n/")))
def test_whole_script_runs_in_a_hostile_folder(name):
    """With srun and python replaced by functions: no word of the name is executed or lost."""
    run = f"/nowhere/{name}/r"
    text = script(run=Path(run), python="python_", cwd=Path("/"))
    stubs = (
        'python_() { [ "$5" = begin ] && echo 1; printf "%s\\0" "$6" >&2; }\n'
        'srun() { printf "%s\\0" "${@: -3:1}" >&2; }\n'
    )
    text = text.replace('>>"$run/attempts', '#"$run/attempts')
    text = text.replace('"$attempt" &\n', '"$attempt"\n')  # one after the other
    done = subprocess.run(["bash", "-c", stubs + text], capture_output=True, check=False)
    assert done.stderr == 5 * (run.encode() + b"\0")


@given(value=st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
def test_option_of_the_header_is_one_word(value):
    written = slurm_text.option(value)
    # sbatch takes off double quotes and backslashes, as a shell does within double quotes.
    if written.startswith('"'):
        assert re.sub(r"\\(.)", r"\1", written[1:-1]) == value
    else:
        assert written == value
        assert not set(value) & set(" \"'#\\")


@pytest.mark.parametrize("value", ["a\nb", "", "a\0"])
def test_line_breaks_do_not_get_into_the_header(value):
    with pytest.raises(ConfigError, match="line of a batch script"):
        script(cluster={"partition": value})
    with pytest.raises(ConfigError, match="line of a batch script"):
        script(cluster={"sbatch": [value]})


def test_paths_that_slurm_would_expand_are_refused():
    with pytest.raises(ConfigError, match=r"run\.root"):
        script(run=Path("/data/50%/r"))
    with pytest.raises(ConfigError, match=r"cluster\.environment"):
        script(cluster={"environment": {"A B": "c"}})


@pytest.mark.parametrize(
    ("number", "ids"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("1_[0-3%2]", ["1_0", "1_1", "1_2", "1_3"]),
        ("7_[1,4-8:2,11]", ["7_1", "7_4", "7_6", "7_8", "7_11"]),
    ],
)
def test_tasks_of_an_array_that_were_never_started(number, ids):
    jobs = slurm_text.parse_jobs(f"{number}|CANCELLED by 0")
    assert list(jobs) == ids
    assert {job.word for job in jobs.values()} == {"CANCELLED"}


def test_out_of_memory_is_seen_before_its_echoes():
    killed = "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0.\n"
    task = "srun: error: n1: task 1: "
    assert slurm_text.out_of_memory(f"{killed}{task}Killed\n") == 1
    assert slurm_text.out_of_memory(killed) == 0
    echo = "srun: error: n1: task 0: Exited with exit code 1\n"
    assert slurm_text.out_of_memory(f"{echo}{task}Out Of Memory\n") == 1
    assert slurm_text.out_of_memory(f"{task}Killed\n") is None


def test_preemption_is_told_from_one_before_this_start():
    fields = {"StartTime": "2026-01-02T10:00:00", "PreemptTime": "2026-01-02T10:05:00"}
    assert slurm_text.is_preempted(fields)
    assert not slurm_text.is_preempted({**fields, "StartTime": "2026-01-02T10:06:00"})
    assert not slurm_text.is_preempted({**fields, "PreemptTime": "None"})
    assert not slurm_text.is_preempted({})


# ---- own templates


def test_own_template_takes_the_place_of_ours(tmp_path):
    own = tmp_path / "mine.j2"
    own.write_text("#!/bin/sh\n#SBATCH --nodes={{ nodes }}\necho {{ run | quote }}\n")
    assert script(launch={"template": str(own)}).endswith("--nodes=2\necho /data/runs/r\n")
    own.write_text(
        '{% extends "run.sbatch.j2" %}\n{% block array %}\n#SBATCH --comment=x\n{% endblock %}'
    )
    assert "--comment=x" in header(script(launch={"template": "mine.j2"}, cwd=tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ nodez }}", "'nodez' is undefined"),
        ("{{ cluster.nodez }}", "nodez"),
        ("line\n{% if %}", "mine.j2:2"),
        (None, "no such file"),
    ],
)
def test_bad_template_is_named(tmp_path, text, message):
    own = tmp_path / "mine.j2"
    if text is not None:
        own.write_text(text)
    with pytest.raises(ConfigError, match=r"launch\.template") as caught:
        script(launch={"template": str(own)})
    assert message in str(caught.value)


# ---- arrays


def test_array_runs_each_trial_in_its_line(tmp_path):
    plans = [SlurmBackend().plan(make_spec(tmp_path / f"r {i}", cwd=tmp_path)) for i in range(3)]
    text = array_script(plans, tmp_path / "a sweep", 2)
    assert "--array=0-2%2" in header(text)
    assert "--job-name=a-sweep" in header(text)
    assert "--output=slurm-%a.log" in header(text)
    (tmp_path / "a sweep").mkdir()
    (tmp_path / "a sweep" / "trials.txt").write_text("".join(f"{p.run}\n" for p in plans))
    (line,) = re.findall(r"^run=.*$", text, flags=re.MULTILINE)
    done = subprocess.run(
        ["bash", "-c", f'SLURM_ARRAY_TASK_ID=1\n{line}\nprintf %s "$run"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == str(tmp_path / "r 1")
    assert "%" not in array_script(plans, tmp_path, None).split("--array")[1].splitlines()[0]


def test_trials_of_different_size_are_no_array(tmp_path):
    plans = [SlurmBackend().plan(make_spec(tmp_path / f"r{n}", nodes=n)) for n in (1, 2)]
    with pytest.raises(ConfigError, match="nodes"):
        array_script(plans, tmp_path, None)


# ---- containers


@pytest.mark.parametrize("name", ["apptainer", "singularity"])
def test_image_run_by_apptainer(name):
    container = ContainerConfig(
        runtime=ContainerRuntime[name],
        image="/images/a b.sif",
        mounts=["/nfs", "/big:/data:ro"],
        options=["--writable-tmpfs"],
    )
    cluster = {"container": container, "gpus_per_node": 4}
    text = script(cluster=cluster, folders=(Path("/data"), Path("/cache")))
    words = [line.strip(" \\") for line in text.splitlines()]
    at = words.index(name)
    assert words[at : at + 5] == [name, "exec", "--nv", "--pwd", "/home/me"]
    binds = [words[i + 1] for i, word in enumerate(words) if word == "--bind"]
    assert binds == ["/cache:/cache", "/data:/data", "/home/me:/home/me", "/nfs", "/big:/data:ro"]
    assert words[words.index("--writable-tmpfs") + 1] == "'/images/a b.sif'"
    assert words[words.index("'/images/a b.sif'") + 1] == "python"
    plan = SlurmBackend().plan(make_spec(cluster=cluster))
    assert plan.prepare[:2] == (name, "exec")
    assert plan.prepare[-6:-3] == entry.interpreter("python")
    assert plan.prepare[-3:] == ("-m", "launcher.data.prepare", "/data/runs/r")


def test_image_run_by_pyxis():
    container = ContainerConfig(
        runtime=ContainerRuntime.pyxis, image="nvcr.io#nvidia/pytorch:1", mounts=["/nfs"]
    )
    plan = SlurmBackend().plan(make_spec(cluster={"container": container, "scratch": "/fast"}))
    mounts = "--container-mounts=/data/runs:/data/runs,/fast:/fast,/home/me:/home/me,/nfs:/nfs"
    for argument in ("--container-image=nvcr.io#nvidia/pytorch:1", mounts):
        assert argument in plan.command
        assert argument in plan.prepare
    assert plan.prepare[:4] == ("srun", "--export=ALL", "--nodes=1", "--ntasks=1")


def test_container_without_image_is_refused():
    container = ContainerConfig(runtime=ContainerRuntime.apptainer)
    with pytest.raises(ConfigError, match=r"cluster\.container\.image"):
        script(cluster={"container": container})
    container = ContainerConfig(runtime=ContainerRuntime.pyxis, image="i")
    with pytest.raises(ConfigError, match="cannot be shown"):
        script(cluster={"container": container}, folders=(Path("/a,b"),))


# ---- what Slurm says


def test_jobs_of_squeue_and_sacct():
    text = "12|PENDING|Priority\n13_4|RUNNING|None\n14|CANCELLED by 1000\n15|NEWSTATE|x|y\n\n"
    jobs = slurm_text.parse_jobs(text)
    assert [job.state for job in jobs.values()] == [
        AttemptState.queued,
        AttemptState.running,
        AttemptState.gone,
        AttemptState.unknown,
    ]
    assert jobs["12"].reason == "Priority"
    assert jobs["13_4"].reason == ""
    assert jobs["15"].reason == "x|y"


@given(text=st.text())
def test_parsers_never_crash(text):
    slurm_text.parse_jobs(text)
    slurm_text.parse_fields(text)
    slurm_text.first_death(text)
    slurm_check.parse_nodes(text)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:30", 90.5),
        ("1:30:00", 90),
        ("1-12", 2160),
        ("2-00:30", 2910),
        ("1-00:00:00", 1440),
        ("UNLIMITED", None),
        ("infinite", None),
    ],
)
def test_time_limits(text, minutes):
    assert slurm_text.minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "1-", "-5"])
def test_what_is_no_time_limit(text):
    with pytest.raises(ValueError, match="not a time limit"):
        slurm_text.minutes(text)


@pytest.mark.parametrize(
    ("text", "death"),
    [
        ("srun: error: n2: task 3: Exited with exit code 3\n", (3, 3)),
        ("srun: error: n1: tasks 0-1: Exited with exit code 75\n", (0, 75)),
        (
            "srun: error: n1: task 0: Exited with exit code 1\nsrun: error: n2: task 3: Killed\n",
            (3, -9),
        ),
        (
            "srun: error: n2: task 2: Exited with exit code 3\n"
            "srun: error: n1: tasks 0-1: Killed\n",
            (2, 3),
        ),
        (
            "srun: error: n1: task 0: Exited with exit code 1\n"
            "srun: launch/slurm: _step_signal: Terminating StepId=7.0\n"
            "srun: error: n2: task 3: Killed\n",
            (0, 1),
        ),
        ("srun: error: n2: task 2: Segmentation fault (core dumped)\n", (2, -11)),
        ("srun: error: n2: task 2: Out Of Memory\n", (2, 4)),
        ("srun: error: n2: task 2: Exited with exit code 137\n", (2, -9)),
        ("srun: Job step aborted: Waiting up to 7 seconds\n", None),
    ],
)
def test_first_death(text, death):
    assert slurm_text.first_death(text) == death


# ---- what the cluster cannot do

SINFO = """\
batch*|1-00:00:00|8|64+|500000+|gpu:h100:4(S:0-1)|
batch*|1-00:00:00|2|128|500000|gpu:a100:8,gpu:h100:1|
cpu|infinite|4|64|100000|(null)|
"""


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, []),
        ({"cluster": {"partition": "bacth"}}, ["cluster.partition"]),
        ({"nodes": 11}, ["launch.nodes"]),
        ({"nodes": 3, "cluster": {"gpus_per_node": 8}}, ["launch.nodes"]),
        ({"cluster": {"gpus_per_node": 8}}, []),
        ({"cluster": {"gpus_per_node": 10}}, ["cluster.gpus_per_node"]),
        ({"cluster": {"gpus_per_node": 8, "gpu_type": "h100"}}, ["cluster.gpus_per_node"]),
        ({"cluster": {"gpus_per_node": 1, "gpu_type": "v100"}}, ["cluster.gpu_type"]),
        ({"cluster": {"partition": "cpu", "gpus_per_node": 1}}, ["cluster.gpus_per_node"]),
        ({"cluster": {"partition": "cpu", "cpus_per_rank": 17}}, ["cluster.cpus_per_rank"]),
        ({"cluster": {"time": "1-00:00:01"}}, ["cluster.time"]),
        ({"cluster": {"time": "tomorrow"}}, ["cluster.time"]),
        ({"cluster": {"partition": "cpu", "time": "9-00:00:00"}}, []),
        ({"cluster": {"time": "2"}}, ["launch.grace_s"]),
        (
            {"launch": {"prepare_job": True, "prepare_partition": "x"}},
            ["launch.prepare_partition"],
        ),
    ],
)
def test_impossible_jobs(changes, keys):
    nodes = slurm_check.parse_nodes(SINFO)
    problems = slurm_check.compare(make_spec(**changes), nodes)
    assert [problem.where for problem in problems] == keys
    assert all(problem.hint for problem in problems)


def test_without_slurm_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no `sbatch` on the PATH") as caught:
        SlurmBackend().check(make_spec())
    assert "HINT" in str(caught.value)
    assert SlurmBackend().check(make_spec(launch={"check": False})) == []


def test_checkpoint_that_takes_most_of_the_grace_is_warned_of():
    assert too_slow_for_grace(SlurmConfig(grace_s=100), 10) == ""
    assert "launch.grace_s=" in too_slow_for_grace(SlurmConfig(grace_s=100), 60)


@pytest.mark.parametrize(
    ("gres", "found"),
    [
        ("gpu:h100:8(S:0-1),gpu:2", {"h100": 8, "": 2}),
        ("gpu:2080ti:4", {"2080ti": 4}),
        ("gpu:1g.5gb:7(S:0),shard:4", {"1g.5gb": 7}),
        ("(null)", {}),
    ],
)
def test_gpus_of_a_node(gres, found):
    assert slurm_check._gpus(gres) == found
