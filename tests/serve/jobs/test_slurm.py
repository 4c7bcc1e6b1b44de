"""What of jobs is particular to a real Slurm cluster; the rest is in `test_queues.py`."""

from __future__ import annotations

import pytest

from launcher.launch.queue import queue_job
from support.slurm import Cluster
from support.workshop import workshop

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(300)]

WORDS = ("launch=slurm", "launch.processes=1", "cluster.gpus_per_node=0", "train.threads=1")
ACCOUNT = "colours"
LONG = {"n_epochs": 50, "batch_size": 1, "learning_rate_multiplier": 1}


def test_a_project_pays_with_its_account(cluster: Cluster, tmp_path, monkeypatch):
    cluster.require_own("have jobs of an account that it does not know")
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    home = tmp_path / "home"
    with workshop(home, *WORDS, "cluster.sbatch=[--hold]", account=ACCOUNT) as shop:
        shop.start()
        job_id = shop.create(hyperparameters=LONG)
        run = shop.run(job_id)
        shop.wait(lambda: shop.row(job_id).cursor.get("started"), "the job")
        told = cluster.run("scontrol", "show", "job", queue_job(run, 1))
        assert f"Account={ACCOUNT}" in told.split()
        assert shop.ask(job_id, "cancel")["status"] == "cancelled"
        shop.await_idle(job_id)
