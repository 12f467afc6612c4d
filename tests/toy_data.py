"""A model of three layers and SAEs on it, laid out under the current directory as the pipeline's stages would."""

from pathlib import Path

import numpy as np
import torch

from stages.lib.activations.store import FORMAT, shard_header
from stages.lib.io.files import sha256, write_json
from stages.lib.language.windows import WindowWriter, read_windows
from stages.lib.sae.saved import save_sae

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


def write_tokens() -> None:
    """Documents of 5 to 29 tokens."""
    generator = np.random.default_rng(0)
    text, used = sample(3 * sum(ROWS.values())), 0
    splits = {}
    for split, n_documents in ROWS.items():
        path = Path(f"data/tokens/{split}.safetensors")
        with WindowWriter(path, n_ctx=N_CTX, bos_id=1, pad_id=2) as writer:
            for document in range(n_documents):
                ids = text[used : used + 3].flatten()[: generator.integers(5, 30)]
                used += 3
                writer.add(f"{split}/{document}", ids, np.zeros((len(ids), 2), dtype=np.int64))
        splits[split] = {"windows": writer.n_windows, "tokens": writer.n_tokens, "documents": writer.document_ids}
    facts = {"n_ctx": N_CTX, "bos": True, "bos_id": 1, "pad_id": 2, "d_vocab": D_VOCAB, "splits": splits}
    write_json(Path("data/tokens/tokens.json"), facts)


def write_store(revision: str = "main") -> tuple[torch.Tensor, float]:
    """The activations of all splits; returns the mean and the scale of the training rows."""
    from stages.lib.language.model import load_model, weights_checksum
    from stages.lib.language.patching import index_batches, run_clean

    model = load_model(revision, "cpu")
    directory = Path("data/activations") / revision
    directory.mkdir(parents=True)
    index = {"format": FORMAT, "model": "toy", "commit": None, "revision": revision, "hook_name": HOOK, "layer": 1}
    index |= {"d_in": D_IN, "dtype": "float32", "n_ctx": N_CTX, "seed": 0, "splits": {}}
    index["weights"] = weights_checksum(revision)
    blobs = {}
    for split in ROWS:
        windows = read_windows(split)
        valid = windows.valid()
        batches = index_batches(len(valid), 64)
        x = torch.cat([run_clean(model, windows.tokens[rows], HOOK).x[valid[rows]] for rows in batches])
        blobs[split] = (x, valid.flatten().nonzero().flatten().numpy())
    train = blobs["train"][0].double()
    mean, scale = train.mean(0), (train - train.mean(0)).square().sum(1).mean().sqrt().item()
    index |= {"mean": mean.tolist(), "scale": scale}
    for split, (x, positions) in blobs.items():
        path = directory / f"{split}-0.safetensors"
        path.write_bytes(shard_header(index, split, 0, len(x)) + positions.tobytes() + x.numpy().tobytes())
        shard = {"file": path.name, "rows": len(x), "sha256": sha256(path)}
        index["splits"][split] = {"rows": len(x), "shards": [shard]}
    write_json(directory / "index.json", index)
    return mean.float(), scale


def write_saes(arm: str, mean: torch.Tensor, scale: float, seeds: list[int], levels: list[int]) -> None:
    """TopK SAEs with random unit directions, the encoder the decoder's transpose."""
    for seed in seeds:
        root = Path("data/train") / arm / f"seed-{seed}"
        generator = torch.Generator().manual_seed(seed)
        directions = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=generator), dim=1)
        weights = {"W_enc": directions.T, "W_dec": directions, "b_enc": torch.zeros(D_SAE), "b_dec": mean}
        for level, k in enumerate(levels):
            save_sae(root / f"level-{level}", "topk", weights, k=k, metadata={"hook_name": HOOK})
        facts = {"arm": arm, "variant": "topk", "activations": "main", "seed": seed, "levels": levels}
        write_json(root / "train.json", facts | {"sparsity_name": "k", "follow_level": 1})


def write_all() -> None:
    """Model, tokens, activations and the arm `toy` with two seeds and levels."""
    write_model(Path("data/model"))
    write_tokens()
    mean, scale = write_store()
    write_saes("toy", mean, scale, [0, 1], [2, 4])
