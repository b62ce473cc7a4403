"""Embedding a split and ranking it."""
import contextlib
import logging

import torch

from processor.step import ready
from utils import pixels as known_pixels
from utils.errors import UserError
from utils.metrics import retrieval_metrics, table
from utils.ranking import rank_embeddings

logger = logging.getLogger('Pedestal.eval')


class Evaluator:
    """Embeds a split and ranks it: ``Evaluator(img_loader, txt_loader).eval(model)``.

    The loaders iterate ``(pids, images)`` and ``(pids, caption_ids)``; their datasets give single samples for the check.
    After :meth:`eval`, ``results`` holds ``{task: summary}``.
    """

    def __init__(self, img_loader, txt_loader):
        self.img_loader, self.txt_loader = img_loader, txt_loader
        self.results = {}

    def _compute_embedding(self, model):
        """``(qfeats [Q, D], gfeats [G, D], qids [Q], gids [G])`` on the CPU, float32, not normalised."""
        qfeats, qids = embed(model.encode_text, self.txt_loader, model)
        gfeats, gids = embed(model.encode_image, self.img_loader, model)
        return qfeats, gfeats, qids, gids

    def eval(self, model, i2t_metric=False):
        """Log the table of text-to-image and, if asked, image-to-text metrics; returns text-to-image Rank-1 in percent."""
        self.results = retrieval_results(*self._compute_embedding(model), i2t_metric, getattr(model, 'parts', ()))
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
def embed(encode, loader, model):
    """All of a loader's embeddings [S, D] and pids [S], in its order, on the CPU, with the model in evaluation mode for as long.

    Where a caption's embedding is its own alone, captions come the longest first from a loader that can
    (:class:`datasets.sampler.CaptionSampler`), and are put back in order here.
    """
    device, was_training = next(model.parameters()).device, model.training
    of_captions = encode == model.encode_text
    cut = getattr(model, 'without_padding', None) if of_captions else None
    field, pixels = 'caption_ids' if of_captions else 'images', getattr(model, 'pixels', known_pixels.CLIP)
    pids, feats = [], []
    model.eval()
    try:
        with longest_first(loader, cut is not None and not model.refines) as order:
            for pid, sample in loader:
                pids.append(torch.as_tensor(pid).flatten())
                feats.append(encode(ready({field: sample}, device, cut, pixels)[field]).float())
    finally:
        model.train(was_training)
    if not feats:
        raise UserError('nothing to evaluate: the split is empty')
    feats, pids = torch.cat(feats).cpu(), torch.cat(pids)   # one transfer: the GPU never waits for the host
    return (feats, pids) if order is None else (feats[order.argsort()], pids[order.argsort()])


@contextlib.contextmanager
def longest_first(loader, wanted):
    """Captions by falling length within, if that is wanted and the loader's sampler can; gives the order [S], else None."""
    sampler = getattr(loader, 'sampler', None)
    if not wanted or not hasattr(sampler, 'by_length'):
        yield None
        return
    sampler.by_length = True
    try:
        yield sampler.order
    finally:
        sampler.by_length = False
