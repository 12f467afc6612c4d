"""The path for devices other than a CPU: no step waits for the device, and rows may stay there.

On the device `meta` tensors have no numbers, so whatever has to read one fails: reading one would make a GPU wait.
"""

import pytest
import torch

from stages.lib.activations.batches import normalised_batches, resident
from stages.lib.activations.store import Scaling
from stages.lib.sae.base import SAE
from tests.dictionaries import D_IN, D_SAE, TRAINED, batch, build, directions
from tests.worlds import Numbered


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_read_no_number(name: str) -> None:
    sae = build(name, torch.empty(D_SAE, D_IN, device="meta"), 100)
    losses = sae.gradients(torch.empty(60, D_IN, device="meta"), 0.5)
    sae.lead(losses, 1e-3, 1.0)
    found = torch.stack([losses.fvu, losses.l0, losses.sparsity, losses.auxiliary])
    assert found.device.type == "meta" and losses.fired.shape == (D_SAE,)


def test_reading_a_number_would_be_noticed() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.empty(1, device="meta"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_held_give_the_same_batches(dtype: torch.dtype) -> None:
    store, scaling = Numbered(103), Scaling(torch.tensor([3.0, -1.0]), 2.0)
    held = resident(store, torch.device("cpu"), dtype, 2, 1e6)
    assert held is not store

    def batches(rows) -> list[torch.Tensor]:  # twice, since normalising must leave the rows alone
        return [*normalised_batches(rows, scaling, seed=1, size=10, steps=range(25))] * 2

    for one, other in zip(batches(store), batches(held), strict=True):
        assert torch.equal(one, other)  # whole numbers up to 256 are exact in bfloat16


def test_rows_that_do_not_fit_stay_on_disk() -> None:
    store = Numbered(100)
    assert resident(store, torch.device("cpu"), torch.float32, 2, 799.0) is store
    assert resident(store, torch.device("cpu"), torch.float32, 2, 800.0) is not store


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", TRAINED)
def test_a_gpu_takes_the_steps_of_a_cpu(name: str) -> None:
    own, other = build(name, directions(), 100), build(name, directions().cuda(), 100)
    for i in range(5):
        one, two = own.step(batch(seed=i), 3e-3, 1.0), other.step(batch(seed=i).cuda(), 3e-3, 1.0)
    assert float(one.fvu) == pytest.approx(float(two.fvu), rel=1e-3)
    assert torch.allclose(own.W_dec.detach(), other.W_dec.detach().cpu(), atol=1e-3)
    assert isinstance(other, SAE) and other.W_enc.is_cuda
