"""A small Llama-style language model, trained here on the corpus's `lm_train` split.

Byte-level BPE; RMSNorm, rotary positions and SwiGLU (Touvron et al. 2023, arXiv:2302.13971, section 2.2); the matrices
of the blocks are optimised by Muon, which orthogonalises their momentum (Jordan et al. 2024; Liu et al. 2025,
arXiv:2502.16982), and everything else by AdamW. A batch is a pure function of (seed, step), so a killed run goes on
from its last saved state and ends in the same bytes.
"""

import copy
import csv
import io
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from stages.lib.io.errors import UserError
from stages.lib.io.files import write_text
from stages.lib.io.params import Params
from stages.lib.language.documents import CORPUS, read_documents
from stages.lib.language.ngrams import nats_per_token
from stages.lib.run import seeds
from stages.lib.run.log import Log
from stages.lib.run.machine import device
from stages.lib.run.resume import Resume, fingerprint

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"
END_ID = 0
SAVE_INTERVAL = 60.0
"""Seconds between saved states; it changes no result."""


class ModelParams(Params):
    """Shape and training of the model."""

    d_vocab: int = Field(ge=257, le=65536)  # 256 bytes and the end of text
    d_model: PositiveInt
    n_layers: PositiveInt
    n_heads: PositiveInt
    d_mlp: PositiveInt
    n_ctx: int = Field(ge=2)
    steps: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    matrix_lr: PositiveFloat
    weight_decay: NonNegativeFloat
    warmup: float = Field(ge=0, lt=1)
    decay: float = Field(ge=0, le=1)
    precision: Literal["float32", "bfloat16"]
    revisions: list[PositiveInt]
    n_heldout: PositiveInt
    threads: PositiveInt


class Streams(NamedTuple):
    """Documents as tokens, each followed by the end-of-text token."""

    train: Int[Tensor, " token"]
    heldout: Int[Tensor, " token"]
    heldout_characters: int


def check(params: ModelParams) -> None:
    """Refuse what would fail only after the tokenizer is trained.

    Raises:
        UserError: naming the setting.
    """
    if params.d_model % params.n_heads or params.d_model // params.n_heads % 2:
        raise UserError(
            f"model.scratch.d_model is {params.d_model}: it must be an even multiple of n_heads = {params.n_heads}"
        )
    late = [step for step in params.revisions if step >= params.steps]
    if late:
        raise UserError(f"model.scratch.revisions has {late[0]}: it must be below steps = {params.steps}")


def train_tokenizer(texts: Iterator[str], d_vocab: int, n_ctx: int) -> "PreTrainedTokenizerFast":
    """Byte-level BPE with the end-of-text token as token 0; any text can be encoded and decoded without loss."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=d_vocab,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=n_ctx
    )


def encode(tokenizer: "PreTrainedTokenizerFast", texts: Iterator[str], limit: int | None = None) -> tuple[Tensor, int]:
    """Texts as one stream of tokens, each followed by `END_ID`, and their characters; stops after `limit` tokens."""
    parts: list[np.ndarray] = []
    n_tokens = n_characters = 0
    for text in texts:
        ids = tokenizer.backend_tokenizer.encode(text).ids
        parts.append(np.array([*ids, END_ID], dtype=np.int32))
        n_tokens += len(ids) + 1
        n_characters += len(text)
        if limit is not None and n_tokens >= limit:
            break
    return torch.from_numpy(np.concatenate(parts)), n_characters


def heldout_texts(seed: int) -> Iterator[str]:
    """The texts of the test split in a seeded random order: the first of them are then a fair sample."""
    texts = [document.text for document in read_documents("test")]
    for index in seeds.numpy_generator(seed, "model", "heldout").permutation(len(texts)):
        yield texts[index]


def windows(
    stream: Int[Tensor, " token"], starts: Int[np.ndarray, " window"], n_ctx: int
) -> Int[Tensor, "window n_ctx"]:
    """Windows that begin with the end-of-text token, as the activations' windows do."""
    columns = torch.from_numpy(starts)[:, None] + torch.arange(n_ctx - 1)
    return torch.cat([torch.full((len(starts), 1), END_ID), stream[columns].long()], dim=1)


