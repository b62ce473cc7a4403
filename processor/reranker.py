"""Re-rank a split: by the scores of an image-text matching head, pair by pair, or by embeddings alone."""
import torch
import torch.nn.functional as F

from model.heads import ClassifiesPairs, ScoresPairs
from processor.independence import BatchDependence
from processor.step import get_image_stats, prepare_batch
from utils import comm
from utils.errors import UserError
from utils.precision import amp_dtype
from utils.ranking import as_tensor, cosine_slabs, full_precision, rank_slabs
from utils.rerank_options import PairScores
from utils.reranking import combine_scores, global_bounds, reranked_slabs, score_candidates

SAMPLES, PAIRS = 3, 4   # captions, and pairs of each, whose scores are compared with those of a batch of one pair
# Allowed change of a score, as a fraction of the range of its caption's scores: in float32, in half precision.
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2


def get_itm_head(model, flag='--rerank'):
    """Return the active image-text matching head: the head that scores pairs of a caption and an image.

    Raises:
        UserError: the model has none.
    """
    for head in model.heads:
        if isinstance(head, ScoresPairs):
            return head
    losses = ', '.join(head.names[0] for head in model.heads if head.names)
    raise UserError(f"{flag} needs a loss whose head scores pairs of a caption and an image, such as 'itm' of the "
                    f"backbone aptm, and the run's losses have none ({losses}): leave {flag} out, or give {flag} "
                    'k-reciprocal or query-expansion, which need embeddings only')


def validate_rerank(model, settings, images, captions, flag='--rerank'):
    """Raise UserError if re-ranking cannot work, before anything is embedded.

    Args:
        model: a :class:`~model.build.RetrievalModel`.
        settings: the settings of re-ranking (:mod:`utils.rerank_options`).
        images, captions: their numbers.
        flag: the option, for the error.
    """
    if isinstance(settings, PairScores):
        head = get_itm_head(model, flag)
        if settings.score == 'sum' and not isinstance(head, ClassifiesPairs):
            raise UserError("--rerank_score sum needs the log-odds of a loss such as 'itm' (backbone aptm) or 'pitm' "
                            f"(albef), and the scores of '{head.names[0]}' are not log-odds: give --rerank_score itm")
    settings.check_sizes(images, captions, flag)


def get_temperature(model, score):
    """Return the learned temperature that ``--rerank_score sum`` divides by; None for other scores."""
    return get_itm_head(model).temperature.temp.item() if score == 'sum' else None


@torch.no_grad()
def score_tokens(model, score, ids, image_tokens):
    """Score a caption with images by the image-text matching head.

    Args:
        model: a :class:`~model.build.RetrievalModel` in evaluation mode.
        score: a score of :func:`~utils.reranking.combine_scores`. For 'sum' the results are log-odds.
        ids: [L] the caption's token ids.
        image_tokens: [K, N, D] on the model's device.

    Returns:
        float32 [K].
    """
    ids = ids[None].to(image_tokens.device)
    ids = ids[:, :int(model.backbone.lengths(ids).max())]
    head = get_itm_head(model)
    score_pairs = head.log_odds if score == 'sum' else head.score_pairs
    with model.autocast():
        text_tokens, count = model.backbone.encode_text(ids)[0], len(image_tokens)
        return score_pairs(model.backbone.encoder, ids.expand(count, -1), text_tokens.expand(count, -1, -1),
                           image_tokens)


class Reranker:
    """Scores pairs of a caption and an image of a split. Images are encoded once, captions when they are scored.

    The image tokens need 4 bytes a number: 0.6 GB for the 3,074 images of CUHK-PEDES with 49 x 1024 numbers (APTM), 5.4
    GB with 577 x 768 (ALBEF). They are on the GPU if they fit into half of its free memory, else on the CPU.

    Args:
        model: a :class:`~model.build.RetrievalModel` with an image-text matching head.
        img_loader: a loader of the split's images.
        txt_loader: a loader of the split's captions.
        score: see :func:`score_tokens`.
    """

    def __init__(self, model, img_loader, txt_loader, score='itm'):
        self.model, self.captions, self.score = model, txt_loader.dataset, score
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

    def score_pairs(self, caption, images):
        """Score a caption with images.

        Args:
            caption: the index of the caption.
            images: [K] the indices of the images.

        Returns:
            float32 [K].
        """
        image_tokens = self.image_tokens[images.to(self.image_tokens.device)].to(self.device)
        return score_tokens(self.model, self.score, self.captions[caption][1], image_tokens)

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


def rerank(model, loaders, embeddings, settings, progress=True):
    """Re-rank the images of each caption. All ranks call it together.

    Args:
        model: a :class:`~model.build.RetrievalModel`.
        loaders: the loaders of the split's images and captions.
        embeddings: ``(qfeats, gfeats, qids, gids)`` of the first ranking.
        settings: the settings of re-ranking (:mod:`utils.rerank_options`).
        progress: whether to show a progress bar.

    Returns:
        ``(Ranking, BatchDependence)``; the second is None for methods that read embeddings only.
    """
    make_slabs, dependence = rerank_split(model, loaders, embeddings, settings, progress)
    qids, gids = map(as_tensor, embeddings[2:])

    def compute_ranking():
        with full_precision():
            return rank_slabs(make_slabs(), qids, gids, 10)
    return comm.run_on_main_process(compute_ranking), dependence


def rerank_split(model, loaders, embeddings, settings, progress=True):
    """Prepare the re-ranking of a split; see :func:`rerank`.

    Returns:
        ``(function, BatchDependence)``. The function returns an iterable of re-ranked similarities [q, G] of the
        captions in order. Call it on the main process, in :func:`~utils.ranking.full_precision`.
    """
    queries, gallery = (F.normalize(features.float(), dim=1) for features in embeddings[:2])
    if not isinstance(settings, PairScores):
        return lambda: reranked_slabs(queries, gallery, settings), None
    candidates, scores, dependence = score_split(model, loaders, (queries, gallery), settings, progress)

    def make_slabs():
        bounds = global_bounds(cosine_slabs(queries, gallery)) if settings.score == 'released' else None
        return combine_scores(cosine_slabs(queries, gallery), candidates, scores, settings.score, bounds,
                              get_temperature(model, settings.score))
    return make_slabs, dependence


def score_split(model, loaders, embeddings, settings, progress=True):
    """Score each caption's best images, pair by pair. All ranks share the captions.

    Returns:
        ``(images [Q, count], scores [Q, count], BatchDependence)``.
    """
    was_training, count = model.training, settings.count
    model.eval()
    try:
        reranker = Reranker(model, *loaders, settings.score)
        rank, world_size = comm.get_rank(), comm.get_world_size()

        def score_pairs(caption, images):
            is_local = caption % world_size == rank
            return reranker.score_pairs(caption, images) if is_local else torch.zeros(count)
        queries, gallery = embeddings
        with full_precision():
            candidates, scores = score_candidates(cosine_slabs(queries, gallery), count, len(gallery), score_pairs,
                                                  len(queries), progress and comm.is_main_process())
        shards = comm.all_gather_object((candidates[rank::world_size], scores[rank::world_size]))
        for number, shard in enumerate(shards):
            candidates[number::world_size], scores[number::world_size] = shard
        return candidates, scores, comm.run_on_main_process(lambda: reranker.measure_batch_dependence(candidates))
    finally:
        model.train(was_training)
