"""`decero import` and `decero export`: complete folders or none, and no foreign code runs."""

import json
import shutil

import pytest
import torch
import transformers as hf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from decero.cli.main import main
from decero.errors import UserError
from decero.hub import convert, verification
from decero.hub.convert import export_model, import_model, load_ours
from decero.hub.stock import from_stock

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


@pytest.fixture
def stock_folder(find_case, tmp_path):
    """Write a stock model as a folder."""

    def write(variant="bert", head="ForMaskedLM", dtype=torch.float32, **options):
        folder = tmp_path / "stock"
        find_case(variant, head).stock(**options).to(dtype).save_pretrained(folder)
        return folder

    return write


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (content | changes).items() if v is not None}))


def refused(source, out, said):
    """Check that an import is refused with this message and leaves no files; return the message."""
    before = set(out.parent.iterdir())
    with pytest.raises(UserError, match=said) as refusal:
        import_model(source, out)
    assert set(out.parent.iterdir()) == before
    return str(refusal.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("variant", "head"), SHAPES)
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


def test_shards_old_names_and_unused_tensors_are_read(find_case, tmp_path, capsys):
    """As in BERT's own checkpoints: pretraining heads, gamma and beta, position_ids, several files."""
    case = find_case("bert", "ForMaskedLM")
    stock = hf.BertForPreTraining(case.config())
    stock.save_pretrained(tmp_path / "stock")
    tensors = load_file(tmp_path / "stock" / "model.safetensors")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(17)[None]
    (tmp_path / "stock" / "model.safetensors").unlink()
    halves = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for i, (name, tensor) in enumerate(old.items()):
        halves[sorted(halves)[i % 2]][name] = tensor
    for name, half in halves.items():
        save_file(half, tmp_path / "stock" / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, half in halves.items() for name in half}}
    (tmp_path / "stock" / "model.safetensors.index.json").write_text(json.dumps(index))

    ours = import_model(tmp_path / "stock", tmp_path / "ours")
    said = capsys.readouterr().out
    for name in ("cls.seq_relationship.weight", "bert.pooler.dense.bias", "bert.embeddings.position_ids"):
        assert name in said
    back = load_file(export_model(ours, tmp_path / "back", "bert") / "model.safetensors")
    assert back.keys() == {n for n in tensors if "seq_relationship" not in n and "pooler" not in n}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in back.items())


def test_the_first_gpt2_and_t5_files(find_case, tmp_path, capsys):
    """GPT-2's file has no prefix and stores masks; T5's stores its embeddings three times, and an unused bias."""
    dead = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    for variant, head, buffer in (("gpt2", "ForCausalLM", "h.0.attn.bias"), ("t5", "ForConditionalGeneration", dead)):
        stock = find_case(variant, head).stock()
        stock.save_pretrained(tmp_path / variant)
        tensors = {name.removeprefix("transformer."): t.clone() for name, t in stock.state_dict().items()}
        if variant == "gpt2":
            del tensors["lm_head.weight"]
        save_file(tensors | {buffer: torch.ones(5)}, tmp_path / variant / "model.safetensors", {"format": "pt"})
        back = export_model(import_model(tmp_path / variant, tmp_path / f"our-{variant}"), tmp_path / f"back-{variant}")
        assert f"dropped tensors: {buffer}\n" in capsys.readouterr().out
        again = type(stock).from_pretrained(back).state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in stock.state_dict().items())


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


def test_a_bare_model_without_architectures_and_without_a_pooler(find_case, tmp_path):
    case = find_case("bert", "Model")
    hf.BertModel(case.config(), add_pooling_layer=False).save_pretrained(tmp_path / "stock")
    edit(tmp_path / "stock" / "config.json", architectures=None)
    back = export_model(import_model(tmp_path / "stock", tmp_path / "ours"), tmp_path / "back", "bert")
    assert not any("pooler" in name for name in load_file(back / "model.safetensors"))


