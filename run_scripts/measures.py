"""What run_scripts/benchmark.py measures. Each ``measure_...`` runs in a process of its own and returns what it found as a dict."""
import contextlib
import functools
import itertools
import os
import platform
import random
import resource
import statistics
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import PIL
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.data import DataLoader

from datasets import build_dataloader
from datasets.bases import TextDataset, default_tokenizer
from datasets.build import workers
from datasets.masking import mask_tokens
from datasets.synthpedes import generate
from datasets.transforms import draw_view
from model import build_model
from model.clip_model import MLP, Attention, QuickGELU, attention_weights
from model.clip_weights import shape_named
from processor.processor import Trainer
from run_scripts import released_way
from solver import build_optimizer
from utils import precision
from utils.comm import pick_device
from utils.metrics import embed, retrieval_results, summary
from utils.options import get_args
from utils.seeding import seed_all
from utils.simple_tokenizer import MASK
from utils.views import finish

RECIPE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'configs', 'irra', 'cuhk-pedes.yaml')
IDENTITIES = 11003      # of CUHK-PEDES' training split
DIMENSIONS = 512        # of the embeddings that are ranked
WORDS = ('a the man woman is wearing with and of in his her has black white red blue grey green short long hair shirt jacket coat dress '
         'jeans trousers shorts shoes sneakers boots bag backpack carrying walking forward hand over shoulder while looking down').split()


@dataclass(frozen=True)
class Setting:
    """The sizes, the device and the precision."""
    shape: str              # of configs/clip
    batch_size: int
    batches: int            # different ones
    steps: int              # that are timed together
    repeats: int
    images: int             # that are encoded
    captions: int
    ids: int                # in the dataset that is read, with 4 images each
    rankings: tuple         # (name, queries, gallery, identities)
    patience: float = 60    # seconds of measuring after which nothing is repeated further
    quick: bool = False
    device: str = 'cpu'
    amp: str = 'auto'

    @property
    def on_gpu(self):
        return torch.device(self.device).type == 'cuda'

    @property
    def pace(self):
        return self.device, self.repeats, self.patience


@dataclass(frozen=True)
class Way:
    """A way to train: flags of train.py, or a function that takes an optimisation out of our trainer again."""
    name: str
    flags: tuple = ()
    switch: object = None
    released: bool = False
    cached: bool = False      # batches as the image cache yields them
    gpu_only: bool = False    # it does nothing on a CPU


def recipe(setting, *flags):
    """The options of IRRA's recipe."""
    return get_args(['--config_file', RECIPE, '--pretrain_choice', f'scratch:{setting.shape}', '--batch_size', str(setting.batch_size),
                     '--device', setting.device, '--amp', setting.amp, *flags])


def timed(once, device, repeats, patience, warm_up=1):
    """``({'seconds': of each repeat of once(), 'others': the share of the cores that other processes took meanwhile}, what it returned
    last)``. ``patience``: seconds after which there is no further repeat."""
    for _ in range(warm_up):
        once()
    seconds, busy, start = [], busy_elsewhere(), time.perf_counter()
    while not seconds or len(seconds) < repeats and sum(seconds) < patience:
        wait_for(device)
        began = time.perf_counter()
        result = once()
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    others = (busy_elsewhere() - busy) / (time.perf_counter() - start) / cores()
    return {'seconds': seconds, 'others': max(others, 0.0)}, result


def busy_elsewhere():
    """Seconds that the cores have worked for other processes; 0 where the system does not say, or has cores that are not for us."""
    if cores() == os.cpu_count():
        with contextlib.suppress(OSError), open('/proc/stat', encoding='utf-8') as file:
            user, nice, kernel, _, _, *interrupts = map(int, file.readline().split()[1:9])
            return (user + nice + kernel + sum(interrupts)) / os.sysconf('SC_CLK_TCK') - time.process_time()
    return 0.0


def wait_for(device):
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)


