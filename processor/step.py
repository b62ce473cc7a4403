"""The one way of a batch, from top to bottom: host batch -> device -> finished images -> encoders -> heads -> gradient.

A whole batch is one piece. ``--micro_batch`` makes several, whose losses still compare the whole batch (GradCache: Gao et al., RepL4NLP
2021, arXiv 2101.06983). Evaluation takes the same way as far as the finished images.
"""
import torch

from datasets.views import finish
from model.build import Encoded, add_results, total_loss
from utils import pixels as known_pixels
from utils import precision
from utils.seeding import derive_seed


class Step:
    """Training steps of a model: ``Step(model, optimizer)(batch)`` learns from a loader's batch and returns the model's results,
    scalars on its device: ``{'temperature', 'sdm_loss', 'img_acc', ...}``.

    Args:
        model: a :class:`~model.build.RetrievalModel` on its device.
        optimizer: of its parameters.
        micro_batch: how many samples' activations are held at a time; None: the whole batch's.

    In fp16 the gradient is scaled, and a step whose gradient overflowed is left out (``scaler``, a ``torch.amp.GradScaler``).
    """

    def __init__(self, model, optimizer, micro_batch=None):
        self.model, self.optimizer, self.micro_batch = model, optimizer, micro_batch
        device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.amp_dtype(model.amp, device) is torch.float16)

    def __call__(self, batch):
        self.optimizer.zero_grad(set_to_none=True)
        results = backward(self.model, batch, self.micro_batch, self.scaler.scale)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for head in self.model.heads:
            head.after_step(self.model)
        return results


def ready(batch, device, cut=None, pixels=known_pixels.CLIP):
    """A loader's batch on ``device``, as the encoders read it; with a dataset's ``pids, caption_ids, images, ...`` or some of them.

    Images of the image cache (uint8) are augmented by their own ``views`` and normalised there. ``cut``: what shortens captions while
    they are on the host, where reading their lengths is free. ``pixels``: the images' mean and deviation.
    """
    if cut is not None and 'caption_ids' in batch:
        batch = {**batch, 'caption_ids': cut(batch['caption_ids'])}
    batch = moved(batch, device)
    for which in ('', 'second_'):
        images = batch.get(f'{which}images')
        if images is not None and images.dtype == torch.uint8:
            batch[f'{which}images'] = finish(images, batch.pop(f'{which}views', None), pixels)
    return batch


def moved(batch, device):
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def backward(model, batch, size=None, scale=lambda loss: loss):
    """Add the gradient of ``scale(total loss)`` to the parameters', and return the results without gradient.

    1. Every piece is embedded.
    2. Heads that read embeddings alone get those of the whole batch. Their losses give a gradient at the embeddings.
    3. Each piece takes its rows of that gradient back through its encoders, and its share of the losses of heads that read tokens
       (:attr:`~model.heads.Head.share`).

    A batch in one piece passes the encoders once. Several pieces pass them twice, first without gradient: then activations are held of
    ``size`` samples at a time. What is random in a piece (dropout, hidden patches) follows from PyTorch's seed and the piece's number,
    and is the same both times; so it is drawn otherwise than for the whole batch.

    Args:
        model: a :class:`~model.build.RetrievalModel`.
        batch: a loader's, on the CPU or where the model is.
        size: samples a piece; None: all.
        scale: what multiplies losses before their gradient, as a ``GradScaler`` does.
    """
    whole, pieces = in_pieces(model, batch, size)
    seed = torch.initial_seed() if len(pieces) > 1 else None
    first = [encode(model, piece, seed, number) for number, piece in enumerate(pieces)]
    image, text = (torch.cat([getattr(encoded, side).detach() for encoded in first]).requires_grad_() for side in ('image', 'text'))
    results = learn_together(model, Encoded(
        image=image, text=text, encoder=model.backbone.encoder, embed_image=model.embed_image, embed_text=model.embed_text), whole, scale)
    for number, piece in enumerate(pieces):
        encoded = first[0] if seed is None else encode(model, piece, seed, number, learning=True)
        start = number * len(pieces[0]['pids'])
        rows = slice(start, start + len(piece['pids']))
        at_embeddings = [(embedding, leaf.grad[rows]) for embedding, leaf in ((encoded.image, image), (encoded.text, text))
                         if leaf.grad is not None]
        learn_from_piece(model, encoded, piece, whole, at_embeddings, results, scale)
    return in_order(model, results)


def in_pieces(model, batch, size):
    """``(whole batch, its pieces)`` on the model's device, ready for encoders and heads, with what heads look up on the host."""
    device, count = next(model.parameters()).device, len(batch['pids'])
    size = min(size or count, count)
    batch = {**batch, 'caption_ids': model.without_padding(batch['caption_ids'])}
    whole = model.rewritten(ready(batch, device, pixels=model.pixels))
    pieces = []
    for start in range(0, count, size):
        on_host, on_device = ({name: value[start:start + size] if len(value) == count else value for name, value in fields.items()}
                               for fields in (batch, whole))   # what is no sample's, such as prompts, goes into each piece
        pieces.append({**on_device, **moved(model.looked_up(on_host), device)})
    if len(pieces) == 1:
        return pieces[0], pieces
    return {**whole, **moved(model.looked_up(batch), device)}, pieces


def encode(model, piece, seed, number, learning=False):
    """A piece's :class:`~model.build.Encoded`: of one of several (``seed``), the embeddings alone unless it is ``learning``."""
    if seed is None:
        with model.autocast():
            return model.encode(piece)
    torch.manual_seed(derive_seed(seed, number))
    if learning:
        with model.autocast():
            return model.encode(piece)
    with torch.no_grad(), model.autocast():
        return Encoded(image=model.embed_image(piece['images']), text=model.embed_text(piece['caption_ids']))


def learn_together(model, encoded, whole, scale):
    """``{head: results}`` of the heads that read embeddings alone; their gradient stays with ``encoded``'s."""
    results = {}
    with model.autocast():
        for head in model.heads:
            if not head.reads_the_pass:
                results[head] = head(encoded, whole)
    loss = sum(map(total_loss, results.values()))
    if isinstance(loss, torch.Tensor):
        scale(loss).backward()
    return results


def learn_from_piece(model, encoded, piece, whole, at_embeddings, results, scale):
    """Back through a piece's encoders: the gradient at its embeddings, and its share of the losses of heads that read tokens, whose
    results are added to ``results``."""
    loss = 0
    with model.autocast():
        for head in model.heads:
            if head.reads_the_pass:
                of_piece = head(encoded, piece)
                if piece is not whole and of_piece:
                    share = head.share(piece, whole)
                    of_piece = {name: share * value for name, value in of_piece.items()}
                loss = loss + total_loss(of_piece)
                sums = results.setdefault(head, {})
                sums.update({name: sums.get(name, 0) + value.detach() for name, value in of_piece.items()})
    loss = scale(loss) if isinstance(loss, torch.Tensor) else loss
    # The inner product with a constant has that constant as its gradient.
    loss = loss + sum((embedding * gradient).sum() for embedding, gradient in at_embeddings)
    loss.backward()


def in_order(model, by_head):
    """All results, without gradient, in the order of ``--loss_names``."""
    results = {'temperature': torch.full((), model.temperature)}
    for head in model.heads:
        add_results(results, head, {name: value.detach() for name, value in by_head[head].items()})
    return results
