"""Where concepts hold in a text, as spans of characters, and what that says of the tokens of a model.

A document has some ten thousand spans and some hundred concepts. A mask over the characters for each concept would be
mostly zeros, and a look at the character of each token in every mask takes longer than to find the spans. So spans are
collected, and then written to the tokens that they hold: of tokens in text order those are neighbours.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Int

from stages.lib.run.parallel import compiled


@compiled
def _paint(
    labels: npt.NDArray[np.bool_], spans: npt.NDArray[np.int64], below: npt.NDArray[np.int64]
) -> None:  # pragma: no cover - compiled
    """Set a label at the tokens of each span: column, first and last character; `below` counts tokens before each."""
    last = len(below) - 1
    for i in range(len(spans)):
        for token in range(below[min(spans[i, 1], last)], below[min(spans[i, 2], last)]):
            labels[token, spans[i, 0]] = True


@compiled
def _overwrite(
    values: npt.NDArray[np.int64], spans: npt.NDArray[np.int64], below: npt.NDArray[np.int64]
) -> None:  # pragma: no cover - compiled
    """Give the tokens of each span its value, in the order of the spans; as `_paint`."""
    last = len(below) - 1
    for i in range(len(spans)):
        for token in range(below[min(spans[i, 1], last)], below[min(spans[i, 2], last)]):
            values[token] = spans[i, 0]


class Spans:
    """Spans of characters by concept; those of other concepts than the wanted ones are not kept.

    Args:
        names: the wanted concepts, in the order of the columns that `labels` gives.
        size: how many characters the text has.
    """

    def __init__(self, names: Sequence[str], size: int) -> None:
        self.names, self.size = names, size
        self.columns = {name: column for column, name in enumerate(names)}
        self._one_by_one: list[int] = []  # column, start, end, column, ...
        self._together: list[npt.NDArray[np.int64]] = []
        self._depths: defaultdict[str, list[int]] = defaultdict(list)
        self._choices: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)

    def paint(self, name: str, start: int, end: int) -> None:
        """Say that a concept holds from the first to before the second character."""
        column = self.columns.get(name)
        if column is not None:
            self._one_by_one += (column, start, end)

    def paint_all(
        self, columns: Int[np.ndarray, " span"], start: Int[np.ndarray, " span"], end: Int[np.ndarray, " span"]
    ) -> None:
        """Say the same of many spans; a column of -1 stands for no concept."""
        found = np.stack([columns, start, end], axis=1)
        self._together.append(found[columns >= 0])

    def paint_each(self, name: str, start: Int[np.ndarray, " span"], end: Int[np.ndarray, " span"]) -> None:
        """Say the same of many spans of one concept."""
        if name in self.columns:
            self.paint_all(np.full(len(start), self.columns[name]), start, end)

    def deepen(self, what: str, start: int, end: int) -> None:
        """Say that a span is one level deeper in blocks, say; `<what>_depth_<depth>_up` are the concepts."""
        if start < end:
            self._depths[what] += (start, end)

    def choose(self, names: tuple[str, ...], number: int, start: int, end: int) -> None:
        """Say that of some concepts this one holds, and no other even if an earlier span said so."""
        self._choices[names] += (number, start, end)

    def labels(self, places: Int[np.ndarray, " token"]) -> Bool[np.ndarray, "token concept"]:
        """Which concepts hold at the characters at which tokens begin."""
        found = np.zeros((len(places), len(self.names)), np.bool_)
        self.label(places, found)
        return found

    def label(self, places: Int[np.ndarray, " token"], labels: Bool[np.ndarray, "token concept"]) -> None:
        """The same, written to an array of zeros."""
        if (np.diff(places) < 0).any():
            order = np.argsort(places, kind="stable")
            labels[order] = self.labels(places[order])
            return
        below = np.append(0, np.cumsum(np.bincount(places, minlength=self.size)))
        _paint(labels, _table(self._one_by_one, 3), below)
        for spans in self._together:
            _paint(labels, spans, below)
        for what, depths in self._depths.items():
            self._label_depth(what, _table(depths, 2), below, labels)
        for names, choices in self._choices.items():
            values = np.full(len(places), -1)
            _overwrite(values, _table(choices, 3), below)
            for number, name in enumerate(names):
                if name in self.columns:
                    labels[:, self.columns[name]] = values == number

    def _label_depth(
        self,
        what: str,
        spans: Int[np.ndarray, "span 2"],
        below: Int[np.ndarray, " place"],
        labels: Bool[np.ndarray, "token concept"],
    ) -> None:
        edges = [np.bincount(below[places], minlength=len(labels) + 1) for places in spans.T]
        depth = np.cumsum(edges[0] - edges[1])[:-1]
        for name, column in self.columns.items():
            if name.startswith(f"{what}_depth_"):
                labels[:, column] = depth >= int(name.removesuffix("_up").rpartition("_")[2])


def _table(numbers: list[int], width: int) -> npt.NDArray[np.int64]:
    return np.array(numbers, np.int64).reshape(-1, width)
