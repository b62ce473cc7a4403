"""Published results beside measured ones: ``python run_scripts/reproduce_tables.py --logs logs/ [--root_dir data]``.

Every folder below --logs with a configs.yaml is a run. Its best.pth is evaluated on the test split of its own dataset (or its
metrics.json is taken, if that is of the same checkpoint) and set beside the row of configs/published/<dataset>.yaml with its
losses and backbone. A run whose embeddings depend on the batch has a second row: the same, one by one. A folder that cannot be
evaluated is a row that says why.
"""
import argparse
import os
import re
import sys
from dataclasses import dataclass, field

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from datasets import build_dataloader  # noqa: E402
from model.heads import parse_loss_names  # noqa: E402
from processor.report import ONE_BY_ONE, evaluate, load_trained, save_results  # noqa: E402
from utils.checkpoint import sha256_of  # noqa: E402
from utils.errors import UserError, run  # noqa: E402
from utils.iotools import read_json  # noqa: E402
from utils.options import build_test_parser, parse_test_options, read_yaml  # noqa: E402
from utils.tables import FIGURES, FORMATS  # noqa: E402

PUBLISHED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'configs', 'published')
HEADER = ['run', 'method', *FIGURES, 'note']


@dataclass
class Row:
    run: str
    dataset: str = 'not evaluated'
    method: str = ''                                  # as the published row names it; '' where there is none
    measured: dict = field(default_factory=dict)      # {'R1': percent, ...}
    published: dict = field(default_factory=dict)     # the same, without what the paper doesn't give
    note: str = ''

    def cell(self, figure):
        """'measured / published (difference)', as far as there are such."""
        if figure not in self.measured:
            return '-'
        measured, published = self.measured[figure], self.published.get(figure)
        return f'{measured:.2f}' if published is None else f'{measured:.2f} / {published:.2f} ({measured - published:+.2f})'

    def cells(self):
        return [self.run, self.method or '-', *map(self.cell, FIGURES), self.note]


def main(argv=None):
    parser = argparse.ArgumentParser(prog='reproduce_tables.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--logs', default='logs', help="the folder with the runs' folders, at any depth")
    parser.add_argument('--root_dir', help="the folder with the datasets' folders (default: as in the runs' configs)")
    parser.add_argument('--device', help='auto, cpu, cuda or cuda:<n> (default: as in the configs)')
    parser.add_argument('--format', nargs='+', choices=FORMATS, default=['text'], help='how the tables are printed')
    args = parser.parse_args(argv)
    overrides = [word for name in ('root_dir', 'device') if getattr(args, name) for word in (f'--{name}', getattr(args, name))]
    rows = [row for folder in run_folders(args.logs) for row in rows_of(folder, args.logs, overrides)]
    for name in args.format:
        print('\n\n'.join(FORMATS[name](title(dataset), HEADER, [row.cells() for row in rows if row.dataset == dataset])
                          for dataset in dict.fromkeys(row.dataset for row in rows)))


def title(dataset):
    return f'{dataset}: measured / published (difference), in percent'


def run_folders(logs):
    """The folders with a configs.yaml, in order."""
    if not os.path.isdir(logs):
        raise UserError(f'no folder {logs}: point --logs at the folder that holds the runs')
    folders = sorted(folder for folder, _, files in os.walk(logs) if 'configs.yaml' in files)
    if not folders:
        raise UserError(f'no run below {logs}: a run is a folder with a configs.yaml and a best.pth')
    return folders


def rows_of(folder, logs, overrides=()):
    """A run's row; two where its embeddings depend on the batch; or the one that says why there are no figures."""
    row = Row(os.path.relpath(folder, logs))
    try:
        args = parse_test_options(build_test_parser('reproduce_tables.py', ''),
                                  ['--config_file', os.path.join(folder, 'configs.yaml'), *overrides])
        row.dataset = args.dataset_name
        published = published_row(args)
        row.method = published.get('method', '')
        row.published = {figure: value for figure, value in zip(FIGURES, published.get('values', ())) if value is not None}
        tables, independent = kept_results(args) or evaluated(args)
    except Exception as error:  # one broken run must not cost the table of all the others
        row.note = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
        return [row]
    row.measured = next(iter(tables.values()))['t2i']
    if independent:
        return [row]
    row.note = 'EMBEDDINGS DEPEND ON THE BATCH'
    return [row, Row(f'{row.run}, one by one', row.dataset, row.method, tables[ONE_BY_ONE]['t2i'], row.published)]


def kept_results(args):
    """({how: {task: summary}}, independent) of the metrics.json beside the checkpoint if it is of that checkpoint; else None."""
    try:
        content = read_json(os.path.join(os.path.dirname(args.checkpoint), 'metrics.json'))
        of_this = (content['produced_by']['checkpoint_sha256'], content['produced_by']['dataset']) == \
            (sha256_of(args.checkpoint), args.dataset_name)
        tables, independent = content['results'], content['independence']['holds']
        whole = all(figure in table['t2i'] for table in tables.values() for figure in FIGURES)
    except (UserError, KeyError, TypeError, AttributeError):  # there is none, or it is of another time or program
        return None
    return (tables, independent) if of_this and tables and whole and (independent or ONE_BY_ONE in tables) else None


def evaluated(args):
    """({how: {task: summary}}, independent) of the checkpoint on the test split, kept as metrics.json."""
    print(f'evaluating {args.checkpoint} on {args.dataset_name}', file=sys.stderr)
    img_loader, txt_loader, num_classes = build_dataloader(args)
    model, checkpoint = load_trained(args, num_classes)
    report = evaluate(args, model, img_loader, txt_loader, checkpoint)
    save_results(report, args)
    return report.tables, report.independent


# -- which published row a run belongs to --------------------------------------------------------------------------------

def published_row(args):
    """The published row of a run's dataset, backbone, PHP parts and losses; {} if there is none."""
    path = os.path.join(PUBLISHED, f'{args.dataset_name.lower()}.yaml')
    if not os.path.exists(path):
        return {}
    rows = [row for row in read_yaml(path)['results']
            if row['backbone'] == backbone(args.pretrain_choice) and php_parts(row) == args.php_parts]
    losses = set(parse_loss_names(args.loss_names))
    for row in rows:
        named = [row[key] for key in ('loss_names', 'also') if key in row]  # none in the ablation of PHP's parts
        if not named or any(set(parse_loss_names(names)) == losses for names in named):
            return row
    return {}


def php_parts(row):
    return row.get('php_parts', 'crfm+efp' if row['key'] == 'php' else None)


def backbone(pretrain_choice):
    """OpenAI's name, also of a file such as ``weights/ViT-B-16.pt``."""
    return re.sub(r'^(ViT-[BL])-(\d+)', r'\1/\2', os.path.splitext(os.path.basename(pretrain_choice))[0]) \
        if pretrain_choice.endswith(('.pt', '.safetensors')) else pretrain_choice


if __name__ == '__main__':
    run(main)
