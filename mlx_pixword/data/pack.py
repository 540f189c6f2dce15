"""How documents of a group become the rows of batches, with little padding."""

from collections.abc import Sequence

import numpy as np

from ..model.document import Document

Row = list[Document]


def pack_rows(documents: Sequence[Document], max_length: int) -> list[Row]:
    """Rows of at most ``max_length`` elements, or one longer document: longest first, into the first row with room."""
    rows: list[Row] = []
    room: list[int] = []
    for document in sorted(documents, key=len, reverse=True):
        place = next((i for i, free in enumerate(room) if free >= len(document)), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(max_length)
        rows[place].append(document)
        room[place] -= len(document)
    return rows


def bucket_batches(rows: Sequence[Row], batch_tokens: int) -> list[list[Row]]:
    """Batches of rows of similar length: rows times the longest stays within ``batch_tokens``, at least one row."""
    batches: list[list[Row]] = []
    longest = 0
    for row in sorted(rows, key=row_length, reverse=True):
        if not batches or (len(batches[-1]) + 1) * longest > batch_tokens:
            batches.append([])
            longest = row_length(row)
        batches[-1].append(row)
    return batches


def plan_batches(
    documents: Sequence[Document], batch_tokens: int, max_length: int, pack: bool, rng: np.random.Generator
) -> list[list[Row]]:
    """All batches of one group of documents, in random order.

    Args:
        documents: documents of at most ``max_length`` elements.
        batch_tokens: elements a batch, padding included.
        max_length: elements of the longest row.
        pack: several documents a row (they never see each other), or one.
        rng: decides the order; equal lengths are mixed by it too.
    """
    mixed = [documents[i] for i in rng.permutation(len(documents))]
    rows = pack_rows(mixed, min(max_length, batch_tokens)) if pack else [[document] for document in mixed]
    batches = bucket_batches(rows, batch_tokens)
    return [batches[i] for i in rng.permutation(len(batches))]


def row_length(row: Row) -> int:
    """Elements of a row."""
    return sum(map(len, row))
