"""Saving a plain folder, and pushing it to a fake hub on loopback."""

import json
import logging
import os
import shutil

import pytest
from huggingface_hub import ModelCard
from ruamel.yaml import YAML
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig

from decero.errors import UserError
from decero.execution.saving import whole_folder
from decero.hub.publish import WAITS, push


@pytest.fixture
def sent(hub):
    """Return the repository me/tiny."""
    return lambda: hub.repos["model", "me/tiny"]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_saved_folder_is_an_ordinary_one_without_pickle(model_folder, tokenizer, tmp_path):
    model, out = AutoModel.from_pretrained(model_folder), tmp_path / "out"
    with whole_folder(out) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    assert {p.name for p in out.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not list(out.glob("*.bin"))
    assert AutoTokenizer.from_pretrained(out)("the bank")["input_ids"] == tokenizer("the bank")["input_ids"]
    assert AutoModel.from_pretrained(out).num_parameters() == model.num_parameters()


def test_a_push_makes_a_private_repository_in_one_commit(model_folder, hub, sent, capfd):
    before = contents(model_folder.parent)
    push(model_folder, "me/tiny")
    assert sent().private
    assert len(sent().commits) == 1
    for path in model_folder.iterdir():
        assert sent().files[path.name] == path.read_bytes(), path.name
    assert set(sent().files) - {p.name for p in model_folder.iterdir()} == {
        ".gitattributes", "README.md", "run/config.yaml", "run/result.json",
    }  # fmt: skip
    assert len(hub.blobs) == 1  # the weights went the way of large files
    assert contents(model_folder.parent) == before
    said = capfd.readouterr().out
    assert f"{hub.url}/me/tiny (private) now holds 7 files" in said


def test_a_push_sends_the_run_record_without_local_paths(model_folder, hub, sent):
    push(model_folder, "me/tiny")
    record = json.loads(sent().files["run/result.json"])
    assert record["metric"] == {"eval_loss": 2.5, "eval_accuracy": 0.25}
    assert record["command"] == "pretrain_mlm.py mine.yaml seed=3"
    assert b"output: mine\n" in sent().files["run/config.yaml"]
    assert b"2.5000" in sent().files["README.md"]
    for name, content in sent().files.items():
        assert b"jane" not in content, name
        assert str(model_folder.parent).encode() not in content, name


def test_pushing_the_same_folder_again_changes_nothing(model_folder, hub, sent, capfd):
    push(model_folder, "me/tiny")
    hub.requests.clear()
    push(model_folder, "me/tiny")
    assert len(sent().commits) == 1
    assert not [r for r in hub.requests if r.startswith("PUT") or "/commit/" in r]
    assert "already has these files" in capfd.readouterr().out


def test_pushing_other_weights_deletes_the_stale_ones(model_folder, hub, sent):
    hub.add(
        "me/tiny",
        config__json=(model_folder / "config.json").read_bytes(),
        notes__txt=b"mine",
        **{"model-00001-of-00002__safetensors": b"old", "model__safetensors__index__json": b"{}"},
    )
    push(model_folder, "me/tiny")
    assert len(sent().commits) == 1
    assert sent().files["model.safetensors"] == (model_folder / "model.safetensors").read_bytes()
    assert not {"model-00001-of-00002.safetensors", "model.safetensors.index.json"} & set(sent().files)
    assert sent().files["notes.txt"] == b"mine"


def test_only_what_makes_the_model_is_sent(model_folder, hub, sent):
    for name in ("optimizer.safetensors", "metrics.jsonl", "events.out.tfevents.1.host", "predictions.parquet", "x.py"):
        (model_folder / name).write_bytes(b"x")
    shutil.copytree(model_folder, model_folder / "checkpoints" / "step-1")
    (model_folder / "LICENSE").write_text("as is")
    push(model_folder, "me/tiny")
    assert set(sent().files) == {
        ".gitattributes", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "LICENSE",
        "README.md", "run/config.yaml", "run/result.json",
    }  # fmt: skip


def test_visibility_is_set_only_for_a_new_repository(model_folder, hub, sent, capfd):
    push(model_folder, "me/tiny", private=False)
    assert not sent().private
    sent().files.clear()
    push(model_folder, "me/tiny", private=True)
    assert not sent().private
    assert capfd.readouterr().out.count("(public)") == 2


def test_a_dry_run_lists_everything_and_sends_nothing(model_folder, hub, monkeypatch, capfd):
    monkeypatch.delenv("HF_TOKEN")
    push(model_folder, "me/tiny", dry_run=True)
    assert hub.requests == []
    said = capfd.readouterr().out
    for path in model_folder.iterdir():
        assert f"{path.stat().st_size:>15,} bytes  {path.name}" in said
    for words in ("me/tiny (private", "in 7 files", "run/result.json", "| eval_loss | 2.5000 |", "nothing was sent"):
        assert words in said
    total = sum(int(line.split()[0].replace(",", "")) for line in said.splitlines() if " bytes  " in line)
    assert total % 2 == 0  # every size once, and their sum
    assert f"{total // 2:,} bytes  in 7 files" in said
    assert "not sent" not in said
    for name in ("run", "checkpoints"):
        (model_folder / name).mkdir()
    shutil.copy(model_folder.parent / "result.json", model_folder / "run")
    push(model_folder, "me/tiny", private=False, dry_run=True)
    said = capfd.readouterr().out
    assert "me/tiny (public" in said
    assert "not sent: checkpoints\n" in said


def test_a_push_without_a_token_is_refused_and_the_folder_kept(model_folder, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("decero.hub.publish.get_token", lambda: None)
    with pytest.raises(UserError, match=r"no token to push .*; run `hf auth login` or set HF_TOKEN"):
        push(model_folder, "me/tiny")
    assert hub.requests == []
    assert (model_folder / "model.safetensors").is_file()


def cut(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def change(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def result(folder, text):
    (folder.parent / "result.json").write_text(text)


def settings(folder, text):
    (folder.parent / "config.yaml").write_text(text)


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))


def shard(folder, weight_map=None):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map or names}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: f.rename(f.with_name("modell")), "no such folder; did you mean .*/modell"),
        (lambda f: (f / "config.json").unlink(), "there is no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: invalid JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "config.json: no model_type"),
        (lambda f: (f / "config.json").write_text("[1]"), "config.json: no model_type"),
        (
            lambda f: (f / "config.json").write_text('{"a":' + "[" * 100_000),
            "config.json: invalid JSON: nested too deeply",
        ),
        (lambda f: change(f, model_type=[1]), r"model_type is \[1\], not a name"),
        (lambda f: change(f, model_type=3), "model_type is 3, not a name"),
        (lambda f: change(f, architectures={"a": 1}), "architectures is {'a': 1}, not a list"),
        (lambda f: change(f, architectures=3), "architectures is 3, not a list"),
        (lambda f: change(f, auto_map=["a"]), r"auto_map is \['a'\], not a mapping"),
        (lambda f: shard(f, ["a"]), "invalid index of weights"),
        (lambda f: (f / "README.md").write_bytes(b"\xff"), r"README\.md: byte 0 is not UTF-8"),
        (lambda f: (f / "README.md").write_text("---\na: &a [*a]\n---\n"), r"README\.md, line 1: alias \*a is inside"),
        (lambda f: (f / "README.md").write_text("---\n1: 2\n---\n"), r"README\.md: cannot read its metadata"),
        (lambda f: (f / "README.md").write_text("---\ncard_data: 2\n---\n"), r"README\.md: its metadata is not that"),
        (lambda f: result(f, "{"), r"result\.json: invalid JSON"),
        (lambda f: result(f, "[1]"), r"result\.json: holds no JSON object"),
        (lambda f: result(f, '{"a":' * 200 + "1" + "}" * 200), r"result\.json: values are nested"),
        (lambda f: result(f, '{"metric": [1]}'), r"result\.json: metric is \[1\], not a mapping"),
        (lambda f: result(f, '{"seeds": 3}'), r"result\.json: seeds is 3, not a list"),
        (lambda f: result(f, '{"wall_time_s": "long"}'), r"result\.json: wall_time_s is 'long', not a number"),
        (lambda f: settings(f, "a: ["), r"config\.yaml, line \d: cannot read this as YAML"),
        (lambda f: settings(f, "a: !x 1"), r"config\.yaml, line 1: tags such as !x"),
        (lambda f: settings(f, "a: &a [*a]"), r"config\.yaml, line 1: alias \*a is inside"),
        (lambda f: settings(f, BOMB), r"config\.yaml, line 6: more than 100,000 values"),
        (lambda f: settings(f, "a: " + "[" * 3000), r"config\.yaml, line 1: values are nested more than 32"),
        (lambda f: settings(f, "a: " + "9" * 5000), r"config\.yaml: cannot read this as YAML"),
        (lambda f: settings(f, "[1]"), r"config\.yaml: contains no settings"),
        (lambda f: settings(f, "data: 3"), r"config\.yaml: data is 3, not a mapping"),
        (
            lambda f: (f.parent / "config.yaml").write_bytes(b"\xff\x00"),
            r"config\.yaml, line 1: .* byte 0xff is not UTF-8",
        ),
        (lambda f: os.truncate(f.parent / "result.json", 2**33), r"result\.json: 8,589,934,592 bytes"),
        (lambda f: (f / "model.safetensors").unlink(), "there is no model.safetensors"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "pytorch_model.bin may be a pickle"),
        (lambda f: (f / "model.pt").write_bytes(b""), "model.pt may be a pickle"),
        (cut, "model.safetensors: not a complete safetensors file"),
        (shard, "names model-00002-of-00002.safetensors, which does not exist"),
        (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), "README.md: cannot read its metadata"),
    ],
)
def test_an_incomplete_model_is_refused_before_sending(model_folder, hub, spoil, said):
    spoil(model_folder)
    with pytest.raises(UserError, match=said):
        push(model_folder, "me/tiny")
    assert hub.requests == []


