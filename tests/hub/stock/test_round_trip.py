"""`decero import` and `decero export`: a round trip keeps every tensor and option, and writes the same texts."""

import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from tests.hub.stock.folders import edit, refused
from tokenizers import Tokenizer, models, pre_tokenizers

from decero.errors import UserError
from decero.hub import convert, verification
from decero.hub.convert import export_model, import_model, load_ours
from decero.hub.stock import from_stock

pytestmark = pytest.mark.long

SHAPES = [
    ("bert", "ForMaskedLM"),
    ("roberta", "ForSequenceClassification"),
    ("distilbert", "ForQuestionAnswering"),
    ("electra", "ForPreTraining"),
    ("electra", "ForMaskedLM"),
    ("modernbert", "ForMaskedLM"),
    ("eurobert", "ForMaskedLM"),
    ("eurobert", "ForSequenceClassification"),
    ("gpt2", "ForCausalLM"),
    ("llama", "ForSequenceClassification"),
    ("stablelm", "ForCausalLM"),
    ("t5", "ForConditionalGeneration"),
    ("t5 1.1", "ForConditionalGeneration"),
    ("t5 untied, scaled", "ForConditionalGeneration"),
    ("marian", "ForConditionalGeneration"),
    ("bert", "ForMultipleChoice"),
    ("bert", "Model"),
    ("t5", "Model"),
    ("t5 encoder", "Model"),
]
# In bf16 one shape of each of our architectures, and the others in the slow tests: files are handled alike.
IN_BF16 = [("bert", "ForMaskedLM"), ("gpt2", "ForCausalLM"), ("t5", "ForConditionalGeneration")]
ROUNDS = [pytest.param(*shape, torch.float32, id="-".join(shape)) for shape in SHAPES] + [
    pytest.param(
        *shape, torch.bfloat16, id="-".join([*shape, "bf16"]), marks=[] if shape in IN_BF16 else pytest.mark.slow
    )
    for shape in SHAPES
]


FOR_TRANSFORMERS_4 = {  # and for converters that read the files of transformers 4
    "bert": {"position_embedding_type": "absolute"},
    "roberta": {"position_embedding_type": "absolute"},
    "gpt2": {"n_ctx": 17},
    "llama": {"rope_theta": 500.0},
    "modernbert": {"global_rope_theta": 700.0, "local_rope_theta": 50.0, "global_attn_every_n_layers": 3},
    "stablelm": {"rope_theta": 500.0, "partial_rotary_factor": 1.0},
    "t5 1.1": {"tie_word_embeddings": False},  # as in the file; T5Config itself does not write it
    "t5 untied, scaled": {"tie_word_embeddings": False},
}


@pytest.fixture
def words():
    """A plain fast tokenizer with the 37 tokens of the tiny models."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(33))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    )


@pytest.mark.parametrize(("variant", "head", "dtype"), ROUNDS)
def test_a_round_trip_keeps_tensors_and_options(variant, head, dtype, stock_folder, tmp_path):
    folder = stock_folder(variant, head, dtype)
    said = []
    ours = import_model(folder, tmp_path / "ours", said.append)
    back = export_model(ours, tmp_path / "back", variant.split(" ")[0], said.append)
    assert sum(line.startswith("largest difference of ") for line in said) == 2
    before, after = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype == dtype
        assert torch.equal(before[name], after[name])
    assert all(t.dtype == dtype for t in load_file(ours / "model.safetensors").values())
    before, after = (json.loads((f / "config.json").read_text()) for f in (folder, back))
    assert after.items() >= FOR_TRANSFORMERS_4.get(variant, {}).items()
    after = {k: v for k, v in after.items() if k not in FOR_TRANSFORMERS_4.get(variant, {}) or k in before}
    before |= {k: v for k, v in FOR_TRANSFORMERS_4.get(variant, {}).items() if k in before}
    assert before == after
    assert (folder / "generation_config.json").exists() == (back / "generation_config.json").exists()
    assert not list(tmp_path.glob(".*"))


def test_t5_1_1_loads_with_a_head_of_its_own_whatever_wrote_it(stock_folder, tmp_path):
    folder = stock_folder("t5 1.1", "ForConditionalGeneration")
    back = export_model(import_model(folder, tmp_path / "ours"), tmp_path / "back")
    for path in (folder, back):
        model = hf.AutoModelForSeq2SeqLM.from_pretrained(path)
        assert not torch.equal(model.lm_head.weight, model.shared.weight)
        assert model.config.scale_decoder_outputs is False
    edit(folder / "config.json", tie_word_embeddings=False, scale_decoder_outputs=None)  # as transformers 4 wrote it
    again = import_model(folder, tmp_path / "again")
    assert load_file(again / "model.safetensors").keys() == load_file(tmp_path / "ours" / "model.safetensors").keys()
    assert (again / "config.json").read_text() == (tmp_path / "ours" / "config.json").read_text()


@pytest.mark.parametrize(
    ("variant", "tied", "scaled"),
    [("t5", True, True), ("t5 1.1", False, False), ("t5 tied, unscaled", True, False)],
)
def test_both_majors_read_the_same_logits_of_a_t5(variant, tied, scaled, find_case, batch, tmp_path):
    """transformers 4 ties and scales where `tie_word_embeddings` is true, and does neither where it is false."""
    case = find_case(variant, "ForConditionalGeneration")
    from_stock(case.stock()).save_pretrained(tmp_path / "ours")
    back = export_model(tmp_path / "ours", tmp_path / "back")
    model = hf.AutoModelForSeq2SeqLM.from_pretrained(back)
    assert (model.lm_head.weight is model.shared.weight) == tied
    assert model.config.scale_decoder_outputs is scaled
    ours = load_ours(import_model(back, tmp_path / "again"))
    assert (ours.config.tie_word_embeddings, ours.config.scale_lm_head) == (tied, scaled)
    config, tensors = json.loads((back / "config.json").read_text()), load_file(back / "model.safetensors")
    inputs, _ = batch(case)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
        last = output.decoder_hidden_states[-1]
        if config["tie_word_embeddings"]:
            logits = last * config["d_model"] ** -0.5 @ tensors["shared.weight"].T
        else:
            logits = last @ tensors["lm_head.weight"].T
    torch.testing.assert_close(logits, output.logits, atol=3e-5, rtol=0)


def test_t5_with_a_deeper_decoder_generates(stock_folder, tmp_path, capsys):
    """transformers 5.24 gives T5's cache as many layers as the encoder has, so `generate` fails with a cache."""
    back = export_model(
        import_model(stock_folder("t5", "ForConditionalGeneration"), tmp_path / "ours"), tmp_path / "t5"
    )
    said = capsys.readouterr().out
    assert "use_cache is false" in said
    assert "greedy search writes the same" in said
    written = hf.AutoModelForSeq2SeqLM.from_pretrained(back).generate(torch.tensor([[5, 7, 9]]), max_new_tokens=3)
    assert written.shape[1] > 1


