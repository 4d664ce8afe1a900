"""A dialogue that is read turn by turn, with its cache kept, gives what reading all of it anew gives."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

from decero.errors import UserError
from decero.inference import Conversation, Loaded
from decero.inference.decode import decode
from decero.inference.sampling import Sampling
from decero.models import DeceroDecoderConfig

TEMPLATE = (
    "{% for m in messages %}{{ '[CLS]' + m.role + ' ' + m.content + '[SEP]' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[CLS]assistant' }}{% endif %}"
)
REWRITES = TEMPLATE.replace("m.content", "(m.content if loop.index0 + 2 > loop.length else 'rose')")
TALK = ["the market", "banks and shares fell", "news", "profit on monday"]


SIZES = {"vocab_size": 97, "hidden_size": 33, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 41}
HALVES = SIZES | {"hidden_size": 36, "num_key_value_heads": 1, "max_position_embeddings": 211, "pad_token_id": 0}
FAMILIES = {
    "ours": lambda: DeceroDecoderConfig(**SIZES, head_dim=14, max_position_embeddings=211, pad_token_id=0),
    "gpt2": lambda: GPT2Config(vocab_size=97, n_embd=33, n_layer=2, n_head=3, n_positions=211, pad_token_id=0),
    "llama": lambda: LlamaConfig(**HALVES),
    "window": lambda: MistralConfig(**HALVES, sliding_window=7),
}


@pytest.fixture
def talker(tokenizer):
    """A tiny model of a family that talks in a template."""

    def build(family, template=TEMPLATE, most=512):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() > 1 and "position" not in name:
                    weight.normal_(std=0.3)
        own = copy.deepcopy(tokenizer)
        own.chat_template, own.model_max_length = template, most
        return Loaded(family, model, own)

    return build


def anew(conversation, text, limit, sampling=None):
    """The answer to the whole dialogue, read by a model that remembers nothing."""
    prompt = conversation.encoder.prompt([*conversation.messages, {"role": "user", "content": text}])
    ends = {"eos_token_id": conversation.config.eos_token_id}
    (ids,) = decode(conversation.loaded.model, [prompt], max_new_tokens=limit, settings=ends, sampling=sampling)
    return conversation.loaded.tokenizer.decode(ids, skip_special_tokens=True).strip(), prompt


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("template", [TEMPLATE, REWRITES], ids=["keeps", "rewrites"])
@pytest.mark.parametrize("family", FAMILIES)
def test_turns_with_the_cache_kept_equal_the_whole_read_anew(family, template, drawn, talker):
    how = {"temperature": 1.3, "seed": 5} if drawn else {}
    conversation = Conversation(talker(family, template), max_new_tokens=3, **how)
    read, before = [], 0
    embedding = conversation.loaded.model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].shape[1]))
    for number, text in enumerate(TALK, start=1):
        sampling = Sampling([(5, number)], temperature=1.3) if drawn else None
        expected, prompt = anew(conversation, text, 3, sampling)
        read.clear()
        pieces = []
        assert conversation.ask(text, pieces.append) == expected
        assert "".join(pieces) == expected
        if number in (2, 3) and template == TEMPLATE and family != "window":  # a window cannot be cut
            assert max(read) <= len(prompt) - before  # what the last prompt held was not read again
        before = len(prompt)
        if number == 3:
            assert conversation.undo()
            assert conversation.ask("shares", stop=lambda: True) is not None
    hook.remove()
    assert [m["content"] for m in conversation.messages if m["role"] == "user"] == [*TALK[:2], "shares", TALK[3]]


def test_a_stopped_answer_stays_as_far_as_it_was_written(talker):
    conversation = Conversation(talker("ours"), max_new_tokens=9)
    whole = anew(conversation, "the market", 9)[0]
    heard = []
    said = conversation.ask("the market", heard.append, lambda: len(heard) >= 2)
    assert said == "".join(heard)
    assert whole.startswith(said)
    assert len(said) < len(whole)
    assert conversation.messages[-1] == {"role": "assistant", "content": said}
    expected = anew(conversation, "banks", 9)[0]
    assert conversation.ask("banks") == expected
    conversation.reset()
    assert conversation.ask("the market") == whole
    assert conversation.undo()
    assert not conversation.undo()


def test_a_full_context_drops_the_oldest_turns_and_says_so(talker):
    loaded, warned = talker("ours", most=53), []
    conversation = Conversation(loaded, system="banks", max_new_tokens=2, warn=warned.append)
    for _ in range(9):
        conversation.ask("the market rose")
    full = [line for line in warned if "is full" in line]
    assert "the context of 53 tokens is full: the model no longer reads the oldest 4 turns" in full[0]
    assert "no longer reads the oldest 8 turns" in full[1]
    assert 1 < len(full) < 5  # down to half of the room, so that it is not full again at once
    assert len(conversation.messages) == 19
    kept = loaded.tokenizer.decode(conversation.read)
    assert kept.startswith("[CLS] system banks [SEP] [CLS] [UNK] the market rose")
    assert len(conversation.read) <= 53
    before = list(conversation.messages)
    with pytest.raises(
        UserError, match=r"this turn has \d+ tokens, and the model reads 51 before an answer of 2; shorten"
    ):
        conversation.ask("the market rose sharply " * 20)
    assert conversation.messages == before
    assert conversation.ask("news") is not None


@pytest.mark.parametrize(
    ("template", "options", "said"),
    [
        (None, {}, "the tokenizer has no chat template; fine-tune on dialogues with objective.chat_template=chatml"),
        (TEMPLATE.replace("[SEP]", " "), {}, "writes no special token after an answer"),
        (TEMPLATE + "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
         {"system": "x"}, "its chat template fails (no system)"),
        (TEMPLATE, {"seed": 3}, "seed 3 has no effect without --temperature or --top-p"),
        (TEMPLATE, {"seed": -3, "top_p": 0.5}, "seed -3 is negative"),
        (TEMPLATE, {"top_p": 1.5}, "top_p 1.5 must be above 0"),
    ],
)  # fmt: skip
def test_what_cannot_talk_is_refused(template, options, said, talker):
    with pytest.raises(UserError) as error:
        Conversation(talker("ours", template), **options)
    assert said in str(error.value)
