"""Re-ranking by k-reciprocal neighbors (Zhong et al., CVPR 2017): samples with the same neighbors move together.

The k-reciprocal neighbors of a sample are those of its k1 nearest neighbors that also have it among theirs. A sample is
encoded as a sparse vector over its neighbors: exponentials of the negative distances, with the sum 1. The mean of the
vectors of its k2 nearest samples replaces it (local query expansion). The Jaccard distance of two vectors is 1 - (sum
of minima) / (sum of maxima). The final distance is ``(1 - weight) * Jaccard + weight * original``.

As in the reference implementation, the original distance is the squared Euclidean distance of normalized embeddings,
divided by the largest one of its row. A sample is its own first neighbor. Samples at equal distances keep their order.

Shapes: N samples of a graph, Q queries, K neighbors, B rows of a block, M entries of sparse vectors.
"""
import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from tqdm import tqdm

from utils.ranking import full_precision, top_items

SLAB = 1 << 24          # similarities in memory at a time: 64 MiB of float32
COMPARISONS = 1 << 23   # comparisons of neighbors at a time: 8 MiB
ENTRIES = 1 << 14       # pairs of embeddings that are multiplied at a time: 32 MiB each at 512 numbers
SMALLEST = 1e-12        # of a row's largest distance, if all embeddings are equal
SUMS = 1 << 21          # minima that are added at a time: 50 MiB with their places


def k_reciprocal_slabs(queries, gallery, settings):
    """Yield the negative final distances [q, G] of queries to images, block by block.

    Args:
        queries: [Q, D] float32, normalized.
        gallery: [G, D] float32, normalized; or its :class:`NeighborGraph` with ``neighbors='gallery'``.
        settings: a :class:`~utils.rerank_options.KReciprocal`. With ``neighbors='gallery'`` the graph consists of the
            images. Each query is compared with it alone: an image's neighbors are images, and a query is among them if
            it is more similar than the last one. With ``neighbors='split'`` the graph consists of queries and images,
            as in the paper.

    Example:
        >>> from utils.rerank_options import KReciprocal
        >>> images = torch.nn.functional.normalize(torch.tensor([[1., 0.], [1., .1], [1., -.6], [0., 1.]]), dim=1)
        >>> caption = torch.nn.functional.normalize(torch.tensor([[1., -.3]]), dim=1)
        >>> slab, = k_reciprocal_slabs(caption, images, KReciprocal(k1=2, k2=1))
        >>> slab.argsort(descending=True).tolist()
        [[2, 0, 1, 3]]
    """
    if settings.neighbors == 'split':
        graph = NeighborGraph(torch.cat([queries, gallery]), settings.k1, settings.k2)
        blocks = graph.member_blocks(len(queries))
    else:
        graph = gallery if isinstance(gallery, NeighborGraph) else NeighborGraph(gallery, settings.k1, settings.k2)
        blocks = graph.guest_blocks(queries)
    for distance, jaccard in blocks:
        yield torch.add(settings.original_weight * distance, jaccard, alpha=1 - settings.original_weight).neg_()