def test_from_the_hub(stock_folder, hub, tmp_path):
    folder = stock_folder()
    (folder / "modeling_mine.py").write_text("raise SystemExit\n")
    (folder / "pytorch_model.bin").write_text("a pickle")
    hub.add("me/tiny", **{path.name.replace(".", "__"): path.read_bytes() for path in folder.iterdir()})
    import_model("me/tiny", tmp_path / "ours")
    assert load_file(tmp_path / "ours" / "model.safetensors")
    assert not any(".bin" in request or ".py" in request for request in hub.requests)
    refused("me/other", tmp_path / "none", "me/other: no such folder; cannot download it from the hub: ")


def test_one_file_of_two_dtypes_loses_nothing(stock_folder, tmp_path, capsys):
    folder = stock_folder(dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    wide = "bert.embeddings.LayerNorm.weight"
    tensors[wide] = torch.randn(33)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    ours = load_file(import_model(folder, tmp_path / "ours") / "model.safetensors")
    assert torch.equal(ours["model.embed_norm.weight"], tensors[wide])
    assert {t.dtype for t in ours.values()} == {torch.float32}
    assert "holds torch.bfloat16 and torch.float32; all become torch.float32" in capsys.readouterr().out


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model_type": "brt"},
            "model_type brt has no counterpart in decero; did you mean bert\\? .families: bert, roberta",
        ),
        ({"model_type": "decero_encoder"}, "already a decero model"),
        (
            {"architectures": ["BertForMakedLM"]},
            "BertForMakedLM has no counterpart .*; did you mean BertForMaskedLM",
        ),
        ({"architectures": ["BertForPreTrainingOfMine"]}, "BertForPreTrainingOfMine has no counterpart in decero"),
        ({"auto_map": {"AutoModel": "modeling_mine.Mine"}}, "auto_map names custom code, which is never run"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config: the weights are quantized"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' has no counterpart"),
        ({"is_decoder": True}, "bert option is_decoder=True has no counterpart in decero"),
        ({"hidden_act": "sinc"}, "unknown hidden_act sinc"),
        ({"num_hidden_layers": 3}, "tensor bert.encoder.layer.2.attention.output.LayerNorm.bias is missing"),
        ({"num_hidden_layers": 1}, "unexpected tensor bert.encoder.layer.1.*; BertForMaskedLM has no such"),
        (
            {"intermediate_size": 43},
            r"layer.0.intermediate.dense.bias has shape \[41\], but BertForMaskedLM needs \[43\]",
        ),
        ({"hidden_size": 35}, r"hidden size \(35\) is not a multiple|head_dim=11 has no"),
    ],
)
def test_an_option_without_counterpart_is_named(changes, said, stock_folder, tmp_path):
    folder = stock_folder()
    edit(folder / "config.json", **changes)
    assert refused(folder, tmp_path / "ours", said).startswith(str(folder))


def test_code_of_a_folder_is_never_run(stock_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_TRUST_REMOTE_CODE", "1")
    folder = stock_folder()
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    mine = {
        "AutoConfig": "mine.Config",
        "AutoModelForMaskedLM": "mine.Model",
        "AutoTokenizer": ["mine.Tokenizer", None],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": mine, "tokenizer_class": "Mine"}))
    refused(folder, tmp_path / "ours", "cannot load its tokenizer")
    edit(folder / "config.json", auto_map=mine)
    refused(folder, tmp_path / "ours", "auto_map names custom code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "trick", ["pickle", "nothing", "cut short", "outside", "absolute", "link", "adapter", "float8"]
)
def test_weights_other_than_plain_safetensors_are_refused(trick, stock_folder, tmp_path):
    folder = stock_folder()
    weights = folder / "model.safetensors"
    elsewhere = tmp_path / "elsewhere.safetensors"
    if trick == "pickle":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
        said = "pytorch_model.bin is not read, because loading it may run code"
    if trick == "nothing":
        weights.unlink()
        said = "there is no model.safetensors "
    if trick == "cut short":
        weights.write_bytes(weights.read_bytes()[:-7])
        said = "model.safetensors: not a complete safetensors file"
    if trick in ("outside", "absolute"):
        shutil.move(weights, elsewhere)
        name = "../elsewhere.safetensors" if trick == "outside" else str(elsewhere)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"bert.pooler": name}}))
        said = "are outside the folder and are not read"
    if trick == "link":
        shutil.move(weights, elsewhere)
        weights.symlink_to(elsewhere)
        said = "the weights model.safetensors are outside the folder"
    if trick == "adapter":
        (folder / "adapter_config.json").write_text("{}")
        said = "holds an adapter for another model"
    if trick == "float8":
        save_file({"bert.pooler.dense.bias": torch.zeros(3).to(torch.float8_e4m3fn)}, weights)
        said = "tensor bert.pooler.dense.bias is stored as F8_E4M3, which decero does not read"
    refused(folder, tmp_path / "ours", said)