def peak_bytes(device='cpu'):
    """The most memory that this process has held so far, or that its tensors on a GPU have."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


# -- the machine ---------------------------------------------------------------------------------------------------------

def describe_machine(device, amp):
    """Raises UserError for a device that isn't there and a precision that it lacks."""
    device = pick_device(device)
    dtype = precision.amp_dtype(amp, device) or torch.float32
    on_gpu = {}
    if device.type == 'cuda':
        on_gpu = {'gpu': torch.cuda.get_device_name(device), 'gpu_memory': torch.cuda.get_device_properties(device).total_memory}
    return {'device': str(device), 'precision': name_of(dtype), 'cpu': cpu_name(), 'cores': cores(), 'threads': torch.get_num_threads(),
            'memory': physical_memory(), **on_gpu, 'system': f'{platform.system()} {platform.machine()}', **matrix_rate(device),
            'versions': {'python': platform.python_version(), 'torch': torch.__version__, 'torchvision': torchvision.__version__,
                         'numpy': np.__version__, 'pillow': PIL.__version__}}


def name_of(dtype):
    return str(dtype).removeprefix('torch.')


def cpu_name():
    with contextlib.suppress(OSError), open('/proc/cpuinfo', encoding='utf-8') as file:
        for line in file:
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def physical_memory():
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def free_memory():
    """Bytes that a new process can have."""
    with contextlib.suppress(OSError), open('/proc/meminfo', encoding='utf-8') as file:
        for line in file:
            if line.startswith('MemAvailable:'):
                return int(line.split()[1]) * 1024
    return physical_memory()


def matrix_rate(device):
    """FLOP/s of a large product of matrices at its quickest: in bf16 on a GPU, in float32 on a CPU."""
    size, dtype, times = (8192, torch.bfloat16, 20) if device.type == 'cuda' else (2048, torch.float32, 1)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def multiply():
        for _ in range(times):
            a @ b
    timing, _ = timed(multiply, device, repeats=20, patience=60)
    return {'matrix_rate': times * 2 * size ** 3 / min(timing['seconds']), 'matrix_precision': name_of(dtype)}


# -- the training step ---------------------------------------------------------------------------------------------------

def measure_step(way, setting):
    batches = synthetic_batches(setting, way)
    cycle, before = itertools.cycle(batches), peak_bytes(setting.device)
    step = (released_step if way.released else our_step)(setting, way)

    def steps():
        for batch in itertools.islice(cycle, setting.steps):
            step(batch)
    timing, _ = timed(steps, *setting.pace, warm_up=2)   # memory settles in the second
    flops = step_flops(recipe(setting), words_chosen(batches))
    return {**timing, 'samples': setting.batch_size * setting.steps, 'steps': setting.steps,
            'peak_bytes': peak_bytes(setting.device) - before, 'model_flops': sum(flops.values())}


def our_step(setting, way):
    """A function that trains on a batch, as :meth:`Trainer.train_epoch` does."""
    trainer = new_trainer(recipe(setting, *way.flags), way.switch)

    def step(batch):
        trainer.step += 1
        trainer.train_step(batch)
        if trainer.step % trainer.look_every == 0:
            trainer.look()
    return step


def new_trainer(args, switch=None):
    model = new_model(args).train()
    trainer = Trainer(args, model, None, None, build_optimizer(args, model), None, None)
    if switch:
        switch(trainer)
    return trainer


def new_model(args):
    seed_all(args.seed)
    return build_model(args, IDENTITIES).to(args.device)


def released_step(setting, way):
    args = recipe(setting)
    return released_way.ReleasedTrainer(args, new_released_model(args).train()).train_step


def new_released_model(args):
    """With the weights of ours; in half precision on a GPU."""
    model = released_way.ReleasedIRRA(args, new_model(args))
    return model.half_weights() if torch.device(args.device).type == 'cuda' else model


