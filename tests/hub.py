"""A Hugging Face hub on 127.0.0.1 and tiny random models for it: what the real loading code meets, offline."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

END = "<|endoftext|>"
D_VOCAB = 280
TEXT = "def fvu(x, x_hat):\n    return ((x - x_hat) ** 2).sum() / (x ** 2).sum()\n"


def tiny_config(kind: str, n_ctx: int = 32) -> PretrainedConfig:
    """A configuration with 3 layers and d_model 16 of `gpt2`, `llama` or `neox`."""
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "gpt2":
        return GPT2Config(vocab_size=D_VOCAB, n_positions=n_ctx, n_embd=16, n_layer=3, n_head=2, **ids)
    shape = {"vocab_size": D_VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    shape |= {"num_attention_heads": 2, "max_position_embeddings": n_ctx}
    return {"llama": LlamaConfig, "neox": GPTNeoXConfig}[kind](**shape, **ids)


def tiny_model(kind: str, seed: int = 0) -> PreTrainedModel:
    """A random model with weights large enough that a wrong layer is a wrong answer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(kind))
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def tiny_tokenizer(**special: str | None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the end-of-text token as token 0, as GPT-2 has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=D_VOCAB, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"bos_token": END, "eos_token": END} | special))


def write_tiny(kind: str, directory: Path, seed: int = 0) -> Path:
    """A Hugging Face directory with a tiny model and its tokenizer."""
    tiny_model(kind, seed).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


class Request(NamedTuple):
    """What the server was asked for."""

    method: str
    path: str
    bytes: str | None
    """The `Range` header."""


class Hub:
    """The server; a context manager. Tests make it fail in the ways below."""

    def __init__(self) -> None:
        self.directories: dict[tuple[str, str], Path] = {}
        self.gated: set[str] = set()
        """Repositories whose files are for those with `token`, though all may know of them."""
        self.private: set[str] = set()
        """Repositories that exist for those with `token` alone."""
        self.token = "right"
        """The token that is known; a request with another one is refused, whatever it asks for."""
        self.status: dict[str, int] = {}
        """Repositories about which every answer is this error."""
        self.silent: set[str] = set()
        """Repositories about which a request is taken and never answered; `<repository>/tree`: that for its files."""
        self.cuts: dict[str, list[int]] = {}
        """Files (`<repository>/<path>`), and how many bytes each of the next answers has before the connection ends."""
        self.stalls: set[str] = set()
        """Files whose cut connections stay open, without another byte, instead of ending."""
        self.xet: dict[str, Path] = {}
        """What is in Xet storage, by its hash there: weights, as soon as a client has asked for them.

        The hub keeps large files there, and clients have them in chunks, unless `HF_HUB_DISABLE_XET` is set.
        """
        self.loses_xet = False
        """Whether Xet storage has nothing of what it should have."""
        self.requests: list[Request] = []

    def __enter__(self) -> Self:
        """Listen on a free port."""
        self._listen(0)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._close()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Listen no more, so that a client finds its connection refused, until the block ends."""
        port = self._server.server_port
        self._close()
        try:
            yield
        finally:
            self._listen(port)

    def _listen(self, port: int) -> None:
        self.stopping = Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def _close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, repository: str, directory: Path, revision: str = "main") -> str:
        """Serve a directory as a revision of a repository; returns its commit."""
        commit = self.commit(repository, revision)
        self.directories[repository, revision] = self.directories[repository, commit] = directory
        return commit

    def commit(self, repository: str, revision: str) -> str:
        """The commit that a revision stands for."""
        if len(revision) == 40:
            return revision
        return hashlib.sha1(f"{repository}@{revision}".encode(), usedforsecurity=False).hexdigest()

    def fetched(self, name: str) -> list[Request]:
        """The requests for the content of files of a name."""
        return [request for request in self.requests if request.method == "GET" and request.path.endswith(f"/{name}")]


class Client:
    """A process that talks to a hub: the hub's address is read when its library is imported, so it cannot be this one.

    It runs `script`, which defines `answer(**question)`; `ask` calls that in it, with and for what JSON can hold.
    """

    LOOP = """
