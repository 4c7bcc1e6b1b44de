from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from launcher.config.compose import compose
from launcher.config.derive import plan as plans
from launcher.config.schema import Config, EvalConfig, LoraConfig, ModelConfig, SpecialTokens
from launcher.core.errors import ConfigError, DataError, ExitCode
from launcher.core.rundir import RunDir
from launcher.data.prepare.preparation import prepare
from launcher.evals.decoding import Decoding
from launcher.inference import chat, generate, offline, requests
from launcher.inference import export as exporter
from launcher.inference.batching import Ask, reply
from launcher.inference.export import export_run
from launcher.inference.loading import open_speaker
from launcher.inference.speaker import Message, Sampling, Speaker, _Streamer
from launcher.model.fragments import Fragment, write_fragments
from launcher.model.rebuild import load_base, with_adapters
from launcher.scoring.score import score
from support.models import make_llama, make_tokenizer


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A LoRA run with two checkpoints, as training leaves it."""
    run = RunDir(tmp_path / "runs" / "trial")
    run.path.mkdir(parents=True)
    base = make_llama(tmp_path / "base")
    config = Config(model=ModelConfig(name=str(base)), peft=LoraConfig(rank=4))
    config.data.train = "train.jsonl"
    compose.save(config, run.config)
    run.plan.write_text(json.dumps({"dtype": "fp32"}))
    for step in (5, 10):
        write_checkpoint(run, config, base, step)
    return run


def write_checkpoint(run: RunDir, config: Config, base: Path, step: int) -> None:
    tokens = load_tokenizer_length(base)
    model = with_adapters(load_base(config.model, base, torch.float32, tokens), config)
    torch.manual_seed(step)
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True)
    fragments = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            flat = (parameter.detach() + 0.2 * torch.randn(parameter.shape)).reshape(-1)
            shape = tuple(parameter.shape)
            fragments.append(Fragment(name, shape, 0, flat.numel(), lambda flat=flat: flat))
    name = "weights-rank-00000.safetensors"
    size, digest = write_fragments(folder / name, fragments)
    manifest = {
        "version": 1,
        "step": step,
        "state": {},
        "files": {name: {"bytes": size, "blake2b": digest}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def load_tokenizer_length(base: Path) -> int:
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(base))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = folder.glob("*.safetensors")
    return load_file(file)


@pytest.mark.slow
def test_the_newest_checkpoint_is_exported_and_a_step_can_be_named(
    run: RunDir, tmp_path: Path
) -> None:
    assert export_run(run) == run.export
    export_run(run, checkpoint=10, out=tmp_path / "ten")
    export_run(run, checkpoint=5, out=tmp_path / "five")
    newest, ten, five = map(weights_of, (run.export, tmp_path / "ten", tmp_path / "five"))
    assert all(torch.equal(newest[name], ten[name]) for name in newest)
    assert not any(torch.equal(newest[name], five[name]) for name in newest)


def test_the_base_has_no_checkpoint(run: RunDir) -> None:
    with pytest.raises(ConfigError, match="the model before training has no step 5"):
        open_speaker(run, checkpoint=5, base=True)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(run: RunDir, tmp_path: Path) -> None:
    file = run.checkpoints / "step-00000010" / "weights-rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    said: list[str] = []
    export_run(run, say=said.append)
    export_run(run, checkpoint=5, out=tmp_path / "five")
    found, five = weights_of(run.export), weights_of(tmp_path / "five")
    assert all(torch.equal(found[name], five[name]) for name in found)
    assert any("step-00000010" in line for line in said)


def test_merging_gives_a_folder_without_adapter(run: RunDir) -> None:
    export_run(run, merge=True)
    assert (run.export / "config.json").exists()
    assert not (run.export / "adapter_config.json").exists()


def test_what_cannot_be_exported_is_a_config_error(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no valid checkpoint of step 7"):
        export_run(run, checkpoint=7)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="no export"):
        export_run(run, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_the_export_command_prints_the_folder_or_its_exit_code(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert exporter.main([str(run), "--merge", "-o", str(out)]) == ExitCode.ok
    assert capsys.readouterr().out == f"{out}\n"
    assert exporter.main([str(run), "--checkpoint", "99"]) == ExitCode.usage
    assert exporter.main([str(tmp_path)]) == ExitCode.usage
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "HINT" in captured.err


@pytest.mark.slow
def test_export_checkpoint_and_base_speak_for_themselves(run: RunDir) -> None:
    sampling = Sampling(max_new_tokens=12)

    def answer(**options: Any) -> str:
        speaker = open_speaker(run, **options)
        return speaker.answer(
            speaker.tokens([{"role": "user", "content": "How many apples?"}]), sampling
        )

    from_checkpoint = answer()
    export_run(run)
    assert answer() == from_checkpoint == answer(checkpoint=10)
    assert answer(checkpoint=5) != from_checkpoint
    assert answer(base=True) != from_checkpoint


def test_generate_streams_the_answers_to_stdout(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--max-new-tokens", "8"]
    assert generate.main([str(run), "-p", "Hello", "-p", "Apples", *options]) == ExitCode.ok
    speaker = open_speaker(run)
    expected = [
        speaker.answer(generate.prompt_tokens(speaker, prompt, None, raw=False), Sampling(8))
        for prompt in ("Hello", "Apples")
    ]
    capsys_out = capsys.readouterr().out
    assert capsys_out == f"{expected[0]}\n\n{expected[1]}\n"


@pytest.mark.thorough
def test_sampling_is_repeated_by_its_seed(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    def sampled(seed: int) -> str:
        options = ["--temperature", "1.5", "--seed", str(seed), "--max-new-tokens", "12"]
        assert generate.main([str(run), "-p", "Hello", *options]) == ExitCode.ok
        return capsys.readouterr().out

    assert sampled(1) == sampled(1)
    assert len({sampled(1), sampled(2), sampled(3)}) > 1


TURN = "<|end|>"


@pytest.fixture
def taught(run: RunDir, tmp_path: Path) -> RunDir:
    """The run, with data that ends turns by `<|end|>`; the base knows `<eos>` alone."""
    config = compose.load(run.config)
    data = tmp_path / "train.jsonl"
    turns = [{"role": role, "content": role} for role in ("user", "assistant")]
    data.write_text(json.dumps({"messages": turns}) + "\n")
    config.data = replace(config.data, train=str(data), validation=str(data), workers=1)
    config.data.cache = str(tmp_path / "cache")
    config.eval = EvalConfig(name="default", metrics=["exact_match"], base=False)
    config.eval.max_new_tokens = 9
    compose.save(config, run.config)
    config.batch.sequences = 1
    run.data.write_text(json.dumps(prepare(config)))
    plan = plans.make(config, world_size=1, has_gpu=False, train_packs=1)
    run.plan.write_text(json.dumps(plans.as_dict(plan)))
    return run


def test_a_run_and_its_export_end_at_the_token_that_was_taught(taught: RunDir) -> None:
    """`generate`, `chat`, `eval`, `serve` and who loads the export stop at the same token."""
    export_run(taught, merge=True)
    model = AutoModelForCausalLM.from_pretrained(taught.export)
    tokenizer = AutoTokenizer.from_pretrained(taught.export)
    eos, turn = tokenizer.convert_tokens_to_ids(["<eos>", TURN])
    assert model.generation_config.eos_token_id == [eos, turn]
    assert not model.generation_config._from_model_config
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.eos_token_id == eos
    speaker = open_speaker(taught)
    assert speaker.stop_tokens == sorted([eos, turn])
    assert open_speaker(taught, checkpoint=10).stop_tokens == speaker.stop_tokens

    ended: list[tuple[str, int]] = []
    prompt = speaker.tokens([{"role": "user", "content": "Hi"}])
    with saying(speaker, [40, 41, turn, 42]):
        expected = tokenizer.decode([40, 41])
        assert speaker.answer(prompt, Sampling(9)) == expected  # generate and chat
        decoding = Decoding(max_new_tokens=9)
        ask = Ask(
            prompt, decoding, 0, lambda *_: None, lambda *end: ended.append(end), lambda: False
        )
        reply(speaker, [ask])  # serve
        assert ended == [("stop", 2)]
        _, results = score(taught, speaker)  # eval
        assert [made.answer for made in results.generations] == [expected]
    with saying(Speaker(model, tokenizer, None, pairs=True), [40, 41, turn, 42]):
        tokens = torch.tensor([prompt])
        made = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=9)
        assert made[0, len(prompt) :].tolist() == [40, 41, turn]


def test_an_adapter_says_where_its_answers_end(taught: RunDir) -> None:
    export_run(taught)
    found = GenerationConfig.from_pretrained(taught.export)
    speaker = open_speaker(taught)
    assert sorted(found.eos_token_id) == speaker.stop_tokens
    assert speaker.tokenizer.convert_tokens_to_ids(TURN) in speaker.stop_tokens


@contextlib.contextmanager
def saying(speaker: Speaker, tokens: list[int]) -> Iterator[None]:
    """The model says `tokens` after any prompt, then the last of them for ever."""
    model = speaker.model
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    said = 0

    def forced(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        nonlocal said
        if output.logits.dim() < 3:  # a loss
            return output
        said = 0 if kwargs["input_ids"].shape[1] > 1 else said + 1  # a prompt, or a token more
        output.logits[:] = -1e4
        output.logits[:, -1, tokens[min(said, len(tokens) - 1)]] = 1e4
        return output

    hook = inner.register_forward_hook(forced, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@pytest.fixture
def speaker(run: RunDir) -> Speaker:
    return open_speaker(run)


def test_prompts_are_laid_out_as_in_training(speaker: Speaker) -> None:
    def text(tokens: list[int]) -> str:
        return str(speaker.tokenizer.decode(tokens))

    def prompt(system: str | None = None, raw: bool = False) -> str:
        return text(generate.prompt_tokens(speaker, "Hi", system, raw))

    assert prompt() == "<bos><|user|>Hi<|end|><|assistant|>"
    assert prompt(system="Be") == "<bos><|system|>Be<|end|><|user|>Hi<|end|><|assistant|>"
    assert prompt(raw=True) == "Hi"
    speaker.tokenizer.chat_template = None
    assert prompt() == "Hi"
    pairs = Speaker(speaker.model, speaker.tokenizer, "Be", pairs=True)
    assert text(generate.prompt_tokens(pairs, "Hi", None, raw=False)) == "Be\n\nHi\n"
    assert text(generate.prompt_tokens(pairs, "Hi\n", "Do", raw=False)) == "Do\n\nHi\n"


def test_the_runs_own_system_message_is_used_unless_another_is_given(speaker: Speaker) -> None:
    trained = Speaker(speaker.model, speaker.tokenizer, "Be kind", pairs=False)
    user: Message = {"role": "user", "content": "Hi"}
    assert "Be kind" in trained.tokenizer.decode(trained.tokens([user]))
    other: Message = {"role": "system", "content": "Be brief"}
    text = trained.tokenizer.decode(trained.tokens([other, user]))
    assert "Be brief" in text
    assert "Be kind" not in text


def test_a_prompt_that_fills_the_model_is_refused(speaker: Speaker) -> None:
    with pytest.raises(ConfigError, match="300 tokens, the model takes 256"):
        speaker.answer([5] * 300, Sampling())
    assert speaker.answer([5] * 255, Sampling()) is not None


@pytest.mark.thorough
@pytest.mark.parametrize("text", ["plain words", "Grüße, 東京 🙂\nand 🙂🙂", "two\n\nlines\n", ""])
def test_pieces_are_whole_characters_and_add_up_to_the_answer(speaker: Speaker, text: str) -> None:
    pieces: list[str] = []
    streamer = _Streamer(speaker.tokenizer, pieces.append)
    streamer.put(torch.tensor([[1, 2, 3]]))
    tokens = speaker.tokenizer(text)["input_ids"]
    for token in tokens:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) >= len(text) / 8


class Parrot(Speaker):
    """Says how many messages it has been shown."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(None, tokenizer, None, pairs=False)

    def tokens(self, messages: list[Message]) -> list[int]:
        return [len(messages)]

    def answer(self, tokens: list[int], sampling: Sampling, show: Any = None) -> str:
        if tokens[0] > 5:
            raise ConfigError("too long")
        show(f"{tokens[0]} ")
        show("messages")
        return ""


