"""Records that are computed together do not see each other, whatever the model is made of."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from launcher.config.derive import plan as plans
from launcher.core.errors import ConfigError
from launcher.core.runtime import Ranks
from launcher.data.pack.loader import make_row, rectangles
from launcher.health.isolation import isolate
from launcher.model import attention
from launcher.model.head import TargetHead
from launcher.objectives.classify.labels import number
from launcher.scoring.evaluator import Evaluator
from support import caches
from support.classifiers import classes_of, classify
from support.configs import make_config

CPU = torch.device("cpu")
COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "tie_word_embeddings": False,
}
EXPERTS = {
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
SMALL_MAMBA = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8}

#: Config class, options, and how documents are to be kept apart.
MODELS = {
    "llama": ("LlamaConfig", {}, "row"),
    "qwen3.5": ("Qwen3_5TextConfig", LINEAR, "row, Qwen3_5GatedDeltaNet"),
    "qwen3-next": ("Qwen3NextConfig", LINEAR | EXPERTS, "row, Qwen3NextGatedDeltaNet"),
    "mamba2": ("Mamba2Config", SMALL_MAMBA, "row, Mamba2Mixer"),
    "falcon-h1": ("FalconH1Config", MAMBA | {"mamba_d_ssm": 64}, "row, FalconH1Mixer"),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}, "row, Lfm2ShortConv"),
    "llama4-chunks": (
        "Llama4TextConfig",
        {"attention_chunk_size": 8, "intermediate_size_mlp": 48, "num_local_experts": 2},
        "row",
    ),
    "gpt-oss-sinks": (
        "GptOssConfig",
        {"sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
        "row",
    ),
    "bloom-own-attention": ("BloomConfig", {"n_head": 4, "n_layer": 2}, "padded, eager"),
    "gpt-neo-own-table": (
        "GPTNeoConfig",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        "padded, eager",
    ),
    "gptj-own-table": (
        "GPTJConfig",
        {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4},
        "padded, eager",
    ),
}


def make(name, implementation=None):
    kind, options, _ = MODELS[name]
    kind = getattr(transformers, kind)
    config = kind(**(COMMON | options))
    attention.register()
    torch.manual_seed(0)
    wanted = implementation
    if wanted is None:
        cls = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[kind]
        wanted = attention.supported(cls, attention.DOCUMENT)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=wanted)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.config.use_cache = False
    return model.eval()


@pytest.fixture
def cache(tmp_path):
    generator = torch.Generator().manual_seed(2)
    records = []
    for length in (7, 19, 2, 11):
        tokens = torch.randint(3, 61, (length,), generator=generator).tolist()
        records.append((tokens, [0] + [1] * (length - 1)))
    return caches.write(tmp_path / "cache", records, max_length=64)


def alone(model, cache, weights=None):
    """Loss sum of all records, each by itself, through plain transformers."""
    total = 0
    for i in range(len(cache)):
        tokens = torch.tensor(cache.record(i)[0], dtype=torch.long)
        logits = model(input_ids=tokens[None]).logits[0, :-1].float()
        total = total + torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum")
    return total


def gradients(model):
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_of_a_row_are_those_of_its_records_alone(name, cache):
    reference = make(name, "eager")
    expected = alone(reference, cache)
    expected.backward()
    model = make(name)
    head = TargetHead(model)
    notes = isolate(head, model, model, cache, CPU)
    assert head.layout == MODELS[name][2]
    assert bool(notes) == (head.layout != "row")
    loss = head.loss(model, make_row(cache, range(len(cache))))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    wanted = gradients(reference)
    assert gradients(model).keys() == wanted.keys()
    for key, gradient in gradients(model).items():
        scale = float(wanted[key].abs().max())
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-3, atol=1e-4 + 1e-4 * scale)


class Beginning:
    """Records of several documents, most of which begin alike."""

    is_weighted = False
    columns: dict = {}
    lengths = (44, 9, 47)

    def __init__(self):
        draw = torch.Generator().manual_seed(3)

        def tokens(count):
            return torch.randint(3, 61, (count,), generator=draw).tolist()

        prompt, other = tokens(10), tokens(12)
        self._records = [
            [prompt + tokens(4), prompt + tokens(20)],
            [tokens(9)],
            [other, other + tokens(3), other + tokens(2) + tokens(6)],
        ]
        assert [sum(map(len, one)) for one in self._records] == list(self.lengths)

    def __len__(self):
        return 3

    def documents(self, i):
        return list(map(len, self._records[i]))

    def record(self, i):
        documents = self._records[i]
        flags = [int(place % 3 == 1) for one in documents for place in range(len(one))]
        return np.array(sum(documents, []), np.int32), np.array(flags, np.uint8)

    def weight(self, i):
        return 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_that_loses_beginnings_shares_none(dtype, monkeypatch):
    records = Beginning()
    for is_broken in (False, True):
        if is_broken:
            own = attention.attend

            def attend(q, k, v, sinks, cuts, of_keys, *options, own=own):
                lengths = [end - start for start, end in pairwise(cuts)]
                kept = [
                    torch.arange(end - n, end) for n, end in zip(lengths, of_keys[1:], strict=True)
                ]
                k, v = (x[:, :, torch.cat(kept)] for x in (k, v))
                return own(q, k, v, sinks, cuts, cuts, *options)

            monkeypatch.setattr(attention, "attend", attend)
        model = make("llama").to(dtype)
        head = TargetHead(model)
        isolate(head, model, model, records, CPU)
        assert head.layout == "row"
        assert head.shares is not is_broken


def test_what_is_computed_again_reads_beginnings_again():
    records, found = Beginning(), []
    for checkpoints in (False, True):
        model = make("llama")
        head = TargetHead(model)
        isolate(head, model, model, records, CPU)
        if checkpoints:
            options = {"use_reentrant": False, "context_fn": attention.checkpoint_contexts}
            model.gradient_checkpointing_enable(options)
        head.log_probs(model.train(), make_row(records, range(3))).sum().backward()
        assert head.shares
        found.append(gradients(model))
    for key, gradient in found[1].items():
        torch.testing.assert_close(gradient, found[0][key])


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODELS)
def test_what_documents_begin_with_alike_is_computed_once(name):
    records = Beginning()
    row = make_row(records, range(3))
    assert len(row.input_ids) == 100
    assert len(row.sharing.kept) == 100 - 10 - 11 - 12
    found = {}
    for shares in (False, True):
        model = make(name)
        head = TargetHead(model)
        isolate(head, model, model, records, CPU)
        if shares:
            # Of attention in chunks nobody can tell which of them a beginning lies in.
            assert head.shares == (head.layout == "row" and name != "llama4-chunks")
        head.shares = head.shares and shares
        seen = []
        model.get_input_embeddings().register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(inputs[0].numel())
        )
        log_probs = head.log_probs(model, row)
        log_probs[::2].sum().backward()
        found[shares] = log_probs.detach(), gradients(model)
        if head.isolates:
            assert seen == [67 if head.shares else 100]
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-5, atol=1e-5)
    for key, gradient in found[True][1].items():
        scale = float(found[False][1][key].abs().max())
        wanted = found[False][1][key]
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4 + 1e-4 * scale)


@pytest.mark.parametrize("name", ["qwen3.5", "falcon-h1"])
def test_mixers_run_as_ever_outside_of_a_row(name, cache):
    reference, model = make(name, "eager"), make(name)
    isolate(TargetHead(model), model, model, cache, CPU)
    tokens = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        model(input_ids=tokens).logits, reference(input_ids=tokens).logits, rtol=1e-4, atol=1e-4
    )


def test_mixers_know_their_documents_when_they_are_computed_again(cache):
    plain, again = make("qwen3.5"), make("qwen3.5")
    options = {"use_reentrant": False, "context_fn": attention.checkpoint_contexts}
    again.train().gradient_checkpointing_enable(options)
    for model in (plain, again):
        head = TargetHead(model)
        model.eval()
        isolate(head, model, model, cache, CPU)
        model.train()
        head.loss(model, make_row(cache, range(len(cache)))).backward()
    wanted = gradients(plain)
    for name, gradient in gradients(again).items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


class Leaking(torch.nn.Module):
    """Adds the mean of all earlier hidden states to each: what a recurrent layer does."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden, *args, **kwargs):
        counts = torch.arange(1, hidden.shape[1] + 1).view(1, -1, 1)
        return self.layer(hidden + hidden.cumsum(1) / counts, *args, **kwargs)


