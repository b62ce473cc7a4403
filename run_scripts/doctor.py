"""Check the machine, the dataset and the weights, and measure a step of a recipe.

    python -m run_scripts.doctor --config_file configs/irra.yaml --root_dir data
    python -m run_scripts.doctor --out doctor.json            # attach the file to a report
    python -m run_scripts.doctor --rows a.json b.json         # rows of the table in docs/performance.md

All other options are those of train.py. The default recipe is IRRA's. The doctor

    - checks Python, PyTorch, driver, GPU, NCCL, cores, memory, /dev/shm, disk and the limit of open files;
    - compares the dataset's counts with the published ones, reads some images, and verifies the weights' checksum;
    - compares a training step and an evaluation batch in each precision with float32 on the CPU;
    - measures memory, the time of a step and the reading of images, and estimates the whole run;
    - advises on batch size, --micro_batch, --grad_checkpoint, --image_cache and --num_workers.

Synthetic images replace a missing dataset, and random weights missing ones. The doctor downloads nothing.

The JSON file holds the hardware, the versions, the options, the checks and the measurements. It holds no images, no
captions and no names of users or hosts; folders are replaced by names such as <root_dir>.

The exit status is 0 if no check failed, else 1.
"""
import datetime
import json
import os
import sys

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from run_scripts import ROOT
from run_scripts.benchmark.child import preload
from utils.errors import UserError, run_program
from utils.iotools import atomic_write, read_json
from utils.options import Parser, get_args


def main(argv=None):
    own, words = build_doctor_parser().parse_known_args(list(sys.argv[1:] if argv is None else argv))
    if own.rows:
        from run_scripts.diagnosis.report import format_table
        print(format_table([read_report(path) for path in own.rows]))
        return 0
    if not any(word.split('=')[0] == '--config_file' for word in words):
        words = ['--config_file', os.path.join(ROOT, 'configs', 'irra.yaml'), *words]
    args = get_args(words)      # wrong options are reported before anything is measured
    if own.out:
        check_writable(own.out)
    # imported here, because it imports PyTorch
    from run_scripts.diagnosis.examination import Examination
    from run_scripts.diagnosis.report import describe_paths
    from run_scripts.diagnosis.check import hide_paths
    preload('run_scripts.diagnosis.step')
    examination = Examination(args, words)
    examination.run()
    if own.out:
        now = datetime.datetime.now(datetime.timezone.utc)
        content = {'date': now.isoformat(timespec='seconds'), **examination.as_dict()}
        with atomic_write(own.out) as file:
            json.dump(hide_paths(content, describe_paths(args)), file, indent=1)
        print(f'written: {own.out}')
    return 1 if examination.has_failed else 0


def build_doctor_parser():
    parser = Parser(prog='doctor.py', description=__doc__,
                    usage='%(prog)s [--out FILE] [--config_file RECIPE] [--<option of train.py> VALUE ...]')
    parser.add_argument('--out', metavar='FILE', help='JSON file of all checks and measurements, for a report')
    parser.add_argument('--rows', nargs='+', metavar='FILE',
                        help='JSON files of --out, whose rows of the table in docs/performance.md are printed; nothing '
                             'is measured')
    return parser


def check_writable(path):
    """Raise :class:`UserError` if a file cannot be written, before minutes of measurement."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK) or os.path.isdir(path):
        raise UserError(f'--out {path}: cannot write into {folder}; choose another file')


def read_report(path):
    """Read the JSON file of --out. Raises :class:`UserError` if it is another file."""
    content = read_json(path)
    if not isinstance(content, dict) or not {'machine', 'options', 'measurements'} <= content.keys():
        raise UserError(f'{path} is no file of --out: run python -m run_scripts.doctor --out {path}')
    return content


if __name__ == '__main__':
    run_program(main)
