"""Identity classification with one classifier for images and captions (Zheng et al., TOMM 2020; IRRA, CVPR 2023)."""
from torch import nn

from model import objectives
from model.heads import Head
from utils.option_types import non_negative_float


class ID(Head):
    """Identity classification of images and captions (IRRA, CVPR 2023).

    One linear classifier over the training identities reads both embeddings. The loss is objectives.identity.
    """
    names = ('id',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--id_loss_weight', type=non_negative_float, default=1.0, help='weight of the loss id')

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.id_loss_weight
        self.classifier = nn.Linear(model.embed_dim, model.num_classes)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, encoded, batch):
        image_logits = self.classifier(encoded.image)  # [B, C]
        text_logits = self.classifier(encoded.text)    # [B, C]
        return {'id_loss': self.weight * objectives.identity(image_logits, text_logits, batch['pids']),
                'img_acc': objectives.accuracy(image_logits, batch['pids']),
                'txt_acc': objectives.accuracy(text_logits, batch['pids'])}