def test_a_layer_that_nobody_knows_runs_once_a_document(cache):
    model = make("llama")
    model.model.layers[0] = Leaking(model.model.layers[0])
    head = TargetHead(model)
    assert isolate(head, model, model, cache, CPU) == [
        "Leaking runs once a document, as it carries state"
    ]
    expected = alone(model, cache)
    got = head.loss(model, make_row(cache, range(len(cache))))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


class Whole(torch.nn.Module):
    """A layer that fails on less than all of its row, as one that counts its tokens would."""

    def __init__(self, layer, total):
        super().__init__()
        self.layer, self.total = layer, total

    def forward(self, hidden, *args, **kwargs):
        if hidden.shape[0] == 1 and hidden.shape[1] > 1 and attention.document_starts() is not None:
            assert hidden.shape[1] >= self.total
            if len(attention.document_starts()) == 2:
                raise ValueError("not on a part of a row")
            hidden = hidden + hidden.cumsum(1)
        return self.layer(hidden, *args, **kwargs)


def test_documents_are_padded_where_no_layer_can_be_blamed(cache):
    model = make("llama")
    model.model.layers[0] = Whole(model.model.layers[0], 19)
    head = TargetHead(model)
    (note,) = isolate(head, model, model, cache, CPU)
    assert "padded" in note
    assert head.layout == "padded, sdpa"
    expected = alone(make("llama", "eager"), cache)
    got = head.loss(model, make_row(cache, range(len(cache))))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


