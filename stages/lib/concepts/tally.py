"""Tokens counted by the longest of their contexts that is asked about, and by concept."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Int
from scipy.sparse import csr_array

from stages.lib.concepts.ngrams import Asked
from stages.lib.run.parallel import compiled


def tally(
    asked: Asked,
    context: Int[np.ndarray, "token 3"],
    labels: Bool[np.ndarray, "token concept"],
    in_half: Bool[np.ndarray, " token"],
) -> csr_array:
    """Tokens by node, each at its longest context: those with each concept, those in one half, those in the other."""
    node = asked.longest(context)
    order, n_columns = np.argsort(node, kind="stable"), labels.shape[1] + 2
    nodes, first = np.unique(node[order], return_index=True)
    edges = np.append(first, len(node))
    n_entries = np.zeros(len(nodes), np.int64)
    _count_columns(labels, order, edges, n_entries)
    begin = np.append(0, np.cumsum(n_entries + 2))
    column, count = np.empty((2, begin[-1]), np.int32)
    _sum_columns(labels, in_half, order, edges, begin, column, count)
    # Halves without a token have a zero, as have none of the others.
    indptr = np.zeros(asked.first[-1] + 1, np.int64)
    indptr[nodes + 1] = np.diff(begin)
    found = csr_array((count, column, np.cumsum(indptr)), shape=(asked.first[-1], n_columns))
    found.eliminate_zeros()
    return found


@compiled
def _count_columns(
    labels: npt.NDArray[np.bool_],
    order: npt.NDArray[np.int64],
    edges: npt.NDArray[np.int64],
    n_entries: npt.NDArray[np.int64],
) -> None:  # pragma: no cover - compiled
    """How many columns have a label at any token of each node, whose tokens stand together in `order`."""
    some = np.zeros(labels.shape[1], np.bool_)
    for node in range(len(edges) - 1):
        some[:] = False
        for i in range(edges[node], edges[node + 1]):
            some |= labels[order[i]]
        n_entries[node] = some.sum()


@compiled
def _sum_columns(
    labels: npt.NDArray[np.bool_],
    in_half: npt.NDArray[np.bool_],
    order: npt.NDArray[np.int64],
    edges: npt.NDArray[np.int64],
    begin: npt.NDArray[np.int64],
    column: npt.NDArray[np.int32],
    count: npt.NDArray[np.int32],
) -> None:  # pragma: no cover - compiled
    """The columns with a label at any token of each node and at how many, then the halves; a node begins at `begin`."""
    n_concepts = labels.shape[1]
    total = np.zeros(n_concepts, np.int32)
    for node in range(len(edges) - 1):
        total[:] = 0
        n_half = 0
        for i in range(edges[node], edges[node + 1]):
            row = labels[order[i]]
            for concept in range(n_concepts):
                total[concept] += row[concept]
            n_half += in_half[order[i]]
        place = begin[node]
        for concept in range(n_concepts):
            if total[concept]:
                column[place], count[place] = concept, total[concept]
                place += 1
        column[place], count[place] = n_concepts, n_half
        column[place + 1], count[place + 1] = n_concepts + 1, edges[node + 1] - edges[node] - n_half