def synthetic_batches(setting, way=Way('ours')):
    """Batches as the way's training loader yields them; all ways get the same."""
    args, rng, generator = recipe(setting), random.Random(0), torch.Generator().manual_seed(0)
    batches = []
    for _ in range(setting.batches):
        ids, labels = masked_captions(args.batch_size, args.text_length, rng)
        images = torch.randint(256, (args.batch_size, 3, *args.img_size), generator=generator, dtype=torch.uint8)
        views = torch.stack([draw_view(args.img_size, args.img_aug, rng.getrandbits(60)) for _ in range(args.batch_size)])
        batch = {'pids': torch.randint(IDENTITIES, (args.batch_size,), generator=generator), 'image_ids': torch.arange(args.batch_size),
                 'caption_ids': ids, 'mlm_labels': labels}
        batch.update({'images': images, 'views': views} if way.cached else {'images': finish(images, views)})
        batch.update({'mlm_ids': ids.clone()} if way.released else {})
        batches.append({name: pinned(value, setting) for name, value in batch.items()})
    return batches


def pinned(tensor, setting):
    """As loaders hand it over where there is a GPU."""
    return tensor.pin_memory() if setting.on_gpu else tensor


def captions(number, rng):
    """Sentences of 20 to 40 words, each of which is one token."""
    return [' '.join(rng.choices(WORDS, k=rng.randint(20, 40))) for _ in range(number)]


def masked_captions(number, text_length, rng):
    """(token ids, labels), [number, L] each, masked in place as the recipe has it."""
    tokens = TextDataset([0] * number, captions(number, rng), text_length).tokens
    masked = [mask_tokens(ids, rng, default_tokenizer().encoder[MASK]) for ids in tokens.tolist()]
    return torch.tensor([ids for ids, _ in masked]), torch.tensor([labels for _, labels in masked])


HELD = 64   # samples whose memory is added up: the recipe's batch


def count_memory(way, setting):
    """Bytes of a way to train, counted in the precision of a GPU on any device: of weights, gradients and the optimizer's state, and
    what the forward pass keeps for the gradient: once, and for each sample."""
    setting = replace(setting, device='cpu', amp='bf16', batches=1)
    args = recipe(setting, *way.flags)
    model = new_released_model(args).half_weights() if way.released else new_trainer(args, way.switch).model
    few, more = (kept_bytes(model, *synthetic_batches(replace(setting, batch_size=size), way)) for size in (2, 6))
    sample = (more - few) // 4
    once, held = few - 2 * sample, args.micro_batch or HELD
    state = sum(4 * parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)   # Adam has two moments
    return {'state_bytes': state, 'once_bytes': once, 'sample_bytes': sample, 'held': held, 'total_bytes': state + once + held * sample}


def kept_bytes(model, batch):
    """Bytes that a forward pass keeps for the gradient, parameters aside."""
    own, kept = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage   # held, so that no other one gets its address
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    return sum(storage.nbytes() for storage in kept.values())


