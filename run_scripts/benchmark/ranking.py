"""Measure the time and the memory of ranking embeddings."""
import torch
import torch.nn.functional as F

from processor.evaluation import evaluate_embeddings
from run_scripts.benchmark import reference
from run_scripts.benchmark.machine import measure_time
from utils.machine import peak_bytes
from utils.retrieval_metrics import compute_metrics

DIMENSIONS = 512        # of the embeddings
METRICS = ('R1', 'mAP', 'mINP')


def measure_ranking(kind, sizes, setting):
    """Measure the way from embeddings to metrics, on the CPU.

    Args:
        kind: 'ours'; 'matrix', which computes all similarities at once; or 'reference'.
        sizes: the numbers of queries, gallery images and identities.
        setting: a :class:`~run_scripts.benchmark.settings.Setting`.

    Returns:
        The times, the peak memory without the embeddings, and the metrics.
    """
    rank = {'ours': rank_in_blocks, 'matrix': rank_matrix, 'reference': rank_by_reference}[kind]
    embeddings = synthetic_embeddings(*sizes)
    rank(*synthetic_embeddings(50, 500, 50))    # starts the threads
    initial_bytes = peak_bytes()
    timing, metrics = measure_time(lambda: rank(*embeddings), 'cpu', setting.repeats, setting.patience, warm_up=0)
    return {**timing, 'peak_bytes': peak_bytes() - initial_bytes, 'metrics': metrics}


def synthetic_embeddings(queries, gallery, identities):
    """Random embeddings of images near the center of their identity, and of texts near their own image.

    Returns:
        ``(texts [Q, D], images [G, D], pids of texts [Q], pids of images [G])``
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(gallery, DIMENSIONS, generator=generator)
    for start in range(identities, gallery, identities):    # in place, to keep the peak of memory low
        images[start:start + identities].add_(images[:min(identities, gallery - start)])
    indices = gallery - 1 - torch.arange(queries) % gallery
    texts = torch.randn(queries, DIMENSIONS, generator=generator).add_(images[indices], alpha=0.12)
    g_pids = torch.arange(gallery) % identities
    return texts, images, g_pids[indices], g_pids


def rank_in_blocks(texts, images, q_pids, g_pids):
    """Metrics as Pedestal computes them: from blocks of the similarity matrix."""
    metrics = evaluate_embeddings(texts, images, q_pids, g_pids)['t2i']
    return {name: metrics[name] for name in METRICS}


def rank_matrix(texts, images, q_pids, g_pids):
    """The same metrics from the full similarity matrix."""
    metrics = compute_metrics(cosine_similarities(texts, images), q_pids, g_pids)
    return {name: metrics[name] for name in METRICS}


def rank_by_reference(texts, images, q_pids, g_pids):
    cmc, mAP, mINP = reference.rank(cosine_similarities(texts, images), q_pids, g_pids)
    return {'R1': cmc[0].item(), 'mAP': mAP.item(), 'mINP': mINP.item()}


def cosine_similarities(texts, images):
    return F.normalize(texts, dim=1) @ F.normalize(images, dim=1).t()