def test_an_export_that_writes_another_text_is_refused(stock_folder, tmp_path, monkeypatch):
    ours = import_model(stock_folder("gpt2", "ForCausalLM"), tmp_path / "ours", lambda line: None)
    monkeypatch.setattr(
        verification, "greedy_tokens", lambda model, prompt, new: [6 if type(model).__name__.startswith("GPT2") else 5]
    )
    with pytest.raises(UserError, match="GPT2LMHeadModel writes other tokens than DeceroDecoderForCausalLM"):
        export_model(ours, tmp_path / "back", "gpt2", lambda line: None)
    assert {path.name for path in tmp_path.iterdir()} == {"stock", "ours"}


def test_tokenizer_and_generation_settings_are_copied(stock_folder, words, tmp_path, capsys):
    folder = stock_folder("gpt2", "ForCausalLM")
    words.save_pretrained(folder)
    edit(folder / "generation_config.json", max_new_tokens=7, do_sample=True)
    ours = import_model(folder, tmp_path / "ours")
    back = export_model(ours, tmp_path / "back")
    assert "the saved tokenizer encodes 4 test lines as before" in capsys.readouterr().out
    for path in (ours, back):
        assert hf.AutoTokenizer.from_pretrained(path)("w3 w5 what")["input_ids"] == words("w3 w5 what")["input_ids"]
        assert json.loads((path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
        settings = hf.GenerationConfig.from_pretrained(path)
        assert (settings.max_new_tokens, settings.do_sample) == (7, True)
    texts = torch.tensor([[5, 7, 9]])
    one, other = (hf.AutoModelForCausalLM.from_pretrained(f) for f in (folder, ours))
    assert torch.equal(one.generate(texts, do_sample=False), other.generate(texts, do_sample=False))


def test_labels_are_copied(stock_folder, tmp_path):
    names = {"id2label": {i: f"kind {i}" for i in range(5)}, "label2id": {f"kind {i}": i for i in range(5)}}
    folder = stock_folder("roberta", "ForTokenClassification")
    edit(folder / "config.json", **names)
    back = export_model(import_model(folder, tmp_path / "ours"), tmp_path / "back", "roberta")
    for path in (tmp_path / "ours", back):
        assert hf.AutoConfig.from_pretrained(path).id2label == names["id2label"]


def test_a_conversion_with_other_outputs_leaves_nothing(stock_folder, tmp_path, monkeypatch):
    folder = stock_folder()

    def wrong(stock):
        ours = from_stock(stock)
        with torch.no_grad():
            ours.lm_head.decoder.bias[5] += 0.01
        return ours

    monkeypatch.setattr(convert, "from_stock", wrong)
    refused(folder, tmp_path / "ours", "logits of DeceroEncoderForMaskedLM and BertForMaskedLM differ by 1.0e-02")
    monkeypatch.undo()
    ours = import_model(folder, tmp_path / "ours")
    monkeypatch.setattr(convert, "to_stock", lambda model, to: wrong_bert(model))

    def wrong_bert(model):
        stock = hf.BertForMaskedLM.from_pretrained(folder)
        with torch.no_grad():
            stock.bert.embeddings.LayerNorm.bias[3] += float("nan")
        return stock

    with pytest.raises(UserError, match="differ by nan"):
        export_model(ours, tmp_path / "back", "bert")
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob(".*"))
