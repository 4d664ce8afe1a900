"""One check for each erratum of docs/lesson/errata.md: what is often written is false, what the page says is true."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DataCollatorForPermutationLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    T5Config,
    T5ForConditionalGeneration,
)

from decero.config.yaml_files import read_yaml
from decero.data.collators import IGNORED, MaskedLanguageModeling
from decero.models import DeceroDecoderConfig, DeceroEncoderConfig, DeceroEncoderDecoderConfig
from decero.models.attention import MultiHeadAttention, scaled_dot_product_attention
from decero.models.layers import MLP, build_norm

ROOT = Path(__file__).parents[1]
ENGLISH = (ROOT / "docs" / "lesson" / "errata.md").read_text(encoding="utf-8")
SPANISH = (ROOT / "docs" / "es" / "leccion" / "erratas.md").read_text(encoding="utf-8")
TINY = {
    "vocab_size": 101, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37,
    "max_position_embeddings": 32,
}  # fmt: skip
T5 = {"vocab_size": 101, "d_model": 22, "d_kv": 11, "d_ff": 37, "num_layers": 2, "num_heads": 2, "pad_token_id": 0}


def checks(page: str) -> list[str]:
    return re.findall(r"\[`(test_\w+)`\]\(\S*tests/test_errata\.py\)", page)


def test_every_erratum_has_its_check_in_both_languages():
    source = Path(__file__).read_text(encoding="utf-8")
    own = [name for name in re.findall(r"^def (test_\w+)", source, flags=re.M) if not name.endswith("both_languages")]
    assert sorted(checks(ENGLISH)) == sorted(own)
    assert checks(SPANISH) == checks(ENGLISH)
    assert re.findall(r"arXiv:[\d.]+\d", ENGLISH) == re.findall(r"arXiv:[\d.]+\d", SPANISH)
    for page in (ENGLISH, SPANISH):
        assert (
            len(re.findall(r"^### \d+\. ", page, flags=re.M)) == len(checks(page)) - 1 >= 14
        )  # the slow one repeats a table


# --- sizes and names


def gpt_parameters(hidden_size: int, layers: int, heads: int, positions: int) -> int:
    """The parameters of a GPT-2 or GPT-3, from models of one and two layers without memory."""
    counts = []
    for depth in (1, 2):
        with torch.device("meta"):
            config = GPT2Config(n_embd=hidden_size, n_layer=depth, n_head=heads, n_positions=positions)
            counts.append(sum(p.numel() for p in GPT2Model(config).parameters()))
    return counts[0] + (layers - 1) * (counts[1] - counts[0])


def test_1280_is_not_the_size_of_a_large_gpt():
    assert gpt_parameters(768, 12, 12, 1024) == 124_439_808
    assert gpt_parameters(1600, 48, 25, 1024) == 1_557_611_200
    assert gpt_parameters(12288, 96, 96, 2048) == pytest.approx(175e9, rel=0.005)
    assert gpt_parameters(1280, 96, 20, 2048) < 2e9  # 1,280 with the depth of GPT-3


@pytest.mark.parametrize("page", [ENGLISH, SPANISH])
def test_setr_is_the_segmentation_transformer(page):
    assert "2012.15840" in page
    name = re.search(r"\*(\w+ TRansformer)\*", page)[1]
    assert "".join(letter for letter in name if letter.isupper()) == "SETR"


@pytest.mark.parametrize("page", [ENGLISH, SPANISH])
def test_biggan_is_by_brock_donahue_and_simonyan(page):
    section = re.split(r"^### ", page.split("1809.11096")[0], flags=re.M)[-1]
    assert re.search(r"Brock.*Donahue.*Simonyan", section, flags=re.S)
    assert "NVIDIA" in section  # what is often written


# --- the layers


def test_a_layer_norm_sees_one_token_and_no_batch():
    norm = build_norm(DeceroEncoderConfig(**TINY))
    batch_BLD = torch.randn(5, 7, 24)
    other_BLD = batch_BLD.clone()
    other_BLD[1:] = torch.randn(4, 7, 24) * 9  # all rows but the first change
    torch.testing.assert_close(norm(batch_BLD)[0], norm(other_BLD)[0], rtol=0, atol=0)
    features = nn.BatchNorm1d(24)
    one, two = (features(each.transpose(1, 2))[0] for each in (batch_BLD, other_BLD))
    assert (one - two).abs().max() > 0.5
    assert norm(batch_BLD).mean(dim=-1).abs().max() < 1e-5


def test_the_norm_of_2017_comes_after_the_sum():
    paper = read_yaml(ROOT / "configs" / "model" / "vaswani2017_base.yaml")
    assert paper["norm_placement"] == "post"
    post, pre = (AutoModel.from_config(DeceroEncoderConfig(**TINY, norm_placement=where)) for where in ("post", "pre"))
    ids = torch.arange(5, 17)[None]
    last = [model.layers[-1](model.embed(ids, None)[0], rotary=None) for model in (post, pre)]
    assert last[0].std(dim=-1).sub(1).abs().max() < 0.05  # normalised: the norm was the last step
    assert last[1].std(dim=-1).sub(1).abs().max() > 0.5
    assert isinstance(
        GPT2Model(GPT2Config(n_embd=8, n_head=1, n_layer=1)).ln_f, nn.LayerNorm
    )  # pre-norm needs one more


def first_to_last_gradient(stack: str, norm_placement: str, depth: int) -> float:
    """The gradient of the first feed-forward layer over that of the last one, at the start of training."""
    torch.manual_seed(0)
    config = DeceroEncoderDecoderConfig(
        vocab_size=101, hidden_size=64, num_hidden_layers=depth, num_attention_heads=4, intermediate_size=256,
        norm_placement=norm_placement, position_embedding_type="sinusoidal", hidden_act="relu", initializer_range=0.125,
        scale_embeddings=True,
    )  # fmt: skip
    model = AutoModelForSeq2SeqLM.from_config(config)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            nn.init.xavier_uniform_(module.weight)
    ids_BL, labels_BL = torch.randint(5, 101, (2, 4, 16))
    model(input_ids=ids_BL, labels=labels_BL).loss.backward()
    layers = getattr(model.model, stack).layers
    first, last = (layers[i].mlp.up_proj.weight.grad.norm().item() for i in (0, -1))
    return first / last


def test_gradients_vanish_in_a_deep_post_norm_decoder():
    assert first_to_last_gradient("decoder", "post", 18) < 0.01
    assert first_to_last_gradient("decoder", "post", 6) > 0.05
    assert first_to_last_gradient("decoder", "pre", 18) > 0.5
    assert first_to_last_gradient("encoder", "post", 18) > 0.2


def test_a_feed_forward_layer_sees_one_position():
    mlp = MLP(DeceroEncoderConfig(**TINY))
    attention = AutoModel.from_config(DeceroEncoderConfig(**TINY)).layers[0].self_attn
    one_BLD = torch.randn(1, 7, 24)
    two_BLD = one_BLD.clone()
    two_BLD[0, 3] += 1
    changed = (mlp(one_BLD) != mlp(two_BLD)).any(dim=-1)[0]
    assert changed.tolist() == [position == 3 for position in range(7)]
    assert (attention(one_BLD)[0] != attention(two_BLD)[0]).any(dim=-1).all()


# --- attention


def test_the_root_keeps_the_softmax_from_saturating():
    generator = torch.Generator().manual_seed(0)
    for size in (16, 64, 256):
        q_BHLK, k_BHMK = torch.randn(2, 50, 1, 32, size, generator=generator)
        scores = q_BHLK @ k_BHMK.mT
        assert scores.var().item() == pytest.approx(size, rel=0.1)
        assert (scores / size**0.5).var().item() == pytest.approx(1, rel=0.1)
    _, plain = scaled_dot_product_attention(q_BHLK, k_BHMK, k_BHMK, scale=1.0)
    _, scaled = scaled_dot_product_attention(q_BHLK, k_BHMK, k_BHMK)
    assert plain.amax(dim=-1).mean() > 0.8  # nearly one key alone: its gradient p(1 - p) is almost 0
    assert scaled.amax(dim=-1).mean() < 0.25
    assert ((scaled >= 0) & (plain >= 0)).all()  # both are probabilities: the root is not what makes them so
    torch.testing.assert_close(plain.sum(dim=-1), scaled.sum(dim=-1))


def test_a_weight_is_not_the_importance_of_a_word():
    q_BHLK, k_BHMK = torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.0, 0.0], [9.0, 0.0]]]])
    q_BHLK[..., 0] = 1
    v_BHMK = torch.tensor([[[[5.0, -3.0], [0.0, 0.0]]]])  # the second word has all the weight and an empty value
    mix, weights = scaled_dot_product_attention(q_BHLK, k_BHMK, v_BHMK)
    assert weights[..., 1] > 0.99
    without, _ = scaled_dot_product_attention(q_BHLK, k_BHMK[:, :, :1], v_BHMK[:, :, :1])
    assert (without - mix).abs().max() > 4  # because it takes weight from the first, not for what it says
    shuffled = v_BHMK[:, :, :1].expand(1, 1, 2, 2)  # equal values: any weights give the same output
    torch.testing.assert_close(weights @ shuffled, weights.flip(-1) @ shuffled)


def test_heads_share_the_width_and_cost_nothing():
    counts = {
        heads: sum(
            p.numel()
            for p in MultiHeadAttention(DeceroEncoderConfig(**(TINY | {"num_attention_heads": heads})), 0).parameters()
        )
        for heads in (1, 2, 4)
    }
    assert set(counts.values()) == {4 * (24 * 24 + 24)}


def test_attention_weights_grow_with_the_length_not_params():
    model = AutoModel.from_config(DeceroEncoderConfig(**TINY, attn_implementation="eager"))
    parameters = sum(p.numel() for p in model.parameters())
    for length in (5, 50, 200):  # beyond max_position_embeddings: rotary positions are computed
        weights = model(input_ids=torch.ones(1, length, dtype=torch.long), output_attentions=True).attentions[0]
        assert weights.numel() == 2 * length**2
    assert sum(p.numel() for p in model.parameters()) == parameters
    longer = AutoModel.from_config(DeceroEncoderConfig(**(TINY | {"max_position_embeddings": 64})))
    assert sum(p.numel() for p in longer.parameters()) == parameters
    learned = [
        sum(p.numel() for p in BertModel(BertConfig(**(TINY | {"max_position_embeddings": n}))).parameters())
        for n in (32, 64)
    ]
    assert learned[1] - learned[0] == 32 * 24  # only a learned table grows: one row a position


def test_an_encoder_without_positions_ignores_the_order():
    order = torch.tensor([3, 0, 4, 1, 2])
    ids = torch.tensor([[11, 12, 13, 14, 15]])
    fields = TINY | {"position_embedding_type": "none"}
    encoder = AutoModel.from_config(DeceroEncoderConfig(**fields, initializer_range=0.3)).eval()
    decoder = AutoModel.from_config(DeceroDecoderConfig(**fields, initializer_range=0.3)).eval()
    for model, equal in ((encoder, True), (decoder, False)):
        plain, moved = (model(input_ids=each).last_hidden_state for each in (ids[:, order], ids))
        assert torch.allclose(plain, moved[:, order], atol=1e-5) == equal


def test_sdpa_gives_no_attention_weights():
    model = BertModel(BertConfig(**TINY), add_pooling_layer=False).eval()
    model.set_attn_implementation("sdpa")
    ids = torch.arange(5, 12)[None]
    assert not any(weights is not None for weights in model(ids, output_attentions=True).attentions or ())
    model.set_attn_implementation("eager")
    weights = model(ids, output_attentions=True).attentions
    assert len(weights) == 2
    torch.testing.assert_close(weights[0].sum(dim=-1), torch.ones(1, 2, 7))


def test_padding_without_a_mask_changes_the_answer():
    model = BertModel(BertConfig(**TINY), add_pooling_layer=False).eval()
    short, padded = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 7, 0, 0]])
    alone = model(short).last_hidden_state
    masked = model(padded, attention_mask=(padded != 0).long()).last_hidden_state[:, :3]
    torch.testing.assert_close(masked, alone, atol=1e-5, rtol=0)
    assert (model(padded, attention_mask=torch.ones_like(padded)).last_hidden_state[:, :3] - alone).abs().max() > 1e-3


# --- objectives


@pytest.fixture(scope="module")
def masked(texts, tokenizer):
    """Labels and inputs of many rows, and which word each token belongs to."""
    collator = MaskedLanguageModeling(tokenizer, whole_word=False, seed=3)
    rows = []
    for text in texts[20:]:
        encoding = tokenizer(text)
        ids = np.array(encoding["input_ids"])
        words = np.array([-1 if word is None else word for word in encoding.word_ids()])
        rows += [(ids, words, *collator.mask(ids, words >= 0, epoch, len(rows))) for epoch in range(40)]
    return rows


def test_15_percent_are_of_tokens_not_words(masked):
    tokens = words = scored = touched = 0
    for _ids, word_of, _inputs, labels in masked:
        tokens += (word_of >= 0).sum()
        scored += (labels != IGNORED).sum()
        words += len(set(word_of) - {-1})
        touched += len(set(word_of[labels != IGNORED]))
    assert tokens > 1.2 * words  # some words are several tokens
    assert scored / tokens == pytest.approx(0.15, abs=0.01)
    assert touched / words > 0.17


def test_bert_is_scored_on_the_chosen_tokens_alone(masked):
    inputs, labels = (torch.from_numpy(part)[None] for part in masked[0][2:])
    model = BertForMaskedLM(BertConfig(**TINY)).eval()
    output = model(inputs, labels=labels)
    logits = output.logits.detach().clone()
    logits[labels == IGNORED] = torch.randn(101)  # whatever it says elsewhere
    loss = nn.functional.cross_entropy(logits[0], labels[0], ignore_index=IGNORED)
    torch.testing.assert_close(loss, output.loss.detach())
    assert 0 < (labels != IGNORED).float().mean() < 0.5


def test_a_fifth_of_the_chosen_tokens_get_no_mask(masked, tokenizer):
    inputs = np.concatenate([row[2][row[3] != IGNORED] for row in masked])
    labels = np.concatenate([row[3][row[3] != IGNORED] for row in masked])
    assert (inputs == tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.03)
    assert 0.08 < (inputs == labels).mean() < 0.13


def test_a_limit_counts_tokens_not_words(tokenizer):
    text = "the unexpected shareholders were astonished"
    assert len(tokenizer(text)["input_ids"]) > 2 * len(text.split())
    cut = tokenizer(text, truncation=True, max_length=12)["input_ids"]
    assert len(tokenizer.decode(cut, skip_special_tokens=True).split()) < 5


def test_the_decoder_of_t5_sees_the_past_alone():
    model = T5ForConditionalGeneration(T5Config(**T5, decoder_start_token_id=0)).eval()
    source, target = torch.tensor([[7, 8, 9]]), torch.tensor([[11, 12, 13, 14, 15, 16]])
    other = target.clone()
    other[0, 3] = 99
    plain, changed = (model(input_ids=source, labels=each).logits[0] for each in (target, other))
    moved = (plain - changed).abs().amax(dim=-1) > 1e-6
    assert moved.tolist() == [False, False, False, False, True, True]  # the token at 3 is first read at 4
    whole = [(model(input_ids=each, labels=target).logits[0] - plain).abs().amax(-1).min() for each in (source + 1,)]
    assert whole[0] > 0  # the source is seen by every position


def test_the_permutation_collator_hides_its_targets(tokenizer):
    tokenizer_ids = tokenizer("the market rose fell sharply on monday as")["input_ids"]
    ids = tokenizer_ids[: len(tokenizer_ids) // 2 * 2]
    torch.manual_seed(1)
    batch = DataCollatorForPermutationLanguageModeling(tokenizer)([{"input_ids": ids}])
    targets = batch["labels"][0] != -100
    assert targets.any()
    assert (batch["input_ids"][0][targets] == tokenizer.mask_token_id).all()  # so no target can read another
    assert (batch["input_ids"][0][~targets] == torch.tensor(ids)[~targets]).all()


def test_perplexities_of_two_tokenizers_are_incomparable():
    text = "abcdefgh"
    coarse, fine = np.log([0.01, 0.01]), np.log([0.1, 0.1, 0.1, 0.1])  # the same text in two tokens, and in four
    assert coarse.sum() == pytest.approx(fine.sum())  # the same probability
    perplexities = [np.exp(-tokens.mean()) for tokens in (coarse, fine)]
    assert perplexities == pytest.approx([100, 10])
    bits = [-tokens.sum() / np.log(2) / len(text.encode()) for tokens in (coarse, fine)]
    assert bits[0] == pytest.approx(bits[1])


# --- decoders, and what they cost


def test_gpt_2_has_no_cross_attention():
    names = [name for name, _ in GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=1, n_layer=2)).named_modules()]
    assert not any("cross" in name for name in names)
    ours = AutoModelForCausalLM.from_config(DeceroDecoderConfig(**TINY))
    assert not any("cross" in name for name, _ in ours.named_modules())
    seq2seq = AutoModelForSeq2SeqLM.from_config(DeceroEncoderDecoderConfig(**TINY))
    assert any("cross" in name for name, _ in seq2seq.named_modules())


def test_training_is_parallel_and_writing_is_not():
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=1, n_layer=1, vocab_size=101, eos_token_id=100)).eval()
    model.generation_config.eos_token_id = None
    calls = []
    model.transformer.register_forward_hook(lambda *_: calls.append(1))
    ids = torch.arange(1, 14)[None]
    model(input_ids=ids, labels=ids)
    assert len(calls) == 1  # 12 predictions in one pass
    model.generate(ids[:, :1], max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert len(calls) == 1 + 12


def flops_a_token(module: nn.Module, *inputs: torch.Tensor, length: int) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops() / length


def test_attention_costs_more_a_token_in_a_longer_text():
    fields = TINY | {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1}
    model = AutoModel.from_config(DeceroDecoderConfig(**fields, attn_implementation="eager"))
    cell = nn.LSTMCell(32, 32)

    def lstm(steps_LD: torch.Tensor) -> None:
        state = None
        for step_D in steps_LD:
            state = cell(step_D[None], state)

    lengths = (16, 128)
    attention = [flops_a_token(model, torch.ones(1, n, dtype=torch.long), length=n) for n in lengths]
    recurrent = [flops_a_token(lstm, torch.randn(n, 32), length=n) for n in lengths]
    assert attention[1] - attention[0] == 4 * 32 * (128 - 16)  # scores and mix: 2 FLOPs x 2 x D for each key
    assert recurrent[0] == recurrent[1] > 0


@pytest.mark.slow
def test_on_one_core_an_lstm_slows_down_less():
    """The figures of the page: tokens a second of processor time, forward and backward, 4,096 tokens a batch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fields = {"vocab_size": 101, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = AutoModel.from_config(DeceroDecoderConfig(**fields, intermediate_size=512))
        lstm = nn.LSTM(128, 128, 2, batch_first=True)
        speed: dict[str, list[float]] = {"attention": [], "lstm": []}
        for length in (64, 1024, 4096):
            ids, vectors = (
                torch.ones(4096 // length, length, dtype=torch.long),
                torch.randn(4096 // length, length, 128),
            )
            runs = {
                "attention": lambda ids=ids: model(input_ids=ids).last_hidden_state.sum().backward(),
                "lstm": lambda vectors=vectors: lstm(vectors)[0].sum().backward(),
            }
            for name, run in runs.items():
                run()
                times = []
                for _ in range(5):
                    start = time.process_time()
                    run()
                    times.append(time.process_time() - start)
                speed[name].append(4096 / float(np.median(times)))
        print({name: [f"{value:,.0f}" for value in values] for name, values in speed.items()})
    finally:
        torch.set_num_threads(threads)
    slower = {name: values[0] / values[-1] for name, values in speed.items()}
    assert slower["attention"] > max(1.8, 1.3 * slower["lstm"])
    assert all(lstm > attention for lstm, attention in zip(speed["lstm"], speed["attention"], strict=True))
