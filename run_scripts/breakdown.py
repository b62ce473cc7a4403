"""Print the results of a run by attribute and by word of the caption, without its model.

    python -m run_scripts.breakdown logs/RSTPReid/<run>
    python -m run_scripts.breakdown logs/RSTPReid/<run> --by attributes --lexicon my_words.yaml

RUN is a folder with the metrics.json and the queries.csv that test.py wrote, such a metrics.json, or a name such as
RSTPReid/irra, the newest run of this name below logs. The tool prints and writes what test.py --by does. It needs
neither a GPU nor the dataset, so that another lexicon takes seconds.
"""
import os
import sys

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from utils.errors import UserError, run_program
from utils.options import Parser, add_breakdown_options
from utils.run_aliases import find_run_folder, missing_run


def main(argv=None):
    args = build_breakdown_parser().parse(sys.argv[1:] if argv is None else argv)
    from processor.breakdown import read_requested_lexicon, write_breakdowns
    from processor.provenance import evaluated_split
    from processor.results import read_evaluated_queries
    lexicon = read_requested_lexicon(args)
    path = find_results(args.run, args.results)
    results, queries = read_evaluated_queries(path, args.how)
    suffix = os.path.splitext(results.queries['file'])[0].removeprefix('queries')     # _<checkpoint>_<dataset>

    def name_file(name):
        stem, ending = os.path.splitext(name)
        return os.path.join(os.path.dirname(path), f'{stem}{suffix}{ending}')
    title = f'{results.dataset} {evaluated_split(results.provenance)}, {args.how}'
    print(write_breakdowns(args, queries, lexicon, title, name_file).lstrip('\n'))


def find_results(run, name):
    """Find the results file of a run. Raises :class:`~utils.errors.UserError`."""
    path = run if os.path.isfile(run) else os.path.join(find_run_folder(run) or run, name)
    if not os.path.isfile(path):
        problem = f'there is no {path}' if os.path.isdir(run) else missing_run(run)
        raise UserError(f'{problem}: name a folder that test.py has evaluated '
                        '(python test.py --config_file <run>/configs.yaml)')
    return path


def build_breakdown_parser():
    parser = Parser(prog='breakdown.py', description=__doc__, usage='%(prog)s RUN [--<option> VALUE ...]')
    parser.add_argument('run', metavar='RUN', help='folder, metrics.json or name of a run')
    parser.add_argument('--results', default='metrics.json',
                        help="name of the results file in the run's folder; metrics_<dataset>.json for another dataset")
    parser.add_argument('--how', default='as loaded',
                        help="ranking of the captions: 'as loaded', 'shuffled', 'one by one' or 're-ranked <K>'")
    add_breakdown_options(parser)
    parser.set_defaults(by=['attributes', 'words'])
    parser.run_options = {'run'}
    return parser


if __name__ == '__main__':
    run_program(main)