NAMES = ("LICENSE", "README.md", "config.json", "model.safetensors", "tokenizer.json", "x.py", "../config.yaml")


@pytest.mark.parametrize("name", [*NAMES, "../result.json", "run/config.yaml"])
def test_no_link_sends_a_file_from_elsewhere(model_folder, hub, tmp_path, name):
    change(model_folder, auto_map={"AutoModel": "x.Y"})
    path, secret = model_folder / name, tmp_path / "secret"
    path.parent.mkdir(exist_ok=True)
    secret.write_bytes(path.read_bytes() if path.exists() else b"secret")
    path.unlink(missing_ok=True)
    path.symlink_to(secret)
    with pytest.raises(UserError, match=rf"{path.name}: this is a link to .*secret, which is not sent; replace it"):
        push(model_folder, "me/tiny")
    assert hub.requests == []


def test_links_that_lead_nowhere_or_to_devices_are_refused(model_folder, hub):
    for target, line in {"LICENSE": "nowhere", "gone": "nowhere", "/dev/zero": "is a link to /dev/zero"}.items():
        (model_folder / "LICENSE").unlink(missing_ok=True)
        (model_folder / "LICENSE").symlink_to(target)
        with pytest.raises(UserError, match=line):
            push(model_folder, "me/tiny")
    (model_folder / "LICENSE").unlink()
    (model_folder.parent / "elsewhere").mkdir()
    (model_folder / "run").symlink_to(model_folder.parent / "elsewhere")
    with pytest.raises(UserError, match=r"run: this is a link, which is not followed"):
        push(model_folder, "me/tiny")


