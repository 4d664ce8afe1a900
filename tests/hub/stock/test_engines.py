"""`decero export --to ENGINE`: each family in each engine, and the errors. Cells skip where the extra is missing."""

import importlib.util
import json
import sys

import pytest
import torch
import transformers as hf
from tests.hub.stock.engine_cells import CELLS, QUANTIZED

from decero.cli.main import main
from decero.data.tokenizer import train_tokenizer
from decero.errors import UserError
from decero.hub.card import model_card
from decero.hub.convert import export_model
from decero.hub.engine_folders import engine_of
from decero.hub.engines import ENGINES, engine_check, export_engine
from decero.hub.engines.engine import Running
from decero.hub.engines.engine_card import with_engine
from decero.hub.engines.to_gguf import check_tokens, pre_tokenizer_of
from decero.hub.stock import from_stock

# Options that the engines have; the sizes are still odd, and head sizes even where rotary positions need pairs.
FITTING = {"llama": {"hidden_act": "silu", "head_dim": 14}, "gpt2": {"activation_function": "gelu_new"}}
# Wide enough that matrices, which int8 makes smaller, are most of a file.
WIDE = {
    "llama": {"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 160, "head_dim": 32},
    "t5": {"d_model": 96, "d_ff": 160, "d_kv": 32},
    "marian": {"d_model": 96, "encoder_ffn_dim": 160, "decoder_ffn_dim": 160},
    "gpt2": {"n_embd": 96, "n_inner": 160},
}


def needs(engine):
    for package in ENGINES[engine].packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the extra {engine}")


@pytest.fixture(scope="module")
def byte_level(texts):
    return train_tokenizer(
        texts, algorithm="byte_level_bpe", vocab_size=281, model_max_length=64, min_frequency=1, show_progress=False
    )


@pytest.fixture
def engine_source(find_case, byte_level, tokenizer, sentinel_tokenizer, tmp_path):
    """Write a tiny model with a tokenizer that fits: of decero, or stock."""

    def write(variant, head, *, ours=True, words=None, **options):
        family = variant.split(" ")[0]
        if words is None:
            words = sentinel_tokenizer if family in ("t5", "marian") else byte_level
            words = tokenizer if family in ("bert", "electra", "modernbert", "distilbert") else words
        ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        ids["decoder_start_token_id"] = ids["pad_token_id"]
        ids["forced_eos_token_id"] = ids["eos_token_id"]
        known = vars(hf.CONFIG_MAPPING[family]())
        sizes = {"vocab_size": len(words) + 2} | {name: each for name, each in ids.items() if name in known}
        if family == "t5":
            sizes |= {"decoder_start_token_id": ids["pad_token_id"]}
        model = find_case(variant, head).stock(**sizes | FITTING.get(family, {}) | options)
        folder = tmp_path / "source"
        (from_stock(model) if ours else model).save_pretrained(folder)
        words.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Speed is of no interest here."""
    monkeypatch.setattr(engine_check, "ROUNDS", 1)
    monkeypatch.setattr(engine_check, "NEW", 2)


def refused(source, out, to, said, quantization=None):
    """Check that an export is refused with this message in one line, and leaves no files."""
    before = set(out.parent.iterdir())
    with pytest.raises(UserError, match=said) as refusal:
        export_engine(source, out, to, quantization, lambda line: None)
    assert "\n" not in str(refusal.value)
    assert set(out.parent.iterdir()) == before


@pytest.fixture
def stand_in(monkeypatch):
    """An engine that is the stock model itself, changed by a function: what is around the engines costs no time."""

    def make(change=lambda name, tensor: tensor, write=lambda ids: ids, of=(None, "int8")):
        """of: which weights the functions change."""
        converted = []

        def run(folder, model, tokenizer):
            wrong = converted[-1] in of

            def outputs(batch):
                found = model(**batch)
                return {name: change(name, found[name]) if wrong else found[name] for name in ("logits",)}

            def greedy(prompt, new):
                found = engine_check.greedy_tokens(model, prompt, new)
                return write(found) if wrong else found

            return Running(outputs, greedy if model.can_generate() else None)

        engine = ENGINES["ctranslate2"]
        fields = vars(engine) | {"packages": (), "run": run, "convert": lambda *given: converted.append(given[-1])}
        monkeypatch.setitem(ENGINES, "ctranslate2", type(engine)(**fields))

    return make


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_onnx_refuses_positions_that_change_with_length(kind, engine_source, tmp_path):
    needs("onnx")
    rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 8}
    rope |= {"short_factor": [1.0] * 7, "long_factor": [2.0] * 7} if kind == "longrope" else {}
    source = engine_source("llama", "ForCausalLM", ours=False, rope_parameters=rope)
    refused(source, tmp_path / "out", "onnx", f"onnx cannot hold rope_type '{kind}', whose angles depend on the length")


def test_onnx_looks_at_the_positions_of_all_layers(engine_source, tmp_path):
    needs("onnx")
    plain, scaled = {"rope_type": "default", "rope_theta": 5e2}, {"rope_type": "dynamic", "factor": 2.0}
    rope = {"full_attention": scaled | {"rope_theta": 7e2}, "sliding_attention": plain}
    source = engine_source("modernbert", "Model", ours=False, rope_parameters=rope)
    refused(source, tmp_path / "out", "onnx", "onnx cannot hold rope_type 'dynamic', whose angles depend")


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "variant", "head"), CELLS, ids=lambda each: each)
def test_a_family_runs_equally_in_an_engine(engine, variant, head, engine_source, tmp_path):
    needs(engine)
    said = []
    out = export_engine(engine_source(variant, head), tmp_path / "out", engine, None, said.append)
    assert engine_of(out) == engine
    assert any(f" in {engine}: " in line or line.startswith("greedy search writes the same") for line in said)
    assert f"## In {engine}" in (out / "README.md").read_text()
    if "Generation" in head or "Causal" in head:
        assert said[-4].startswith("greedy search writes the same ")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "variant", "head"), QUANTIZED, ids=lambda each: each)
def test_int8_is_smaller_and_near(engine, variant, head, engine_source, tmp_path):
    needs(engine)
    wide = WIDE.get(variant, {"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 160})
    source = engine_source(variant, head, **wide)
    sizes = []
    for quantization in (None, "int8"):
        out = export_engine(source, tmp_path / f"out-{quantization}", engine, quantization, lambda line: None)
        sizes.append(sum(path.stat().st_size for pattern in ENGINES[engine].weights for path in out.glob(pattern)))
    assert sizes[1] < 0.6 * sizes[0]
    assert "int8" in (out / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_stock_export_suits_ctranslate2s_own_converter(family, engine_source, tokenizer, byte_level, tmp_path):
    """It asks for `position_embedding_type`, which transformers 5 does not write, and for a token of each row."""
    needs("ctranslate2")
    from ctranslate2.converters import TransformersConverter

    words = {"bert": tokenizer, "roberta": byte_level}[family]
    source = engine_source(family, "Model", vocab_size=len(words))
    stock = export_model(source, tmp_path / "stock", family, lambda line: None)
    assert TransformersConverter(str(stock)).convert(str(tmp_path / "out"))


@pytest.mark.slow
def test_the_gguf_file_is_also_read_by_transformers(engine_source, byte_level, tmp_path):
    needs("gguf")
    source = engine_source("llama", "ForCausalLM", ours=False)
    out = export_engine(source, tmp_path / "out", "gguf", None, lambda line: None)
    stock = hf.AutoModelForCausalLM.from_pretrained(source)
    again = hf.AutoModelForCausalLM.from_pretrained(out, gguf_file="model.gguf")
    for name, tensor in stock.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    words = hf.AutoTokenizer.from_pretrained(out, gguf_file="model.gguf")
    for line in ("the market rose 12 points", "naïve café, 東京", "  two  spaces\n"):
        found = words(line, add_special_tokens=False)["input_ids"]
        assert found == byte_level(line, add_special_tokens=False)["input_ids"]


@pytest.mark.slow
def test_a_sentence_transformers_folder_pools_the_mean(engine_source, tmp_path):
    needs("sentence-transformers")
    from sentence_transformers import SentenceTransformer

    source = engine_source("bert", "ForMaskedLM", ours=False)
    out = export_engine(source, tmp_path / "out", "sentence-transformers", None, lambda line: None)
    assert json.loads((out / "1_Pooling" / "config.json").read_text())["pooling_mode"] == "mean"
    lines = ["the market rose", "shares in london fell sharply"]
    bare, words = hf.AutoModel.from_pretrained(source).eval(), hf.AutoTokenizer.from_pretrained(source)
    with torch.no_grad():
        wanted = [bare(**words(line, return_tensors="pt")).last_hidden_state[0].mean(0) for line in lines]
    found = SentenceTransformer(str(out), device="cpu").encode(lines, convert_to_tensor=True)
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-5, rtol=0)


def test_a_missing_package_gives_the_pip_command(tmp_path, monkeypatch):
    for name, engine in ENGINES.items():
        for package in engine.packages:
            monkeypatch.setitem(sys.modules, package, None)
        refused(tmp_path, tmp_path / "out", name, rf"pip install 'decero\[{name}\]'$")


def test_an_unknown_engine_gets_the_nearest_name(tmp_path, capsys):
    for words, said in (
        (["--to", "ctranslate"], "did you mean ctranslate2?"),
        (["--to", "onxx"], "did you mean onnx?"),
        (["--to", "bert", "--quantization", "int8"], "--quantization is for an engine"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["export", str(tmp_path), str(tmp_path / "out"), *words])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_what_an_engine_cannot_read_is_named(engine_source, stand_in, tmp_path):
    stand_in()
    out = tmp_path / "out"
    source = engine_source("electra", "ForMaskedLM", ours=False)
    refused(source, out, "ctranslate2", "cannot read electra; it reads bert, roberta, distilbert, t5, .* and llama$")
    source = engine_source("bert", "ForMaskedLM", ours=False)
    refused(source, out, "ctranslate2", "cannot read BertForMaskedLM; of bert it reads BertModel, BertForSeq")
    source = engine_source("modernbert", "Model")
    refused(source, out, "ctranslate2", "reads bert, .* and llama; .* has no counterpart in bert")
    source = engine_source("bert", "ForMaskedLM")
    refused(source, out, "ctranslate2", "none of these has a DeceroEncoderForMaskedLM$")
    refused(source, out, "ctranslate2", r"no such weights; it is for ctranslate2 \(int8\), onnx", "int4")


def test_a_spanish_card_has_its_section_in_spanish(find_case):
    card = "---\nlanguage:\n- es\n---\n# m\n\n## Qué se midió\n\nNada.\n"
    measured = engine_check.Measured(["equal"], (2e6, 1e6), (10.0, 20.0), "read, 2 texts of 3 tokens", 1)
    model = find_case("gpt2", "ForCausalLM").stock()
    text = with_engine(card, "m", ENGINES["ctranslate2"], model, "int8", measured)
    assert text.index("\n## En ctranslate2\n") < text.index("\n## Qué se midió\n")
    assert "con pesos int8" in text
    assert "Resultados del GPT2LMHeadModel original; no se midieron de nuevo" in text
    assert "| pesos, MB | 2.0 | 1.0 |" in text


@pytest.mark.parametrize(("engine", "quantization"), [("ctranslate2", "int8"), ("sentence-transformers", None)])
def test_results_of_the_original_are_not_claimed(engine, quantization, find_case):
    model = find_case("bert", "ForSequenceClassification").stock()
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    card = model_card("me/m", config, {"metric": {"accuracy": 0.5}, "split": "test"}, {"data": {"name": "a/b"}})
    assert "model-index" in card
    measured = engine_check.Measured([], (2e6, 1e6), (10.0, 20.0), "read", 1)
    text = with_engine(card, "m", ENGINES[engine], model, quantization, measured)
    assert "model-index" not in text
    assert "Results of the original BertForSequenceClassification; they were not measured again" in text
    plain = with_engine(card, "m", ENGINES["onnx"], model, None, measured)
    assert "model-index" in plain


def test_licenses_go_with_the_weights(engine_source, stand_in, tmp_path):
    stand_in()
    source = engine_source("gpt2", "ForCausalLM")
    (source / "LICENSE").write_text("mine")
    (source / "NOTICE.txt").write_text("and his")
    main(["export", str(source), str(tmp_path / "stock"), "--to", "gpt2"])
    main(["import", str(tmp_path / "stock"), str(tmp_path / "ours")])
    main(["export", str(tmp_path / "ours"), str(tmp_path / "engine"), "--to", "ctranslate2"])
    for name in ("stock", "ours", "engine"):
        assert (tmp_path / name / "LICENSE").read_text() == "mine"
        assert (tmp_path / name / "NOTICE.txt").read_text() == "and his"


def test_a_stand_in_passes_and_its_card_is_written(engine_source, stand_in, tmp_path, capsys):
    stand_in()
    source = engine_source("gpt2", "ForCausalLM")
    main(["export", str(source), str(tmp_path / "out"), "--to", "ctranslate2"])
    said = capsys.readouterr().out
    assert "largest difference of logits in ctranslate2: 0.0e+00" in said
    assert said.count("greedy search writes the same 2") == 2  # the stock export, and the engine
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: ctranslate2" in card
    assert "| CPU threads: 1 | original | here |" in card
    assert "ctranslate2.Generator(" in card
    assert hf.AutoTokenizer.from_pretrained(tmp_path / "out", model_type="gpt2")


def test_a_translator_without_an_end_token_is_compared(engine_source, stand_in, tmp_path):
    stand_in()
    source = engine_source("t5 1.1", "ForConditionalGeneration", ours=False, eos_token_id=None)
    said = []
    export_engine(source, tmp_path / "out", "ctranslate2", None, said.append)
    assert said[0].startswith("largest difference of logits in ctranslate2: 0.0e+00")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"change": lambda name, tensor: tensor + 0.01},
            "logits in ctranslate2 and in GPT2LMHeadModel differ by 1.0e-02",
        ),
        ({"write": lambda ids: [*ids[:-1], (ids[-1] + 1) % 200]}, "ctranslate2 writes other tokens than GPT2LMHead"),
        ({"write": lambda ids: ids[:-1]}, "ctranslate2 writes other tokens than GPT2LMHead"),
    ],
    ids=["outputs", "tokens", "too few tokens"],
)
def test_a_wrong_engine_leaves_nothing_behind(change, said, engine_source, stand_in, tmp_path):
    stand_in(**change)
    refused(engine_source("gpt2", "ForCausalLM", ours=False), tmp_path / "out", "ctranslate2", said)


def test_int8_may_differ_but_not_be_another_model(engine_source, stand_in, tmp_path):
    source = engine_source("gpt2", "ForCausalLM", ours=False)
    stand_in(change=lambda name, tensor: tensor.flip(-1), of=["int8"])
    refused(source, tmp_path / "out", "ctranslate2", "int8: outputs differ by .* export without", "int8")
    stand_in(change=lambda name, tensor: tensor * 1.01)  # int8 would hide it
    refused(source, tmp_path / "out", "ctranslate2", "in GPT2LMHeadModel differ by .* nothing was written", "int8")
    stand_in(change=lambda name, tensor: tensor * 1.01, write=lambda ids: ids[::-1], of=["int8"])
    said = []
    export_engine(source, tmp_path / "out", "ctranslate2", "int8", said.append)
    assert "root mean square 1.0%" in said[0]
    assert " tokens written by greedy search after 3 prompts are the original's" in said[1]


def test_gguf_compares_the_number_of_tokens(byte_level):
    def count(text):
        return len(byte_level(text, add_special_tokens=False)["input_ids"])

    bos = byte_level("a")["input_ids"][0]
    check_tokens(lambda text: count(text) + 1, byte_level, bos, 999)
    check_tokens(count, byte_level, None, 999)
    check_tokens(lambda text: 0, byte_level, bos, 2)  # no room for any
    for wrong, start in ((lambda text: count(text) + ("🙂" in text), None), (count, bos)):
        with pytest.raises(
            UserError, match=r"llama\.cpp cuts .* into \d+ tokens, and the tokenizer into \d+; "
        ) as said:
            check_tokens(wrong, byte_level, start, 999)
        assert "\n" not in str(said.value)


@pytest.mark.slow
def test_gguf_refuses_a_file_that_cuts_texts_otherwise(engine_source, tmp_path, monkeypatch):
    needs("gguf")
    words = train_tokenizer(["a1234,567 1234,567"] * 9, algorithm="byte_level_bpe", vocab_size=281, model_max_length=64)
    source = engine_source("llama", "ForCausalLM", ours=False, words=words, max_position_embeddings=64)
    monkeypatch.setattr("decero.hub.engines.to_gguf.pre_tokenizer_of", lambda content: "smollm")  # cuts digits apart
    refused(source, tmp_path / "out", "gguf", r"llama\.cpp cuts .*1,234\.5' into \d+ tokens, and the tokenizer into ")


def test_gguf_knows_a_tokenizer_by_its_parts(byte_level, tokenizer):
    content = json.loads(byte_level.backend_tokenizer.to_str())
    assert pre_tokenizer_of(content) == "gpt-2"
    digits = {"type": "Digits", "individual_digits": True}
    steps = {"type": "Sequence", "pretokenizers": [digits, content["pre_tokenizer"]]}
    assert pre_tokenizer_of(content | {"pre_tokenizer": steps}) == "smollm"
    for other, said in (
        (content | {"pre_tokenizer": content["pre_tokenizer"] | {"add_prefix_space": True}}, "in its own way"),
        (content | {"normalizer": {"type": "Lowercase"}}, "lower case"),
        (json.loads(tokenizer.backend_tokenizer.to_str()), "its model is WordPiece"),
    ):
        with pytest.raises(UserError, match=said):
            pre_tokenizer_of(other)
