"""Recipes with a peft section, as a user runs them: forecast, train, resume, use, merge, compare, examine, push."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from decero.cli.main import main
from decero.config.finetuning import FinetuneClassification
from decero.doctor.examination import examine
from decero.doctor.inspected_run import open_run
from decero.errors import UserError
from decero.hub.publish import model_files, push
from decero.models import DeceroEncoderConfig
from decero.tasks import TASKS

SIZES = {"vocab_size": 97, "hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 37}
STRONG = {"pad_token_id": 0, "initializer_range": 0.3}  # frozen weights that tell words apart
ADAPTER = ("peft.r=2", "peft.alpha=8.0", "optim.learning_rate=3e-2", "training.max_train_steps=40")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(trained_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    torch.manual_seed(0)
    config = DeceroEncoderConfig(**SIZES, max_position_embeddings=31, classifier_pooling="mean", **STRONG)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(trained_tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(launch, classify, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "adapter"
    words = f"output={folder}", f"model.name_or_path={base}", *ADAPTER, "training.save_steps=20"
    shown = launch("finetune_classification", classify, *words, "--dry-run").stdout
    return folder, words, shown, launch("finetune_classification", classify, *words).stdout


def test_a_run_packs_rows_and_saves_the_adapter_only(run, base):
    folder, _, shown, printed = run
    record = json.loads((folder / "result.json").read_text())
    trained, total = record["trained_parameters"], record["num_parameters"]
    assert re.search(rf"{total:,}, [\d,]+ of them embeddings; {trained:,} of them trained", " ".join(shown.split()))
    assert "packing: rows of 128 tokens" in shown, shown
    assert "packing: rows of 128 tokens" in printed
    assert record["metric"]["accuracy"] > 0.9  # two topics of other words
    files = {path.name for path in (folder / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "tokenizer.json"} <= files
    assert "model.safetensors" not in files
    whole = sum(p.numel() for p in AutoModelForMaskedLM.from_pretrained(base).parameters())
    checkpoint = folder / "checkpoints" / "step-00000040"
    assert sum(t.numel() for t in load_file(checkpoint / "model.safetensors").values()) == trained < whole / 3


def test_an_adapter_is_used_merged_and_exported(run, elsewhere, tmp_path, capsys):
    folder = run[0]
    texts = "the young striker in front of a loud crowd"
    main(["classify", str(folder / "model"), texts])
    with_adapter = capsys.readouterr().out
    assert with_adapter.startswith("sport\t")
    main(["merge", str(folder), str(tmp_path / "merged")])
    assert "largest difference from the adapter" in capsys.readouterr().out
    main(["classify", str(tmp_path / "merged"), texts])
    assert capsys.readouterr().out == with_adapter
    assert (tmp_path / "merged" / "run" / "result.json").is_file()
    main(["export", str(tmp_path / "merged"), str(tmp_path / "stock")])
    push(tmp_path / "merged", "me/merged", dry_run=True)
    with pytest.raises(SystemExit):
        main(["export", str(folder / "model"), str(tmp_path / "again")])
    assert "run decero merge" in capsys.readouterr().err


def test_an_adapter_is_scored_with_the_settings_that_trained_it(run, launch, classify, tmp_path):
    folder, words, *_ = run
    words = *words[2:], f"output={tmp_path}/scored", f"model.name_or_path={folder}/model"
    launch("finetune_classification", classify, *words, "--eval-only")
    metric, again = (json.loads((out / "result.json").read_text())["metric"] for out in (folder, tmp_path / "scored"))
    assert again == metric


@pytest.mark.long
def test_the_doctor_reads_a_run_with_an_adapter(run, tmp_path):
    folder = run[0]
    found = list(examine(open_run(str(folder), "finetune_classification")))
    assert not [each.line() for each in found if each.severity == "bad"]
    assert {"overfit", "layers"} <= {each.check for each in found if each.severity == "ok"}
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    path = broken / "model" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t * torch.nan for n, t in tensors.items()}, path, metadata={"format": "pt"})
    lines = [f.line() for f in examine(open_run(str(broken), "finetune_classification")) if f.severity == "bad"]
    assert any("adapter_model.safetensors" in line and "holds NaN or infinity" in line for line in lines), lines


def test_a_push_needs_a_base_that_others_have(run, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(run[0] / "model", folder)
    with pytest.raises(UserError, match="which is not on the hub, so others cannot load it; run decero merge"):
        model_files(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "me/base"}))
    push(folder, "me/tiny", dry_run=True)
    printed = capsys.readouterr().out
    assert "adapter_model.safetensors" in printed
    assert "library_name: peft" in printed
    assert "base_model: me/base" in printed
    call = 'AutoPeftModelForSequenceClassification.from_pretrained("me/tiny", num_labels=2)'
    assert call in printed


@pytest.mark.long
def test_a_comparison_shows_what_each_contender_trains(launch, classify, base, tmp_path):
    text = classify.read_text()
    files = text[text.index("data:") : text.index("optim:")]
    config = tmp_path / "compare.yaml"
    config.write_text(f"""\
output: {tmp_path}/compared
reference: full
contenders:
  full: {{model: {{name_or_path: {base}}}}}
  LoRA: {{model: {{name_or_path: {base}}}, peft: {{r: 2}}, optim: {{learning_rate: 3e-2}}}}
  words: {{tfidf: true}}
seeds: [0]
label_budgets: [20]
{files}optim: {{learning_rate: 1e-2}}
training: {{max_train_steps: 4, global_batch_size: 7, eval_strategy: "no"}}
tracking: {{trackers: []}}
""")
    launch("compare", config)
    table = json.loads((tmp_path / "compared" / "result.json").read_text())["table"].splitlines()
    heads, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if line.startswith("|")]
    column = heads.index("trained parameters")
    found = {row[0]: (row[column - 1], row[column]) for row in rows[1:]}
    assert found["full"][0] == found["full"][1]
    assert found["LoRA"][0] != found["LoRA"][1]


def test_what_a_peft_section_cannot_be_is_one_line(launch, classify, mlm, base, tmp_path):
    out = f"output={tmp_path}/run"
    for words, said in {
        ("peft.r=2",): "peft adapts a checkpoint, and model.config has random weights; set model.name_or_path",
        (f"model.name_or_path={base}", "peft.rank=2"): "unknown setting peft.rank",
        (f"model.name_or_path={base}", "peft.r=0"): "peft.r",
        (f"model.name_or_path={base}", "peft.r=2", "hub.repo_id=me/x"): "is of no use to others, who do not have that",
        (f"model.name_or_path={base}", "peft.target_modules=[q_pro]"): "q_pro names no layer of this model; did you",
    }.items():
        done = launch("finetune_classification", classify, out, *words, expect=2)
        assert said in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
        assert not (tmp_path / "run").exists()
    assert "unknown setting peft" in launch("pretrain_mlm", mlm, out, "peft.r=2", expect=2).stderr


def test_every_fine_tuning_task_has_a_peft_section():
    for name, task in TASKS.items():
        adapts = name.startswith("finetune") and bool(task.tokenizer_needs)  # models of pictures are small
        assert ("peft" in task.Config.model_fields) == adapts, name
    assert FinetuneClassification.model_fields["peft"].default is None
