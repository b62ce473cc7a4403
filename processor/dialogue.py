"""Test-time human-centered interaction (THI; ICL, CVPR 2025): a multimodal language model refines captions.

In each round, the model says whether a caption describes one of its best images. If so, the image can become the
caption's anchor. The model then describes the anchor, and the caption is rewritten with this description. A rewritten
caption contributes to the similarities, and its anchor counts as a perfect match. docs/icl.md explains the rules.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from utils.ranking import as_tensor, cosine_slabs, full_precision, rank_slabs
from utils.retrieval_metrics import retrieval_metrics
from utils.top_k import top_k


@dataclass(frozen=True)
class DialogueSettings:
    """The settings of a dialogue.

    Attributes:
        rounds: the number of rounds, and of images that a caption can be asked about.
        threshold: the similarity of the best image above which a caption gets its anchor in the first round only.
        query_weight: the weight of the caption's own similarity next to that of the rewritten caption.
    """
    rounds: int = 5
    threshold: float = 0.5
    query_weight: float = 0.8


@dataclass
class DialogueRound:
    """A round's questions and results.

    Attributes:
        number: the round, from 1; 0 before the dialogue.
        asked: int64 [Q], the image that each caption was compared with, -1 for none.
        anchors: int64 [Q], the anchor of each caption after the round, -1 for none.
        metrics: the :func:`~utils.retrieval_metrics.retrieval_metrics` after the round.
    """
    number: int
    asked: torch.Tensor
    anchors: torch.Tensor
    metrics: dict


class AnchorSelection:
    """Selects the anchors of captions from a model's answers, round by round.

    Args:
        scores: [Q, K], the similarities of each caption's K best images, in descending order.
        candidates: int64 [Q, K], these images.
        threshold: see :class:`DialogueSettings`.

    Attributes:
        anchors: int64 [Q], the anchor of each caption, -1 for none.

    Example:
        >>> scores = torch.tensor([[0.9, 0.8], [0.3, 0.2], [0.3, 0.2]])
        >>> selection = AnchorSelection(scores, torch.tensor([[4, 5], [6, 7], [8, 9]]), threshold=0.5)
        >>> selection.next_candidates().tolist()
        [4, 6, 8]
        >>> selection.add_answers(torch.tensor([True, True, False])).tolist()     # captions whose anchors are new
        [0]
        >>> selection.next_candidates().tolist()
        [-1, 7, 9]
        >>> selection.add_answers(torch.tensor([False, True, True])).tolist()     # caption 1 had a yes too early
        [2]
        >>> selection.anchors.tolist()
        [4, -1, 9]
    """

    def __init__(self, scores, candidates, threshold):
        self.candidates, self.is_confident, self.round = candidates, scores[:, 0] > threshold, 0
        self.anchors = torch.full((len(candidates),), -1)
        self.has_yes = torch.zeros(len(candidates), dtype=torch.bool)

    def next_candidates(self):
        """The image to compare each caption with in the next round, int64 [Q]; -1 if it has an anchor."""
        return torch.where(self.anchors < 0, self.candidates[:, self.round], -1)

    def add_answers(self, answers):
        """Add the answers of a round, bool [Q]: whether each caption describes its image. They count without an anchor.

        Returns:
            The captions with a new anchor, int64 [N].
        """
        is_open, is_first = self.anchors < 0, self.round == 0
        can_anchor = self.is_confident if is_first else ~self.is_confident & ~self.has_yes
        is_new = is_open & answers & can_anchor
        self.anchors = torch.where(is_new, self.candidates[:, self.round], self.anchors)
        self.has_yes, self.round = self.has_yes | answers & is_open, self.round + 1
        return is_new.nonzero().flatten()


def combine_similarities(slabs, rewritten_slabs, anchors, query_weight):
    """Yield the similarities [q, G] after a round, slab by slab.

    Args:
        slabs: iterable of similarities [q, G] of the captions.
        rewritten_slabs: those of the rewritten captions. Rows of captions without an anchor are not read.
        anchors: int64 [Q], the anchor of each caption, -1 for none. The anchor's similarity to the rewritten caption
            counts as 1.
        query_weight: see :class:`DialogueSettings`.
    """
    start = 0
    for similarity, rewritten in zip(slabs, rewritten_slabs):
        rows = anchors[start:start + len(similarity)].to(similarity.device)
        start += len(similarity)
        anchored = (rows >= 0).nonzero().flatten()
        rewritten = rewritten[anchored]
        rewritten[torch.arange(len(anchored)), rows[anchored]] = 1.0
        combined = similarity.clone()
        combined[anchored] = query_weight * similarity[anchored] + (1 - query_weight) * rewritten
        yield combined


def hold_dialogue(queries, gallery, confirm, rewrite, settings=DialogueSettings()):
    """Hold a dialogue about all captions.

    Args:
        queries: ``(embeddings [Q, D], pids [Q])`` of the captions.
        gallery: ``(embeddings [G, D], pids [G])`` of the images.
        confirm: a function of captions and images, lists of N indices, that returns N booleans: whether the caption
            describes the image.
        rewrite: a function of captions and their anchors, lists of N indices, that returns the embeddings [N, D] of the
            rewritten captions.
        settings: the :class:`DialogueSettings`.

    Yields:
        A :class:`DialogueRound` before the dialogue, and one after each round.
    """
    (texts, q_pids), (images, g_pids) = queries, gallery
    texts, images = F.normalize(texts.float(), dim=1), F.normalize(images.float(), dim=1)
    selection = AnchorSelection(*top_k(texts, images, settings.rounds), settings.threshold)
    rewritten = texts.clone()

    def rank():
        with full_precision():
            slabs = combine_similarities(cosine_slabs(texts, images), cosine_slabs(rewritten, images),
                                         selection.anchors, settings.query_weight)
            return retrieval_metrics(rank_slabs(slabs, as_tensor(q_pids), as_tensor(g_pids), 10))
    yield DialogueRound(0, torch.full_like(selection.anchors, -1), selection.anchors, rank())
    for number in range(1, min(settings.rounds, len(images)) + 1):
        asked = selection.next_candidates()
        captions = (asked >= 0).nonzero().flatten()
        answers = torch.zeros(len(asked), dtype=torch.bool)
        answers[captions] = torch.tensor(confirm(captions.tolist(), asked[captions].tolist()), dtype=torch.bool)
        anchored = selection.add_answers(answers)
        if len(anchored):
            embeddings = rewrite(anchored.tolist(), selection.anchors[anchored].tolist())
            rewritten[anchored] = F.normalize(embeddings.float(), dim=1)
        yield DialogueRound(number, asked, selection.anchors, rank())
