"""Publishing: an ordinary folder, and a push to a stand-in of the hub on loopback."""

import base64
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from accelerate import Accelerator
from huggingface_hub import constants
from transformers import AutoModel, AutoTokenizer

from decero.errors import UserError
from decero.hub.publish import publish, push
from decero.models import DeceroEncoderConfig
from decero.training.config import HubSection


class StandIn(BaseHTTPRequestHandler):
    """The three endpoints that a push of small files needs; remembers what it was sent."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        here = self.server.seen
        here["authorization"] = self.headers["Authorization"]
        if self.path == "/api/repos/create":
            here["repo"] = json.loads(body)
            return self.answer({"url": f"{self.server.url}/me/tiny"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    here["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer(
                {"commitUrl": f"{self.server.url}/me/tiny/commit/0", "commitOid": "0" * 40, "success": True}
            )
        return self.answer({"error": "Forbidden"}, status=403)

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.url, server.seen = f"http://127.0.0.1:{server.server_port}", {"files": {}}
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def model():
    sizes = {
        "vocab_size": 101,
        "hidden_size": 22,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 37,
    }
    return AutoModel.from_config(DeceroEncoderConfig(**sizes))


def test_a_published_folder_is_an_ordinary_one_without_pickle(model, tokenizer, tmp_path):
    publish(Accelerator(cpu=True), model, tokenizer, tmp_path / "model", HubSection())
    assert {p.name for p in (tmp_path / "model").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not list((tmp_path / "model").glob("*.bin"))
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "model")("the bank")["input_ids"] == tokenizer("the bank")["input_ids"]
    )
    assert AutoModel.from_pretrained(tmp_path / "model").num_parameters() == model.num_parameters()


def test_a_push_makes_a_private_repository_and_sends_every_file(model, tokenizer, tmp_path, hub, capfd):
    publish(Accelerator(cpu=True), model, tokenizer, tmp_path / "model", HubSection(repo_id="me/tiny"))
    assert hub.seen["repo"]["name"] == "tiny"
    assert hub.seen["repo"]["organization"] == "me"
    assert hub.seen["repo"].get("private") is True or hub.seen["repo"].get("visibility") == "private"
    assert hub.seen["authorization"] == "Bearer hf_secret"
    for path in (tmp_path / "model").iterdir():
        assert hub.seen["files"][path.name] == path.read_bytes(), path.name
    said = capfd.readouterr()
    assert "hf_secret" not in said.out + said.err


def test_a_push_without_a_token_is_refused_and_the_folder_kept(model, tokenizer, tmp_path, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("decero.hub.publish.get_token", lambda: None)
    with pytest.raises(UserError, match="no token to push"):
        publish(Accelerator(cpu=True), model, tokenizer, tmp_path / "model", HubSection(repo_id="me/tiny"))
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert hub.seen["files"] == {}


def test_what_the_hub_refuses_is_one_line(tmp_path, hub, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is kept but not a name could not be pushed"):
        push(tmp_path, "not a name", private=True)
