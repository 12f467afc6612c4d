"""SAEs on disk: codes by hand, folding exact, the keys SAELens asks for, and every refusal."""

import json
from pathlib import Path

import pytest
import torch

from stages.lib.io.errors import UserError
from stages.lib.io.files import read_json, write_json
from stages.lib.io.tensors import load, save
from stages.lib.sae.members import Member, members
from stages.lib.sae.saved import COMMON, TENSORS, fold, load_sae, save_sae

D_IN, D_SAE = 3, 5


def weights(
    architecture: str = "standard", seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "W_enc": (D_IN, D_SAE),
        "W_dec": (D_SAE, D_IN),
        "b_enc": (D_SAE,),
        "b_dec": (D_IN,),
        "threshold": (D_SAE,),
    }
    return {name: torch.randn(shapes[name], generator=generator, dtype=dtype).abs() for name in TENSORS[architecture]}


def saved(directory: Path, architecture: str, tensors: dict[str, torch.Tensor] | None = None, **more):
    k = 2 if architecture == "topk" else None
    save_sae(directory, architecture, tensors or weights(architecture), k=k, **more)
    return load_sae(directory)


def simple(threshold: bool = False) -> dict[str, torch.Tensor]:
    """z = (x0 - 1, x1, x0 - 1 + .5)."""
    found = {
        "W_enc": torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
        "b_enc": torch.tensor([0.0, 0.0, 0.5]),
        "W_dec": torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]),
        "b_dec": torch.tensor([1.0, 0.0]),
    }
    return found | ({"threshold": torch.tensor([0.5, 3.0, 0.1])} if threshold else {})


X = torch.tensor([[2.0, 3.0], [0.0, 4.0]])  # z = (1, 3, 1.5), (-1, 4, -.5)


def test_standard_by_hand(tmp_path: Path) -> None:
    sae = saved(tmp_path, "standard", simple())
    assert sae.encode(X).tolist() == [[1.0, 3.0, 1.5], [0.0, 4.0, 0.0]]
    assert sae.decode(sae.encode(X)).tolist() == [[2.0, 1.5], [1.0, 4.0]]
    assert (sae.d_in, sae.d_sae, sae.k, sae.threshold) == (2, 3, None, None)


def test_topk_by_hand(tmp_path: Path) -> None:
    sae = saved(tmp_path, "topk", simple())
    # The second of token 1 is negative and does not fire.
    assert sae.encode(X).tolist() == [[0.0, 3.0, 1.5], [0.0, 4.0, 0.0]]
    assert sae.k == 2


def test_jumprelu_by_hand(tmp_path: Path) -> None:
    sae = saved(tmp_path, "jumprelu", simple(threshold=True))
    # 3 is not above its threshold 3; what passes is kept whole.
    assert sae.encode(X).tolist() == [[1.0, 0.0, 1.5], [0.0, 4.0, 0.0]]


@pytest.mark.parametrize("architecture", TENSORS)
def test_leading_axes_are_free(architecture: str, tmp_path: Path) -> None:
    sae, x = saved(tmp_path, architecture), torch.randn(4, 2, D_IN, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sae.encode(x).reshape(8, D_SAE), sae.encode(x.reshape(8, D_IN)))
    assert torch.allclose(sae.encode(x[0, 0]), sae.encode(x)[0, 0])
    assert sae.decode(sae.encode(x)).shape == x.shape


@pytest.mark.parametrize("architecture", TENSORS)
def test_active_features_are_those_of_the_dense_code(architecture: str, tmp_path: Path) -> None:
    sae, x = saved(tmp_path, architecture), torch.randn(200, D_IN, generator=torch.Generator().manual_seed(1))
    x[0] = sae.b_dec - 100  # no feature fires
    acts, active = sae.encode(x), sae.active(x)
    row, feature = acts.nonzero().T
    assert torch.equal(torch.repeat_interleave(active.first.diff()), row)
    assert torch.equal(active.feature, feature)
    assert torch.allclose(active.value, acts[row, feature], rtol=1e-6, atol=1e-6)
    assert torch.allclose(sae.decode_active(active), sae.decode(acts), atol=1e-5)
    nothing = sae.active(x[:1])
    assert len(nothing.value) == 0
    assert torch.equal(sae.decode_active(nothing), sae.b_dec[None])


