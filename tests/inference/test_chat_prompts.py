"""Chat templates: their ids, and turns that are too long."""

from functools import partial

import pytest
import torch

from decero.errors import UserError
from decero.inference import generate, load
from decero.inference.generation import encode_chat, fit_prompt

TEMPLATE = (
    "{% for m in messages %}the {{ m.role }} : {{ m.content | trim }} {% endfor %}"
    "{% if add_generation_prompt %}and{% endif %}"
)


def test_chat_uses_the_template_of_the_tokenizer(checkpoint):
    loaded = load(checkpoint("causal", "ours"), "generate")
    with pytest.raises(UserError, match="the tokenizer has no chat template; remove --chat"):
        next(generate(loaded, ["banks"], chat=True))
    loaded.tokenizer.chat_template = TEMPLATE
    ids = loaded.tokenizer("the user : market banks gained and", add_special_tokens=False)["input_ids"]
    written = loaded.model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)[0, len(ids) :]
    expected = loaded.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert list(generate(loaded, ["banks gained"], chat=True, prefix="market ", max_new_tokens=5)) == [expected]
    assert list(generate(loaded, ["banks gained"], prefix="market ", max_new_tokens=5)) != [expected]
    loaded.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(UserError, match="the chat template leaves out the text of a turn; remove --chat"):
        next(generate(loaded, ["banks"], chat=True))


CHATS = {
    "trims": TEMPLATE,
    "keeps": TEMPLATE.replace(" | trim", ""),
    "starts": "[CLS] {% for m in messages %}{{ m.content }} [SEP]{% endfor %}",
    "upper, twice": "{% for m in messages %}{{ m.content | upper }}{{ m.content }} {% endfor %}",
}


@pytest.mark.long
@pytest.mark.parametrize("template", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("text", ["banks", "  banks gained \n", "\n\nbanks\tgained\u00a0"])
def test_chat_reads_the_ids_of_the_chat_template(template, text, checkpoint):
    loaded = load(checkpoint("causal", "ours"), "generate")
    loaded.tokenizer.chat_template = template
    turns = [{"role": "user", "content": text}]
    ids = loaded.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert encode_chat(loaded, "", text) == ids
    written = loaded.model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)[0, len(ids) :]
    expected = loaded.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert list(generate(loaded, [text], chat=True, max_new_tokens=5)) == [expected]


def test_a_long_turn_keeps_its_end_and_the_whole_template(checkpoint):
    loaded = load(checkpoint("causal", "ours"), "generate")
    loaded.tokenizer.chat_template = TEMPLATE
    text = "banks gained " * 40 + "shares fell on monday"
    ids = fit_prompt(loaded, partial(encode_chat, loaded, ""), text, 1, 53 - 31, lambda said: None)
    first = loaded.tokenizer("the user : ", add_special_tokens=False)["input_ids"]
    assert 25 < len(ids) <= 31
    assert ids[: len(first)] == first
    assert loaded.tokenizer.decode(ids).endswith("shares fell on monday and")
