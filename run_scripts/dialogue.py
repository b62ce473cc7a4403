"""Refine captions in a dialogue with a multimodal language model, and test the result (THI; ICL, CVPR 2025).

    python -m run_scripts.dialogue --config_file <run>/configs.yaml --answers answers.jsonl
    python -m run_scripts.dialogue --config_file <run>/configs.yaml --answers answers.jsonl \\
        --model Qwen/Qwen2-VL-7B-Instruct

The tool reads the model's answers from --answers. With --model, a model of Hugging Face's transformers answers what
the file lacks, and the answers are appended. It prints the metrics before the dialogue and after each round, and writes
them to dialogue.json next to the checkpoint. docs/icl.md explains the rules and the file.
"""
import json
import os
import sys

if __name__ == '__main__':      # if the tool runs as a file, search the repository instead of this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from prettytable import PrettyTable

from utils.declarations import retry_with_pytorch
from utils.errors import run_program
from utils.iotools import atomic_write
from utils.option_types import fraction, positive_int
from utils.options import REPORT_OPTIONS, RERANK_OPTIONS, build_test_parser, parse_test_options
from utils.tables import METRICS

THRESHOLDS = {'ICFG-PEDES': 0.55}     # ICL's thresholds; 0.5 on other datasets


def main(argv=None):
    args = read_options(argv)
    import pedestal
    from processor.dialogue import DialogueSettings
    from processor.dialogue_answers import Answers
    from processor.results import result_path
    default_threshold = THRESHOLDS.get(args.dataset_name, 0.5)
    settings = DialogueSettings(args.rounds, default_threshold if args.threshold is None else args.threshold,
                                args.query_weight)
    people = pedestal.People(args)
    answers = Answers(args.answers, people.split.dataset.img_dir, load_language_model(args))
    rounds = list(hold_run_dialogue(people, answers, settings))
    print(format_table(rounds))
    path = result_path(people.args, 'dialogue.json')
    with atomic_write(path) as file:
        json.dump(to_json(people, settings, args.answers, rounds), file, indent=1, default=str)
    print(f'wrote {path}')


@retry_with_pytorch
def read_options(argv):
    parser = build_test_parser('dialogue.py', __doc__, (*RERANK_OPTIONS, *REPORT_OPTIONS))
    parser.add_argument('--answers', required=True, metavar='FILE',
                        help="file of the model's answers, one JSON mapping per line (docs/icl.md)")
    parser.add_argument('--model', default='',
                        help='name or folder of an image-text-to-text model of transformers, which answers what '
                             '--answers lacks (default: none, so a missing answer is an error; ICL: '
                             'Qwen2-VL-7B-Instruct)')
    parser.add_argument('--answer_tokens', type=positive_int, default=512,
                        help='largest number of tokens of an answer by --model (ICL: 2048)')
    parser.add_argument('--rounds', type=positive_int, default=5, help='number of rounds (ICL: 5)')
    parser.add_argument('--threshold', type=fraction, default=None,
                        help='similarity of the best image above which only that image can become the anchor (default: '
                             '0.55 on ICFG-PEDES, else 0.5; ICL)')
    parser.add_argument('--query_weight', type=fraction, default=0.8,
                        help="weight of the caption's own similarity next to that of the rewritten caption (ICL: 0.8)")
    return parse_test_options(parser, argv)


def load_language_model(args):
    """Load the model that answers; None without ``--model``."""
    if not args.model:
        return None
    from processor.transformers_model import TransformersModel
    from utils.comm import pick_device
    return TransformersModel(args.model, pick_device(args.device), args.answer_tokens)


def hold_run_dialogue(people, answers, settings):
    """Hold the dialogue on the test split of a run: yields a :class:`processor.dialogue.DialogueRound` for each round.

    Args:
        people: the :class:`pedestal.People` of the run.
        answers: the :class:`processor.dialogue_answers.Answers`.
        settings: the :class:`processor.dialogue.DialogueSettings`.
    """
    from processor import dialogue
    split = people.split

    def pairs(captions, images):
        return [split.captions[caption] for caption in captions], [split.paths[image] for image in images]

    def rewrite(captions, images):
        return people.encode_captions(answers.rewrite(*pairs(captions, images)))
    return dialogue.hold_dialogue(split.queries, split.gallery, lambda *indices: answers.confirm(*pairs(*indices)),
                                  rewrite, settings)


def count_captions(result):
    """Count the captions that a round asks about, and those that have an anchor after it."""
    return {'asked': int((result.asked >= 0).sum()), 'anchored': int((result.anchors >= 0).sum())}


def format_table(rounds):
    table = PrettyTable(['round', 'asked', 'anchored', *METRICS])
    for result in rounds:
        table.add_row([result.number, *count_captions(result).values(),
                       *(f'{result.metrics[name]:.3f}' for name in METRICS)])
    return table.get_string()


def to_json(people, settings, answers, rounds):
    """The content of dialogue.json."""
    from dataclasses import asdict
    from processor.provenance import collect_provenance
    from utils.weight_files import compute_sha256
    return {'settings': asdict(settings), 'answers': {'file': answers, 'sha256': compute_sha256(answers)},
            'rounds': [{'round': result.number, **count_captions(result), **result.metrics} for result in rounds],
            'produced_by': collect_provenance(people.args, people.split.run)}


if __name__ == '__main__':
    run_program(main)
