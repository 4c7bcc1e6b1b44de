"""One rank that trains with a save in the middle, goes on from it with fresh objects, and compares.

usage: resume_worker.py CASES.json OUT.json      (started by run_ranks)
"""

import hashlib
import json
import resource
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from launcher.config.derive import deepspeed, plan
from launcher.config.schema import CheckpointConfig, WatchdogConfig
from launcher.config.schema.variants import PEFT_METHODS
from launcher.core import runtime
from launcher.core.errors import StorageError
from launcher.core.rundir import RunDir
from launcher.data.cache import TokenCache
from launcher.data.pack.loader import Loader
from launcher.data.pack.packing import PackedOrder
from launcher.distributed import collectives, rendezvous
from launcher.health.heartbeat import Heartbeat
from launcher.health.isolation import isolate
from launcher.model.head import TargetHead
from launcher.model.layers import compile_layers
from launcher.model.load import load_model
from launcher.train import restoring
from launcher.train.saving import Saver
from launcher.train.setup import make_engine
from launcher.train.zero import connect, import_deepspeed
from support.configs import make_config


def build(config, made, start, cache):
    torch.manual_seed(0)
    settings = deepspeed.build(config, made) if made.zero == 3 else None
    model = load_model(config.model, made, 0, settings)
    if config.peft.name != "none":
        torch.manual_seed(0)
        model = PEFT_METHODS.load(config.peft.name)(model, config.peft)
    if start is not None:
        restoring.load_weights(start, model)
    head = TargetHead(model)
    engine = make_engine(model, config, made)
    if start is not None:
        restoring.load_optimizer(start, engine)
    engine.eval()
    isolate(head, engine, model, cache, torch.device("cpu"), agree)
    engine.train()
    if config.model.compile:
        compile_layers(model)
    return engine, head


def agree(mine):
    return collectives.sum_over_ranks([float(not mine)])[0] == 0


def train(engine, head, loader, steps, ranks):
    losses = []
    for step in steps:
        torch.manual_seed(step * 1000 + ranks.rank)
        rows = loader.step(step)
        weight = collectives.sum_over_ranks([sum(len(r.targets) for r in rows)])[0]
        total = 0.0
        for index, row in enumerate(rows):
            loss = head.loss(engine, row)
            engine.backward(loss * (ranks.world_size / weight))
            total += float(loss.detach())
            if index < len(rows) - 1:
                engine.micro_step()
        engine.step(1.0)
        losses.append(total)
    return losses


def score(engine, head, loader):
    """Loss of the first rows without an update; all ranks together."""
    engine.eval()
    with torch.no_grad():
        found = [float(head.loss(engine, row)) for row in loader.step(0)]
    engine.train()
    return found


def fingerprint(engine):
    """Hash of this rank's master weights and optimizer state."""
    digest = hashlib.blake2b()
    for piece in engine.pieces():
        digest.update(piece.of(piece.flat).cpu().numpy().tobytes())
        for key, value in sorted(engine.base_optimizer.state[piece.flat].items()):
            digest.update(key.encode())
            if torch.is_tensor(value) and value.numel() == piece.flat.numel():
                value = piece.of(value)  # padding behind the pieces is nobody's
            digest.update(torch.as_tensor(value).float().cpu().numpy().tobytes())
    return digest.hexdigest()


