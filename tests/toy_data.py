"""A model of three layers and SAEs on it, laid out under the current directory as the pipeline's stages would."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stages.lib.io.files import write_json
from stages.lib.language.windows import read_windows
from tests.worlds import Rows, numbered, random_unit, write_saes, write_store, write_tokens

N_CTX, D_VOCAB, D_IN, D_SAE, HOOK = 12, 30, 16, 24, "blocks.1.hook_resid_post"
ROWS = {"train": 40, "fit": 12, "validation": 10, "test": 14}
"""Documents of each split."""


def write_model(directory: Path, seed: int = 0) -> None:
    """A Llama model with random weights, large enough that its logits differ, and a tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=D_VOCAB,
        hidden_size=D_IN,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=N_CTX,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(D_VOCAB)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t1", pad_token="t2").save_pretrained(directory)
    write_json(directory / "model.json", {"revisions": ["main"]})


def sample(n_windows: int) -> np.ndarray:
    """Tokens that the model draws after BOS, so that its own predictions of them are good: [n_windows, N_CTX - 1]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("data/model").eval()
    generator, tokens = torch.Generator().manual_seed(0), torch.ones(n_windows, 1, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(N_CTX - 1):
            chances = model(tokens).logits[:, -1].softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], dim=1)
    return tokens[:, 1:].numpy()


def write_texts() -> None:
    """Documents of 5 to 29 tokens."""
    generator = np.random.default_rng(0)
    text, used = sample(3 * sum(ROWS.values())), 0
    splits = {}
    for split, n_documents in ROWS.items():
        documents = []
        for _ in range(n_documents):
            documents.append(text[used : used + 3].flatten()[: generator.integers(5, 30)])
            used += 3
        splits[split] = numbered(split, documents)
    write_tokens(splits, n_ctx=N_CTX, d_vocab=D_VOCAB, bos_id=1, pad_id=2)


def write_activations() -> Float[Tensor, " d_in"]:
    """The activations of all splits; returns the mean of the training rows."""
    from stages.lib.language.model import load_model, weights_checksum
    from stages.lib.language.patching import index_batches, run_clean

    model, splits = load_model("main", "cpu"), {}
    for split in ROWS:
        windows = read_windows(split)
        valid = windows.valid()
        batches = index_batches(len(valid), 64)
        x = torch.cat([run_clean(model, windows.tokens[rows], HOOK).x[valid[rows]] for rows in batches])
        splits[split] = Rows(x, valid.flatten().nonzero().flatten().numpy())
    write_store(splits, hook_name=HOOK, n_ctx=N_CTX, weights=weights_checksum("main"))
    return splits["train"].x.double().mean(0).float()


def write_all() -> None:
    """Model, tokens, activations and the arm `toy` of random directions with two seeds and levels."""
    write_model(Path("data/model"))
    write_texts()
    mean = write_activations()
    write_saes("toy", {seed: random_unit(D_SAE, D_IN, seed) for seed in (0, 1)}, [2, 4], mean, HOOK)
