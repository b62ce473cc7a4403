"""Export the encoders of a run.

    python -m run_scripts.export --config_file <run>/configs.yaml --out model
    python -m run_scripts.export --config_file <run>/configs.yaml --to huggingface --out model
    python -m run_scripts.export --config_file <run>/configs.yaml --to full --merge --out merged
    python -m run_scripts.export --config_file <run>/configs.yaml --released_layout \\
        --out checkpoint_best.pth

--to onnx writes a folder with image_encoder.onnx, text_encoder.onnx, the tokenizer's files and config.json. The
encoders accept any batch size. Their embeddings are normalized to length 1. example.py in the folder ranks photos for
a description with onnxruntime alone. --to huggingface writes a CLIP that
transformers loads, if the run is a plain CLIP. --to full writes a run's folder whose best.pth holds the whole model,
for a run with --tuning, whose own best.pth holds only what it trained. --merge then adds LoRA to the pretrained
weights. All three compare the exported embeddings with PyTorch's. --released_layout writes a checkpoint that the
reference implementation of the method loads.
"""
import contextlib
import functools
import os
import signal
import sys

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from utils.declarations import retry_with_pytorch
from utils.errors import UserError, run_program
from utils.iotools import report_write_errors
from utils.options import (REPORT_OPTIONS, RERANK_OPTIONS, SPLIT_OPTIONS, build_test_parser, parse_test_options,
                           replace_options)
from utils.temporary import temporary_sibling


def main(argv=None):
    args = replace_options(read_options(argv), device='cpu', amp='off')
    if os.path.exists(args.out):
        raise UserError(f'--out {args.out} already exists: choose another name, or remove it')
    if args.released_layout and (args.merge or args.to != 'onnx'):
        raise UserError('--released_layout writes a checkpoint and reads neither --to nor --merge: remove them')
    if args.merge and args.to != 'full':
        raise UserError('--merge is for --to full: give both, and export the merged run after that')
    import pedestal
    if args.released_layout:
        write_reference_checkpoint(pedestal.People(args), args.out)
        return
    from run_scripts.exports import full, hugging_face, onnx
    export = {'onnx': onnx.export_encoders, 'huggingface': hugging_face.export_clip,
              'full': functools.partial(full.export_run, merge=args.merge)}[args.to]
    people = pedestal.People(args)
    with exit_on_sigterm(), report_write_errors(args.out, 'free some space, or name another folder with --out'):
        os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)
        with temporary_sibling(os.path.abspath(args.out), folder=True) as folder:   # --out is complete or absent
            print(export(people, folder))
            os.rename(folder, args.out)
    print(f'wrote {args.out}')


@retry_with_pytorch
def read_options(argv):
    parser = build_test_parser('export.py', __doc__, (*RERANK_OPTIONS, *REPORT_OPTIONS, *SPLIT_OPTIONS, 'device', 'amp',
                                                      'test_batch_size', 'output_dir'))
    parser.add_argument('--out', required=True,
                        help='folder to write, or file with --released_layout; it must not exist yet')
    parser.add_argument('--to', choices=['onnx', 'huggingface', 'full'], default='onnx',
                        help="format of the encoders; full: a run's folder with a checkpoint of the whole model")
    parser.add_argument('--merge', action='store_true',
                        help='add the LoRA of --tuning lora to the pretrained weights, for --to full')
    parser.add_argument('--released_layout', action='store_true',
                        help="write a checkpoint with the reference implementation's parameter names")
    return parse_test_options(parser, argv)


def write_reference_checkpoint(people, path):
    """Write a run's checkpoint with the parameter names of the method's reference implementation."""
    from utils.checkpoint import reference_state_dict, write_checkpoint
    weights = reference_state_dict(people.model)
    epoch = {'epoch': people.checkpoint['epoch']} if 'epoch' in people.checkpoint else {}
    write_checkpoint({'model': weights, **epoch}, path)
    print(f'wrote {path}: {len(weights)} parameters, named as in the reference implementation')


@contextlib.contextmanager
def exit_on_sigterm():
    """Exit on SIGTERM as on Ctrl-C: by an exception, so that the temporary folder is removed."""
    def exit_program(number, frame):
        raise SystemExit(128 + number)
    previous = signal.signal(signal.SIGTERM, exit_program)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == '__main__':
    run_program(main)