def test_a_link_inside_the_folder_is_sent_if_its_file_is(model_folder, hub, sent):
    (model_folder / "LICENSE.txt").write_text("as is")
    (model_folder / "LICENSE").symlink_to("LICENSE.txt")
    (model_folder / "unrelated").symlink_to("/etc/passwd")
    push(model_folder, "me/tiny")
    assert sent().files["LICENSE"] == b"as is"
    assert "unrelated" not in sent().files
    (model_folder / "notes.txt").write_text("mine")
    (model_folder / "NOTICE").symlink_to("notes.txt")
    with pytest.raises(UserError, match=r"NOTICE: this is a link to .*notes\.txt, which is not sent"):
        push(model_folder, "me/tiny")


def test_a_folder_of_the_hubs_cache_is_sent(model_folder, tmp_path, hub, sent):
    repo = tmp_path / "models--they--theirs"
    snapshot = repo / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    model_folder.rename(repo / "blobs")
    for path in (repo / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    push(snapshot, "me/tiny")
    assert sent().files["model.safetensors"] == (repo / "blobs" / "model.safetensors").read_bytes()
    (tmp_path / "secret").write_text("secret")
    (snapshot / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="LICENSE: this is a link to"):
        push(snapshot, "me/tiny")


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "config.json", "model.safetensors", "../result.json"])
def test_a_pipe_is_refused_and_not_waited_for(model_folder, hub, name):
    (model_folder / name).unlink(missing_ok=True)
    os.mkfifo(model_folder / name)
    with pytest.raises(UserError, match=rf"{(model_folder / name).name}: this is no regular file"):
        push(model_folder, "me/tiny")


