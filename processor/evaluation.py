"""Embed a split and rank it."""
import contextlib
import logging

import torch

from datasets.sampler import split_into_batches
from processor.reranker import rerank, validate_rerank
from processor.step import get_image_stats, prepare_batch
from utils import comm
from utils.errors import UserError
from utils.measures import RANK1, RERANKED_RANK1
from utils.retrieval_metrics import retrieval_metrics, format_table
from utils.ranking import rank_embeddings

logger = logging.getLogger('Pedestal.eval')


class Evaluator:
    """Embeds a split and ranks it: ``Evaluator(img_loader, txt_loader).eval(model)``.

    With several processes, all ranks call it together. Each rank embeds a shard of the batches, the main process ranks,
    and all ranks have the results.

    Args:
        img_loader: a loader of ``(pids, images)``.
        txt_loader: a loader of ``(pids, caption_ids)``.
        rerank_settings: the settings of re-ranking (:mod:`utils.rerank_options`), which adds the metrics
            ``reranked_R1`` and ``reranked_mAP``; None: none.

    Attributes:
        measure: the metric that :meth:`eval` returns and that selects the best epoch, a
            :class:`~utils.measures.Measure`: Rank-1, or re-ranked Rank-1.
        selected_by: a description of the measure for checkpoints, if it is not Rank-1; else None.
        results: ``{task: metrics}`` after :meth:`eval`.
        metrics: the metrics of text-to-image retrieval after :meth:`eval`.
    """

    measure, selected_by = RANK1, None

    def __init__(self, img_loader, txt_loader, rerank_settings=None):
        self.img_loader, self.txt_loader, self.rerank_settings = img_loader, txt_loader, rerank_settings
        if rerank_settings:
            self.measure, self.selected_by = RERANKED_RANK1, f'Rank-1, {rerank_settings.title}'
        self.results, self.metrics = {}, {}

    def validate(self, model, flag):
        """Raise UserError if re-ranking cannot work with a model; ``flag`` is the option, for the error."""
        if self.rerank_settings:
            validate_rerank(model, self.rerank_settings, len(self.img_loader.dataset), len(self.txt_loader.dataset),
                            flag)

    def _compute_embedding(self, model):
        """IRRA's name of :func:`embed_split`."""
        return embed_split(model, self.img_loader, self.txt_loader)

    def eval(self, model, i2t_metric=False):
        """Log the table of metrics and return the measure in percent.

        Args:
            model: a :class:`~model.build.RetrievalModel`.
            i2t_metric: whether to compute image-to-text metrics also.
        """
        embeddings, parts = self._compute_embedding(model), getattr(model, 'embedding_parts', ())
        self.results = comm.run_on_main_process(lambda: evaluate_embeddings(*embeddings, i2t_metric, parts))
        self.metrics = self.results['t2i']
        if self.rerank_settings:
            ranking, _ = rerank(model, (self.img_loader, self.txt_loader), embeddings, self.rerank_settings)
            reranked = self.results[f't2i, {self.rerank_settings.title}'] = retrieval_metrics(ranking)
            self.metrics = {**self.metrics, 'reranked_R1': reranked['R1'], 'reranked_mAP': reranked['mAP']}
        logger.info('\n%s', format_table(self.results))
        if self.metrics['ties']:
            logger.warning('ties decide the ranking of %d queries: equal similarities keep the gallery order',
                           self.metrics['ties'])
        return self.metrics[self.measure.key]


def evaluate_embeddings(qfeats, gfeats, qids, gids, i2t_metric=False, parts=()):
    """Compute ``{task: metrics}`` of embeddings; see :func:`compute_rankings`."""
    rankings = compute_rankings(qfeats, gfeats, qids, gids, i2t_metric, parts)
    return {task: retrieval_metrics(ranking) for task, ranking in rankings.items()}


def compute_rankings(qfeats, gfeats, qids, gids, i2t_metric=False, parts=()):
    """Rank embeddings by cosine similarity.

    Args:
        qfeats: [Q, D] embeddings of captions.
        gfeats: [G, D] embeddings of images.
        qids: [Q] identities of the captions.
        gids: [G] identities of the images.
        i2t_metric: whether to rank captions for images also.
        parts: the parts of an embedding (:class:`model.embeddings.EmbeddingPart`), if each is ranked separately also.

    Returns:
        ``{task: Ranking}`` with the tasks ``<part>-t2i``, ``t2i`` and ``i2t``, in this order.

    Raises:
        UserError: an embedding is not finite.
    """
    broken = [f'{int(count)} of {len(feats)} {side}' for side, feats in (('caption', qfeats), ('image', gfeats))
              if (count := (~feats.norm(dim=1).isfinite()).sum())]
    if broken:
        raise UserError(f"{' and '.join(broken)} embeddings are NaN or infinite, so nothing is ranked: the checkpoint "
                        'is damaged, or its training diverged')
    rankings = {f'{part.name}-t2i': rank_embeddings(qfeats[:, part.columns], gfeats[:, part.columns], qids, gids)
                for part in parts}
    rankings['t2i'] = rank_embeddings(qfeats, gfeats, qids, gids)
    if i2t_metric:
        rankings['i2t'] = rank_embeddings(gfeats, qfeats, gids, qids)
    return rankings