def step_flops(args, words):
    """``{part: FLOPs}`` that the products of matrices in one training step of the recipe need, forward and backward. A multiplication
    and an addition are two, nothing is computed twice, mlm scores the ``words`` chosen alone, and attention counts the whole square."""
    shape = shape_named(args.pretrain_choice)
    width, patch, batch, length = shape.embed_dim, shape.vision_patch_size, args.batch_size, args.text_length
    rows, columns = ((size - patch) // args.stride_size + 1 for size in args.img_size)
    tokens = 1 + rows * columns

    def blocks(layers, length, width):
        return layers * (24 * length * width ** 2 + 4 * length ** 2 * width)
    convolution = 2 * rows * columns * 3 * patch ** 2 * shape.vision_width
    image = blocks(shape.vision_layers, tokens, shape.vision_width) + 2 * tokens * shape.vision_width * width
    text = blocks(shape.text_layers, length, shape.text_width) + 2 * length * shape.text_width * width
    cross = 4 * (length + tokens) * width ** 2 + 4 * length * tokens * width + blocks(args.cmt_depth, length, width)
    heads = (2 * words * (width ** 2 + width * args.vocab_size)        # mlm
             + 4 * batch * width * IDENTITIES + 2 * batch ** 2 * width)  # id, sdm
    # Backward is twice the forward: for the inputs and for the weights. The images need no gradient.
    return {'image encoder': batch * (3 * image + 2 * convolution), 'text encoder': 3 * batch * text, 'cross encoder': 3 * batch * cross,
            'heads and losses': 3 * heads}


def words_chosen(batches):
    """How many words mlm is asked for in a batch, on average."""
    return statistics.mean(int((batch['mlm_labels'] > 0).sum()) for batch in batches)


# -- optimisations, taken out of a trainer again -------------------------------------------------------------------------

def score_all_positions(trainer):
    """mlm's scores at all positions; its loss then ignores those where no word was chosen."""
    for head in trainer.model.heads:
        if 'mlm' in head.names:
            head.forward = functools.partial(mlm_everywhere, head)


def mlm_everywhere(head, encoded, batch):
    labels = batch['mlm_labels'].flatten()                                                                        # [B L]
    scores = head.mlm_head(head.cross(encoded.masked_text_tokens, encoded.image_tokens)).float().flatten(0, 1)    # [B L, V]
    return {'mlm_loss': head.weight * released_way.scored_everywhere(scores, labels),
            'mlm_acc': released_way.accuracy_of_chosen(scores, labels)}


def pass_twice(trainer):
    """A text pass for mlm beside the one for retrieval, although both read the same masked captions."""
    prepare = trainer.model.prepare

    def with_mlm_ids(batch):
        batch = prepare(batch)
        return {**batch, 'mlm_ids': batch['caption_ids']}
    trainer.model.prepare = with_mlm_ids


def attend_by_maps(trainer):
    for part in trainer.model.modules():
        if isinstance(part, Attention):
            part.forward = functools.partial(attention_by_map, part)


def attention_by_map(attention, query, keys=None, values=None, causal=False, need_map=False):
    q, k, v = (attention._split(x) for x in attention._project(query, keys, values))    # [B, H, L, D/H] each
    out = attention_weights(q, k, causal).to(v.dtype) @ v
    return attention.out_proj(out.transpose(1, 2).flatten(2)), None


def group_each_parameter(trainer):
    trainer.optimizer = released_way.build_optimizer(trainer.args, trainer.model)


def keep_activations(trainer):
    """What is between a block's two linear layers is kept for the gradient instead of being computed again."""
    for part in trainer.model.modules():
        if isinstance(part, MLP):
            part.forward = functools.partial(nn.Sequential.forward, part)


def multiply_sigmoid(trainer):
    """QuickGELU as it is written, which has to keep what is between the linear layers."""
    keep_activations(trainer)
    for part in trainer.model.modules():
        if isinstance(part, QuickGELU):
            part.forward = functools.partial(released_way.QuickGELU.forward, part)


def prepare_nothing(trainer):
    """What could be looked up on the host is found on the device, which has to be waited for."""
    trainer.model.prepare = lambda batch: batch


def read_each_step(trainer):
    train_step = trainer.train_step

    def then_read(batch):
        train_step(batch)
        *_, values = trainer.unseen[-1]
        released_way.read_and_wait(values[0])
    trainer.train_step = then_read


# -- where a step's time goes --------------------------------------------------------------------------------------------

def measure_profile(setting):
    """``{'parts': [...], 'operators': [...]}``: a step's time by part, on the device's own clock, and its work by operator."""
    trainer, batches = new_trainer(recipe(setting)), synthetic_batches(setting)
    steps = max(setting.steps, setting.repeats)
    for batch in batches[:3]:
        trainer.train_step(batch)
    watch = Watch(trainer)
    for batch in itertools.islice(itertools.cycle(batches), steps):
        trainer.train_step(batch)
    parts = {name: seconds / steps for name, seconds in watch.parts().items()}
    watch.leave()
    operators = by_operator(trainer, batches[:3], setting)
    whole, work = sum(parts.values()), max(sum(seconds for _, seconds, _ in operators), 1e-12)
    if setting.on_gpu:
        parts['(of all that, the GPU is at work)'] = work
    return {'parts': [{'group': name, 'seconds': [seconds], 'share': seconds / whole} for name, seconds in parts.items()],
            'operators': [{'group': name, 'what': what_costs(name), 'seconds': [seconds], 'share': seconds / work, 'calls': calls}
                          for name, seconds, calls in operators[:12]]}


class Watch:
    """Notes when the parts of a trainer's steps begin and end: on a GPU by events in its stream, for which nothing waits."""

    def __init__(self, trainer):
        self.on_gpu, self.spans, self.watched = trainer.device.type == 'cuda', {}, []
        model = trainer.model
        self.watch('step', trainer, 'train_step')
        self.watch('passes', trainer, 'backward')
        self.watch('forward', model, 'forward')
        self.watch('image encoder', model.base_model, 'encode_image')
        self.watch('text encoder', model.base_model, 'encode_text')
        self.watch('cross encoder', next(head.cross for head in model.heads if hasattr(head, 'cross')), 'forward')
        self.watch('optimizer', trainer.optimizer, 'step')

    def watch(self, name, owner, method):
        real = getattr(owner, method)

        @functools.wraps(real)
        def noted(*arguments, **settings):
            began = self.now()
            result = real(*arguments, **settings)
            self.spans.setdefault(name, []).append((began, self.now()))
            return result
        setattr(owner, method, noted)
        self.watched.append((owner, method))

    def leave(self):
        for owner, method in self.watched:
            delattr(owner, method)

    def now(self):
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, one, end, other, other_end):
        """Seconds from the beginning (0) or end (1) of all spans ``one`` to that of the spans ``other``."""
        pairs = zip(self.spans[one], self.spans[other])
        if not self.on_gpu:
            return sum(b[other_end] - a[end] for a, b in pairs)
        torch.cuda.synchronize()
        return sum(a[end].elapsed_time(b[other_end]) for a, b in pairs) / 1000

    def parts(self):
        """``{part: seconds}``, which add up to those of the steps."""
        inside = {name: self.between(name, 0, name, 1) for name in ('image encoder', 'text encoder', 'cross encoder')}
        found = {'preparing and moving the batch': self.between('passes', 0, 'forward', 0), **inside,
                 'heads and losses': self.between('forward', 0, 'forward', 1) - sum(inside.values()),
                 'backward': self.between('forward', 1, 'passes', 1), 'optimizer': self.between('optimizer', 0, 'optimizer', 1)}
        return {**found, 'the rest': self.between('step', 0, 'step', 1) - sum(found.values())}


