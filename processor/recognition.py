"""Recognition of attributes: which of an attribute's two prompts an image is more similar to, or what a head says of the image."""
import logging

import torch
import torch.nn.functional as F
from prettytable import PrettyTable

from processor.evaluation import embed
from utils.attribute_metrics import attribute_measures
from utils.errors import UserError

logger = logging.getLogger('Pedestal.eval')


@torch.no_grad()
def recognise(model, loader, images=None):
    """{'mA', 'accuracy', 'precision', 'recall', 'F1'} in percent, of a loader whose dataset has ``attributes``; ``images`` [N, D]: their
    embeddings, where they are known."""
    labels, prompts = loader.dataset.attributes                       # int8 [N, A], int64 [2A, L]
    head = recogniser(model)
    if head is not None:
        scores = embed(lambda images: head.predict_attributes(encoded_images(model, images)), loader, model, shared=True)[0]    # [N, A]
        if scores.shape != labels.shape:
            raise UserError(f'the run tells {scores.shape[1]} attributes, and the images have {labels.shape[1]} labels')
        return attribute_measures(scores > 0, labels)
    images = embed(model.encode_image, loader, model, shared=True)[0] if images is None else images
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    texts = model.encode_text(prompts.to(device)).float().cpu()       # [2A, D]
    model.train(was_training)
    pairs = (F.normalize(images, dim=1) @ F.normalize(texts, dim=1).t()).unflatten(1, (-1, 2))       # [N, A, 2]
    return attribute_measures(pairs[..., 1] > pairs[..., 0], labels)


def recogniser(model):
    """The head that tells attributes without prompts, or None."""
    return next((head for head in getattr(model, 'heads', ()) if head.predict_attributes is not None), None)


def encoded_images(model, images):
    """Normalised images [B, 3, H, W] -> their tokens [B, N, K]."""
    with model.autocast():
        return model.backbone.encode_image(images)[0].float()


def as_table(measures):
    table = PrettyTable(list(measures))
    table.add_row([f'{value:.3f}' for value in measures.values()])
    return table.get_string()


class Recogniser:
    """An evaluator of attributes, as :class:`processor.evaluation.Evaluator` is of retrieval: the best epoch is that of the best mA."""

    measure = metric = 'mA'

    def __init__(self, img_loader):
        self.img_loader, self.results = img_loader, {}

    def eval(self, model):
        measures = recognise(model, self.img_loader)
        logger.info('\n%s', as_table(measures))
        self.results = {'t2i': measures}
        return measures['mA']
