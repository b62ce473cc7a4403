"""``--rerank K``: an image-text matching head scores the K best images of each caption again, pair by pair."""
import torch

from model.heads import ScoresPairs
from processor.independence import BatchDependence
from processor.step import get_image_stats, prepare_batch
from utils import comm
from utils.errors import UserError
from utils.precision import amp_dtype
from utils.ranking import as_tensor, cosine_slabs, full_precision, rank_slabs
from utils.reranking import check_rerank_count, combine_scores, global_bounds, score_candidates

SAMPLES, PAIRS = 3, 4   # captions, and pairs of each, whose scores are compared with those of a batch of one pair
# Allowed change of a score, as a fraction of the range of its caption's scores: in float32, in half precision.
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2


def get_itm_head(model):
    """Return the active image-text matching head: the head that scores pairs of a caption and an image.

    Raises:
        UserError: the model has none.
    """
    for head in model.heads:
        if isinstance(head, ScoresPairs):
            return head
    losses = ', '.join(head.names[0] for head in model.heads if head.names)
    raise UserError("--rerank needs a loss whose head scores pairs of a caption and an image, such as 'itm' of the "
                    f"backbone aptm, and the run's losses have none ({losses}): leave --rerank out")


def validate_rerank(model, count, gallery_size):
    """Raise UserError if ``--rerank`` cannot work, before anything is embedded."""
    get_itm_head(model)
    check_rerank_count(count, gallery_size)


class Reranker:
    """Scores pairs of a caption and an image of a split. Images are encoded once, captions when they are scored.

    The image tokens need 4 bytes a number: 0.6 GB for the 3,074 images of CUHK-PEDES with 49 x 1024 numbers (APTM), 5.4
    GB with 577 x 768 (ALBEF). They are on the GPU if they fit into half of its free memory, else on the CPU.

    Args:
        model: a :class:`~model.build.RetrievalModel` with an image-text matching head.
        img_loader: a loader of the split's images.
        txt_loader: a loader of the split's captions.
    """

    def __init__(self, model, img_loader, txt_loader):
        self.model, self.head, self.captions = model, get_itm_head(model), txt_loader.dataset
        self.device = next(model.parameters()).device
        self.image_tokens = self.encode_images(img_loader)

    @torch.no_grad()
    def encode_images(self, loader):
        """Encode all images of a loader to tokens [G, N, D]."""
        batches, was_training = [], self.model.training
        image_stats = get_image_stats(loader, self.model)
        self.model.eval()
        for _, images in loader:
            images = prepare_batch({'images': images}, self.device, image_stats=image_stats)['images']
            with self.model.autocast():
                tokens = self.model.backbone.encode_image(images)[0]
            batches.append(tokens if self.fits_on_gpu(tokens, len(loader.dataset)) else tokens.cpu())
        self.model.train(was_training)
        return torch.cat([tokens.to(batches[-1].device) for tokens in batches])

    def fits_on_gpu(self, tokens, count):
        """Whether the tokens of ``count`` images fit on the GPU; ``tokens`` are those of one batch."""
        size = tokens[0].numel() * tokens.element_size() * count
        return tokens.device.type == 'cuda' and size < torch.cuda.mem_get_info(tokens.device)[0] / 2

    @torch.no_grad()
    def score_pairs(self, caption, images):
        """Score a caption with images.

        Args:
            caption: the index of the caption.
            images: [K] the indices of the images.

        Returns:
            float32 [K].
        """
        ids = self.captions[caption][1][None].to(self.device)
        ids = ids[:, :int(self.model.backbone.lengths(ids).max())]
        with self.model.autocast():
            text_tokens = self.model.backbone.encode_text(ids)[0]
            count = len(images)
            image_tokens = self.image_tokens[images.to(self.image_tokens.device)].to(self.device)
            return self.head.score_pairs(self.model.backbone.encoder, ids.expand(count, -1),
                                         text_tokens.expand(count, -1, -1), image_tokens)

    def measure_batch_dependence(self, candidates):
        """Measure how far the scores of pairs depend on the other pairs of their batch.

        Args:
            candidates: [Q, K] the indices of each caption's best images.

        Returns:
            A :class:`~processor.independence.BatchDependence`.
        """
        changes = []
        for caption in torch.linspace(0, len(candidates) - 1, min(SAMPLES, len(candidates))).long().tolist():
            images = candidates[caption]
            batched = self.score_pairs(caption, images).float().cpu()
            single = torch.cat([self.score_pairs(caption, images[i:i + 1]).float().cpu()
                                for i in range(min(PAIRS, len(images)))])
            score_range = (batched.max() - batched.min()).clamp(min=1e-3)
            changes.append((batched[:len(single)] - single).abs().max() / score_range)
        is_half = amp_dtype(self.model.amp, self.device) is not None
        return BatchDependence(max(changes).item(), HALF_TOLERANCE if is_half else TOLERANCE)


def rerank(model, loaders, embeddings, count, score, progress=True):
    """Re-rank the images of each caption. All ranks call it together and share the captions.

    Args:
        model: a :class:`~model.build.RetrievalModel` with an image-text matching head.
        loaders: the loaders of the split's images and captions.
        embeddings: ``(qfeats, gfeats, qids, gids)`` of the first ranking.
        count: the number of images per caption (:func:`utils.reranking.score_candidates`).
        score: how both rankings are combined (:func:`utils.reranking.combine_scores`).
        progress: whether to show a progress bar.

    Returns:
        ``(Ranking, BatchDependence)``.
    """
    qfeats, gfeats, qids, gids = embeddings
    was_training = model.training
    model.eval()
    try:
        reranker = Reranker(model, *loaders)
        rank, world_size = comm.get_rank(), comm.get_world_size()

        def score_pairs(caption, images):
            is_local = caption % world_size == rank
            return reranker.score_pairs(caption, images) if is_local else torch.zeros(count)

        with full_precision():
            def similarity_slabs():
                return cosine_slabs(qfeats.float(), gfeats.float())
            shows_progress = progress and comm.is_main_process()
            candidates, scores = score_candidates(similarity_slabs(), count, len(gfeats), score_pairs, len(qfeats),
                                                  shows_progress)
            shards = comm.all_gather_object((candidates[rank::world_size], scores[rank::world_size]))
            for number, shard in enumerate(shards):
                candidates[number::world_size], scores[number::world_size] = shard

            def compute_ranking():
                bounds = global_bounds(similarity_slabs()) if score == 'released' else None
                slabs = combine_scores(similarity_slabs(), candidates, scores, score, bounds)
                return rank_slabs(slabs, as_tensor(qids), as_tensor(gids), 10)
            return comm.run_on_main_process(
                lambda: (compute_ranking(), reranker.measure_batch_dependence(candidates)))
    finally:
        model.train(was_training)