def test_a_record_of_numbers_that_are_none_is_sent_as_json(model_folder, hub, sent):
    result(model_folder, '{"metric": {"pearson": NaN, "mse": 1e999, "mae": 0.5}, "labels": [-Infinity]}')
    push(model_folder, "me/tiny")
    record = json.loads(sent().files["run/result.json"], parse_constant=lambda name: 1 / 0)
    assert record == {"metric": {"pearson": None, "mse": None, "mae": 0.5}, "labels": [None]}
    assert b"| mae | 0.5000 |" in sent().files["README.md"]
    assert b"pearson" not in sent().files["README.md"]


def test_settings_and_record_are_sent_without_secrets(model_folder, hub, sent):
    url = "https://jane:secret@host.org/a.csv?token=secret"
    settings(model_folder, f"data: {{files: {{train: '{url}', test: /home/jane/b.csv}}}}\nhub: {{token: secret}}\n")
    result(model_folder, json.dumps({"metric": {"mae": 1.0}, "command": f"x.py data.files={{train: {url}, test: b}}"}))
    push(model_folder, "me/tiny")
    for name, content in sent().files.items():
        assert b"secret" not in content, name
        assert b"jane" not in content, name
    sent_settings = YAML(typ="safe").load(sent().files["run/config.yaml"].decode())
    assert sent_settings["data"]["files"] == {"train": "https://host.org/a.csv?token=REDACTED", "test": "b.csv"}


def test_a_run_folder_is_refused_with_a_hint_to_its_model(model_folder, hub):
    with pytest.raises(UserError, match=r"no model in this folder.*; give .*/model"):
        push(model_folder.parent, "me/tiny")


@pytest.mark.parametrize("name", ["not a name", "a/b/c", "tiny", "me/", "me/--x"])
def test_an_invalid_name_is_refused_even_in_a_dry_run(model_folder, hub, name):
    with pytest.raises(UserError, match="is not a repository name"):
        push(model_folder, name, dry_run=True)


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_a_dataset_or_space_of_that_name_is_refused(model_folder, hub, kind):
    hub.add("me/tiny", kind)
    with pytest.raises(UserError, match=f"me/tiny is a {kind}, not a model"):
        push(model_folder, "me/tiny", replace=True)
    assert set(hub.repos) == {(kind, "me/tiny")}


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, r"bert \(BertModel\)"),
        ({"model_type": "decero_encoder", "architectures": ["DeceroEncoderModel"]}, r"\(DeceroEncoderModel\)"),
    ],
)
def test_another_kind_of_model_is_replaced_only_on_request(model_folder, hub, sent, theirs, named):
    hub.add("me/tiny", config__json=json.dumps(theirs).encode())
    with pytest.raises(UserError, match=rf"holds a .*{named}, and this is a decero_encoder \(DeceroEncoderForMaskedLM"):
        push(model_folder, "me/tiny")
    assert sent().commits == []
    push(model_folder, "me/tiny", replace=True)
    assert len(sent().commits) == 1


