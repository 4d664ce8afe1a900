"""A fake hub on loopback, with the endpoints that a push (with large files) and a load need."""

import base64
import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

import pytest
import torch
import yaml
from huggingface_hub import constants
from huggingface_hub.utils.sha import git_hash
from transformers import AutoModelForMaskedLM

from decero.models import DeceroEncoderConfig

TOKEN = "hf_secret"


@dataclass
class Repo:
    repo_id: str
    private: bool
    files: dict[str, bytes]
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self):
        return hashlib.sha1(repr((self.repo_id, self.files, self.commits)).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """repos: (kind, id) -> Repo. blobs: sha256 -> large file. requests: "METHOD path".

    fail: [(request pattern, status, whether to execute the request anyway)]; each entry fails one request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), StandIn)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos, self.blobs, self.requests, self.fail, self.lock = {}, {}, [], [], Lock()

    def add(self, repo_id, kind="model", private=True, **files):
        """Add a repository. files: name -> content, with __ for the dot in a name."""
        files = {name.replace("__", "."): content for name, content in files.items()}
        self.repos[kind, repo_id] = Repo(repo_id, private, files)

    def commit(self, repo, lines):
        message = next(line["value"]["summary"] for line in lines if line["key"] == "header")
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                repo.files[value["path"]] = self.blobs[value["oid"]]
            if line["key"] == "deletedFile":
                del repo.files[value["path"]]  # one that is not there is an error, as it is on the hub
        repo.commits.append(message)


def is_large(path):
    return path.endswith(".safetensors")


def oid(path, content):
    return hashlib.sha256(content).hexdigest() if is_large(path) else git_hash(content)


def commit_of(repo, revision):
    """Every commit that is asked for is there, with the same files."""
    return revision if revision and re.fullmatch(r"[0-9a-f]{40}", revision) else repo.sha


class StandIn(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.serve()

    do_GET = do_POST = do_PUT = do_HEAD  # noqa: N815 (http.server's names)

    def serve(self):
        hub, path = self.server, self.path.partition("?")[0]
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.sent = False
        with hub.lock:
            request = f"{self.command} {path}"
            hub.requests.append(request)
            failure = next((f for f in hub.fail if re.search(f[0], request)), None)
            if failure:
                hub.fail.remove(failure)
                if not failure[2]:
                    return self.answer(b"<html>down for a moment</html>", failure[1])
                self.quiet = failure[1]
            else:
                self.quiet = None
            for pattern, method in ROUTES:
                if (match := re.fullmatch(pattern, request)) is not None:
                    return method(self, *match.groups())
            self.answer({"error": f"no such endpoint: {request}"}, 404)

    def answer(self, content, status=200, **headers):
        if getattr(self, "quiet", None):  # the request was executed, but the answer is lost
            content, status, headers = {"error": "bad gateway"}, self.quiet, {}
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def repo(self, kind, repo_id):
        """Return the repository; if the client may not see it, answer with an error and return None."""
        found = self.server.repos.get((kind, repo_id))
        if found is None or (found.private and self.headers["Authorization"] != f"Bearer {TOKEN}"):
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return None
        return found

    def create(self):
        asked = json.loads(self.body)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer({"error": f"{self.headers['Authorization']} may not"}, 403)
        kind, repo_id = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
        known = (kind, repo_id) in self.server.repos
        if not known:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.server.add(repo_id, kind, private, **{"__gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer({"url": f"{self.server.url}/{repo_id}"}, 409 if known else 200)

    def info(self, kind, repo_id, revision=None):
        if repo := self.repo(kind, repo_id):
            siblings = [{"rfilename": name} for name in repo.files]
            self.answer(
                {
                    "id": repo_id,
                    "sha": commit_of(repo, revision),
                    "private": repo.private,
                    "siblings": siblings,
                    "tags": [],
                }
            )

    def tree(self, repo_id):
        if repo := self.repo("model", repo_id):
            self.answer(
                [{"type": "file", "path": p, "size": len(c), "oid": git_hash(c)} for p, c in repo.files.items()]
            )

    def validate(self):
        head = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], flags=re.S)
        good = head is not None and isinstance(yaml.safe_load(head[1]), dict)
        self.answer({"errors": [] if good else [{"message": "no metadata"}], "warnings": []}, 200 if good else 400)

    def preupload(self, repo_id):
        if repo := self.repo("model", repo_id):
            files = []
            for path in (file["path"] for file in json.loads(self.body)["files"]):
                known = {"oid": oid(path, repo.files[path])} if path in repo.files else {}
                mode = "lfs" if is_large(path) else "regular"
                files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
            self.answer({"files": files})

    def batch(self, repo_id):
        if self.repo("model", repo_id):
            objects = json.loads(self.body)["objects"]
            for wanted in objects:
                if wanted["oid"] not in self.server.blobs:
                    wanted["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects})

    def put(self, name):
        good = hashlib.sha256(self.body).hexdigest() == name
        if good:
            self.server.blobs[name] = self.body
        self.answer({}, 200 if good else 400)

    def commit(self, repo_id):
        if repo := self.repo("model", repo_id):
            self.server.commit(repo, [json.loads(line) for line in self.body.splitlines()])
            self.answer({"commitUrl": f"{self.server.url}/{repo_id}/commit/{repo.sha}", "commitOid": repo.sha})

    def resolve(self, repo_id, revision, path):
        if repo := self.repo("model", repo_id):
            if path not in repo.files:
                return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            etag = f'"{oid(path, repo.files[path])}"'
            return self.answer(repo.files[path], X_Repo_Commit=commit_of(repo, revision), ETag=etag)


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"POST /api/repos/create", StandIn.create),
    (r"POST /api/validate-yaml", StandIn.validate),
    (rf"GET /api/(model|dataset|space)s/{NAME}(?:/revision/(\w+))?", StandIn.info),
    (rf"GET /api/models/{NAME}/tree/.+", StandIn.tree),
    (rf"POST /api/models/{NAME}/preupload/main", StandIn.preupload),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", StandIn.batch),
    (r"PUT /lfs/(\w+)", StandIn.put),
    (rf"POST /api/models/{NAME}/commit/main", StandIn.commit),
    (rf"(?:GET|HEAD) /{NAME}/resolve/(\w+)/(.+)", StandIn.resolve),
]


def stand_in(monkeypatch):
    """The fake hub, used by the library in this process. Retries do not wait; `hub.waited` has the seconds."""
    server = Hub()
    server.waited, server.token = [], TOKEN
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", server.waited.append)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(monkeypatch):
    yield from stand_in(monkeypatch)


@pytest.fixture(scope="module")
def hub_of_this_module():
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from stand_in(monkeypatch)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Matrices this small are slower on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def sizes():
    """Prime or odd sizes, so that swapped axes never match. The head size is even, because rotary needs pairs."""
    return {
        "vocab_size": 101,
        "hidden_size": 33,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "head_dim": 14,
        "intermediate_size": 41,
        "max_position_embeddings": 64,
    }


@pytest.fixture(scope="session")
def _a_run(tokenizer, sizes, tmp_path_factory):
    torch.manual_seed(0)
    run = tmp_path_factory.mktemp("run")
    AutoModelForMaskedLM.from_config(DeceroEncoderConfig(**sizes)).save_pretrained(run / "model")
    tokenizer.save_pretrained(run / "model")
    (run / "config.yaml").write_text(
        "output: /home/jane doe/runs/mine\nmodel: {config: /home/jane doe/tiny.yaml}\n"
        "data: {name: bbc_news, max_length: 31, files: }\n"
    )
    record = {"metric": {"eval_loss": 2.5, "eval_accuracy": 0.25}, "seed": 3, "steps": 50, "wall_time_s": 61.2}
    record |= {"device": "cpu", "command": "pretrain_mlm.py /home/jane doe/mine.yaml seed=3"}
    (run / "result.json").write_text(json.dumps(record))
    return run


@pytest.fixture
def model_folder(_a_run, tmp_path):
    """The `model` folder of a finished run. The record and settings next to it contain home paths."""
    return shutil.copytree(_a_run, tmp_path / "run") / "model"
