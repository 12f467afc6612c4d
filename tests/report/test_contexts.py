"""Contexts in which a feature is strongest."""

import torch

from stages.lib.report.contexts import one_per_document


def test_one_context_per_document() -> None:
    values, rows = torch.tensor([5.0, 4.0, 3.0, 2.0, 0.0]), torch.tensor([10, 11, 12, 13, 14])
    documents = torch.tensor([1, 1, 2, 3, 4]).numpy()
    assert one_per_document(values, rows, documents, 2) == [10, 12]
    assert one_per_document(values, rows, documents, 9) == [10, 12, 13]
