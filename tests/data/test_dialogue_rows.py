"""Dialogues: only the assistant's turns are scored, each with its end, as the template's tags say."""

import copy
import re

import pytest
import transformers
from datasets import Dataset, DatasetDict
from packaging.version import Version
from transformers import AddedToken

from decero.data.chat_template import CHATML, use_chatml
from decero.data.collators import IGNORED
from decero.data.dialogue_rows import DialogueEncoder, tokenize_dialogues
from decero.data.messages import check_messages, dialogue_pairs, without_oldest
from decero.data.prompt_completion import PromptCompletion
from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError

ANSWER = "{% generation %}{{ m.content | trim + END }}{% endgeneration %}"
LOOP = "{% for m in messages %}{% if m.role == 'assistant' %}"
TEMPLATES = {  # what five families write; all tagged
    "chatml": CHATML,
    "llama": "{{ '<s>' }}" + LOOP + "{{ '<|h|>assistant<|/h|>\n\n' }}" + ANSWER.replace("END", "'<|eot_id|>'")
    + "{% else %}{{ '<|h|>' + m.role + '<|/h|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\n\n' }}{% endif %}",
    "gemma": "{{ '<s>' }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + LOOP + "{{ '<|turn|>model\n' }}" + ANSWER.replace("END", "'<|/turn|>\n'")  # as in TRL
    + "{% else %}{{ '<|turn|>user\n' + m.content | trim + '<|/turn|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>model\n' }}{% endif %}",
    "mistral": "{{ '<s>' }}" + LOOP + ANSWER.replace("END", "'</s>'").replace("{{ m", "{{ ' ' + m")
    + "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    "smollm2": "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\nYou are a"
    " bank.<|im_end|>\n' }}{% endif %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant' }}{% generation %}"
    "{{ '\n' + m.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}"  # and before it, as TRL's for Qwen2.5
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}  # fmt: skip
TALK = [
    {"role": "user", "content": "the market rose"},
    {"role": "assistant", "content": "fell sharply"},
    {"role": "user", "content": "banks in london"},
    {"role": "assistant", "content": "gained after profit news"},
    {"role": "user", "content": "and tokyo ?"},
    {"role": "assistant", "content": "fell"},
]


@pytest.fixture(scope="module")
def base(texts):
    found = train_tokenizer(
        texts, algorithm="byte_level_bpe", vocab_size=293, model_max_length=512, show_progress=False
    )
    names = ["<|h|>", "<|/h|>", "<|eot_id|>", "<|turn|>", "<|/turn|>", "[INST]", "[/INST]"]
    found.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    use_chatml(found)
    return found


@pytest.fixture
def talker(base):
    def build(template):
        found = copy.deepcopy(base)
        found.chat_template = template
        return found

    return build


def rows_of(dialogues, tokenizer, **settings):
    corpus = DatasetDict(train=Dataset.from_list([{"messages": each} for each in dialogues]))
    pairs = dialogue_pairs(corpus, "messages", [], "data.tasks.talk")["train"]
    settings = {"max_source_length": 512, "max_target_length": 64} | settings
    return tokenize_dialogues(pairs, tokenizer, **settings, where="talk train")


def labelled(row, tokenizer):
    """The ids of a whole dialogue, and whether each is scored."""
    batch = PromptCompletion(tokenizer)([row])
    labels = batch["labels"][0].tolist()
    ids = [*batch["input_ids"][0].tolist(), labels[-1]]
    for before, label in zip(ids[1:], labels, strict=True):
        assert label in (IGNORED, before)
    return ids, [False, *(label != IGNORED for label in labels)]