def asking(*lines: str) -> Iterator[str]:
    yield from lines


def converse(*lines: str, system: str | None = None) -> None:
    said = asking(*lines)

    def ask() -> str:
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    chat.converse(Parrot(None), Sampling(), system, ask)


def test_a_conversation_remembers_until_it_is_reset(capsys: pytest.CaptureFixture[str]) -> None:
    converse("one", "", "two", "/reset", "three", "/exit", "never", system="Be brief")
    assert capsys.readouterr().out.splitlines() == ["2 messages", "4 messages", "2 messages"]


def test_a_conversation_that_is_too_long_says_so_and_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    converse("1", "2", "3", "4", "/unknown", "/reset", "5")
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["1 messages", "3 messages", "5 messages", "1 messages"]
    assert "too long" in captured.err
    assert "/reset forgets" in captured.err


def test_chat_needs_a_template(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose.load(run.config)
    path = Path(str(config.model.name)) / "chat_template.jinja"
    path.unlink()
    assert chat.main([str(run)]) == ExitCode.usage
    assert "no chat template" in capsys.readouterr().err


def test_prompts_have_the_variables_and_no_second_beginning(tmp_path: Path) -> None:
    from tokenizers import processors
    from transformers import AutoTokenizer

    template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt and enable_thinking is false %}{{ '<think></think>' }}"
        "{% endif %}"
    )
    tokenizer = AutoTokenizer.from_pretrained(make_tokenizer(tmp_path, chat_template=template))
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    plain = Speaker(None, tokenizer, None, True)
    quiet = Speaker(None, tokenizer, None, True, template_options={"enable_thinking": False})
    asked = [{"role": "user", "content": "Hi"}]
    assert tokenizer.decode(plain.tokens(asked)) == "<bos>Hi"
    assert tokenizer.decode(quiet.tokens(asked)) == "<bos>Hi<think></think>"
    # What one prompt says goes over what the run trained with.
    loud = quiet.tokens(asked, {"enable_thinking": True})
    assert tokenizer.decode(loud) == "<bos>Hi"
    record = {"messages": asked, "where": "a:1", "template_options": {"enable_thinking": False}}
    assert offline._tokens(plain, record) == quiet.tokens(asked)
    for text in ("Hi", "<bos>Hi"):
        assert tokenizer.decode(plain.raw_tokens(text)) == "<bos>Hi"