def by_operator(trainer, batches, setting):
    """[(operator, seconds a step, calls a step)] of PyTorch's profiler, the costliest first; on a GPU the seconds of its kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * setting.on_gpu
    with torch.profiler.profile(activities=activities) as profile:
        for batch in batches:
            trainer.train_step(batch)
        wait_for(trainer.device)
    # Kernels are listed again beside the operators that started them.
    events = [event for event in profile.key_averages() if event.device_type == torch.autograd.DeviceType.CPU]
    found = [(event.key, (event.self_device_time_total if setting.on_gpu else event.self_cpu_time_total) / 1e6 / len(batches),
              event.count / len(batches)) for event in events]
    return sorted(found, key=lambda one: -one[1])


COSTS = {  # the first part of an operator's name that fits says what it is
    'attention': 'attention', 'layer_norm': 'LayerNorm', 'silu': 'QuickGELU', 'adam': 'optimizer', 'addmm': 'linear layers, forward',
    'bmm': 'products of batches of matrices', 'mm': 'linear layers, backward', 'convolution': 'patches', 'copy_': 'copies and casts',
    'softmax': 'softmax', 'embedding': 'word embeddings', 'add': 'sums: residuals, gradients', 'mul': 'products of numbers',
    'sum': 'gradients of biases', 'fill_': 'zeros', 'index': 'indexing', 'cat': 'concatenation', 'select': 'indexing'}


def what_costs(operator):
    return next((words for part, words in COSTS.items() if part in operator.lower()), '')


# -- reading -------------------------------------------------------------------------------------------------------------

def make_dataset(root, ids):
    """In CUHK-PEDES' format; one further identity is for the test split, which loaders want."""
    generate(root, ids + 1, 4, size=(384, 128), format='CUHK-PEDES', val_ids=0, test_ids=1, progress=False)
    return {}


