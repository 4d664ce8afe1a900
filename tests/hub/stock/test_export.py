"""`decero export` finds the family that holds a model, or says why none does."""

import json

import pytest
from tests.hub.stock.folders import edit

from decero.cli.main import main
from decero.errors import UserError
from decero.hub.convert import export_model, import_model


@pytest.mark.long
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


def test_what_commands_read_is_in_the_stock_folder(find_case, tmp_path):
    written = {
        "reads_pairs": True, "decision_threshold": 0.25, "extractive": {"sentences": 3},
        "question_answering": {"max_length": 31, "no_answer_threshold": 1.5},
        "tagging": {"scheme": "BIO", "words": "text"},
        "task_specific_params": {"translation": {"prefix": "translate: "}},
    }  # fmt: skip
    ours = find_case("bert", "ForTokenClassification").ours()
    for name, value in written.items():
        setattr(ours.config, name, value)
    ours.save_pretrained(tmp_path / "ours")
    stock = json.loads((export_model(tmp_path / "ours", tmp_path / "stock") / "config.json").read_text())
    again = json.loads((import_model(tmp_path / "stock", tmp_path / "again") / "config.json").read_text())
    for name, value in written.items():
        assert stock[name] == again[name] == value


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
