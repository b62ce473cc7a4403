"""``--rerank K``: each caption's K best images are scored again, pair by pair, by a head's ``match``."""
import torch

from processor.independence import SecondStageMove
from processor.step import pixels_of, ready
from utils import comm
from utils.errors import UserError
from utils.ranking import as_tensor, cosine_slabs, full_precision, rank_slabs
from utils.precision import amp_dtype
from utils.reranking import bounds_of, check_count, rescored, score_best

SAMPLES, PAIRS = 3, 4       # captions, and pairs of each, whose scores are compared with those of the pair alone
ALLOWED, ALLOWED_HALF = 1e-3, 5e-2    # difference of a pair's score, as a share of the range of its caption's


def matching_head(model):
    """The active head that scores pairs; UserError where there is none."""
    for head in model.heads:
        if head.score_pairs is not None:
            return head
    raise UserError("--rerank needs a loss whose head scores pairs of a caption and an image, such as 'itm' on the backbone aptm, and the "
                    f"run's losses have none ({', '.join(head.names[0] for head in model.heads if head.names)}): leave it out")


def refuse_rerank(model, count, gallery):
    """Raise UserError, before anything is embedded, where ``--rerank`` cannot work."""
    matching_head(model)
    check_count(count, gallery)


class SecondStage:
    """Scores of the pairs of a split, the images of which are encoded once: ``SecondStage(model, images, captions)``.

    Image tokens stay in memory, on the GPU where half of what is free there holds them: 4 bytes a number, for CUHK-PEDES' 3,074 images of
    49 x 1024 numbers 0.6 GB. A caption is encoded when its turn comes.
    """

    def __init__(self, model, img_loader, txt_loader):
        self.model, self.head, self.captions = model, matching_head(model), txt_loader.dataset
        self.device = next(model.parameters()).device
        self.tokens = self.encode_images(img_loader)

    @torch.no_grad()
    def encode_images(self, loader):
        """[G, N, D]"""
        found, was_training = [], self.model.training
        self.model.eval()
        for _, images in loader:
            images = ready({'images': images}, self.device, pixels=pixels_of(loader, self.model))['images']
            with self.model.autocast():
                tokens = self.model.backbone.encode_image(images)[0]
            found.append(tokens if self.fits(tokens, len(loader.dataset)) else tokens.cpu())
        self.model.train(was_training)
        return torch.cat([tokens.to(found[-1].device) for tokens in found])

    def fits(self, tokens, count):
        needed = tokens[0].numel() * tokens.element_size() * count
        return tokens.device.type == 'cuda' and needed < torch.cuda.mem_get_info(tokens.device)[0] / 2

    @torch.no_grad()
    def match(self, caption, images):
        """The scores float32 [K] of caption number ``caption`` with the images at the indices [K]."""
        ids = self.captions[caption][1][None].to(self.device)
        ids = ids[:, :int(self.model.backbone.lengths(ids).max())]
        with self.model.autocast():
            text_tokens = self.model.backbone.encode_text(ids)[0]
            count = len(images)
            tokens = self.tokens[images.to(self.tokens.device)].to(self.device)
            return self.head.score_pairs(self.model.backbone.encoder, ids.expand(count, -1), text_tokens.expand(count, -1, -1), tokens)

    def largest_move(self, best):
        """How far scores of pairs depend on the other pairs of their batch, as a share of a caption's range of scores."""
        moves = []
        for caption in torch.linspace(0, len(best) - 1, min(SAMPLES, len(best))).long().tolist():
            images = best[caption]
            together = self.match(caption, images).float().cpu()
            alone = torch.cat([self.match(caption, images[i:i + 1]).float().cpu() for i in range(min(PAIRS, len(images)))])
            moves.append((together[:len(alone)] - alone).abs().max() / (together.max() - together.min()).clamp(min=1e-3))
        half = amp_dtype(self.model.amp, self.device) is not None
        return SecondStageMove(max(moves).item(), ALLOWED_HALF if half else ALLOWED)


def rerank(model, loaders, embeddings, count, score, progress=True):
    """``(Ranking of the re-ranked split, its SecondStageMove)``.

    Args:
        loaders: of the split's images and captions.
        embeddings: ``(qfeats, gfeats, qids, gids)`` of the first stage.
        count, score: see :func:`utils.reranking.score_best` and :func:`utils.reranking.rescored`.
    """
    qfeats, gfeats, qids, gids = embeddings
    was_training = model.training
    model.eval()
    try:
        stage = SecondStage(model, *loaders)
        rank, world = comm.get_rank(), comm.get_world_size()

        def match(caption, images):     # of N processes each matches every N-th caption
            return stage.match(caption, images) if caption % world == rank else torch.zeros(count)
        with full_precision():
            def slabs():
                return cosine_slabs(qfeats.float(), gfeats.float())
            best, scores = score_best(slabs(), count, len(gfeats), match, len(qfeats), progress and comm.is_main_process())
            for number, part in enumerate(comm.all_gather_object((best[rank::world], scores[rank::world]))):
                best[number::world], scores[number::world] = part

            def ranking():
                bounds = bounds_of(slabs()) if score == 'released' else None
                return rank_slabs(rescored(slabs(), best, scores, score, bounds), as_tensor(qids), as_tensor(gids), 10)
            return comm.run_on_main_process(lambda: (ranking(), stage.largest_move(best)))
    finally:
        model.train(was_training)
