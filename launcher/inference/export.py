"""`python -m launcher.inference.export RUN_DIR`: a checkpoint of a run as a Hugging Face folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from launcher import bases
from launcher.config.compose import compose
from launcher.config.schema import Config
from launcher.core.errors import ConfigError
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.data.chat.turn_ends import taught
from launcher.data.tokenizer import load_tokenizer
from launcher.fingerprint import MARKER, origin, require_same
from launcher.inference import speaker
from launcher.inference.command import exit_code_of, note
from launcher.model.checkpoint import Checkpoint, newest_valid
from launcher.model.export import Kind, Trained, export
from launcher.model.load import DTYPES
from launcher.model.rebuild import base_folder
from launcher.model.verify import verify
from launcher.objectives.base import of_run


def export_run(
    run: RunDir,
    *,
    merge: bool = False,
    checkpoint: int | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = note,
) -> Path:
    """Export the checkpoint that the run counts, or that of step `checkpoint`; returns the folder.

    A LoRA run gives an adapter, or with `merge` its base with the adapter folded in; a full
    fine-tune gives its weights. Raises `ConfigError` if there is nothing to export or `out` holds
    other files, `StorageError` for a full disk, `LauncherError` if the export fails its
    verification.
    """
    speaker.quiet()
    config = compose.load(run.config)
    bases.recall(run, config.model)
    trained = trained_model(run, config, find_checkpoint(run, checkpoint, say))
    adapted = Kind.merged if merge else Kind.adapter
    kind = Kind.full if config.peft.trains_base else adapted
    folder = out or run.export
    _require_replaceable(folder)
    export(trained, kind, folder, lambda written: verify(trained, written))
    return folder


def find_checkpoint(run: RunDir, step: int | None, say: Callable[[str], None]) -> Checkpoint:
    """The valid checkpoint of `step`, or the one that counts: the best so far with
    `export.weights=best`, else the newest. `ConfigError` if there is none."""

    def warn(text: str) -> None:
        say(f"warning: {text}")

    best = read_json(run.best, {})
    found = None
    if step is None and best.get("weights") == "best":
        found = newest_valid(run, warn, best.get("step"))
    found = found or newest_valid(run, warn, step)
    if found is None:
        which = "no valid checkpoint" if step is None else f"no valid checkpoint of step {step}"
        raise ConfigError(
            which,
            where=str(run.checkpoints),
            hint=f"{run.command('resume', anywhere=True)} trains on to one, or name a step that is"
            " there",
        )
    return found


def trained_model(run: RunDir, config: Config, checkpoint: Checkpoint) -> Trained:
    """What the run has trained up to `checkpoint`, in the dtype in which it held the model.

    Raises `ConfigError` if the base or the tokenizer is no longer that of the checkpoint.
    """
    now = origin(config, base_folder(config.model))
    for text in require_same(config, checkpoint.origin, now, checkpoint.path):
        note(f"warning: {text}")
    dtype = DTYPES[read_json(run.plan, {}).get("dtype", "fp32")]
    tokenizer = load_tokenizer(config.model)
    objective = of_run(run, config)
    return Trained(
        config,
        checkpoint.weights(),
        tokenizer,
        dtype,
        objective.spec,
        taught(read_json(run.data), tokenizer),
        lambda folder: objective.describe_export(folder, config, run),
    )


def _require_replaceable(folder: Path) -> None:
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        if not names or MARKER in names:
            return
    elif not folder.exists():
        return
    raise ConfigError(
        "there is something here that no export has written",
        where=str(folder),
        hint="give another folder with -o",
    )


def main(argv: list[str]) -> int:
    """Exit code of `launcher.core.errors.ExitCode`; prints the folder on stdout."""
    parser = argparse.ArgumentParser(prog="launcher export", description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("--checkpoint", type=int, metavar="STEP")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args(argv)

    def work() -> None:
        run = RunDir(options.run).require()
        out = options.out.resolve() if options.out else None
        merge = options.merge or compose.load(run.config).export.merge
        print(export_run(run, merge=merge, checkpoint=options.checkpoint, out=out))

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
