"""`python -m launcher.inference.fold RUN_DIR OUT`: a run's `model.adapter` merged into its base."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from launcher.config.compose import compose
from launcher.config.schema import Config, LoraConfig, Quantization
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.data.tokenizer import load_tokenizer
from launcher.fingerprint import require_base
from launcher.inference import speaker
from launcher.inference.command import exit_code_of
from launcher.model.adapter import AdapterReader
from launcher.model.export import Kind, Trained, export
from launcher.model.load import DTYPES
from launcher.model.rebuild import base_folder, meta_base, with_adapters
from launcher.model.verify import verify


def fold(config: Config, out: Path) -> None:
    """Write the base of `config` with `config.model.adapter` folded in, in the base's own format.

    Raises `ConfigError` for an adapter that is not the base's, `StorageError` for a full disk and
    `LauncherError` if the folder does not compute what base and adapter do.
    """
    speaker.quiet()
    method = LoraConfig(adapter=config.model.adapter)
    model = replace(config.model, adapter=None, quantization=Quantization.none, add_tokens=[])
    config = Config(model=model, peft=method)
    tokenizer, base = load_tokenizer(model), base_folder(model)
    about = read_json(base / "config.json", {})
    named = str(about.get("dtype") or about.get("torch_dtype") or "float32")
    dtype = {"bfloat16": DTYPES["bf16"], "float16": DTYPES["fp16"]}.get(named, DTYPES["fp32"])
    require_base(str(method.adapter), base)
    structure = with_adapters(meta_base(model, base, len(tokenizer)), config)
    reader = AdapterReader(str(method.adapter), structure)
    trained = Trained(config, reader, tokenizer, dtype)
    export(trained, Kind.merged, out, lambda written: verify(trained, written))


def main(argv: list[str]) -> int:
    """Exit code of `launcher.core.errors.ExitCode`."""
    run, out = RunDir(argv[0]), Path(argv[1])
    return exit_code_of(lambda: fold(compose.load(run.config), out))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
