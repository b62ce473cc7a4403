"""Embedding a split and ranking it."""
import contextlib
import logging

import torch

from datasets.sampler import split_into_batches
from processor.step import pixels_of, ready
from utils import comm
from utils.errors import UserError
from utils.metrics import retrieval_metrics, table
from utils.ranking import rank_embeddings

logger = logging.getLogger('Pedestal.eval')


class Evaluator:
    """Embeds a split and ranks it: ``Evaluator(img_loader, txt_loader).eval(model)``.

    The loaders iterate ``(pids, images)`` and ``(pids, caption_ids)``; their datasets give single samples for the check.
    After :meth:`eval`, ``results`` holds ``{task: summary}``. Several processes call it together: each embeds its batches, the first one
    ranks, and all have the results.
    """

    measure, metric = 'Rank-1', 'R1'     # of what :meth:`eval` returns: its name in sentences, and in results

    def __init__(self, img_loader, txt_loader):
        self.img_loader, self.txt_loader = img_loader, txt_loader
        self.results = {}

    def _compute_embedding(self, model):
        """``(qfeats [Q, D], gfeats [G, D], qids [Q], gids [G])`` on the CPU, float32, not normalised."""
        qfeats, qids = embed(model.encode_text, self.txt_loader, model, shared=True)
        gfeats, gids = embed(model.encode_image, self.img_loader, model, shared=True)
        return qfeats, gfeats, qids, gids

    def eval(self, model, i2t_metric=False):
        """Log the table of text-to-image and, if asked, image-to-text metrics; returns text-to-image Rank-1 in percent."""
        embeddings = self._compute_embedding(model)
        self.results = comm.run_on_main_process(lambda: retrieval_results(*embeddings, i2t_metric, getattr(model, 'parts', ())))
        logger.info('\n%s', table(self.results))
        if self.results['t2i']['ties']:
            logger.warning('ties decide the ranking of %d queries (ranked in gallery order)', self.results['t2i']['ties'])
        return self.results['t2i']['R1']


def retrieval_results(qfeats, gfeats, qids, gids, i2t_metric=False, parts=()):
    """``{'t2i': summary}``, and ``'i2t'`` if asked, of embeddings [Q, D] and [G, D] compared by cosine similarity; see :func:`rankings`."""
    return {task: retrieval_metrics(ranking) for task, ranking in rankings(qfeats, gfeats, qids, gids, i2t_metric, parts).items()}


def rankings(qfeats, gfeats, qids, gids, i2t_metric=False, parts=()):
    """``{'t2i': Ranking}``, and ``'i2t'`` if asked, of embeddings [Q, D] and [G, D] compared by cosine similarity. Of embeddings made of
    several ``parts`` (:class:`model.build.Part`) each one's own comes before, as ``'<name>-t2i'``."""
    broken = [f'{int(bad)} of {len(feats)} {side}' for side, feats in (('caption', qfeats), ('image', gfeats))
              if (bad := (~feats.norm(dim=1).isfinite()).sum())]
    if broken:
        raise UserError(f"{' and '.join(broken)} embeddings are NaN or infinite; nothing is ranked")
    found = {f'{part.name}-t2i': rank_embeddings(qfeats[:, part.columns], gfeats[:, part.columns], qids, gids) for part in parts}
    found['t2i'] = rank_embeddings(qfeats, gfeats, qids, gids)
    if i2t_metric:
        found['i2t'] = rank_embeddings(gfeats, qfeats, gids, qids)
    return found


@torch.no_grad()
def embed(encode, loader, model, shared=False):
    """All of a loader's embeddings [S, D] and pids [S], in its order, on the CPU, with the model in evaluation mode for as long.

    ``shared``: all processes call this, and take batches by turns where the loader's sampler can (:class:`datasets.sampler.SplitSampler`).
    Each batch is the one that a single process would make, and so are the embeddings, to the last digit.

    Where a caption's embedding is its own alone, captions come the longest first from a loader that can
    (:class:`datasets.sampler.CaptionSampler`), and are put back in order here.
    """
    device, was_training = next(model.parameters()).device, model.training
    of_captions = encode == model.encode_text
    cut = getattr(model, 'without_padding', None) if of_captions else None
    field, pixels = 'caption_ids' if of_captions else 'images', pixels_of(loader, model)
    pids, feats = [], []
    model.eval()
    try:
        with longest_first(loader, cut is not None and not model.refines) as order, by_turns(loader, shared, order) as order_of_all:
            for pid, sample in loader:
                pids.append(torch.as_tensor(pid).flatten())
                feats.append(encode(ready({field: sample}, device, cut, pixels)[field]).float())
    finally:
        model.train(was_training)
    found = (torch.cat(feats).cpu(), torch.cat(pids)) if feats else None   # one transfer: the GPU never waits for the host
    if order_of_all is not None:
        order, parts = order_of_all, [part for part in comm.all_gather_object(found) if part]
        found = [torch.cat(side) for side in zip(*parts)]
    if not found:
        raise UserError('nothing to evaluate: the split is empty')
    feats, pids = found
    return (feats, pids) if order is None else (feats[order.argsort()], pids[order.argsort()])


@contextlib.contextmanager
def by_turns(loader, wanted, order):
    """Each process gets its batches of the loader's alone, if that is wanted and the loader's sampler can; gives the order [S] of all
    processes' samples, one process's behind another's, else None. ``order`` [S]: the loader's, None: the dataset's."""
    sampler = getattr(loader, 'sampler', None)
    if not wanted or comm.get_world_size() == 1 or not hasattr(sampler, 'turn'):
        yield None
        return
    order, world = torch.arange(len(sampler)) if order is None else order, comm.get_world_size()
    batches = [batch for number in range(world) for batch in split_into_batches(order, loader.batch_size, number, world)]
    sampler.shard = loader.batch_size, comm.get_rank(), world
    try:
        with comm.raise_on_all_ranks():
            yield torch.cat(batches) if batches else order
    finally:
        sampler.shard = None


@contextlib.contextmanager
def longest_first(loader, wanted):
    """Captions by falling length within, if that is wanted and the loader's sampler can; gives the order [S], else None."""
    sampler = getattr(loader, 'sampler', None)
    if not wanted or not hasattr(sampler, 'sorts_by_length'):
        yield None
        return
    sampler.sorts_by_length = True
    try:
        yield sampler.order
    finally:
        sampler.sorts_by_length = False