class Neighbourly(torch.nn.Module):
    """Mixes the lines of a batch, and fails in a row: nothing can keep documents apart."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden, *args, **kwargs):
        if attention.document_starts() is not None:
            raise ValueError("not in a row")
        if len(hidden) > 1:
            hidden = hidden + 5 * hidden.roll(1, 0)
        return self.layer(hidden, *args, **kwargs)


def test_a_model_that_cannot_be_isolated_is_refused(cache):
    model = make("llama")
    model.model.layers[0] = Neighbourly(model.model.layers[0])
    with pytest.raises(ConfigError, match="another loss beside others"):
        isolate(TargetHead(model), model, model, cache, CPU)


def test_attention_that_ignores_what_the_model_says_is_noticed(cache, monkeypatch):
    model = make("gpt-oss-sinks")
    own = attention.document_attention

    def without_sinks(*args, s_aux=None, **kwargs):
        return own(*args, **kwargs)

    torch.nn.init.normal_(model.model.layers[0].self_attn.sinks, mean=3.0)
    monkeypatch.setitem(AttentionInterface._global_mapping, attention.DOCUMENT, without_sinks)
    head = TargetHead(model)
    (note,) = isolate(head, model, model, cache, CPU)
    assert "attention that is not that of packed rows" in note
    assert head.layout == "padded, eager"


@pytest.mark.thorough
def test_experts_that_rounding_chooses_otherwise_are_no_other_layout(tmp_path, monkeypatch):
    config = transformers.GptOssConfig(
        **(COMMON | {"hidden_size": 64, "num_hidden_layers": 3, "head_dim": 16}),
        **{"sliding_window": 6, "num_local_experts": 16, "num_experts_per_tok": 2},
    )
    attention.register()
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.DOCUMENT)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
        elif "sinks" in name:
            torch.nn.init.normal_(parameter, mean=3.0)
    model = model.to(torch.bfloat16).eval()
    generator = torch.Generator().manual_seed(2)
    tokens = [torch.randint(3, 61, (n,), generator=generator).tolist() for n in (40, 19, 30)]
    cache = caches.write(tmp_path / "cache", [(one, [1] * len(one)) for one in tokens])
    head = TargetHead(model)
    row = make_row(cache, [0, 1, 2])
    packed, _ = head.score(model, row)
    head.isolates = False
    model.set_attn_implementation("eager")
    off = float((packed - head.score(model, row)[0]).abs().mean())
    assert off > 0.1  # as many experts are chosen anew as would be taken for another layout
    model.set_attn_implementation(attention.DOCUMENT)
    head = TargetHead(model)
    assert isolate(head, model, model, cache, CPU) == []
    assert head.layout == "row"
    own = attention.document_attention
    monkeypatch.setitem(
        transformers.AttentionInterface._global_mapping,
        attention.DOCUMENT,
        lambda *args, s_aux=None, **kwargs: own(*args, **kwargs),
    )
    head = TargetHead(model)
    (note,) = isolate(head, model, model, cache, CPU)
    assert "attention that is not that of packed rows" in note
    for layer in model.model.layers:
        layer.register_forward_pre_hook(_mean_of_the_row, with_kwargs=True)
    model.set_attn_implementation(attention.DOCUMENT)
    with pytest.raises(ConfigError, match="another loss beside others"):
        isolate(TargetHead(model), model, model, cache, CPU)


def _mean_of_the_row(module, args, kwargs):
    """Lets each token of a row, or of the lines beside it, have a small part of all others."""
    mean = args[0].mean((0, 1), keepdim=True) if args[0].shape[0] > 1 else 0
    if attention.document_starts() is not None:
        mean = args[0].mean(1, keepdim=True)
    return (args[0] + 0.1 * mean, *args[1:]), kwargs


def test_one_short_record_is_enough(tmp_path):
    cache = caches.write(tmp_path / "one", [([5, 6], [0, 1])], max_length=8)
    model = make("qwen3.5")
    head = TargetHead(model)
    isolate(head, model, model, cache, CPU)
    assert head.layout == MODELS["qwen3.5"][2]


def test_records_of_one_token_cannot_see_each_other(tmp_path):
    cache = caches.write(tmp_path / "ones", [([5], [1])] * 3, max_length=8)
    model = make("qwen3.5")
    assert isolate(TargetHead(model), model, model, cache, CPU) == []


def test_a_model_that_is_broken_already_is_refused(cache):
    model = make("llama")
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(ConfigError, match="not a finite number") as caught:
        isolate(TargetHead(model), model, model, cache, CPU)
    assert caught.value.problems[0].where == "model.name"


def test_records_that_overflow_are_left_to_the_loop(tmp_path):
    model = make("llama")
    model.model.embed_tokens.weight.data[60] = float("inf")
    records = [([60, *range(3, 20)], [0] + [1] * 17)]
    records += [(list(range(5, 5 + n)), [0] + [1] * (n - 1)) for n in (9, 6, 3)]
    cache = caches.write(tmp_path / "cache", records, max_length=64)
    head = TargetHead(model)
    assert isolate(head, model, model, cache, CPU) == []
    assert head.layout == "row"


class Overflowing(torch.nn.Module):
    """Gives no numbers where documents lie side by side: what is compared is never equal."""

    def __init__(self, layer, everywhere):
        super().__init__()
        self.layer, self.everywhere = layer, everywhere

    def forward(self, hidden, *args, **kwargs):
        if attention.document_starts() is not None or (self.everywhere and len(hidden) > 1):
            hidden = hidden * float("nan")
        return self.layer(hidden, *args, **kwargs)


def test_a_row_without_a_finite_loss_is_never_taken_for_right(cache):
    model = make("llama")
    model.model.layers[0] = Overflowing(model.model.layers[0], False)
    head = TargetHead(model)
    isolate(head, model, model, cache, CPU)
    assert head.layout == "padded, sdpa"
    model.model.layers[0].everywhere = True
    model.set_attn_implementation(attention.DOCUMENT)
    with pytest.raises(ConfigError, match="another loss beside others"):
        isolate(TargetHead(model), model, model, cache, CPU)


def test_what_one_rank_finds_holds_for_all(cache):
    model = make("llama")
    head = TargetHead(model)
    answers = iter([True] * 4 + [False] * 3 + [True] * 3)
    isolate(head, model, model, cache, CPU, lambda mine: next(answers))
    assert head.layout == "padded, sdpa"


def test_a_model_that_is_causal_with_one_attention_alone_is_refused(cache):
    model = make("llama")
    for layer in model.model.layers:
        layer.self_attn.is_causal = False  # what sdpa goes by where there is no mask
    with pytest.raises(ConfigError, match="is not causal"):
        isolate(TargetHead(model), model, model, cache, CPU)


def test_a_model_that_reads_in_both_directions_is_refused(cache):
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ConfigError, match="is not causal"):
        isolate(TargetHead(model), model, model, cache, CPU)


def test_texts_that_end_as_they_begin_hide_no_foresight(tmp_path):
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    records = [([7, *range(8, 8 + n), 7], [0] + [1] * (n + 1)) for n in (9, 6, 4)]
    cache = caches.write(tmp_path / "cache", records, max_length=64)
    with pytest.raises(ConfigError, match="is not causal"):
        isolate(TargetHead(model), model, model, cache, CPU)


class Broken(torch.nn.Module):
    def forward(self, hidden, *args, **kwargs):
        raise LookupError("no such state")


def test_a_model_that_cannot_be_computed_is_refused_with_the_reason(cache):
    model = make("llama")
    model.model.layers[0] = Broken()
    with pytest.raises(ConfigError, match="fails on a text: LookupError: no such state"):
        isolate(TargetHead(model), model, model, cache, CPU)


CLASSES = classes_of(["a", "b"])
OBJECTIVE = classify(CLASSES)


def classifier(kind, **options):
    structure = getattr(transformers, f"{kind}Config")(**(COMMON | options))
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(structure)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def labelled(tmp_path):
    generator = torch.Generator().manual_seed(2)
    lengths = (7, 19, 2, 11, 300)
    tokens = [torch.randint(3, 61, (n,), generator=generator).tolist() for n in lengths]
    records = [([*own, 2], [0] * len(own) + [1]) for own in tokens]
    cache = caches.write(tmp_path / "texts", records, labels=[["a"], ["b"], ["a"], ["b"], ["b"]])
    number(cache, CLASSES)
    return cache


def text_losses(model, cache):
    texts = [cache.record(i)[0].tolist() for i in range(len(cache))]
    with torch.no_grad():
        logits = torch.cat([model(input_ids=torch.tensor([own])).logits for own in texts])
    truth = torch.tensor([CLASSES.numbers(cache.value("label", i))[0] for i in range(len(cache))])
    return torch.nn.functional.cross_entropy(logits, truth, reduction="none")


def of_texts(model, head, row):
    """The launcher's losses of a row's texts."""
    return OBJECTIVE._losses(head.outputs(model, row).detach(), row.columns["label"], None)


def test_texts_that_padding_would_change_are_computed_by_length(labelled):
    model = classifier("FNet", max_position_embeddings=400)
    head = OBJECTIVE.head(model)
    (note,) = isolate(head, model, model, labelled, CPU)
    assert note.startswith("documents of one length are computed together")
    assert (head.isolates, head.pads, head.layout) == (False, False, "equal lengths, eager")
    row = make_row(labelled, [0, 1, 2, 1, 3, 0])
    expected = text_losses(model, labelled)
    parts = rectangles(row, equal=True)
    assert len(parts) == 4
    for part in parts:
        losses = of_texts(model, head, part)
        torch.testing.assert_close(losses, expected[part.records], rtol=1e-5, atol=1e-5)
    config = make_config(
        objective={"name": "classify"},
        eval={"metrics": ["loss"]},
        data={"max_length": 512},
        batch={"sequences": 1},
        train={"steps": 1},
    )
    plan = plans.make(config, world_size=1, has_gpu=False)
    ranks = Ranks(0, 1, 0, 1, "", "none")
    more = (labelled, None, head, CPU, lambda: False, OBJECTIVE)
    scores = Evaluator(config, plan, ranks, *more).quick(model)
    assert scores["loss"] == pytest.approx(float(expected.mean()), rel=1e-4)


@pytest.mark.thorough
def test_texts_longer_than_the_check_keep_the_end_that_is_read(labelled):
    model = classifier("Bart", max_position_embeddings=400, d_model=32, decoder_layers=1)
    head = OBJECTIVE.head(model)
    isolate(head, model, model, labelled, CPU)
    assert head.pads
    losses = of_texts(model, head, make_row(labelled, range(len(labelled))))
    torch.testing.assert_close(losses, text_losses(model, labelled), rtol=1e-4, atol=1e-5)


class Random(torch.nn.Module):
    """Adds noise, in evaluation too."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden, *args, **kwargs):
        return self.layer(hidden + torch.randn_like(hidden), *args, **kwargs)


