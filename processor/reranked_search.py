"""A search whose results a method of re-ranking orders, for single captions and a gallery that stays the same."""
import torch

from processor.recognition import encode_image_tokens
from processor.reranker import get_temperature, score_tokens, validate_rerank
from utils.errors import UserError
from utils.k_reciprocal import NeighborGraph
from utils.ranking import cosine_slabs, full_precision, top_items
from utils.rerank_options import KReciprocal, PairScores
from utils.reranking import combine_scores, reranked_slabs, score_candidates


class RerankedSearch:
    """Searches a gallery and orders its images by a method of re-ranking. No caption's result depends on another one.

    The neighbors of the images (``k-reciprocal``) are found once. The tokens of a caption's best images (a matching
    head) are encoded in each search, because the tokens of a large gallery do not fit into memory.

    Args:
        model: a :class:`~model.build.RetrievalModel` in evaluation mode.
        settings: the settings of re-ranking (:mod:`utils.rerank_options`).
        gallery: [N, D] normalized embeddings on the CPU.
        load_images: a function from K rows of the gallery, int64 [K], to the model's input: images [K, 3, H, W] on its
            device.

    Raises:
        UserError: the model has no matching head, the gallery is too small, or the settings need other captions.
    """

    def __init__(self, model, settings, gallery, load_images):
        if settings.uses_other_queries:
            raise UserError(f'{settings.title}: a search re-ranks each caption alone; give --rerank_neighbors gallery, '
                            'or another --rerank_score than released')
        validate_rerank(model, settings, len(gallery), 1)
        if not gallery.isfinite().all():
            raise UserError('embeddings are NaN or infinite: the model or its index is broken, and nothing is ranked')
        self.model, self.settings, self.gallery, self.load_images = model, settings, gallery, load_images
        self.graph = NeighborGraph(gallery, settings.k1, settings.k2) if isinstance(settings, KReciprocal) else gallery

    def search(self, ids, queries, top):
        """Find the best images for each caption.

        Args:
            ids: [Q, L] token ids of the captions.
            queries: [Q, D] their normalized embeddings.
            top: the number of images per caption.

        Returns:
            ``[[(row of the gallery, cosine similarity)]]``, the best first by re-ranking.
        """
        with full_precision():
            rows = torch.cat([torch.from_numpy(top_items(slab.numpy(), top)) for slab in self.slabs(ids, queries)])
            cosines = (self.gallery[rows] @ queries[:, :, None]).squeeze(2)                           # [Q, top]
        return [list(zip(*row)) for row in zip(rows.tolist(), cosines.tolist())]

    def slabs(self, ids, queries):
        """Yield re-ranked similarities [q, N], some captions at a time."""
        if not isinstance(self.settings, PairScores):
            return reranked_slabs(queries, self.graph, self.settings)

        def match(caption, rows):
            return score_tokens(self.model, self.settings.score, ids[caption], self.encode_tokens(rows))
        candidates, scores = score_candidates(cosine_slabs(queries, self.gallery), self.settings.count,
                                              len(self.gallery), match, len(queries))
        return combine_scores(cosine_slabs(queries, self.gallery), candidates, scores, self.settings.score,
                              temperature=get_temperature(self.model, self.settings.score))

    @torch.no_grad()
    def encode_tokens(self, rows):
        """Encode images of the gallery to tokens [K, N, D], some at a time."""
        return torch.cat([encode_image_tokens(self.model, self.load_images(part)) for part in rows.split(32)])