def measure_reading(kind, root, setting):
    """Epochs of a training loader, its batches brought to the device: from 'jpeg' files, from the image 'cache', from it and
    'finished' there, or the 'released' way."""
    cache = ['--image_cache', os.path.join(root, 'cache')] if kind in ('cache', 'finished') else []
    args = recipe(setting, '--root_dir', root, *cache)
    loader = build_dataloader(args)[0]
    samples = loader.dataset.dataset
    stored = sum(os.path.getsize(path) for _, _, path, _ in samples) / len(samples)
    if cache:
        stored = 3 * args.img_size[0] * args.img_size[1]
    if kind == 'released':
        loader = released_way.training_loader(samples, args.img_size, args.batch_size, workers(args))

    def epoch():
        passed = 0
        for batch in loader:
            passed += sum(value.nbytes for value in batch.values())
            batch = {name: value.to(setting.device, non_blocking=True) for name, value in batch.items()}
            if kind == 'finished':
                finish(batch['images'], batch['views'])
        return passed
    timing, passed = timed(epoch, *setting.pace)      # its others are the loader's workers
    return {'seconds': timing['seconds'], 'samples': len(samples), 'workers': loader.num_workers,
            'stored_bytes': stored, 'passed_bytes': passed / len(samples)}


# -- encoding ------------------------------------------------------------------------------------------------------------

def measure_encoding(side, kind, setting):
    """'images' or 'captions' to embeddings: 'ours', or without one thing: images from the 'cache', captions in the annotation's
    'order' or 'whole', '--amp off'; or the 'released' way."""
    args = recipe(setting, *(['--amp', 'off'] if kind == '--amp off' else []))
    model = (new_released_model(args) if kind == 'released' else new_model(args)).eval()
    if side == 'images':
        encode, loader = model.encode_image, image_batches(args, setting, kind == 'cache')
    else:
        encode, loader = model.encode_text, caption_loader(args, setting)
    if kind == 'order':
        loader = list(loader)                                  # of which embed() does not know that it may choose the order
    if kind == 'whole':
        model.without_padding = lambda caption_ids: caption_ids
    if kind == 'released':
        batches = [pinned(batch, setting) for _, batch in loader]
        timing, _ = timed(lambda: released_way.embed(encode, batches, setting.device), *setting.pace)
    else:
        timing, _ = timed(lambda: embed(encode, loader, model), *setting.pace)
    return {**timing, 'samples': getattr(setting, side)}


def image_batches(args, setting, cached):
    """[(pids, images)] of --test_batch_size. The images of one batch do for all."""
    shape, generator = (min(args.test_batch_size, setting.images), 3, *args.img_size), torch.Generator().manual_seed(0)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    images = pinned(images if cached else finish(images), setting)
    sizes = [min(len(images), setting.images - start) for start in range(0, setting.images, len(images))]
    return [(torch.zeros(size, dtype=torch.long), images[:size]) for size in sizes]


def caption_loader(args, setting):
    texts = captions(setting.captions, random.Random(0))
    batch_size = min(args.test_batch_size, len(texts) // 4 or 1)   # several, for their order to matter
    return DataLoader(TextDataset([0] * len(texts), texts, args.text_length), batch_size)


# -- ranking -------------------------------------------------------------------------------------------------------------

def measure_ranking(kind, sizes, setting):
    """From embeddings to R1, mAP and mINP, on the CPU: seconds, and the memory beyond the embeddings."""
    rank = {'ours': rank_ours, 'matrix': rank_matrix, 'released': rank_released}[kind]
    embeddings = synthetic_embeddings(*sizes)
    rank(*synthetic_embeddings(50, 500, 50))    # starts the threads
    before = peak_bytes()
    timing, figures = timed(lambda: rank(*embeddings), 'cpu', setting.repeats, setting.patience, warm_up=0)
    return {**timing, 'peak_bytes': peak_bytes() - before, 'figures': figures}


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
