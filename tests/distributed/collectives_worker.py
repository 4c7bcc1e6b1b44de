"""One rank that sends messages in each way and writes what came of it: OUT.json of rank 0."""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from launcher.distributed import collectives

CPU = torch.device("cpu")


def messages(rank):
    collectives.barrier()
    return {
        "sum": collectives.sum_over_ranks([1.0, rank, 2.0**-40]),
        "max": collectives.max_over_ranks(rank * 7),
        "objects": collectives.gather_objects({"rank": rank}),
    }


def main():
    dist.init_process_group("gloo")
    rank, timeout = dist.get_rank(), timedelta(seconds=90)
    found = {"default": messages(rank)}
    found["why"] = collectives.keep_apart(CPU, timeout)
    group = collectives._Way.group
    # A collective of the default group that is under way holds up no message.
    other = torch.ones(4)
    work = dist.all_reduce(other, async_op=True) if rank == 0 else None
    found["apart"] = messages(rank)
    work = work or dist.all_reduce(other, async_op=True)
    work.wait()
    found["timeout"] = group._get_backend(CPU).options._timeout.total_seconds()
    if rank == 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "nowhere0"
    found["failed"] = collectives.keep_apart(CPU, timedelta(seconds=10))
    found["fallback"] = messages(rank)
    every = collectives.gather_objects(found)
    if rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(every))
    collectives.reset()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