def embed_split(model, img_loader, txt_loader):
    """Embed a split; all ranks share the batches.

    Returns:
        ``(qfeats [Q, D], gfeats [G, D], qids [Q], gids [G])`` on the CPU, float32, not normalized.
    """
    qfeats, qids = embed(model, txt_loader, 'text', distributed=True)
    gfeats, gids = embed(model, img_loader, 'image', distributed=True)
    return qfeats, gfeats, qids, gids


@torch.no_grad()
def embed(model, loader, modality, encode=None, distributed=False):
    """Embed all samples of a loader, with the model in evaluation mode.

    If a caption's embedding does not depend on its batch, captions are embedded in order of decreasing length. The
    loader's sampler must support it (:class:`datasets.sampler.CaptionSampler`).

    Args:
        model: a :class:`~model.build.RetrievalModel`.
        loader: a loader of ``(pids, samples)``.
        modality: ``'image'`` or ``'text'``: how the samples are prepared.
        encode: a function that encodes a batch of prepared samples; by default ``model.encode_image`` or
            ``model.encode_text``.
        distributed: whether all ranks call this function and share the batches. The loader's sampler must support it
            (:class:`datasets.sampler.SplitSampler`). The batches are those of a single process, and so are the
            embeddings, to the last digit.

    Returns:
        ``(embeddings [S, D], pids [S])`` in the loader's order, on the CPU.

    Raises:
        UserError: the loader has no samples.
    """
    device, was_training = next(model.parameters()).device, model.training
    if modality not in ('image', 'text'):
        raise ValueError(f"modality must be 'image' or 'text', not {modality!r}")
    is_text = modality == 'text'
    encode = encode or (model.encode_text if is_text else model.encode_image)
    trim_padding = getattr(model, 'trim_padding', None) if is_text else None
    sorts_captions = trim_padding is not None and not model.embeddings_read_padding
    field, image_stats = 'caption_ids' if is_text else 'images', get_image_stats(loader, model)
    pids, feats = [], []
    model.eval()
    try:
        with (sorted_by_length(loader, sorts_captions) as order,
              sharded_across_ranks(loader, distributed, order) as global_order):
            for batch_pids, samples in loader:
                pids.append(torch.as_tensor(batch_pids).flatten())
                batch = prepare_batch({field: samples}, device, trim_padding, image_stats)
                feats.append(encode(batch[field]).float())
    finally:
        model.train(was_training)
    embedded = (torch.cat(feats).cpu(), torch.cat(pids)) if feats else None   # one transfer from the GPU
    if global_order is not None:
        order, shards = global_order, [shard for shard in comm.all_gather_object(embedded) if shard]
        embedded = [torch.cat(tensors) for tensors in zip(*shards)]
    if not embedded:
        raise UserError('nothing to evaluate: the split is empty')
    feats, pids = embedded
    return (feats, pids) if order is None else (feats[order.argsort()], pids[order.argsort()])


@contextlib.contextmanager
def sharded_across_ranks(loader, enabled, order):
    """Let the loader iterate this rank's batches only, inside the ``with`` block.

    Args:
        loader: a data loader.
        enabled: whether to shard. A loader whose sampler does not support it is never sharded.
        order: [S] the sample indices in the loader's order; None: the dataset's order.

    Yields:
        [S] the sample indices of rank 0's batches, then rank 1's, and so on; None if the loader is not sharded.
    """
    sampler, world_size = getattr(loader, 'sampler', None), comm.get_world_size()
    if not enabled or world_size == 1 or not hasattr(sampler, 'shard'):
        yield None
        return
    order = torch.arange(len(sampler)) if order is None else order
    batches = [batch for rank in range(world_size)
               for batch in split_into_batches(order, loader.batch_size, rank, world_size)]
    sampler.shard = loader.batch_size, comm.get_rank(), world_size
    try:
        with comm.raise_on_all_ranks():
            yield torch.cat(batches) if batches else order
    finally:
        sampler.shard = None


@contextlib.contextmanager
def sorted_by_length(loader, enabled):
    """Let the loader iterate captions in order of decreasing length, inside the ``with`` block.

    Yields:
        [S] the sample indices in that order; None if it is not enabled or the loader's sampler does not support it.
    """
    sampler = getattr(loader, 'sampler', None)
    if not enabled or not hasattr(sampler, 'sorts_by_length'):
        yield None
        return
    sampler.sorts_by_length = True
    try:
        yield sampler.order
    finally:
        sampler.sorts_by_length = False