def test_sinusoids_in_a_marian_file_are_checked_and_dropped(stock_folder, tmp_path):
    folder = stock_folder("marian", "ForConditionalGeneration")
    tensors = load_file(folder / "model.safetensors")
    name = "model.encoder.embed_positions.weight"
    assert name not in tensors
    model = hf.MarianMTModel.from_pretrained(folder)
    tensors[name] = model.state_dict()[name].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    import_model(folder, tmp_path / "ours")
    tensors[name][2, 3] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, tmp_path / "others", f"tensor {name} differs from the formula")


def test_an_existing_folder_is_not_overwritten(stock_folder, tmp_path):
    folder = stock_folder()
    (tmp_path / "ours").mkdir()
    import_model(folder, tmp_path / "ours")  # an empty folder counts as none
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ours").iterdir()}
    for again in (lambda: import_model(folder, tmp_path / "ours"), lambda: export_model(folder, tmp_path / "ours")):
        with pytest.raises(UserError, match=r"already exists|not a decero model"):
            again()
    with pytest.raises(UserError, match="already exists"):
        export_model(tmp_path / "ours", tmp_path / "ours", "bert")
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ours").iterdir()}
    with pytest.raises(UserError, match="already exists"):
        import_model(folder, folder / "config.json")


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


# --- where to


@pytest.mark.parametrize(
    ("variant", "head", "family"),
    [
        ("bert", "ForSequenceClassification", "bert"),
        ("roberta", "ForMaskedLM", "roberta"),
        ("distilbert", "ForMaskedLM", "distilbert"),
        ("modernbert", "Model", "modernbert"),
        ("eurobert", "ForTokenClassification", "eurobert"),
        ("stablelm", "ForCausalLM", "stablelm"),
        ("gpt2", "ForCausalLM", "gpt2"),
        ("llama", "Model", "llama"),
        ("t5", "ForConditionalGeneration", "t5"),
        ("t5 encoder", "Model", "t5"),
        ("marian", "ForConditionalGeneration", "marian"),
    ],
)
def test_auto_finds_the_family(variant, head, family, find_case, tmp_path):
    find_case(variant, head).ours().save_pretrained(tmp_path / "ours")
    back = export_model(tmp_path / "ours", tmp_path / "back")
    assert json.loads((back / "config.json").read_text())["model_type"] == family


def test_a_permutation_model_is_still_marked_after_a_conversion(stock_folder, tmp_path):
    folder = stock_folder()
    edit(folder / "config.json", pretraining_objective="permutation_lm")
    said = []
    back = export_model(import_model(folder, tmp_path / "ours", said.append), tmp_path / "back", say=said.append)
    for each in (tmp_path / "ours", back):
        assert json.loads((each / "config.json").read_text())["pretraining_objective"] == "permutation_lm"
    assert not any("dropped: pretraining_objective" in line for line in said)


@pytest.mark.slow
def test_a_hybrid_keeps_its_code_unless_a_family_is_asked_for(find_case, elsewhere, tmp_path):
    ours = find_case("gpt2", "ForCausalLM").ours()
    ours.config.pretraining_objective = "hybrid_lm"
    ours.save_pretrained(tmp_path / "ours")
    said = []
    kept = export_model(tmp_path / "ours", tmp_path / "kept", say=said.append)
    assert "AutoModelForMaskedLM" in json.loads((kept / "config.json").read_text())["auto_map"]
    assert said[0] == "no stock family can hold it: none fills holes with a decoder's weights"
    stock = export_model(tmp_path / "ours", tmp_path / "stock", "gpt2", say=said.append)
    assert "dropped: the class that fills holes (gpt2 has none for a decoder; remote-code keeps it)" in said
    assert "pretraining_objective" not in json.loads((stock / "config.json").read_text())


