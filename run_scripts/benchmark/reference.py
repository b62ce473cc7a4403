"""The reference implementation: IRRA and its forks as their published code computes them, for the benchmark.

This is new code that does what the published code does. If the published code allows two readings, this is the faster
one. It differs from Pedestal in these points:

- weights in half precision on a GPU, without autocast and without a gradient scaler;
- two passes of the text encoder over the same masked tokens;
- scores of the masked language model at all 77 positions;
- an optimizer group per parameter;
- a read of the loss and a synchronization in each step;
- images that PIL decodes and augments in the workers of the data loader;
- a full sort of the similarity matrix.

Parameters have Pedestal's names, so that both models can have the same weights and give the same numbers.
"""
import functools
import random
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from datasets.bases import tokenize
from datasets.masking import mask_tokens
from datasets.transforms import build_transforms
from model import objectives
from model.build import total_loss
from model.clip_weights import shape_named
from solver.build import parameter_settings
from utils.iotools import read_image
from utils.simple_tokenizer import MASK, default_tokenizer

# -- the model -------------------------------------------------------------------------------------------------------


class LayerNorm(nn.LayerNorm):
    """Layer normalization in float32, whatever the type of its input."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """CLIP's transformer block on [L, B, D], with ``torch.nn.MultiheadAttention``."""

    def __init__(self, width, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.Sequential(OrderedDict(
            c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width)))
        self.ln_2 = LayerNorm(width)

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A transformer from [B, L, D] to [B, L, D] with blocks on [L, B, D]."""

    def __init__(self, width, layers, heads):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x, mask=None):
        x = x.permute(1, 0, 2)
        for block in self.resblocks:
            x = block(x, mask)
        return x.permute(1, 0, 2)


@functools.lru_cache(maxsize=None)
def causal_mask(length, dtype, device):
    """The mask [L, L] to add to attention scores: -inf for later tokens, 0 for others."""
    return torch.full((length, length), float('-inf'), dtype=dtype, device=device).triu_(1)


class ImageEncoder(nn.Module):
    def __init__(self, shape, grid, stride):
        super().__init__()
        width = shape.vision_width
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + grid[0] * grid[1], width))
        self.proj = nn.Parameter(torch.empty(width, shape.embed_dim))
        self.conv1 = nn.Conv2d(3, width, shape.vision_patch_size, stride, bias=False)
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, shape.vision_layers, shape.vision_heads)
        self.ln_post = LayerNorm(width)

    def forward(self, images):
        """[B, 3, H, W] -> [B, N, embed_dim]."""
        patches = self.conv1(images).flatten(2).permute(0, 2, 1)                         # [B, N - 1, width]
        class_token = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = torch.cat([class_token, patches], dim=1) + self.positional_embedding.to(patches.dtype)
        return self.ln_post(self.transformer(self.ln_pre(x))) @ self.proj


class Encoders(nn.Module):
    def __init__(self, shape, clip):
        super().__init__()
        self.visual = ImageEncoder(shape, clip.grid, clip.stride_size)
        self.transformer = Transformer(shape.text_width, shape.text_layers, shape.text_heads)
        self.token_embedding = nn.Embedding(shape.vocab_size, shape.text_width)
        self.positional_embedding = nn.Parameter(torch.empty(clip.text_length, shape.text_width))
        self.ln_final = LayerNorm(shape.text_width)
        self.text_projection = nn.Parameter(torch.empty(shape.text_width, shape.embed_dim))

    @property
    def dtype(self):
        return self.visual.conv1.weight.dtype

    def encode_image(self, images):
        """[B, 3, H, W] -> [B, N, embed_dim]."""
        return self.visual(images.type(self.dtype))

    def encode_text(self, ids):
        """[B, L] -> [B, L, embed_dim]."""
        x = self.token_embedding(ids).type(self.dtype) + self.positional_embedding.type(self.dtype)
        x = self.transformer(x, causal_mask(ids.shape[1], x.dtype, x.device))
        return self.ln_final(x) @ self.text_projection


class ReferenceIRRA(nn.Module):
    """IRRA with ``sdm+mlm+id``, in the shape and with the weights of one of Pedestal's models."""

    def __init__(self, args, model):
        super().__init__()
        width = model.embed_dim
        with torch.device('meta'):   # the weights come from load_state_dict
            self.base_model = Encoders(shape_named(args.pretrain_choice), model.base_model)
            self.cross_attn = nn.MultiheadAttention(width, width // 64)
            self.cross_modal_transformer = Transformer(width, args.cmt_depth, width // 64)
            self.ln_pre_t, self.ln_pre_i, self.ln_post = LayerNorm(width), LayerNorm(width), LayerNorm(width)
            self.classifier = nn.Linear(width, model.num_classes)
            self.mlm_head = nn.Sequential(OrderedDict(
                dense=nn.Linear(width, width), gelu=QuickGELU(), ln=LayerNorm(width),
                fc=nn.Linear(width, args.vocab_size)))
        self.load_state_dict(model.state_dict(), assign=True)
        self.scale, self.id_weight, self.mlm_weight = 1 / args.temperature, args.id_loss_weight, args.mlm_loss_weight

    def convert_weights_to_half(self):
        """Convert the weights of all matrices to float16. LayerNorms and embedding tables stay float32, as in CLIP."""
        for part in self.modules():
            if isinstance(part, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
                part.half()
        for owner, name in ((self.base_model, 'text_projection'), (self.base_model.visual, 'proj')):
            getattr(owner, name).data = getattr(owner, name).data.half()
        return self

    def encode_image(self, images):
        """[B, 3, H, W] -> float32 [B, embed_dim]."""
        return self.base_model.encode_image(images)[:, 0].float()

    def encode_text(self, ids):
        """[B, L] -> float32 [B, embed_dim]."""
        return select_end_tokens(self.base_model.encode_text(ids), ids)

    def forward(self, batch):
        """The losses and accuracies of a batch ``{'images', 'caption_ids', 'mlm_ids', 'mlm_labels', 'pids'}``."""
        ids, pids, labels = batch['caption_ids'], batch['pids'], batch['mlm_labels'].flatten()
        image_tokens = self.base_model.encode_image(batch['images'])                     # [B, N, D]
        text_tokens = self.base_model.encode_text(ids)                                   # [B, L, D]
        image, text = image_tokens[:, 0].float(), select_end_tokens(text_tokens, ids)    # [B, D] each

        image_logits, text_logits = (self.classifier(x.type(self.base_model.dtype)).float()             # [B, C] each
                                     for x in (image, text))

        masked_tokens = self.base_model.encode_text(batch['mlm_ids'])                    # [B, L, D]
        scores = self.mlm_head(self.cross(masked_tokens, image_tokens)).float().flatten(0, 1)    # [B L, V]
        return {'sdm_loss': objectives.sdm(image, text, pids, scale=self.scale),
                'id_loss': self.id_weight * objectives.identity(image_logits, text_logits, pids),
                'mlm_loss': self.mlm_weight * mlm_loss_at_all_positions(scores, labels),
                'img_acc': objectives.accuracy(image_logits, pids), 'txt_acc': objectives.accuracy(text_logits, pids),
                'mlm_acc': masked_token_accuracy(scores, labels)}

    def cross(self, text_tokens, image_tokens):
        """[B, L, D], [B, N, D] -> [B, L, D]."""
        query, keys = self.ln_pre_t(text_tokens).permute(1, 0, 2), self.ln_pre_i(image_tokens).permute(1, 0, 2)
        x = self.cross_attn(query, keys, keys, need_weights=False)[0].permute(1, 0, 2)
        return self.ln_post(self.cross_modal_transformer(x))


def select_end_tokens(tokens, ids):
    """The end-of-text tokens: [B, L, D], [B, L] -> float32 [B, D]."""
    return tokens[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)].float()


def mlm_loss_at_all_positions(scores, labels):
    """Cross-entropy of the masked tokens from scores of all positions.

    Args:
        scores: float32 [B L, V].
        labels: [B L]; 0 for tokens that are not masked.
    """
    return F.cross_entropy(scores, labels, ignore_index=0)


def masked_token_accuracy(scores, labels):
    is_masked = labels != 0
    return ((scores.argmax(dim=1) == labels) & is_masked).sum() / is_masked.sum()


# -- training --------------------------------------------------------------------------------------------------------

def build_optimizer(args, model):
    """Adam with one parameter group per parameter and PyTorch's default implementation."""
    groups = []
    for name, parameter in model.named_parameters():
        lr, weight_decay = parameter_settings(name, args)
        groups.append({'params': [parameter], 'lr': lr, 'weight_decay': weight_decay})
    return torch.optim.Adam(groups, lr=args.lr, betas=(args.alpha, args.beta), eps=1e-3)


class ReferenceTrainer:
    def __init__(self, args, model):
        self.model, self.optimizer = model, build_optimizer(args, model)
        self.device = next(model.parameters()).device

    def train_step(self, batch):
        """Run one step and return its loss as a number."""
        batch = {name: value.to(self.device) for name, value in batch.items()}
        loss = total_loss(self.model(batch))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return read_and_synchronize(loss)


def read_and_synchronize(loss):
    value = loss.item()
    if loss.is_cuda:
        torch.cuda.synchronize()
    return value


# -- reading ---------------------------------------------------------------------------------------------------------

class ReferencePairs(Dataset):
    """Training samples ``(pid, image_id, image path, caption)``, tokenized, masked and augmented on each access."""

    def __init__(self, samples, img_size, text_length=77):
        self.samples, self.text_length = samples, text_length
        self.transform = build_transforms(img_size, aug=True, is_train=True)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        pid, image_id, path, caption = self.samples[index]
        image = self.transform(read_image(path))
        tokenizer = default_tokenizer()
        ids = tokenize(caption, tokenizer, self.text_length).tolist()
        masked, labels = map(torch.tensor, mask_tokens(ids, random, tokenizer.encoder[MASK]))
        return {'pids': pid, 'image_ids': image_id, 'images': image, 'caption_ids': masked, 'mlm_ids': masked,
                'mlm_labels': labels}


def build_training_loader(samples, img_size, batch_size, workers):
    """The training loader.

    Its workers persist between epochs, unlike those of the published code. Otherwise their start would take a larger
    part of a short epoch than of a real one.
    """
    return DataLoader(ReferencePairs(samples, img_size), batch_size, shuffle=True, num_workers=workers,
                      persistent_workers=workers > 0)


# -- evaluation ------------------------------------------------------------------------------------------------------

@torch.no_grad()
def embed(encode, batches, device):
    """The embeddings of batches, on their device, in the order of the batches."""
    return torch.cat([encode(batch.to(device)) for batch in batches])


# Bytes that rank() needs per query and image at its peak: similarity 4, order 8, pids 8, matches 1, columns 4, stacked
# columns 4, matches as numbers 4, product 4.
RANKING_BYTES_PER_PAIR = 37


def rank(similarity, q_pids, g_pids, max_rank=10):
    """Compute retrieval metrics.

    Args:
        similarity: [Q, G].
        q_pids, g_pids: identities of queries [Q] and of gallery images [G].
        max_rank: the largest k of Rank-k.

    Returns:
        ``(cmc [max_rank], mAP, mINP)`` in percent.
    """
    order = torch.argsort(similarity, dim=1, descending=True)                            # [Q, G]
    ranked_pids = g_pids[order]                                                          # [Q, G]
    matches = ranked_pids.eq(q_pids.view(-1, 1))                                         # [Q, G]
    has_match = matches[:, :max_rank].cumsum(1).clamp(max=1)                             # [Q, max_rank]
    cmc = has_match.float().mean(0) * 100

    hits = matches.cumsum(1)                                                             # int64 [Q, G]
    inverse_penalties = []
    for query, row in enumerate(matches):
        last = row.nonzero()[-1]
        inverse_penalties.append(hits[query, last] / (last + 1.0))
    mINP = torch.cat(inverse_penalties).mean() * 100

    precision = [hits[:, index] / (index + 1.0) for index in range(hits.shape[1])]
    del hits
    precision = torch.stack(precision, dim=1) * matches                                  # [Q, G]
    mAP = (precision.sum(1) / matches.sum(1)).mean() * 100
    return cmc, mAP, mINP
