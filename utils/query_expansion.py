"""Query expansion: search again with the sum of a query and its best images."""
import torch
import torch.nn.functional as F

from utils.ranking import cosine_slabs, slab_rows, top_items


def expand_queries(queries, gallery, settings):
    """Add each query's best images to it, weighted by a power of their cosine similarity.

    Args:
        queries: [Q, D] float32, normalized.
        gallery: [G, D] float32, normalized.
        settings: a :class:`~utils.rerank_options.QueryExpansion`. An image with a negative similarity has the weight 0
            if alpha is above 0.

    Returns:
        [Q, D], normalized. Each row depends on its own query and the gallery only.

    Example:
        >>> from utils.rerank_options import QueryExpansion
        >>> expand_queries(torch.tensor([[1., 0.]]), torch.tensor([[0., 1.], [.8, .6]]), QueryExpansion(1, alpha=0))
        tensor([[0.9487, 0.3162]])
    """
    expanded = []
    for block, similarity in zip(queries.split(slab_rows(len(gallery))), cosine_slabs(queries, gallery)):
        best = torch.from_numpy(top_items(similarity.numpy(), settings.images))                 # [q, K]
        weights = similarity.gather(1, best).clamp(min=0) ** settings.alpha                     # [q, K]
        expanded += [F.normalize(query + weight @ gallery[images], dim=0)
                     for query, weight, images in zip(block, weights, best)]
    return torch.stack(expanded)