def test_auto_says_why_no_family_fits_and_uses_remote_code(find_case, elsewhere, tmp_path, capsys):
    config = find_case("bert", "ForMaskedLM").ours().config
    config.norm_placement, config.final_norm, config.type_vocab_size = "pre", True, 0
    ours = find_case("bert", "ForMaskedLM").family.our_class("ForMaskedLM")(config)
    ours.save_pretrained(tmp_path / "ours")
    back = export_model(tmp_path / "ours", tmp_path / "back")
    said = capsys.readouterr().out
    for why in (
        "no counterpart in bert, which",
        "no counterpart in roberta, which",
        "no counterpart in modernbert, which",
    ):
        assert why in said
    assert "gpt2" not in said
    assert "auto_map" in json.loads((back / "config.json").read_text())
    assert (back / "modeling_encoder.py").exists()


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("roberta", "ours: position_offset=0 has no counterpart in roberta, which has 1"),
        (
            "gpt2",
            "ours: family gpt2 cannot hold a DeceroEncoder .use: bert, roberta, distilbert, electra, modernbert, eu",
        ),
    ],
)
def test_a_family_that_cannot_hold_the_model_is_refused(to, said, find_case, tmp_path):
    find_case("bert", "Model").ours().save_pretrained(tmp_path / "ours")
    with pytest.raises(UserError, match=said):
        export_model(tmp_path / "ours", tmp_path / "back", to)
    assert not (tmp_path / "back").exists()


def test_a_damaged_decero_folder_is_refused(find_case, tmp_path):
    find_case("bert", "ForMaskedLM").ours().save_pretrained(tmp_path / "ours")
    edit(tmp_path / "ours" / "config.json", num_hidden_layers=3, layer_types=None)
    with pytest.raises(UserError, match=r"ours: tensor model\.layers\.2\.mlp\.down_proj\.bias is missing"):
        export_model(tmp_path / "ours", tmp_path / "back")
    edit(tmp_path / "ours" / "config.json", architectures=["DeceroEncoderForMaskLM"])
    with pytest.raises(UserError, match="unknown architecture DeceroEncoderForMaskLM"):
        export_model(tmp_path / "ours", tmp_path / "back")


def test_the_command_line(stock_folder, tmp_path, capfd):
    folder = stock_folder()
    main(["import", str(folder), str(tmp_path / "ours")])
    main(["export", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "bert"])
    assert "DeceroEncoderForMaskedLM is now bert BertForMaskedLM" in capfd.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["export", str(tmp_path / "ours"), str(tmp_path / "other"), "--to", "brt"])
    assert end.value.code == 2
    assert "did you mean bert?" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main(["import", str(tmp_path / "stok"), str(tmp_path / "other")])
    assert "stok: no such folder; did you mean" in capfd.readouterr().err


FULL = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_full_disk_ends_a_conversion_in_one_line(stock_folder, tmp_path, monkeypatch):
    folder = stock_folder()

    def full(*args, **kwargs):
        raise FULL

    import_model(folder, tmp_path / "ours")
    monkeypatch.setattr(hf.PreTrainedModel, "save_pretrained", full)
    refused(folder, tmp_path / "out", "out: cannot be written: No space left on device; fix this")
    with pytest.raises(UserError, match="back: cannot be written: No space left on device"):
        export_model(tmp_path / "ours", tmp_path / "back", to="bert")
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "ours"}


@pytest.mark.parametrize("content", ["{}", "{", '{"model": {"type": "WordLevel"}, "new": -1}'])
def test_a_damaged_tokenizer_is_one_line(content, stock_folder, tmp_path):
    folder = stock_folder()
    (folder / "tokenizer.json").write_text(content)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert "\n" not in refused(folder, tmp_path / "out", "cannot load its tokenizer")
