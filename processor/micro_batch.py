"""``--micro_batch``: the gradient of a batch whose losses compare all of its samples, with the activations of a few at a time
(GradCache: Gao et al., RepL4NLP 2021, arXiv 2101.06983)."""
import torch

from model.build import Encoded, total_loss
from utils.seeding import derive_seed


def backward_in_pieces(model, batch, size, scale=lambda loss: loss):
    """Accumulate the gradient of ``scale(total_loss(model(batch)))`` in pieces of ``size`` samples, and return the results of
    ``model(batch)``, without gradient.

    1. The embeddings of all pieces, without gradient.
    2. The heads that read embeddings alone get those of the whole batch: their losses, and the gradient at the embeddings.
    3. Each piece again, with gradient: it takes its rows of the gradient at the embeddings, and the losses of the heads that read
       tokens, each times the piece's share (:attr:`~model.heads.Head.share`).

    The encoders run twice forward. ``batch`` is a loader's, on the CPU. What is random in a piece (dropout, hidden patches) follows
    from PyTorch's seed and the piece's number, and is the same in both passes.
    """
    whole, pieces = on_device(model, batch, size)
    seed = torch.initial_seed()
    image, text = embeddings(model, pieces, seed)
    by_head = {}
    with model.autocast():
        for head in model.heads:
            if not head.needs:
                by_head[head] = head(Encoded(image=image, text=text, encoder=model.base_model), whole)
    loss = sum(map(total_loss, by_head.values()))
    if isinstance(loss, torch.Tensor):
        scale(loss).backward()
    for number, piece in enumerate(pieces):
        torch.manual_seed(derive_seed(seed, number))
        rows = slice(number * size, (number + 1) * size)
        learn_from_piece(model, piece, whole, [(0 if x.grad is None else x.grad[rows]) for x in (image, text)], by_head, scale)
    results = {'temperature': torch.full((), model.temperature)}
    for head in model.heads:
        results.update({name: value.detach() for name, value in by_head[head].items()})
    return results


def on_device(model, batch, size):
    """``(batch, its pieces)``, prepared and ready for the model."""
    device = next(model.parameters()).device

    def moved(fields):
        return {name: value.to(device, non_blocking=True) for name, value in fields.items()}
    batch = {**batch, 'caption_ids': model.without_padding(batch['caption_ids'])}
    whole = model.ready(moved(batch))
    pieces = []
    for start in range(0, len(batch['pids']), size):
        host, ready = ({name: value[start:start + size] for name, value in fields.items()} for fields in (batch, whole))
        pieces.append({**ready, **moved(model.looked_up(host))})
    return {**whole, **moved(model.looked_up(batch))}, pieces


@torch.no_grad()
def embeddings(model, pieces, seed):
    """The whole batch's (image, text) embeddings [B, D], as leaves that take a gradient."""
    image, text = [], []
    for number, piece in enumerate(pieces):
        torch.manual_seed(derive_seed(seed, number))
        image.append(model.encode_image(piece['images']))
        text.append(model.encode_text(piece['caption_ids']))
    return torch.cat(image).requires_grad_(), torch.cat(text).requires_grad_()


def learn_from_piece(model, piece, whole, gradients, by_head, scale):
    """Backpropagate the piece's rows of the gradient at the embeddings and its share of the losses that read tokens; adds its
    share of these heads' results to ``by_head``."""
    with model.autocast():
        encoded = model.encode(piece)
        loss = 0
        for head in model.heads:
            if head.needs:
                share = head.share(piece, whole)
                results = {name: share * value for name, value in head(encoded, piece).items()}
                loss = loss + total_loss(results)
                sums = by_head.setdefault(head, {})
                sums.update({name: sums.get(name, 0) + value.detach() for name, value in results.items()})
    # The inner product with a constant has that constant as its gradient.
    inner = sum((embedding * gradient).sum() for embedding, gradient in zip((encoded.image, encoded.text), gradients))
    (inner + (scale(loss) if isinstance(loss, torch.Tensor) else 0)).backward()
