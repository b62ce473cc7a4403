"""Export a run's encoders as ONNX, for run_scripts/export.py."""
import json
import os
import shutil

import torch
import torch.nn.functional as F

from run_scripts.exports import MAX_DISTANCE, TEST_SENTENCES
from run_scripts.exports.tokenizer import write_tokenizer
from utils import simple_tokenizer
from utils.errors import UserError, write_error_reason
from utils.iotools import atomic_write
from utils.simple_tokenizer import CleaningTokenizer, SimpleTokenizer

EXAMPLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'onnx_example.py')
EXAMPLE_USAGE = 'python example.py "a woman in a red coat" *.jpg, in that folder, ranks photos without PyTorch'
NO_EXAMPLE = 'no example.py is written, because the captions of this backbone need another tokenizer (config.json)'


class NormalizedEncoder(torch.nn.Module):
    """One side of a model: inputs -> embeddings [B, D] of length 1."""

    def __init__(self, model, encode):
        super().__init__()
        self.model, self.encode = model, encode

    def forward(self, inputs):
        return F.normalize(self.encode(inputs), dim=1)


def supports_export():
    """Whether this PyTorch exports the encoders. The exporter of 2.6 ends with a segmentation fault."""
    return tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 7)


def import_onnx():
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError('--to onnx needs the ONNX packages: pip install onnx onnxruntime onnxscript') from None
    if not supports_export():
        raise UserError(f'--to onnx needs PyTorch 2.7 or later, because the exporter of {torch.__version__} crashes: '
                        'pip install -U torch torchvision')
    return onnxruntime


def export_encoders(people, folder):
    """Write both encoders, the tokenizer's files and config.json into a folder.

    Args:
        people: the :class:`pedestal.People` of a run.
        folder: an existing folder.

    Returns:
        A sentence about the largest difference to PyTorch's embeddings.

    Raises:
        UserError: an encoder cannot be exported for batches of any size, or the exported embeddings differ.
    """
    runtime, model = import_onnx(), people.model
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(len(TEST_SENTENCES), 3, *people.args.img_size, generator=generator) * 4 - 2
    ids = people.tokenize(TEST_SENTENCES)
    distances = []
    for name, encode, inputs, input_name in (('image', model.encode_image, images, 'images'),
                                             ('text', model.encode_text, ids, 'ids')):
        path, encoder = os.path.join(folder, f'{name}_encoder.onnx'), NormalizedEncoder(model, encode).eval()
        try:
            torch.onnx.export(encoder, (inputs,), path, input_names=[input_name], output_names=['embeddings'],
                              dynamo=True, verbose=False, external_data=False,
                              dynamic_shapes=({0: torch.export.Dim('batch', min=1)},))
            session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
            distances.append(cosine_distance(session, input_name, encoder, inputs))
        except Exception as error:   # its errors have no common type
            if write_error_reason(error):
                raise
            reason = str(error).strip().splitlines()[0]
            raise UserError(f'the {name} encoder of this run cannot be exported for batches of any size: '
                            f'{reason}') from None
    largest, (image_distance, text_distance) = max(distances), distances
    if not largest <= MAX_DISTANCE:
        raise UserError("the exported encoders do not give the model's embeddings: the largest cosine distance is "
                        f'{largest:.1e} (images {image_distance:.1e}, captions {text_distance:.1e}), above '
                        f'{MAX_DISTANCE:g}; nothing is written')
    with atomic_write(os.path.join(folder, 'config.json')) as file:
        json.dump(describe_inputs(people, write_tokenizer(people.tokenizer, folder)), file, indent=1)
    has_example = write_example(people.tokenizer, folder)
    return (f"onnxruntime's embeddings equal the model's: largest cosine distance {image_distance:.1e} of images, "
            f'{text_distance:.1e} of captions\n' + (EXAMPLE_USAGE if has_example else NO_EXAMPLE))


def write_example(tokenizer, folder):
    """Write example.py, and the tokenizer that it imports, into a folder.

    Returns:
        Whether it is written. The tokenizers of BERT and of libraries have no copy that runs by itself.
    """
    if type(tokenizer) not in (SimpleTokenizer, CleaningTokenizer):
        return False
    shutil.copyfile(EXAMPLE, os.path.join(folder, 'example.py'))
    shutil.copyfile(simple_tokenizer.__file__, os.path.join(folder, 'simple_tokenizer.py'))
    shutil.copyfile(simple_tokenizer.VOCABULARY, os.path.join(folder, simple_tokenizer.MERGES_FILE))
    return True


@torch.no_grad()
def cosine_distance(session, input_name, encoder, inputs):
    """The largest cosine distance between ONNX's embeddings, in batches of all, three and one, and PyTorch's."""
    expected = torch.cat([encoder(row[None]) for row in inputs])
    distances = []
    for size in (len(inputs), 3, 1):
        outputs = [torch.from_numpy(session.run(None, {input_name: batch.numpy()})[0]) for batch in inputs.split(size)]
        similarities = (expected.double() * torch.cat(outputs).double()).sum(dim=1)
        distances.append((1 - similarities).abs().max().item())
    return max(distances)


def describe_inputs(people, tokenizer_files):
    """The content of config.json: how to prepare inputs for the encoders."""
    args, stats, tokenizer = people.args, people.model.image_stats, people.tokenizer
    tokens = {name: getattr(tokenizer, f'{name}_id', None) for name in ('start', 'end', 'pad')}
    return {
        'image': {'height': args.img_size[0], 'width': args.img_size[1], 'resize': stats.interpolation,
                  'scale': '1/255', 'mean': list(stats.mean), 'std': list(stats.std),
                  'input': 'images float32 [batch, 3, height, width], RGB'},
        'text': {'length': args.text_length, **tokens, 'input': 'ids int64 [batch, length]',
                 'class': type(tokenizer).__name__,
                 'tokenizer': tokenizer_files or f'that of open_clip for {args.pretrain_choice}'},
        'embedding': {'width': people.embedding_dim,
                      'normalised': 'once, at the end of both graphs: inner products are cosine similarities'},
        'checkpoint_sha256': people.checkpoint['sha256'], 'loss_names': args.loss_names}
