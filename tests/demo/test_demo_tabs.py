"""The tabs of a demo answer as the commands do, and say what is wrong in one line. In this process, no browser."""

import html
import importlib.util
import socket

import pytest
import torch
import transformers as hf
from transformers import PreTrainedTokenizerFast

from decero import inference
from decero.demo.attention_tab import draw
from decero.demo.chat_tab import Talk, can_chat
from decero.demo.pages import build_app, require_gradio, serve
from decero.demo.parts import bars, guarded
from decero.demo.task_tabs import TITLES, _marked, kinds_of
from decero.errors import UserError
from decero.inference import load
from decero.inference.loading import Loaded
from decero.models import DeceroDecoderConfig, DeceroDecoderForCausalLM

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("gradio"), reason="gradio is not installed")

SIZES = {"vocab_size": 97, "hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
TAGS = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}, "label2id": {"O": 0, "B-PER": 1, "I-PER": 2}}
LABELS = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
T5 = {"vocab_size": 97, "d_model": 22, "d_kv": 11, "d_ff": 37, "num_layers": 2, "num_heads": 2}
CHATML = (
    "{% for m in messages %}[CLS]{{ m['role'] }} {{ m['content'] }}[SEP]{% endfor %}"
    "{% if add_generation_prompt %}[CLS]assistant {% endif %}"
)
MODELS = {
    "fill": lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZES)),
    "classify": lambda: hf.BertForSequenceClassification(hf.BertConfig(**SIZES, **LABELS)),
    "extract": lambda: hf.BertForTokenClassification(hf.BertConfig(**SIZES, **TAGS)),
    "answer": lambda: hf.BertForQuestionAnswering(hf.BertConfig(**SIZES)),
    "write": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, **IDS, decoder_start_token_id=0)),
    "generate": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=97, n_embd=22, n_layer=2, n_head=2, n_positions=61, **IDS)
    ),
    "hybrid": lambda: DeceroDecoderForCausalLM(
        DeceroDecoderConfig(**SIZES | {"num_attention_heads": 1}, **IDS, pretraining_objective="hybrid_lm")
    ),
}
TABS = {"hybrid": ["generate", "fill"]}  # of other models the key of MODELS


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, tokenizer):
    """Save and load a tiny model of a task, once."""
    made = {}

    def build(kind, chat=False):
        if (kind, chat) not in made:
            folder = tmp_path_factory.mktemp("demo") / kind
            hf.set_seed(5)
            model = MODELS[kind]().eval()
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if weight.dim() > 1 and "position" not in name:
                        weight.normal_(std=0.3)
            if kind == "write":
                model.generation_config.max_new_tokens = 8
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            if chat:
                own = PreTrainedTokenizerFast.from_pretrained(folder)
                own.chat_template = CHATML
                own.save_pretrained(folder)
            made[kind, chat] = load(str(folder), inference.commands_of(str(folder))[0])
        return made[kind, chat]

    return build


def handlers(app):
    """The label of each button of a `gradio.Blocks` -> what it runs."""
    found = {}
    for function in app.fns.values():
        for block, event in function.targets:
            if event == "click":
                found[app.blocks[block].value] = function
    return found


def press(app, button, *values):
    return handlers(app)[button].fn(*values)


@pytest.mark.parametrize("kind", MODELS)
def test_a_checkpoint_gets_the_tab_of_its_task(loaded, kind):
    import gradio as gr

    model = loaded(kind)
    assert kinds_of(model) == TABS.get(kind, [kind])
    app = build_app(model)
    tabs = [block.label for block in app.blocks.values() if isinstance(block, gr.Tab)]
    assert tabs == [*map(TITLES.get, kinds_of(model)), "Attention", "Sizes"]
    assert {"Show the attention"} < set(handlers(app))


@pytest.mark.parametrize("kind", ["fill", "hybrid"])
def test_fill_shows_the_answer_of_the_command(loaded, kind):
    app, text = build_app(loaded(kind)), "the [MASK] rose"
    filled, holes, said = press(app, "Fill", text)
    [expected] = inference.fill(loaded(kind).name, [text])
    assert filled == expected.text
    assert said == ""
    for token, probability in expected.holes[0]:
        assert html.escape(token) in holes
        assert f"{100 * probability:.1f} %" in holes
    assert press(app, "Fill", "the market rose")[:2] == (None, None)
    assert "no hole" in press(app, "Fill", "the market rose")[2]


def test_classify_shows_the_probability_of_each_label(loaded):
    app = build_app(loaded("classify"))
    labels, said = press(app, "Classify", "banks gained")
    [expected] = inference.classify(loaded("classify"), ["banks gained"])
    assert said == ""
    for name, probability in expected.items():
        assert name in labels
        assert f"{100 * probability:.1f} %" in labels