def fail(saver, engine, head, loader, ranks, on):
    """Train on while a save fails on the rank `on`: after how many steps which ranks hear of it."""
    saver.save({}, 1)
    saver.finish()
    if ranks.rank == on:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    saver.save({}, 2)
    problems, steps = "", 0
    while not problems and steps < 50:
        steps += 1
        train(engine, head, loader, [0], ranks)
        try:
            saver.settle(collectives.sum_over_ranks(saver.report()))
        except StorageError as error:
            problems = str(error)
        time.sleep(0.1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    heard = collectives.gather_objects(problems)
    saver.save({}, 3, waits=True)
    return {"heard": heard, "steps": collectives.gather_objects(steps)}


def misplaced(start, engine):
    """Trained parameters that are not, on all ranks together, what the checkpoint holds."""
    saved, wrong = start.weights(), []
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            with import_deepspeed("cpu").zero.GatheredParameters([parameter]):
                if not torch.equal(parameter.detach().float(), saved.tensor(name)):
                    wrong.append(name)
    return wrong


def choose(ranks, case):
    """What each rank takes for the newest whole checkpoint, and what it says meanwhile; on the rank
    `cannot_open` no further file may be opened."""
    said, limits = [], resource.getrlimit(resource.RLIMIT_NOFILE)
    if ranks.rank == case.get("cannot_open"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        found = restoring.newest_valid(RunDir(case["choose"]), ranks, said.append)
        answer = found.step if found else None
    except StorageError as error:
        answer = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    return {"name": case["name"], "ranks": collectives.gather_objects([answer, said])}


def run(case, cache, ranks, folder):
    if "choose" in case:
        return choose(ranks, case)
    config = make_config(**case["config"])
    order = PackedOrder(
        cache.lengths, config.data.max_length, config.seed, config.data.shuffle, config.data.packing
    )
    made = plan.make(
        config, world_size=ranks.world_size, has_gpu=False, train_packs=order.num_packs
    )
    loader = Loader(
        cache,
        order,
        global_sequences=made.global_sequences,
        micro_batch=made.micro_batch,
        accumulation=made.accumulation,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    runs = RunDir(folder / case["name"])
    if "from" in case:
        start = restoring.newest_valid(RunDir(case["from"]), ranks, print)
        engine, head = build(config, made, start, cache)
        wrong = misplaced(start, engine)
        losses = train(engine, head, loader, range(start.step, made.steps), ranks)
        return {"name": case["name"], "losses": losses, "misplaced": wrong}
    half = made.steps // 2
    engine, head = build(config, made, None, cache)
    first = train(engine, head, loader, range(half), ranks)
    saver = Saver(
        runs,
        engine,
        ranks,
        CheckpointConfig(background=case.get("background", True)),
        Heartbeat(runs, ranks, 1, WatchdogConfig()),
    )
    if "full_disk" in case:
        return {"name": case["name"], **fail(saver, engine, head, loader, ranks, case["full_disk"])}
    saver.save({}, half)
    before = score(engine, head, loader)
    rest = train(engine, head, loader, range(half, made.steps), ranks)
    saver.finish()  # what was copied, not what has become of it
    straight = fingerprint(engine)
    start = restoring.newest_valid(runs, ranks, print)
    after = score(engine, head, loader)
    restoring.load_weights(start, engine.module)
    back = score(engine, head, loader)
    engine, head = build(config, made, start, cache)
    again = train(engine, head, loader, range(half, made.steps), ranks)
    resumed = fingerprint(engine)
    files = sum(path.stat().st_size for path in start.path.iterdir())
    scores = {"before": before, "after": after, "back": back}
    mine = {
        **scores,
        "first": first,
        "rest": rest,
        "again": again,
        "straight": straight,
        "resumed": resumed,
    }
    parts = collectives.gather_objects(mine)
    return {"name": case["name"], "ranks": parts, "bytes": files, "folder": str(runs)}


def main():
    cases = json.loads(Path(sys.argv[1]).read_text())
    ranks = runtime.ranks()
    store = rendezvous.open_store(ranks, 60)
    rendezvous.join(store, ranks, ranks.world_size, torch.device("cpu"), 60)
    torch.set_num_threads(1)
    connect("cpu")
    cache = TokenCache.open(cases["cache"])
    folder = Path(cases["folder"])
    results = [run(case, cache, ranks, folder) for case in cases["cases"]]
    if ranks.is_main:
        Path(sys.argv[2]).write_text(json.dumps(results))
    dist.destroy_process_group()


main()
