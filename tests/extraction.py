"""Models of three layers, tokens and settings for tests of what extracts activations (no test itself)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from stages.lib.io.files import write_json
from stages.lib.language.model import MODEL
from tests import worlds
from tests.settings import write_params
from tests.worlds import numbered

N_CTX, D_IN, D_VOCAB, BOS = 8, 8, 27, 26
SECTION: dict[str, Any] = {
    "layer": 1,
    "site": "hook_resid_post",
    "revisions": ["main", "untrained"],
    "n_tokens": 120,
    "compute": "float32",
    "dtype": "float32",
    "shard_rows": 64,
    "batch_windows": 3,
    "seed": 0,
}


def model_of(kind: str, seed: int) -> PreTrainedModel:
    """An untrained model of three layers: GPT-2, Llama or GPT-NeoX."""
    torch.manual_seed(seed)
    ids = {"bos_token_id": BOS, "eos_token_id": BOS}
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=D_VOCAB, n_positions=N_CTX, n_embd=D_IN, n_layer=3, n_head=2, **ids)
        ).eval()
    sizes = {"vocab_size": D_VOCAB, "max_position_embeddings": N_CTX, "hidden_size": D_IN, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": 3, "num_attention_heads": 2}
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, **ids)).eval()
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, **ids)).eval()


def write_model(kind: str = "gpt2") -> None:
    """Write the model and its revision `untrained`, whose tokens are letters."""
    letters = {chr(97 + letter): letter for letter in range(26)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(letters | {"<e>": BOS}, [])), bos_token="<e>", eos_token="<e>"
    )
    for seed, path in enumerate([MODEL, MODEL / "revisions" / "untrained"]):
        model_of(kind, seed).save_pretrained(path)
        tokenizer.save_pretrained(path)
    write_json(MODEL / "model.json", {"name": "toy", "commit": None, "revisions": ["main", "untrained"]})


def write_tokens(n_documents: int = 12) -> None:
    """Write all splits, of documents of 1 to 29 letters."""
    generator, texts = np.random.default_rng(0), {}
    for split in ("train", "fit", "validation", "test"):
        documents = [generator.integers(0, 26, int(generator.integers(1, 30))) for _ in range(n_documents)]
        texts[split] = [text._replace(id=f"{text.id}.py") for text in numbered(split, documents)]
    worlds.write_tokens(texts, n_ctx=N_CTX, d_vocab=D_VOCAB, bos_id=BOS, pad_id=BOS)


def configure(**changes: Any) -> None:
    """Write the settings of these tests with others in the section of the stage."""
    write_params({"activations": {**SECTION, **changes}})


def snapshot(root: Path = Path("data/activations")) -> dict[str, bytes]:
    """The content of every file under a directory, by its path there."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