@dataclass
class SparseRows:
    """Sparse vectors: row ``r`` has the entries ``starts[r]`` to ``starts[r + 1]``, with ascending columns.

    Attributes:
        starts: int64 [R + 1].
        columns: int64 [M].
        values: float32 [M].
    """
    starts: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor

    @classmethod
    def from_entries(cls, rows, columns, values, shape):
        """Build sparse vectors from entries in any order. Values at the same place are added."""
        matrix = torch.sparse_coo_tensor(torch.stack([rows, columns]), values, shape,
                                         check_invariants=False).coalesce()
        rows, columns = matrix.indices()
        return cls(torch.searchsorted(rows, torch.arange(shape[0] + 1)), columns, matrix.values())

    @classmethod
    def concatenate(cls, blocks):
        """Join blocks of rows."""
        counts = torch.cat([block.starts.diff() for block in blocks])
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        columns, values = (torch.cat([getattr(block, name) for block in blocks]) for name in ('columns', 'values'))
        return cls(starts, columns, values)

    def gather(self, rows):
        """Collect the entries of some rows.

        Args:
            rows: int64 [R'], which may repeat.

        Returns:
            ``(positions, columns, values)``, [M'] each; a position is that of the entry's row in ``rows``.
        """
        counts = self.starts[rows + 1] - self.starts[rows]
        positions = torch.repeat_interleave(torch.arange(len(rows)), counts)
        offsets = torch.arange(len(positions)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        entries = self.starts[rows][positions] + offsets
        return positions, self.columns[entries], self.values[entries]

    def transpose(self, column_count):
        """Return the columns as rows."""
        rows = torch.repeat_interleave(torch.arange(len(self.starts) - 1), self.starts.diff())
        order = self.columns.argsort(stable=True)
        return SparseRows(torch.searchsorted(self.columns[order], torch.arange(column_count + 1)), rows[order],
                          self.values[order])


class NeighborGraph:
    """The encoded k-reciprocal neighbors of a set of samples.

    Args:
        embeddings: [N, D] float32, normalized.
        k1: the number of nearest neighbors, below N.
        k2: the number of nearest samples, the sample itself included, whose vectors are averaged; at most N.

    Attributes:
        neighbors: int64 [N, max(k1 + 1, k2)], the nearest samples, first the sample itself.
        last: [N] the similarity of the nearest neighbor k1.
        largest: [N] the largest squared distance.
        vectors: the :class:`SparseRows` [N, N] before the local query expansion.
        expanded: the same after it.
    """

    def __init__(self, embeddings, k1, k2):
        self.embeddings, self.k1, self.k2 = embeddings, k1, k2
        self.neighbors, self.last, self.largest = self.find_neighbors()
        self.half_lists = self.neighbors[:, :round(k1 / 2) + 1]          # [N, H]; the candidates' own neighbors
        self.half_mask = reciprocal_mask(self.half_lists)
        self.vectors = self.encode_members()
        self.expanded = self.vectors if k2 == 1 else self.expand_members()

    def __len__(self):
        return len(self.embeddings)

    # -- members: the samples of the graph -----------------------------------------------------------------------------

    def find_neighbors(self):
        """Compare all samples, block by block: ``(neighbors, last, largest)``."""
        count = max(self.k1 + 1, self.k2)

        def process(similarity, start):
            largest = squared_distance(similarity.amin(dim=1)).clamp(min=SMALLEST)
            own = torch.arange(len(similarity))
            similarity[own, start + own] = 2.0      # a sample is its own first neighbor, also among equal samples
            neighbors = torch.from_numpy(top_items(similarity.numpy(), count))
            return neighbors, similarity.gather(1, neighbors)[:, self.k1], largest
        rows, results = block_rows(len(self)), []
        with (full_precision(), ThreadPoolExecutor(torch.get_num_threads()) as pool,
              tqdm(total=len(self), desc='finding neighbors', unit='sample', leave=False, disable=None) as bar):
            for start in range(0, len(self), rows):
                similarity = self.embeddings[start:start + rows] @ self.embeddings.t()          # [B, N]
                part = -(-len(similarity) // torch.get_num_threads())
                results += pool.map(process, similarity.split(part), range(start, start + rows, part))
                bar.update(len(similarity))
        return tuple(map(torch.cat, zip(*results)))

    def encode_members(self):
        """Encode all samples: :class:`SparseRows` [N, N]."""
        lists = self.neighbors[:, :self.k1 + 1]
        mask, blocks = reciprocal_mask(lists), []
        for start in range(0, len(self), self.expansion_rows):
            block = slice(start, start + self.expansion_rows)
            rows, columns = self.expand_neighbors(lists[block], mask[block])
            own = rows + start
            similarity = torch.cat([(self.embeddings[first] * self.embeddings[second]).sum(dim=1)
                                    for first, second in zip(own.split(ENTRIES), columns.split(ENTRIES))])
            distance = squared_distance(similarity.masked_fill(own == columns, 1.0)) / self.largest[own]
            blocks.append(weigh(rows, columns, distance, (len(lists[block]), len(self))))
        return SparseRows.concatenate(blocks)

    def expand_members(self):
        """Average the vectors of each sample's ``k2`` nearest samples: :class:`SparseRows` [N, N]."""
        blocks = []
        for nearest in self.neighbors[:, :self.k2].split(self.expansion_rows):                      # [B, k2]
            positions, columns, values = self.vectors.gather(nearest.flatten())
            blocks.append(SparseRows.from_entries(positions // self.k2, columns, values / self.k2,
                                                  (len(nearest), len(self))))
        return SparseRows.concatenate(blocks)

    def member_blocks(self, count):
        """Yield original and Jaccard distances, [B, N - count] each, of the first ``count`` samples to the others."""
        others = self.columns_from(count)
        for start in range(0, count, block_rows(len(self))):
            rows = torch.arange(start, min(start + block_rows(len(self)), count))
            with full_precision():
                similarity = self.embeddings[rows] @ self.embeddings[count:].t()
            vectors = SparseRows.from_entries(*self.expanded.gather(rows), (len(rows), len(self)))
            yield (squared_distance(similarity) / self.largest[rows, None],
                   jaccard_distance(vectors, others, len(self) - count))

    def columns_from(self, first):
        """Transpose the expanded vectors of the samples from ``first`` on: :class:`SparseRows` [N, N - first]."""
        rows = torch.arange(first, len(self))
        return SparseRows.from_entries(*self.expanded.gather(rows), (len(rows), len(self))).transpose(len(self))

    # -- guests: queries that are not in the graph ---------------------------------------------------------------------

    @functools.cached_property
    def columns(self):
        """The transposed expanded vectors of all samples, which the queries of every search read."""
        return self.columns_from(0)

    def guest_blocks(self, queries):
        """Yield original and Jaccard distances, [B, N] each, of queries [Q, D] to all samples."""
        for block in queries.split(block_rows(len(self))):
            with full_precision():
                similarity = block @ self.embeddings.t()                                            # [B, N]
            distance = squared_distance(similarity)
            distance /= distance.amax(dim=1, keepdim=True).clamp(min=SMALLEST)
            vectors = SparseRows.concatenate([self.encode_guests(*rows) for rows in zip(
                similarity.split(self.expansion_rows), distance.split(self.expansion_rows))])
            yield distance, jaccard_distance(vectors, self.columns, len(self))

    def encode_guests(self, similarity, distance):
        """Encode queries with similarities and original distances [B, N] to samples: :class:`SparseRows` [B, N].

        The vectors lack the query itself, which no sample's vector has. Their values add up to less than 1 without it.
        """
        nearest = torch.from_numpy(top_items(similarity.numpy(), max(self.k1, self.k2 - 1)))
        lists = nearest[:, :self.k1]
        mask = similarity.gather(1, lists) > self.last[lists]
        rows, columns = self.expand_neighbors(lists, mask)
        own = torch.arange(len(similarity))         # the query itself is entry N of its vector
        shape = len(similarity), len(self) + 1
        vectors = weigh(torch.cat([rows, own]), torch.cat([columns, torch.full_like(own, len(self))]),
                        torch.cat([distance[rows, columns], torch.zeros(len(own))]), shape)
        positions, columns, values = vectors.gather(own)
        if self.k2 > 1:
            others = self.vectors.gather(nearest[:, :self.k2 - 1].flatten())
            positions = torch.cat([positions, others[0] // (self.k2 - 1)])
            columns, values = torch.cat([columns, others[1]]), torch.cat([values, others[2]]) / self.k2
        is_member = columns < len(self)
        return SparseRows.from_entries(positions[is_member], columns[is_member], values[is_member],
                                       (len(similarity), len(self)))

    # -- both ----------------------------------------------------------------------------------------------------------

    @property
    def expansion_rows(self):
        """The number of samples whose neighbors are expanded at a time."""
        return max(1, COMPARISONS // (self.k1 + 1) ** 2 // self.half_lists.shape[1])

    def expand_neighbors(self, lists, mask):
        """Add the neighbors of neighbors.

        The k1/2-reciprocal neighbors of a neighbor are added if more than two thirds of them are neighbors already.

        Args:
            lists: int64 [B, K] nearest samples.
            mask: bool [B, K] which of them are k-reciprocal neighbors.

        Returns:
            ``(rows, columns)``, [M] each: the neighbors of all rows, each once.
        """
        candidates, is_candidate = self.half_lists[lists], self.half_mask[lists]                    # [B, K, H]
        own = lists.masked_fill(~mask, -1)
        is_shared = (candidates[..., None] == own[:, None, None, :]).any(dim=3) & is_candidate      # [B, K, H]
        is_added = mask & (3 * is_shared.sum(dim=2) > 2 * is_candidate.sum(dim=2))                  # [B, K]
        is_new = is_candidate & is_added[..., None] & ~is_shared
        places = [(found.nonzero()[:, 0], columns[found]) for found, columns in ((mask, lists), (is_new, candidates))]
        rows, columns = (torch.cat(parts) for parts in zip(*places))
        unique = (rows * len(self) + columns).unique()
        return unique // len(self), unique % len(self)


def block_rows(count):
    """Return the number of rows of similarities to ``count`` samples in memory at a time."""
    return max(1, SLAB // count)


def reciprocal_mask(lists):
    """Whether each nearest sample also has the sample among its nearest: int64 [N, K] -> bool [N, K]."""
    rows = max(1, COMPARISONS // lists.shape[1] ** 2)
    return torch.cat([(lists[lists[own]] == own[:, None, None]).any(dim=2)
                      for own in torch.arange(len(lists)).split(rows)])


def squared_distance(similarity):
    """Squared Euclidean distances of normalized embeddings, given their cosine similarities."""
    return (2 - 2 * similarity).clamp_(min=0)


def weigh(rows, columns, distance, shape):
    """Build :class:`SparseRows` with the weights exp(-distance), divided by the sum of their row."""
    weights = torch.exp(-distance)
    sums = torch.zeros(shape[0]).index_add_(0, rows, weights)
    return SparseRows.from_entries(rows, columns, weights / sums[rows], shape)


def jaccard_distance(vectors, columns, count):
    """Compute the Jaccard distances of sparse vectors.

    Both sums of values are 1, so the sum of maxima is 2 - (sum of minima).

    Args:
        vectors: :class:`SparseRows` [B, N] of queries.
        columns: :class:`SparseRows` [N, N']: for each entry of a vector, its values in the vectors of N' samples.
        count: N'.

    Returns:
        [B, N'].
    """
    rows = len(vectors.starts) - 1
    minima = torch.zeros(rows * count)
    positions, entries, values = vectors.gather(torch.arange(rows))
    sizes = (columns.starts.diff()[entries]).cumsum(0)
    start = 0
    while start < len(entries):
        done = int(sizes[start - 1]) if start else 0
        end = max(start + 1, int(torch.searchsorted(sizes, done + SUMS, right=True)))
        part = slice(start, end)
        places, samples, others = columns.gather(entries[part])
        minima.index_add_(0, positions[part][places] * count + samples, torch.minimum(values[part][places], others))
        start = end
    minima = minima.view(rows, count)
    return 1 - minima / (2 - minima)
