"""Take a run's encoders with you: ``python -m run_scripts.export --config_file <run>/configs.yaml --out model``.

Writes ``image_encoder.onnx`` and ``text_encoder.onnx`` (any batch size; their embeddings have length 1: they are normalised in the
graphs, and need not be again), the tokenizer's files and ``config.json``, and compares the embeddings with PyTorch's. ``--to huggingface``
writes a CLIP that transformers loads, of a run that is a plain one. ``--released_layout --out checkpoint_best.pth``
writes a checkpoint that the method's released code loads.
"""
import contextlib
import json
import os
import signal

import torch
import torch.nn.functional as F

from run_scripts import start
import pedestal
from run_scripts.exports.hugging_face import as_clip
from utils.checkpoint import released_weights, write_checkpoint
from utils.errors import UserError, write_error_reason
from utils.iotools import atomic_write, report_write_errors
from utils.options import build_test_parser, parse_test_options
from utils.temporary import temporary_sibling

LARGEST = 1e-4   # cosine distance between exported and own embeddings
SENTENCES = ('a woman in a red coat', 'The man wears black trousers, white sneakers and a grey hooded jacket. He carries a backpack.',
             'a child', 'an elderly person with short white hair looks into a shop window, an umbrella in the left hand')


class Encoder(torch.nn.Module):
    """One side of a model, as what is exported: inputs -> embeddings [B, D] of length 1."""

    def __init__(self, model, encode):
        super().__init__()
        self.model, self.encode = model, encode

    def forward(self, inputs):
        return F.normalize(self.encode(inputs), dim=1)


def main(argv=None):
    parser = build_test_parser('export.py', __doc__)
    parser.add_argument('--out', required=True,
                        help='the folder, or with --released_layout the file, to write; it must not be there yet')
    parser.add_argument('--to', choices=['onnx', 'huggingface'], default='onnx', help='the format')
    parser.add_argument('--released_layout', action='store_true',
                        help="write a checkpoint with the names of the method's released code, instead of encoders")
    args = parse_test_options(parser, argv)
    args.device, args.amp = 'cpu', 'off'
    if os.path.exists(args.out):
        raise UserError(f'{args.out} is there already: name a folder that is not, or remove it')
    if args.released_layout:
        write_released(pedestal.People(args), args.out)
        return
    write = {'onnx': write_onnx, 'huggingface': as_clip}[args.to]
    people = pedestal.People(args)
    with exit_on_sigterm(), report_write_errors(args.out, 'free some space, or name another folder with --out'):
        os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
        with temporary_sibling(os.path.abspath(args.out), folder=True) as folder:       # whole or not at all
            print(write(people, folder))
            os.rename(folder, args.out)
    print(f'wrote {args.out}')


def write_released(people, path):
    """Write the checkpoint of a run with the names that the method's released code loads."""
    weights = released_weights(people.model)
    epoch = {'epoch': people.checkpoint['epoch']} if 'epoch' in people.checkpoint else {}
    write_checkpoint({'model': weights, **epoch}, path)
    print(f'wrote {path}: {len(weights)} entries, named as in the released code')


@contextlib.contextmanager
def exit_on_sigterm():
    """Leave on SIGTERM as on Ctrl-C: by an exception that libraries pass on, so that the temporary folder is removed."""
    def leave(number, frame):
        raise SystemExit(128 + number)
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def import_onnx():
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError('the export needs ONNX: pip install onnx onnxruntime onnxscript') from None
    return onnxruntime


def write_onnx(people, folder):
    """Both encoders, compared with PyTorch's, and what is needed to use them; returns what the comparison found."""
    runtime, model = import_onnx(), people.model
    images = torch.rand(len(SENTENCES), 3, *people.args.img_size, generator=torch.Generator().manual_seed(0)) * 4 - 2
    ids = people.tokens(SENTENCES)
    found = []
    for name, encode, inputs in (('image', model.encode_image, images), ('text', model.encode_text, ids)):
        path, encoder = os.path.join(folder, f'{name}_encoder.onnx'), Encoder(model, encode).eval()
        field = 'images' if name == 'image' else 'ids'
        try:
            torch.onnx.export(encoder, (inputs,), path, input_names=[field], output_names=['embeddings'], dynamo=True, verbose=False,
                              dynamic_shapes={'inputs': {0: torch.export.Dim('batch', min=1)}}, external_data=False)
        except Exception as error:   # its errors have no common type
            if write_error_reason(error):
                raise
            raise UserError(f"PyTorch cannot export the {name} encoder of this run: {str(error).strip().splitlines()[0]}") from None
        session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
        found.append(difference(session, field, encoder, inputs))
    worst = max(found)
    if not worst <= LARGEST:
        raise UserError(f"the exported encoders do not give the model's embeddings: the largest cosine distance is {worst:.1e} "
                        f'(images {found[0]:.1e}, captions {found[1]:.1e}), and {LARGEST:g} is allowed; nothing is written')
    with atomic_write(os.path.join(folder, 'config.json')) as file:
        json.dump(config(people, write_tokenizer(people.tokenizer, folder)), file, indent=1)
    return f"onnxruntime's embeddings are the model's: largest cosine distance {found[0]:.1e} of images, {found[1]:.1e} of captions"


@torch.no_grad()
def difference(session, field, encoder, inputs):
    """The largest cosine distance, for batches of all, of three and of one, to PyTorch's embeddings one by one."""
    own = torch.cat([encoder(row[None]) for row in inputs])
    distances = []
    for size in (len(inputs), 3, 1):
        given = [torch.from_numpy(session.run(None, {field: piece.numpy()})[0]) for piece in inputs.split(size)]
        distances.append((1 - (own.double() * torch.cat(given).double()).sum(dim=1)).abs().max().item())
    return max(distances)


def write_tokenizer(tokenizer, folder):
    """``vocab.json`` and ``merges.txt`` of our byte-pair encoding, ``vocab.txt`` of BERT's; returns the files' names. A library's tokenizer
    comes with the library."""
    if hasattr(tokenizer, 'save'):
        tokenizer.save(os.path.join(folder, 'vocab.txt'))
        return ['vocab.txt']
    if not hasattr(tokenizer, 'ranks'):
        return []
    with atomic_write(os.path.join(folder, 'vocab.json')) as file:
        json.dump(tokenizer.encoder, file)
    with atomic_write(os.path.join(folder, 'merges.txt')) as file:
        file.write('#version: 0.2\n' + ''.join(f'{" ".join(merge)}\n' for merge in tokenizer.ranks))
    return ['vocab.json', 'merges.txt']


def config(people, tokenizer_files):
    """What somebody needs who has the graphs alone."""
    args, pixels, tokenizer = people.args, people.model.pixels, people.tokenizer
    tokens = {name: getattr(tokenizer, name, None) for name in ('start', 'end', 'pad')}
    return {
        'image': {'height': args.img_size[0], 'width': args.img_size[1], 'resize': pixels.interpolation, 'scale': '1/255',
                  'mean': list(pixels.mean), 'std': list(pixels.std), 'input': 'images float32 [batch, 3, height, width], RGB'},
        'text': {'length': args.text_length, **tokens, 'input': 'ids int64 [batch, length]',
                 'tokenizer': tokenizer_files or f'that of open_clip for {args.pretrain_choice}'},
        'embedding': {'width': people.width, 'normalised': 'once, at the end of both graphs: inner products are cosine similarities'},
        'checkpoint_sha256': people.checkpoint['sha256'], 'loss_names': args.loss_names}


if __name__ == '__main__':
    start(main)