@pytest.mark.parametrize("architecture", TENSORS)
def test_folded_weights_do_on_raw_activations_what_the_others_do_on_normalised_ones(architecture: str) -> None:
    from stages.lib.sae.saved import SAE

    def sae(tensors: dict[str, torch.Tensor]) -> SAE:
        k = 2 if architecture == "topk" else None
        common = {name: tensors[name] for name in COMMON}
        return SAE(architecture=architecture, **common, threshold=tensors.get("threshold"), k=k, extra={})

    own = weights(architecture, dtype=torch.float64)
    mean, scale = torch.tensor([5.0, -2.0, 100.0], dtype=torch.float64), 13.0
    x = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    plain, folded = sae(own), sae(fold(own, mean, scale))
    raw = x * scale + mean
    assert torch.allclose(folded.encode(raw), scale * plain.encode(x), atol=1e-9)
    assert torch.allclose(folded.decode(folded.encode(raw)), plain.decode(plain.encode(x)) * scale + mean, atol=1e-9)
    assert torch.equal(folded.W_dec, own["W_dec"])


@pytest.mark.parametrize("architecture", TENSORS)
def test_files_are_as_saelens_wants_them(architecture: str, tmp_path: Path) -> None:
    saved(tmp_path, architecture, metadata={"hook_name": "blocks.2.hook_resid_post"}, extra={"arm": "a", "level": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    expected = {
        "architecture": architecture,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    expected |= {"k": 2, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}
    assert {key: cfg[key] for key in cfg if key not in ("metadata", "exploring_saes")} == expected
    assert cfg["metadata"]["sae_lens_version"].startswith("6.")
    assert cfg["metadata"]["hook_name"] == "blocks.2.hook_resid_post"
    assert load_sae(tmp_path).extra == {"arm": "a", "level": 1}
    tensors = load(tmp_path / "sae_weights.safetensors")
    assert sorted(tensors) == sorted(TENSORS[architecture])
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert tensors["W_enc"].shape == (D_IN, D_SAE) and tensors["W_dec"].shape == (D_SAE, D_IN)


def test_moves_between_devices(tmp_path: Path) -> None:
    moved = saved(tmp_path, "jumprelu").to("meta")
    assert {getattr(moved, name).device.type for name in TENSORS["jumprelu"]} == {"meta"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("architecture", "gated", r"architecture 'gated' is unknown.*known: jumprelu, standard, topk"),
        ("architecture", "jumprelu", r"holds W_dec, W_enc, b_dec, b_enc, but jumprelu needs exactly .*threshold"),
        ("normalize_activations", "layer_norm", r"normalize_activations is 'layer_norm', but only 'none' can be read"),
        ("apply_b_dec_to_input", False, r"apply_b_dec_to_input is False, but only True can be read"),
        ("rescale_acts_by_decoder_norm", True, r"rescale_acts_by_decoder_norm is True"),
        ("d_sae", 6, r"W_enc is \[3, 5\], but cfg.json says \[3, 6\]"),
        ("k", None, r"k is missing"),
    ],
)
def test_refuses_what_it_cannot_apply(key: str, value: object, message: str, tmp_path: Path) -> None:
    saved(tmp_path, "topk")
    cfg = read_json(tmp_path / "cfg.json")
    if value is None:
        del cfg[key]
    else:
        cfg[key] = value
    write_json(tmp_path / "cfg.json", cfg)
    with pytest.raises(UserError, match=message):
        load_sae(tmp_path)


def test_refuses_a_tensor_too_many(tmp_path: Path) -> None:
    saved(tmp_path, "standard")
    save(tmp_path / "sae_weights.safetensors", weights("jumprelu"))
    with pytest.raises(UserError, match="standard needs exactly W_dec, W_enc, b_dec, b_enc"):
        load_sae(tmp_path)


def test_members_come_from_train_json_and_not_from_the_directory(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_json(tmp_path / "topk" / f"seed-{seed}" / "train.json", {"levels": [8, 16]})
    (tmp_path / "topk" / "seed-0" / "level-2").mkdir()
    found = members("topk", [0, 2], tmp_path)
    assert found[:2] == [
        Member("topk", 0, 0, tmp_path / "topk/seed-0/level-0", 8.0),
        Member("topk", 0, 1, tmp_path / "topk/seed-0/level-1", 16.0),
    ]
    assert [(member.seed, member.level) for member in found] == [(0, 0), (0, 1), (2, 0), (2, 1)]


def test_missing_member_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"train.json is missing; `dvc pull train@topk-3` .*`dvc repro train@topk-3` trains it"
    ):
        members("topk", [3], tmp_path)
