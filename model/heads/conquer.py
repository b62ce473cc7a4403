"""CONQUER (ICASSP 2026): contrast by negatives, and re-matching of noisy pairs by optimal transport.

Both losses complement RDE's (rde.py), which selects the clean pairs: ``--loss_names tal+tse+ccl+rematch --ccd``.
"""
import torch
from torch import nn

from model import objectives
from model.heads import Head
from utils.errors import UserError
from utils.option_types import add_boolean_option, non_negative_float

COST_START = -1.0, 1.0    # weight and bias: the cost is 1 - cosine
COST_LEARNING_RATE, COST_BETAS, COST_EPS = 2e-6, (0.9, 0.999), 1e-8    # of the cost's Adam


class CCL(Head):
    """Complementary contrastive loss (CONQUER, ICASSP 2026).

    It lowers the probability of each negative of the batch. It does not raise the probability of the pair directly, so
    noisy pairs train also. The loss is objectives.complementary_contrast.
    """
    names = ('ccl',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--ccl_weight', type=non_negative_float, default=0.5,
                            help="weight of the loss ccl (CONQUER's script: 0.5; its code: 0.2)")

    def __init__(self, args, model):
        super().__init__()
        self.weight = args.ccl_weight

    def forward(self, encoded, batch):
        return {'ccl_loss': self.weight * objectives.complementary_contrast(encoded.image, encoded.text)}


class TransportCost(nn.Module):
    """The learned cost relu(w cosine + b) of an image and a caption. It has an Adam of its own.

    Each step lowers the costs of a few random images and captions that are no pairs, as in CONQUER's code. A step moves
    w and b by 2e-6 at most, and no other loss trains them.

    Attributes:
        values: float [2], w and b.
        means: float [2], running means of their gradients.
        squares: float [2], running means of the squared gradients.
        steps: float [1], the number of steps.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer('values', torch.tensor(COST_START))
        for name, size in (('means', 2), ('squares', 2), ('steps', 1)):
            self.register_buffer(name, torch.zeros(size))

    @torch.no_grad()
    def train_step(self, cosine, images, captions):
        """Lower the sum of the costs of some images and captions by one step of Adam.

        Args:
            cosine: [B, B] of image i and caption j.
            images: int64 [n], rows of ``cosine``.
            captions: int64 [n], its columns. Repeated entries count once, and entries of the diagonal do not count.
        """
        counts = torch.zeros_like(cosine).index_put((images, captions), cosine.new_ones(())).fill_diagonal_(0)
        counts = counts * (self.values[0] * cosine + self.values[1] > 0)         # the derivative of relu
        gradient = torch.stack([(counts * cosine).sum(), counts.sum()])
        self.steps += 1
        self.means.lerp_(gradient, 1 - COST_BETAS[0])
        self.squares.lerp_(gradient.square(), 1 - COST_BETAS[1])
        mean, square = (running / (1 - beta ** self.steps)
                        for running, beta in zip((self.means, self.squares), COST_BETAS))
        self.values -= COST_LEARNING_RATE * mean / (square.sqrt() + COST_EPS)


def draw_entries(size, device):
    """Draw 1 to ``size`` / 10 entries of a matrix [size, size]: int64 [2, n]."""
    count = int(torch.randint(1, max(1, size // 10) + 1, ()))
    return torch.randint(size, (2, count), device=device)


class Rematch(Head):
    """Re-matching of the noisy pairs' images and captions by optimal transport (CONQUER, ICASSP 2026).

    It trains on the pairs that --ccd classifies as noisy, and is 0 in a batch with fewer than two of them. The loss is
    objectives.rematching.
    """
    names = ('rematch',)
    shared_options = ('ccd',)

    @staticmethod
    def add_options(parser):
        parser.add_argument('--rematch_weight', type=non_negative_float, default=0.5,
                            help="weight of the loss rematch (CONQUER's script: 0.5; its code: 0)")
        parser.add_argument('--rematch_cost', default='fixed', choices=['fixed', 'learned'],
                            help='cost of an image and a caption in the transport of rematch: fixed, 1 - cosine; '
                                 "learned, a line whose two parameters learn at a rate of 2e-6 (CONQUER's code)")
        add_boolean_option(parser, '--rematch_transposed', False,
                           'comparison of caption i and image j with entry [j, i] of the transport plan in rematch, '
                           "instead of entry [i, j] as in CONQUER's code")

    @staticmethod
    def validate_options(args, active):
        if active and not args.ccd:
            raise UserError("the loss 'rematch' trains only on the pairs that --ccd classifies as noisy: add --ccd, or "
                            f"remove rematch from --loss_names '{args.loss_names}'")

    def __init__(self, args, model):
        super().__init__()
        self.weight, self.is_transposed = args.rematch_weight, args.rematch_transposed
        self.rematch_cost = TransportCost() if args.rematch_cost == 'learned' else None

    def forward(self, encoded, batch):
        image, text = encoded.image, encoded.text
        is_noisy = batch['clean'] == 0 if 'clean' in batch else torch.zeros_like(batch['pids'], dtype=torch.bool)
        loss = objectives.rematching(image, text, is_noisy, *self.cost_parameters(image, text),
                                     transposed=self.is_transposed)
        return {'rematch_loss': self.weight * loss}

    def cost_parameters(self, image, text):
        """Return weight and bias of the cost, two scalar tensors. In training, the learned cost first makes a step."""
        if self.rematch_cost is None:
            return [image.new_full((), value) for value in COST_START]
        if self.training:
            with torch.no_grad():
                cosine = objectives.cosine_similarity(image, text)
            self.rematch_cost.train_step(cosine, *draw_entries(len(image), image.device))
        return self.rematch_cost.values.unbind()