ENDPOINTS = ("GET /api/models/", "/create", "/validate-yaml", "/preupload/", "/batch", "PUT /lfs/", "/commit/")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("done", [False, True], ids=["not done", "done, answer lost"])
def test_a_failed_request_is_retried_and_nothing_done_twice(model_folder, hub, sent, endpoint, done):
    hub.fail.append((endpoint, 503, done))
    push(model_folder, "me/tiny")
    assert hub.fail == []
    assert len(sent().commits) == 1
    assert sent().files["model.safetensors"] == (model_folder / "model.safetensors").read_bytes()
    assert hub.waited == [1]


def test_after_all_retries_the_push_ends_and_keeps_the_folder(model_folder, hub):
    hub.fail += [("/create", 502, False)] * 99
    with pytest.raises(UserError, match="is kept, but me/tiny could not be pushed: 502"):
        push(model_folder, "me/tiny")
    assert hub.waited == list(WAITS)
    hub.waited.clear()
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UserError, match=r"is kept, but me/tiny could not be pushed: .*[Cc]onnect"):
        push(model_folder, "me/tiny")
    assert hub.waited == list(WAITS)
    assert (model_folder / "model.safetensors").is_file()


def test_a_refusal_of_the_hub_is_one_line_without_the_token(model_folder, hub, monkeypatch, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(UserError, match=r"could not be pushed: 403.* the token may not write to me") as refused:
        push(model_folder, "me/tiny")
    assert "Bearer ***" in str(refused.value)  # the fake hub quotes the header, which a hub should not
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__  # no traceback quotes it either
    assert hub.waited == []
    said = capfd.readouterr()
    assert "hf_of_somebody_else" not in str(refused.value) + said.out + said.err + caplog.text


def test_the_token_is_never_printed_on_success(model_folder, hub, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    push(model_folder, "me/tiny")
    said = capfd.readouterr()
    assert hub.token not in said.out + said.err + caplog.text
    assert not any(hub.token.encode() in content for content in hub.repos["model", "me/tiny"].files.values())


def test_a_users_card_is_kept_in_the_folder_and_on_the_hub(model_folder, hub, sent):
    push(model_folder, "me/tiny")
    sent().files["README.md"] = b"---\nlicense: mit\n---\n# Written on the hub\n"
    push(model_folder, "me/tiny")
    card = ModelCard(sent().files["README.md"].decode())
    assert card.text == "# Written on the hub\n"
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "fill-mask"
    assert len(sent().commits) == 2
    push(model_folder, "me/tiny")
    assert len(sent().commits) == 2
    (model_folder / "README.md").write_text("# Written here\n")
    push(model_folder, "me/tiny")
    assert ModelCard(sent().files["README.md"].decode()).text == "# Written here\n"
    assert (model_folder / "README.md").read_text() == "# Written here\n"


def test_a_tokenizer_alone_is_pushed_but_not_over_a_model(tokenizer_folder, hub, sent):
    push(tokenizer_folder, "me/tiny")
    assert "tokenizer.json" in sent().files
    assert b"AutoTokenizer.from_pretrained" in sent().files["README.md"]
    hub.add("me/other", config__json=b'{"model_type": "bert"}')
    with pytest.raises(UserError, match="me/other holds a bert, and this is a tokenizer"):
        push(tokenizer_folder, "me/other")


def test_a_stock_model_is_pushed_as_well(tmp_path, hub, sent):
    config = BertConfig(vocab_size=11, hidden_size=6, num_hidden_layers=1, num_attention_heads=1, intermediate_size=5)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "bert")
    push(tmp_path / "bert", "me/tiny")
    assert "run/result.json" not in sent().files
    assert b"No results were recorded" in sent().files["README.md"]
