"""InfoNCE of CLIP (Radford et al., ICML 2021)."""
from model import objectives
from model.heads import Head
from utils.option_types import non_negative_float


class ITC(Head):
    """Image-text contrast, InfoNCE (CLIP, ICML 2021).

    Each pair is compared with all other captions and images of the batch. The loss is objectives.itc.
    """
    names = ('itc',)
    shared_options = ('temperature',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--itc_loss_weight', type=non_negative_float, default=1.0,
                            help='weight of the loss itc (PHP: 5)')

    def __init__(self, args, model):
        super().__init__()
        self.scale = 1 / args.temperature
        self.weight = args.itc_loss_weight

    def forward(self, encoded, batch):
        return {'itc_loss': self.weight * objectives.itc(encoded.image, encoded.text, scale=self.scale)}
