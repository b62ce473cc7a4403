"""Attribute recognition: by the similarities of an image with an attribute's two prompts, or by a head."""
import logging

import torch
import torch.nn.functional as F
from prettytable import PrettyTable

from model.heads import PredictsAttributes
from processor.evaluation import embed
from utils.attribute_metrics import attribute_metrics
from utils.errors import UserError
from utils.measures import MEAN_ACCURACY

logger = logging.getLogger('Pedestal.eval')


@torch.no_grad()
def recognize_attributes(model, loader, image_embeddings=None):
    """Predict the attributes of a loader's images and compare them with the labels.

    Args:
        model: a :class:`~model.build.RetrievalModel`.
        loader: a loader of images whose dataset has ``attributes``.
        image_embeddings: [N, D], if they are already known.

    Returns:
        ``{'mA', 'accuracy', 'precision', 'recall', 'F1'}`` in percent.
    """
    labels, prompts = loader.dataset.attributes                       # int8 [N, A], int64 [2A, L]
    head = find_attribute_head(model)
    if head is not None:
        def predict(images):
            return head.predict_attributes(encode_image_tokens(model, images))
        scores, _ = embed(model, loader, 'image', predict, distributed=True)   # [N, A]
        if scores.shape != labels.shape:
            raise UserError(f'the run predicts {scores.shape[1]} attributes, but the images have {labels.shape[1]} '
                            'labels: test it on a dataset with the attributes of its training')
        return attribute_metrics(scores > 0, labels)
    if image_embeddings is None:
        image_embeddings, _ = embed(model, loader, 'image', distributed=True)
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    prompt_embeddings = model.encode_text(prompts.to(device)).float().cpu()       # [2A, D]
    model.train(was_training)
    similarity = F.normalize(image_embeddings, dim=1) @ F.normalize(prompt_embeddings, dim=1).t()
    similarity = similarity.unflatten(1, (-1, 2))                     # [N, A, (absent, present)]
    return attribute_metrics(similarity[..., 1] > similarity[..., 0], labels)


def find_attribute_head(model):
    """Return the head that predicts attributes without prompts; None if the model has none."""
    return next((head for head in getattr(model, 'heads', ()) if isinstance(head, PredictsAttributes)), None)


def encode_image_tokens(model, images):
    """Encode normalized images [B, 3, H, W] to tokens [B, N, K]."""
    with model.autocast():
        return model.backbone.encode_image(images)[0].float()


def format_attribute_table(metrics):
    table = PrettyTable(list(metrics))
    table.add_row([f'{value:.3f}' for value in metrics.values()])
    return table.get_string()


class AttributeEvaluator:
    """An evaluator of attributes, like :class:`processor.evaluation.Evaluator`. mA selects the best epoch."""

    measure = MEAN_ACCURACY

    def __init__(self, img_loader):
        self.img_loader, self.metrics = img_loader, {}

    def eval(self, model):
        """Log the table of attribute metrics and return mA in percent."""
        self.metrics = recognize_attributes(model, self.img_loader)
        logger.info('\n%s', format_attribute_table(self.metrics))
        return self.metrics[self.measure.key]