@pytest.fixture(scope="module")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer that finds its control tokens in capitals, too."""
    folder = make_tokenizer(tmp_path_factory.mktemp("lower"))
    file = folder / "tokenizer.json"
    parts = json.loads(file.read_text(encoding="utf-8"))
    parts["normalizer"] = {"type": "Lowercase"}
    for token in parts["added_tokens"]:
        token["normalized"] = True
    file.write_text(json.dumps(parts), encoding="utf-8")
    config = folder / "tokenizer_config.json"
    about = json.loads(config.read_text(encoding="utf-8"))
    about.pop("added_tokens_decoder", None)
    config.write_text(json.dumps(about), encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=["as they are", "in capitals"])
def silent(request: pytest.FixtureRequest, lower: Any, tmp_path_factory: Any) -> Speaker:
    """What asks a model, without one."""
    tokenizer = lower
    if request.param == "as they are":
        folder = make_tokenizer(tmp_path_factory.mktemp("plain"))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=SimpleNamespace))
    return Speaker(model, tokenizer, None, pairs=True)


PRIVATE = "<eos>" + chr(0xF0003) * 8


def test_what_a_template_or_tokenizer_refuses_is_told(
    silent: Speaker, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [{"role": "user", "content": PRIVATE}]
    with pytest.raises(DataError, match="private use"):
        generate.prompt_tokens(silent, PRIVATE, None, False)
    with pytest.raises(DataError, match="private use"):
        offline._tokens(silent, {"messages": asked, "where": "x:1"})
    with pytest.raises(requests.Refused, match="private use") as caught:
        requests._prompt_tokens({"messages": asked}, silent)
    assert caught.value.code == "invalid_messages"
    spoken = iter([PRIVATE, "/exit"])
    chat.converse(silent, Sampling(), None, lambda: next(spoken))
    assert "private use" in capsys.readouterr().err
    bare = replace(silent, special_tokens=SpecialTokens.text)
    with pytest.raises(requests.Refused, match="private use") as caught:
        requests._prompt_tokens({"prompt": PRIVATE}, bare)
    assert caught.value.code == "invalid_prompt"
    with pytest.raises(DataError, match="private use"):
        generate.prompt_tokens(bare, PRIVATE, None, True)