def test_extract_marks_the_entities(loaded):
    text = "the market rose fell sharply"
    marked, _ = press(build_app(loaded("extract")), "Extract", text)
    [expected] = inference.extract(loaded("extract"), [text])
    assert "".join(piece for piece, _ in marked) == text
    assert [(piece, label) for piece, label in marked if label] == [(each["text"], each["label"]) for each in expected]


def test_answer_marks_where_the_answer_is(loaded):
    context = "the market rose. banks in london fell on monday."
    text, marked, spans, said = press(build_app(loaded("answer")), "Answer", "who fell", context)
    [expected] = inference.answer(loaded("answer"), [("who fell", context)])
    assert said == ""
    assert text == (expected.text or "(no answer)")
    assert "".join(piece for piece, _ in marked) == context
    assert "%" in spans
    assert "the question is empty" in press(build_app(loaded("answer")), "Answer", " ", context)[3]


def test_write_and_generate_answer_as_the_commands_do(loaded):
    written, _ = press(build_app(loaded("write")), "Write", "the market rose")
    [expected] = inference.translate(loaded("write"), ["the market rose"])
    assert written == expected
    app = build_app(loaded("generate"))
    [expected] = inference.generate(loaded("generate"), ["the market"], max_new_tokens=5)
    assert press(app, "Generate", "the market", 5, 0, 0)[0] == expected
    [expected] = inference.generate(loaded("generate"), ["the market"], max_new_tokens=5, temperature=1.5, seed=3)
    assert press(app, "Generate", "the market", 5, 1.5, 3)[0] == expected


def test_chat_streams_and_remembers(loaded):
    model = loaded("generate", chat=True)
    assert can_chat(model)
    assert not can_chat(loaded("generate"))
    app = build_app(model)
    steps = list(press(app, "Send", "the market rose", [], None))
    text, shown, talk, said = steps[-1]
    assert (text, said.count("<p")) in (("", 0), ("", 1))
    assert [turn["role"] for turn in shown] == ["user", "assistant"]
    assert shown[-1]["content"] == talk.conversation.messages[-1]["content"]
    *_, last = press(app, "Send", "", shown, talk)
    assert last[1] == shown
    assert "the text is empty" in last[3]
    assert press(app, "Reset") == ("", [], None, "")


def test_a_stopped_answer_stays_as_far_as_it_was_written(loaded):
    talk = Talk(loaded("generate", chat=True))
    for _ in talk.answer("the market rose"):
        talk.stop.set()
    assert len(talk.conversation.messages) == 2
    assert len(talk.conversation.messages[-1]["content"].split()) < 20


def test_the_attention_tab_holds_the_page_of_explain(loaded):
    frame = draw(loaded("fill"), "the market rose", {})
    assert frame.startswith("<iframe")
    inside = html.unescape(frame)
    assert "market" in inside
    assert "http" not in inside.split("<body")[1].split("<script")[0].replace("http://www.w3.org", "")
    assert "the text is empty" in press(build_app(loaded("fill")), "Show the attention", "")[1]


def test_any_error_is_one_line_of_the_page(capsys):
    def broken(warn):
        raise RuntimeError("first <line>\nsecond line")

    value, said = guarded(broken, 1)()
    assert value is None
    assert said == '<p class="said-line error" role="alert">RuntimeError: first &lt;line&gt;</p>'
    assert "Traceback" in capsys.readouterr().err
    assert 'role="status">cut' in guarded(lambda warn: (warn("line 1: cut"), "b")[1], 1)()[1]


def test_what_a_model_says_is_no_markup():
    assert "<b>" not in bars([("<b>", 0.5)])
    assert _marked("abcdef", [(4, 5, "Y"), (1, 3, "X")]) == [
        ("a", None),
        ("bc", "X"),
        ("d", None),
        ("e", "Y"),
        ("f", None),
    ]


def test_without_gradio_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'decero\[demo\]'"):
        require_gradio()


def test_a_port_that_is_taken_is_one_line(loaded):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is not free; choose another one with --port"):
            serve(build_app(loaded("fill")), port)


def test_a_model_without_a_task_is_refused(tmp_path, tokenizer):
    hf.BertModel(hf.BertConfig(**SIZES)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no task of decero fits this bert model"):
        build_app(str(tmp_path))


def test_the_tasks_that_a_configuration_states_get_tabs(loaded):
    model = loaded("write")
    config = model.model.config
    config.task_specific_params = {"summarization": {"prefix": "s: "}, "translation_en_to_de": {"prefix": "t: "}}
    try:
        assert sorted(kinds_of(model)) == ["summarize", "translate"]
        assert isinstance(model, Loaded)
    finally:
        config.task_specific_params = None