def test_a_model_that_draws_random_numbers_is_refused_with_that_reason(labelled):
    model = classifier("Bert", max_position_embeddings=400)
    model.bert.encoder.layer[0] = Random(model.bert.encoder.layer[0])
    with pytest.raises(ConfigError, match="a text another loss each time"):
        isolate(OBJECTIVE.head(model), model, model, labelled, CPU)


class Demanding(torch.nn.Module):
    """Wants more in training, as models of images do that read which tokens are of an image."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden, *args, **kwargs):
        if self.training:
            raise ValueError("token types are required when training")
        return self.layer(hidden, *args, **kwargs)


def test_a_model_that_fails_in_training_only_is_refused_before_it(cache):
    model = make("llama")
    model.model.layers[0] = Demanding(model.model.layers[0])
    model.eval()
    head = TargetHead(model)
    assert isolate(head, model, model, cache, CPU) == []
    with pytest.raises(ConfigError, match="fails on a text in training: ValueError: token types"):
        isolate(head, model, model, cache, CPU, trains=True)


def causal_in_plain_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """SDPA of a model that leaves causality to a mask which is not built."""
    return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, is_causal=False)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", attention.DOCUMENT])
def test_a_model_that_is_causal_in_plain_attention_alone_is_refused(
    cache, monkeypatch, implementation
):
    """Whatever it is trained with: its users load it with SDPA."""
    model = make("llama", implementation)
    model.model.layers[0] = Whole(model.model.layers[0], 19)  # not in one row
    table = AttentionInterface._global_mapping
    monkeypatch.setitem(table, "sdpa", causal_in_plain_attention)
    with pytest.raises(ConfigError, match="is not causal"):
        isolate(TargetHead(model), model, model, cache, CPU)
