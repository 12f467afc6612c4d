"""A Hugging Face hub on 127.0.0.1 and tiny random models for it: what the real loading code meets, offline."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Self
from urllib.parse import unquote, urlsplit

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


class Hub:
    """The server; a context manager. `GET /_stop` ends it, so that a client can see the connection refused."""

    def __init__(self) -> None:
        self.directories: dict[tuple[str, str], Path] = {}
        self.gated: set[str] = set()
        self.failing: set[str] = set()

    def __enter__(self) -> Self:
        """Listen on a free port."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        """Stop listening; more than once does no harm."""
        self._server.shutdown()
        self._server.server_close()

    def add(self, repository: str, directory: Path, revision: str = "main") -> str:
        """Serve a directory as a revision of a repository; returns its commit."""
        commit = hashlib.sha1(f"{repository}@{revision}".encode(), usedforsecurity=False).hexdigest()
        self.directories[repository, revision] = self.directories[repository, commit] = directory
        return commit

    def commit(self, repository: str, revision: str) -> str:
        """The commit that a revision stands for."""
        if len(revision) == 40:
            return revision
        return hashlib.sha1(f"{repository}@{revision}".encode(), usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path == "_stop":
            self.hub.stop()  # before the answer, so that whoever has it finds the port closed
            self.answer(200, b"")
        elif path.startswith("api/models/"):
            self.api(path.removeprefix("api/models/"))
        elif path.startswith("api/datasets/"):
            self.api(path.removeprefix("api/"))  # a data set's repository is served as `datasets/<id>`
        elif "/resolve/" in path:
            repository, _, rest = path.partition("/resolve/")
            revision, _, file = rest.partition("/")
            self.file(repository, revision, file)
        else:
            self.answer(404, b"")

    def do_POST(self) -> None:
        """Facts on the files that the body asks for (`paths-info`)."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        repository, _, revision = urlsplit(self.path).path.removeprefix("/api/").partition("/paths-info/")
        directory = self.directory(unquote(repository), revision)
        if directory is not None:
            facts = [
                {
                    "type": "file",
                    "path": name,
                    "size": (directory / name).stat().st_size,
                    "oid": self.digest(directory / name),
                }
                for name in asked["paths"]
                if (directory / name).is_file()
            ]
            self.answer(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def api(self, path: str) -> None:
        for marker in ("/revision/", "/tree/"):
            repository, found, rest = path.partition(marker)
            if found:
                break
        revision = rest.split("/")[0] or "main"
        directory = self.directory(repository, revision)
        if directory is None:
            return
        files = sorted(file for file in directory.iterdir() if file.is_file())
        if marker == "/tree/" and found:
            listing: object = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": self.digest(file)}
                for file in files
            ]
        else:
            commit = self.hub.commit(repository, revision)
            siblings = [{"rfilename": file.name} for file in files]
            gated = "manual" if repository in self.hub.gated else False
            listing = {"id": repository, "modelId": repository, "sha": commit, "siblings": siblings, "gated": gated}
        self.answer(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def file(self, repository: str, revision: str, name: str) -> None:
        directory = self.directory(repository, revision)
        if directory is None:
            return
        commit = {"X-Repo-Commit": self.hub.commit(repository, revision)}
        if repository in self.hub.gated:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo", **commit})
        elif not (directory / name).is_file():
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", **commit})
        else:
            self.answer(200, (directory / name).read_bytes(), {"ETag": f'"{self.digest(directory / name)}"', **commit})

    def directory(self, repository: str, revision: str) -> Path | None:
        if repository in self.hub.failing:
            self.answer(500, b"")
            return None
        if (repository, revision) in self.hub.directories:
            return self.hub.directories[repository, revision]
        known = any(name == repository for name, _ in self.hub.directories)
        self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
        return None

    @staticmethod
    def digest(file: Path) -> str:
        return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