import json, os, sys, time
from huggingface_hub import constants, file_download
# What the libraries wait between two attempts is no part of what is tested.
time.sleep = (lambda sleep: lambda seconds: sleep(min(seconds, 0.02)))(time.sleep)
constants.DOWNLOAD_CHUNK_SIZE = 4096  # small, as the files are: what a download goes on from is a number of whole ones
for line in sys.stdin:
    question = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"HF_TOKEN": question.pop("token")} if "token" in question else {})
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = question.pop("timeout", 10)
    file_download._ETAG_RETRY_TIMEOUT = timeout  # a minute else, six times
    constants.HF_HUB_DISABLE_XET = not question.pop("xet", False)
    print("answer " + json.dumps(answer(**question)), flush=True)
"""

    def __init__(self, script: str, url: str, home: Path, **environment: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
        fixed = {"HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": str(Path(__file__).parent.parent)}
        self._environment = {**inherited, **fixed, "no_proxy": "127.0.0.1", **environment}
        self._script = script + self.LOOP
        self._errors = home.with_name(f"{home.name}.stderr")

    def __enter__(self) -> Self:
        """Start the process."""
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", self._script]
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command, env=self._environment, stdin=pipe, stdout=pipe, stderr=errors, text=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def ask(self, **question: Any) -> Any:
        """The answer to a question."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise AssertionError(self.errors())

    def errors(self) -> str:
        """What the process has written to its standard error."""
        return self._errors.read_text()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path).strip("/")
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range")))
        if "/xet-read-token/" in path:
            access = {"X-Xet-Cas-Url": self.hub.url, "X-Xet-Access-Token": "any", "X-Xet-Token-Expiration": str(2**33)}
            self.answer(200, headers=access)
        elif path.startswith(("v1/reconstructions/", "xorbs/")):
            self.xet(path.rpartition("/")[2], chunks=path.startswith("xorbs/"))
        elif path.startswith("api/"):
            # A data set's repository is served as `datasets/<id>`.
            self.api(path.removeprefix("api/").removeprefix("models/"), parse_qs(address.query))
        elif "/resolve/" in path:
            repository, _, rest = path.partition("/resolve/")
            revision, _, file = rest.partition("/")
            self.file(repository, revision, file)
        else:
            self.answer(404)

    def do_POST(self) -> None:
        """Facts on the files that the body asks for (`paths-info`)."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        repository, _, revision = unquote(urlsplit(self.path).path).removeprefix("/api/").partition("/paths-info/")
        directory = self.directory(repository, revision)
        if directory is not None:
            self.answer_json([self.entry(directory, directory / name) for name in asked["paths"]])

    def api(self, path: str, query: dict[str, list[str]]) -> None:
        """Facts on a repository, or the list of its files."""
        tree = "/tree/" in path
        repository, _, rest = path.partition("/tree/" if tree else "/revision/")
        revision, _, below = rest.partition("/")
        directory = self.directory(repository, revision or "main")
        if directory is None:
            return
        if tree and f"{repository}/tree" in self.hub.silent:
            self.hub.stopping.wait(20)
        elif tree:
            recursive = query.get("recursive", ["false"])[0].lower() == "true"
            found = sorted((directory / below).rglob("*") if recursive else (directory / below).glob("*"))
            self.answer_json([self.entry(directory, file) for file in found])
        else:
            files = sorted(file for file in directory.rglob("*") if file.is_file())
            facts = {"id": repository.removeprefix("datasets/"), "sha": self.hub.commit(repository, revision or "main")}
            facts |= {"siblings": [{"rfilename": file.relative_to(directory).as_posix()} for file in files]}
            self.answer_json(facts | {"gated": "manual" if repository in self.hub.gated else False})

    def entry(self, directory: Path, file: Path) -> dict[str, Any]:
        """A file or folder as the hub lists it."""
        facts = {"path": file.relative_to(directory).as_posix()}
        if file.is_dir():
            return {**facts, "type": "directory", "oid": "0" * 40, "size": 0}
        return {**facts, "type": "file", "oid": self.digest(file), "size": file.stat().st_size}

    def file(self, repository: str, revision: str, name: str) -> None:
        """A file's content."""
        directory = self.directory(repository, revision)
        if directory is None:
            return
        facts = {"X-Repo-Commit": self.hub.commit(repository, revision), "Accept-Ranges": "bytes"}
        if repository in self.hub.gated and not self.authorised():
            self.answer(403, headers={"X-Error-Code": "GatedRepo", **facts})
        elif not (directory / name).is_file():
            self.answer(404, headers={"X-Error-Code": "EntryNotFound", **facts})
        else:
            if name.endswith((".safetensors", ".bin")):
                key = hashlib.sha256((directory / name).read_bytes()).hexdigest()
                self.hub.xet[key] = directory / name
                token = f"{self.hub.url}/api/models/{repository}/xet-read-token/{self.hub.commit(repository, revision)}"
                facts |= {"X-Xet-Hash": key, "X-Xet-Refresh-Route": token}
            facts |= {"ETag": f'"{self.digest(directory / name)}"'}
            self.content((directory / name).read_bytes(), facts, f"{repository}/{name}")

    def xet(self, key: str, chunks: bool) -> None:
        """Of what chunks a file is made, here of one; or that chunk: a head of 8 bytes, and the bytes as they are."""
        if self.hub.loses_xet or key not in self.hub.xet:
            self.answer(404)
            return
        body = self.hub.xet[key].read_bytes()
        size = len(body).to_bytes(3, "little")
        chunk = b"\0" + size + b"\0" + size + body
        if chunks:
            self.answer(206, chunk, {"Content-Range": f"bytes 0-{len(chunk) - 1}/{len(chunk)}"})
            return
        first = {"start": 0, "end": 1}
        where = {"range": first, "url": f"{self.hub.url}/xorbs/{key}", "url_range": {"start": 0, "end": len(chunk) - 1}}
        terms = [{"hash": key, "unpacked_length": len(body), "range": first}]
        self.answer_json({"offset_into_first_range": 0, "terms": terms, "fetch_info": {key: [where]}})

    def content(self, whole: bytes, facts: dict[str, str], name: str) -> None:
        """The part of a file that was asked for, or less if the test wants the connection cut."""
        body, status = whole, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or len(whole)), len(whole) - 1)
            if first >= len(whole):
                self.answer(416, headers={"Content-Range": f"bytes */{len(whole)}"})
                return
            body, status = whole[first : last + 1], 206
            facts = facts | {"Content-Range": f"bytes {first}-{last}/{len(whole)}"}
        cuts = self.hub.cuts.get(name)
        if not cuts or self.command == "HEAD":
            self.answer(status, body, facts)
            return
        self.answer(status, body, facts, sent=cuts.pop(0))
        if name in self.hub.stalls:
            self.wfile.flush()
            self.hub.stopping.wait(20)

    def authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def directory(self, repository: str, revision: str) -> Path | None:
        """The files of a revision; None if the request is answered without them."""
        known = any(name == repository for name, _ in self.hub.directories)
        if repository in self.hub.silent:
            self.hub.stopping.wait(20)
        elif repository in self.hub.status:
            self.answer(self.hub.status[repository])
        elif self.headers.get("Authorization") and not self.authorised():
            self.answer(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository in self.hub.private and not self.authorised():
            self.answer(401, headers={"X-Error-Code": "RepoNotFound"})
        elif (repository, revision) in self.hub.directories:
            return self.hub.directories[repository, revision]
        else:
            self.answer(404, headers={"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
        return None

    @staticmethod
    def digest(file: Path) -> str:
        return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()

    def answer_json(self, content: object) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, sent: int | None = None
    ) -> None:
        """The head of an answer, and the first `sent` bytes of its body."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