def batch(stream: Int[Tensor, " token"], params: ModelParams, seed: int, step: int) -> Int[Tensor, "window n_ctx"]:
    """Batch `step` of the training: windows of a randomly shifted grid over the stream, in random order."""
    span = params.n_ctx - 1
    per_epoch = ((len(stream) - span) // span) // params.batch_size
    epoch, index = divmod(step, per_epoch)
    generator = seeds.numpy_generator(seed, "model", "batches", epoch)
    shift = int(generator.integers(span))
    order = generator.permutation((len(stream) - span) // span)
    chosen = order[index * params.batch_size : (index + 1) * params.batch_size]
    return windows(stream, shift + chosen * span, params.n_ctx)


def rate(params: ModelParams, step: int) -> float:
    """The factor on the learning rates: linear warm-up, constant, linear decay to 0."""
    warm = max(1, round(params.warmup * params.steps))
    left = (params.steps - step) / max(1, round(params.decay * params.steps))
    return min(1.0, (step + 1) / warm, left)


def initial_model(params: ModelParams, seed: int) -> "LlamaForCausalLM":
    """The untrained model; one seed gives the same weights whatever ran before."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=params.d_vocab,
        hidden_size=params.d_model,
        intermediate_size=params.d_mlp,
        num_hidden_layers=params.n_layers,
        num_attention_heads=params.n_heads,
        max_position_embeddings=params.n_ctx,
        tie_word_embeddings=True,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
        # torch's fused attention is slower than plain matrix products on a CPU at these sizes (twice at n_ctx 128).
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(seed, "model", "initialisation"))
        return LlamaForCausalLM(config)


def loss(model: "LlamaForCausalLM", tokens: Int[Tensor, "window n_ctx"], precision: str) -> Float[Tensor, ""]:
    """Mean next-token cross-entropy, in nats."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(input_ids=tokens, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())


def optimizers(model: "LlamaForCausalLM", params: ModelParams) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings and norms, each with its learning rate kept as `base_lr`."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    both: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=params.matrix_lr, weight_decay=params.weight_decay, momentum=0.95),
        torch.optim.AdamW(others, lr=params.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    for optimizer in both:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return both


def heldout_loss(model: "LlamaForCausalLM", stream: Int[Tensor, " token"], params: ModelParams) -> float:
    """Nats per token over the held-out stream in windows of n_ctx, in float32."""
    span = params.n_ctx - 1
    starts = np.arange((len(stream) - span) // span + 1) * span
    where = next(model.parameters()).device
    with torch.no_grad():
        losses = [
            loss(model, windows(stream, starts[i : i + 16], params.n_ctx).to(where), "float32")
            * len(starts[i : i + 16])
            for i in range(0, len(starts), 16)
        ]
    return float(torch.stack(losses).double().sum() / len(starts))


def save_revision(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast", directory: Path) -> None:
    """Write the model as a Hugging Face directory, in float16: half the size, and no measurable change of the loss."""
    copy.deepcopy(model).half().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def step(
    model: "LlamaForCausalLM", both: list[torch.optim.Optimizer], tokens: Tensor, params: ModelParams, factor: float
) -> Float[Tensor, ""]:
    """One optimiser step; returns the loss before it."""
    for optimizer in both:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
    value = loss(model, tokens, params.precision)
    value.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in both:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return value.detach()


def train(
    model: "LlamaForCausalLM", stream: Int[Tensor, " token"], params: ModelParams, seed: int, resume: Resume
) -> tuple[list[float], dict[int, dict[str, Tensor]]]:
    """Train in place; returns the loss of each step and the weights at the steps that `revisions` names."""
    both = optimizers(model, params)
    losses: list[float] = []
    kept: dict[int, dict[str, Tensor]] = {}
    state = resume.load()
    if state is not None:
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(both, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        losses, kept = state["losses"], state["kept"]
    where = next(model.parameters()).device
    saved_at = time.monotonic()
    with Log("model", params.steps, "step", start=len(losses)) as log:
        for index in range(len(losses), params.steps):
            if index in params.revisions:
                kept[index] = {name: p.detach().to("cpu", copy=True) for name, p in model.state_dict().items()}
            value = float(step(model, both, batch(stream, params, seed, index).to(where), params, rate(params, index)))
            losses.append(value)
            log.advance(1, loss_nats_per_token=value)
            log.write(step=index, loss=value)
            if time.monotonic() - saved_at > SAVE_INTERVAL:
                optimizer_states = [optimizer.state_dict() for optimizer in both]
                resume.save(
                    {"model": model.state_dict(), "optimizers": optimizer_states, "losses": losses, "kept": kept}
                )
                saved_at = time.monotonic()
    return losses, kept


def curve(losses: list[float], params: ModelParams) -> str:
    """The training curve as CSV: the mean loss of each of at most 200 stretches of steps."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "tokens", "loss"])
    edges = np.unique(np.linspace(0, len(losses), 201).astype(int))
    for begin, end in pairwise(edges):
        tokens = end * params.batch_size * (params.n_ctx - 1)
        writer.writerow([end, tokens, f"{np.mean(losses[begin:end]):.5f}"])
    return text.getvalue()


def measure(
    model: "LlamaForCausalLM", untrained: "LlamaForCausalLM", streams: Streams, params: ModelParams
) -> dict[str, Any]:
    """Held-out loss of the stored (rounded) model, the untrained one and n-gram models, per token and character."""
    per_token = {
        "model": heldout_loss(model, streams.heldout, params),
        "untrained": heldout_loss(untrained, streams.heldout, params),
    }
    train_tokens, heldout = streams.train.numpy(), streams.heldout.numpy()
    for order, name in enumerate(("unigram", "bigram", "trigram"), 1):
        per_token[name] = nats_per_token(train_tokens, heldout, order=order, d_vocab=params.d_vocab)
    tokens_per_character = len(heldout) / streams.heldout_characters
    return {
        "heldout_tokens": len(heldout),
        "characters_per_token": round(1 / tokens_per_character, 5),
        "nats_per_token": {name: round(value, 5) for name, value in per_token.items()},
        "nats_per_character": {name: round(value * tokens_per_character, 5) for name, value in per_token.items()},
    }


def read_streams(tokenizer: "PreTrainedTokenizerFast", texts: list[str], params: ModelParams, seed: int) -> Streams:
    """The training texts and the held-out ones as tokens.

    Raises:
        UserError: if there are too few for one batch or one held-out window.
    """
    stream, _ = encode(tokenizer, iter(texts))
    heldout, heldout_characters = encode(tokenizer, heldout_texts(seed), params.n_heldout)
    needed = (params.batch_size + 1) * params.n_ctx
    if min(len(stream) - needed, len(heldout) - params.n_ctx) < 0:
        raise UserError(
            f"model.scratch needs {needed} training and {params.n_ctx} held-out tokens, the corpus has {len(stream)} "
            f"and {len(heldout)}: give more text or lower model.scratch.batch_size or n_ctx"
        )
    return Streams(stream, heldout, heldout_characters)


def measure_stored(directory: Path, streams: Streams, params: ModelParams, where: torch.device) -> dict[str, Any]:
    """What `measure` says of the model and the untrained one as they were written."""
    from transformers import LlamaForCausalLM

    stored, untrained = (
        LlamaForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").to(where)
        for path in (directory, directory / "revisions" / "untrained")
    )
    return measure(stored, untrained, streams, params)


def build(
    name: str | None, revision: str | None, params: ModelParams, seed: NonNegativeInt, directory: Path
) -> dict[str, Any]:
    """Train the model and write its revisions to `directory`; returns the facts that `model.json` records.

    Raises:
        UserError: for a name or revision, which only a pretrained model has, or for too little text.
    """
    from transformers.utils.logging import disable_progress_bar

    if name is not None or revision is not None:
        raise UserError(
            "model.name and model.revision are for model.source: pretrained; with scratch they must be null"
        )
    check(params)
    disable_progress_bar()
    torch.set_num_threads(params.threads)
    texts = [document.text for document in read_documents("lm_train")]
    tokenizer = train_tokenizer(iter(texts), params.d_vocab, params.n_ctx)
    streams = read_streams(tokenizer, texts, params, seed)
    where = device()
    model = initial_model(params, seed).to(where)
    save_revision(model, tokenizer, directory / "revisions" / "untrained")
    inputs = [CORPUS / "lm_train.jsonl", CORPUS / "test.jsonl"]
    with Resume("model", fingerprint((params, seed, where.type), inputs)) as resume:
        losses, kept = train(model, streams.train, params, seed, resume)
        save_revision(model, tokenizer, directory)
        for index, weights in kept.items():
            snapshot = initial_model(params, seed)
            snapshot.load_state_dict(weights)
            save_revision(snapshot, tokenizer, directory / "revisions" / f"step-{index}")
        write_text(directory / "training.csv", curve(losses, params))
        facts = measure_stored(directory, streams, params, where)
        resume.clear()
    n_parameters = sum(p.numel() for p in model.parameters())
    tokens = params.steps * params.batch_size * (params.n_ctx - 1)
    names = ["main", "untrained", *(f"step-{index}" for index in sorted(kept))]
    return {
        "commit": None,
        "name": "scratch",
        "n_parameters": n_parameters,
        "tokens_seen": tokens,
        "revisions": names,
        **facts,
    }