@pytest.mark.parametrize("untagged", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_scored_tokens_are_those_of_the_tags_as_in_trl(name, untagged, talker):
    if name == "mistral" and Version(transformers.__version__) < Version("5.24"):
        pytest.skip("transformers before 5.24 leaves tokens out of the mask of this template")
    tokenizer = talker(TEMPLATES[name])
    oracle = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    if untagged:
        tokenizer.chat_template = re.sub(r"\{% (end)?generation %\}", "", tokenizer.chat_template)
    (row,) = rows_of([TALK], tokenizer)
    ids, scored = labelled(row, tokenizer)
    whole, wanted = oracle["input_ids"], list(map(bool, oracle["assistant_masks"]))
    assert ids == whole[: len(ids)]
    assert ids.count(tokenizer.bos_token_id) == whole.count(tokenizer.bos_token_id) <= 1
    end = DialogueEncoder(tokenizer).end
    assert sum(one and token == end for one, token in zip(scored, ids, strict=True)) == 3  # each end once
    if untagged and name in ("gemma", "smollm2"):  # their tags also hold line breaks of the template
        assert not any(one and not tagged for one, tagged in zip(scored, wanted, strict=False))
        said = tokenizer.decode([token for token, one in zip(ids, scored, strict=True) if one])
        assert said == "".join(turn["content"] + tokenizer.decode([end]) for turn in TALK[1::2])
    else:
        assert scored + [False] * (len(whole) - len(ids)) == wanted


def test_scored_tokens_equal_those_of_trls_own_templates(talker):
    templates = pytest.importorskip("trl.chat_template_utils")
    for name in ("qwen2_5", "gemma", "llama3"):
        tokenizer = talker(getattr(templates, f"{name}_training_chat_template"))
        marks = {"gemma": ["<start_of_turn>", "<end_of_turn>"], "llama3": ["<|start_header_id|>", "<|end_header_id|>"]}
        tokenizer.add_tokens([AddedToken(token, special=True) for token in marks.get(name, [])], special_tokens=True)
        oracle = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
        ids, scored = labelled(rows_of([TALK], tokenizer)[0], tokenizer)
        assert ids == oracle["input_ids"][: len(ids)]
        assert scored == list(map(bool, oracle["assistant_masks"]))[: len(ids)]
        assert not any(oracle["assistant_masks"][len(ids) :])


def test_special_tokens_that_are_spelt_out_are_text(talker):
    tokenizer = talker(CHATML)
    said = [TALK[0], {"role": "assistant", "content": "write <|im_end|> and </s>"}, TALK[2], TALK[3]]
    ids, scored = labelled(rows_of([said], tokenizer)[0], tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == 4
    assert tokenizer.eos_token_id not in ids
    kept = [token for token, one in zip(ids, scored, strict=True) if one]
    assert tokenizer.decode(kept) == "write <|im_end|> and </s><|im_end|>gained after profit news<|im_end|>"


def test_a_long_dialogue_loses_its_oldest_exchanges(talker):
    tokenizer = talker(CHATML)
    system = {"role": "system", "content": "a bank"}
    kept = DialogueEncoder(tokenizer).prompt([system, *TALK[2:5]])
    (row,) = rows_of([[system, *TALK]], tokenizer, max_source_length=len(kept))
    assert row["input_ids"] == kept
    assert (row["dropped"], row["truncated"]) == (2, True)
    assert rows_of([[system, *TALK]], tokenizer, max_source_length=len(kept) - 1)[0]["dropped"] == 4
    (cut,) = rows_of([TALK], tokenizer, max_target_length=2)
    assert (len(cut["labels"]), cut["dropped"], cut["truncated"]) == (2, 0, True)
    with pytest.raises(
        UserError, match=r"talk train, row 1: what the last answer follows has \d+ tokens by itself; raise"
    ):
        rows_of([TALK], tokenizer, max_source_length=9)
    assert without_oldest([system, *TALK[:2]]) is None
    assert without_oldest([system, TALK[0], TALK[0], *TALK[:2]]) is None  # the user said it in three turns


WRONG = {
    "empty": ([], "row 2: the dialogue is empty; drop the row"),
    "begins": ([TALK[1], *TALK[:2]], "row 2, turn 1: the dialogue begins with the assistant"),
    "after system": ([{"role": "system", "content": "x"}, TALK[1]], "row 2, turn 2: the dialogue begins with the"),
    "twice": ([*TALK[:2], TALK[1]], "row 2, turn 3: two turns of the assistant in a row; join them to one"),
    "silent": ([*TALK[:1], {"role": "assistant", "content": " \n"}], "row 2, turn 2: the assistant's turn has no text"),
    "unscored": (TALK[:1], "row 2: no turn is the assistant's, so nothing would be scored; drop the row"),
    "null": ([{"role": "user", "content": None}, TALK[1]], "row 2, turn 1: its content holds no text"),
    "no role": ([{"role": "", "content": "x"}, TALK[1]], "row 2, turn 1: its role holds no text"),
    "more": ([TALK[0] | {"name": "ann"}, TALK[1]], "row 2, turn 1: its field 'name' is not read"),
}  # fmt: skip


@pytest.mark.parametrize(("dialogue", "line"), WRONG.values(), ids=WRONG)
def test_a_dialogue_that_cannot_be_scored_is_refused(dialogue, line, talker):
    with pytest.raises(UserError) as error:
        rows_of([TALK, dialogue], talker(CHATML))
    assert f"data.tasks.talk (train), {line}" in str(error.value)


REFUSED = {  # template, dialogue -> what is said
    "role": (TEMPLATES["mistral"], [{"role": "tool", "content": "x"}, *TALK[:2]],
             "row 1, turn 1 (role 'tool'): tokenizer", "Only user and assistant roles are supported!"),
    "system": (TEMPLATES["gemma"], [{"role": "system", "content": "x"}, *TALK[:2]],
               "row 1: tokenizer", "System role not supported"),
    "left out": (LOOP + "{{ m.content }}</s>{% elif m.role == 'user' %}<s>{{ m.content }}{% endif %}{% endfor %}",
                 [*TALK[:2], {"role": "tool", "content": "42"}, *TALK[2:4]],
                 "row 1, turn 3 (role 'tool')", "leaves out"),
    "history": ("{% for m in messages %}<s>{{ m.role }} {{ 'last' if loop.last }}{{ m.content }}</s>{% endfor %}"
                "{% if add_generation_prompt %}<s>assistant {% endif %}", TALK,
                "row 1, turn 2", "tokens of its prompt change"),
    "rewrites": (LOOP + "<s>{{ m.content }}{{ '!' if loop.last }}</s>{% else %}{{ m.content }}{% endif %}{% endfor %}"
                 "{% if add_generation_prompt %}<s>{% endif %}", TALK,
                 "row 1, turn 2", "changes this turn when others follow"),
    "space": ("{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"
              "{% if add_generation_prompt %}<s>assistant {% endif %}", TALK[:2], "row 1, turn 2",
              "the tokens of its prompt change when the answer follows; remove white space"),
    "no end": (LOOP + "bot: {{ m.content }}\n{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
               "{% if add_generation_prompt %}bot: {% endif %}", TALK[:2], "tokenizer", "would not learn to stop"),
    "tags": (CHATML.replace(" + '<|im_end|>' }}{% endgen", " }}{% endgen").replace("endgeneration %}",
             "endgeneration %}<|im_end|>"), TALK, "row 1, turn 2", "tags of the chat template leave out 1 tokens"),
    "user tags": ("{% for m in messages %}<s>{{ m.role }}:{% generation %}{{ m.content }}</s>{% endgeneration %}"
                  "{% endfor %}"
                  "{% if add_generation_prompt %}<s>assistant:{% endif %}", TALK[:2],
                  "row 1", "outside of the assistant's turns"),
}  # fmt: skip


@pytest.mark.parametrize(("template", "dialogue", "place", "said"), REFUSED.values(), ids=REFUSED)
def test_a_template_that_does_not_fit_is_refused_in_one_line(template, dialogue, place, said, talker):
    with pytest.raises(UserError) as error:
        rows_of([dialogue], talker(template))
    assert place in str(error.value)
    assert said in str(error.value)
    assert str(error.value).endswith("set objective.chat_template=chatml")


def test_a_column_that_holds_no_messages_is_refused():
    def read(rows):
        dialogue_pairs(DatasetDict(train=Dataset.from_list(rows)), "messages", [], "a")

    with pytest.raises(UserError, match=r"column 'messages' holds string, not a list of messages"):
        read([{"messages": "x"}])
    with pytest.raises(UserError, match=r"have the fields from, value; rename one to role"):
        read([{"messages": [{"from": "human", "value": "x"}]}])
    with pytest.raises(UserError, match=r"no column 'messages'; did you mean message\?"):
        read([{"message": [TALK[0]]}])
    assert check_messages([*TALK[:2], TALK[2]], "x") == TALK[:2]  # nothing after the last answer is scored
