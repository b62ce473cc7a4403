"""ICL (Qin et al., CVPR 2025): training with a second, machine-written caption of each pair (RDA).

ICL's other half, the dialogue at test time (THI), is run_scripts/dialogue.py. docs/icl.md explains both.
"""
from model import objectives
from model.heads import HasSchedule, Head, UsesAllGather

WEIGHT_DECREASE, SMALLEST_WEIGHT = 0.03, 0.1      # the weight decreases in each epoch


class SecondCaptions(HasSchedule, UsesAllGather, Head):
    """Triplet alignment of images with second captions (ICL, CVPR 2025, reorganization data augmentation).

    Each pair has a second caption, which a language model wrote. It is embedded like the caption, in the shared
    embedding and in those that other heads add, such as tse, and compared with the images. The loss is objectives.tal,
    summed over the clean pairs, with a weight that decreases from 0.97 in the first epoch to 0.1.
    """
    names = ('aug',)
    fields = ('second_caption_ids',)
    shared_options = ('tau', 'margin')
    reads_extra_embeddings = True

    def __init__(self, args, model):
        super().__init__()
        self.tau, self.margin, self.weight = args.tau, args.margin, 1 - WEIGHT_DECREASE

    def before_step(self, epoch, step, steps):
        self.weight = max(SMALLEST_WEIGHT, 1 - WEIGHT_DECREASE * epoch)

    def forward(self, encoded, batch):
        shard = encoded.shard
        with shard.per_rank_rng():
            texts = encoded.embed_text_all(batch['second_caption_ids'])                     # {name: [b, E]}
        pids = shard.all_gather(batch['pids'])
        clean = shard.all_gather(batch['clean']) if 'clean' in batch else None
        results = {}
        for name, image in encoded.image_embeddings.items():
            losses = objectives.tal(shard.all_gather(image), shard.all_gather(texts[name]), pids, tau=self.tau,
                                    margin=self.margin, reduction='none')                   # [B]
            loss_name = 'aug_loss' if image is encoded.image else f'{name.lower()}_aug_loss'
            results[loss_name] = self.weight * objectives.reduce_clean_pairs(losses, clean, 'sum')
        return results

    def micro_batch_unsupported(self):
        return 'it embeds the second captions of the whole batch'
