"""`python -m launcher.scoring.score RUN_DIR`: metrics of a model on its run's held-out records."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from launcher.config.compose import compose
from launcher.config.derive import plan as plans
from launcher.core import runtime
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.evals import generation, vllm
from launcher.evals.metric import Metric, score_all
from launcher.evals.records import Results
from launcher.health.isolation import isolate
from launcher.inference.command import exit_code_of, note
from launcher.inference.loading import open_speaker
from launcher.inference.speaker import Speaker
from launcher.model import attention
from launcher.model.adapter import inner_model
from launcher.objectives.base import of_run
from launcher.scoring import harness
from launcher.scoring.evaluator import make_evaluator
from launcher.scoring.held_out import held_out
from launcher.scoring.referee import Referee, references_of


def score(
    run: RunDir, speaker: Speaker, *, by_vllm: bool = False, is_base: bool = False
) -> tuple[list[Metric[Any]], Results]:
    """Score a model in this process as the run does: its metrics, and the results of each record.

    `by_vllm`: vLLM makes the answers, and `speaker` is of no use afterwards. `is_base`: it is the
    model before training, which then fills what is missing of the objective's reference. Raises
    `DataError` if the run has no held-out records, or misses that of its base.
    """
    config = compose.load(run.config)
    held_out(run)
    has_gpu = torch.cuda.is_available()
    plan = plans.Plan.from_json(run.plan.read_text(encoding="utf-8"))
    attention.register()
    model, device = speaker.model, torch.device("cuda" if has_gpu else "cpu")
    inner = inner_model(model)
    wanted = attention.IMPLEMENTATIONS[plan.attention]
    inner.set_attn_implementation(attention.supported(type(inner), wanted))
    objective = of_run(run, config)
    if objective.reference:
        objective.references = references_of(run, config, objective)
    folders = read_json(run.data)
    head, alone = objective.head(model), runtime.Ranks(0, 1, 0, 1, "", "none")
    evaluator = make_evaluator(
        config,
        plan,
        alone,
        folders,
        speaker.tokenizer,
        head,
        device,
        lambda: False,
        objective,
        vllm.generate_records if by_vllm else generation.generate_records,
    )
    for found in isolate(head, model.eval(), model, evaluator.cache, device):
        note(f"attention: {found}")
    for own, other in objective.companions(device):
        isolate(own, other, other, evaluator.cache, device)
    if objective.references is not None:
        referee = Referee(
            *(config, plan, alone, device, objective, head, model),
            should_stop=lambda: False,
            say=note,
        )
        for kept, cache, ids, what in evaluator.referred(objective.references):
            if not is_base and objective.referent_identity is None:
                kept.require(cache, ids, run)
            referee.fill(kept, model, cache, ids, what)
    objective.is_base = is_base
    return evaluator.metrics, evaluator.everything(model, model)


def main(argv: list[str]) -> int:
    """Exit code of `launcher.core.errors.ExitCode`; scores on stdout."""
    parser = argparse.ArgumentParser(prog="launcher eval", description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--checkpoint", type=int, metavar="STEP")
    parser.add_argument("--base", action="store_true", help="the model before training")
    parser.add_argument("--lm-eval", action="append", metavar="TASK")
    parser.add_argument("--vllm", action="store_true", help="let vLLM make the answers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)

    def work() -> None:
        run = RunDir(options.run).require()
        if options.lm_eval:
            own = "tuned" if options.checkpoint is None else str(options.checkpoint)
            sides = ["base"] if options.base else ["base", own]
            made = harness.evaluate(run, options.lm_eval, sides)
            print(json.dumps(made, indent=2) if options.json else harness.table(made))
            return
        held_out(run)  # before a model is loaded
        if options.vllm:
            vllm.need()
        speaker = open_speaker(run, checkpoint=options.checkpoint, base=options.base)
        scores = score_all(*score(run, speaker, by_vllm=options.vllm, is_base=options.base))
        if options.json:
            print(json.dumps(scores, indent=2))
        else:
            width = max(map(len, scores), default=0)
            for name, value in scores.items():
                print(f"{name:<{width}}  {value:.4f}")

    return exit_code_of(work)


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
