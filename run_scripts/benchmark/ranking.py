"""How quickly embeddings are ranked, and how much memory that takes."""
import torch
import torch.nn.functional as F

from processor.evaluation import retrieval_results
from run_scripts.benchmark import released_way
from run_scripts.benchmark.machine import peak_bytes, timed
from utils.metrics import summary

DIMENSIONS = 512        # of the embeddings that are ranked


def measure_ranking(kind, sizes, setting):
    """From embeddings to R1, mAP and mINP, on the CPU: seconds, and the memory beyond the embeddings."""
    rank = {'ours': rank_ours, 'matrix': rank_matrix, 'released': rank_released}[kind]
    embeddings = synthetic_embeddings(*sizes)
    rank(*synthetic_embeddings(50, 500, 50))    # starts the threads
    before = peak_bytes()
    timing, metrics = timed(lambda: rank(*embeddings), 'cpu', setting.repeats, setting.patience, warm_up=0)
    return {**timing, 'peak_bytes': peak_bytes() - before, 'metrics': metrics}


def synthetic_embeddings(queries, gallery, identities):
    """(texts [Q, D], images [G, D], their pids): images lie around one for each identity, texts around their own image."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(gallery, DIMENSIONS, generator=generator)
    for start in range(identities, gallery, identities):    # in place: what is measured is the memory of the ranking
        images[start:start + identities].add_(images[:min(identities, gallery - start)])
    own = gallery - 1 - torch.arange(queries) % gallery
    texts = torch.randn(queries, DIMENSIONS, generator=generator).add_(images[own], alpha=0.12)
    g_pids = torch.arange(gallery) % identities
    return texts, images, g_pids[own], g_pids


def rank_ours(texts, images, q_pids, g_pids):
    found = retrieval_results(texts, images, q_pids, g_pids)['t2i']
    return {name: found[name] for name in ('R1', 'mAP', 'mINP')}


def rank_matrix(texts, images, q_pids, g_pids):
    """As ours, with all similarities at once."""
    found = summary(similarities(texts, images), q_pids, g_pids)
    return {name: found[name] for name in ('R1', 'mAP', 'mINP')}


def similarities(texts, images):
    return F.normalize(texts, dim=1) @ F.normalize(images, dim=1).t()


def rank_released(texts, images, q_pids, g_pids):
    cmc, mAP, mINP = released_way.rank(similarities(texts, images), q_pids, g_pids)
    return {'R1': cmc[0].item(), 'mAP': mAP.item(), 'mINP': mINP.item()}
