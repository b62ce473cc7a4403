"""Evaluation on several ranks: each of N ranks embeds every N-th batch, and the table is that of one rank exactly."""
import contextlib
import io
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

import test as test_program
import train as train_program
from datasets.bases import TextDataset
from datasets.sampler import CaptionSampler, SplitSampler
from datasets.synthpedes import generate
from model.heads import Head, PredictsAttributes
from processor.evaluation import Evaluator, embed
from processor.recognition import recognize_attributes
from tests.support import HANG_TIMEOUT, small_archive
from utils.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CAPTIONS = [' '.join('a man in a long dark red coat with blue jeans and a bag'.split()[:length])
            for length in (3, 12, 6, 9, 4, 13, 5)]
PIDS = [0, 0, 1, 1, 2, 2, 2]


# -- embedding and ranking -------------------------------------------------------------------------------------------

def small(archive, broken=None):
    """A model and an evaluator of 7 captions and images that count the inputs of this rank's encoders.

    ``broken``: whether one image cannot be read.
    """
    from model import build_model
    from tests.support import options
    torch.manual_seed(0)
    model = build_model(options(pretrain_choice=archive, img_size=(64, 32), loss_names='sdm'), 3)
    images = [(pid, torch.randn(3, 64, 32) * (float('nan') if broken == 'nan' and number == 4 else 1))
              for number, pid in enumerate(PIDS)]
    captions = TextDataset(PIDS, CAPTIONS)

    class Images(list):
        def __getitem__(self, index):
            if index == broken:
                raise UserError(f'image {index} cannot be read')
            return super().__getitem__(index)
    return model, lambda size: Evaluator(DataLoader(Images(images), size, sampler=SplitSampler(7)),
                                         DataLoader(captions, size, sampler=CaptionSampler(captions.lengths)))


def evaluated(archive, size):
    """(this process's share of the batches, whether all embeddings are those of a process alone, the results)."""
    model, evaluator = small(archive)
    evaluator, sizes, encode = evaluator(size), [], model.base_model.encode_image
    model.base_model.encode_image = lambda images, *rest: sizes.append(len(images)) or encode(images, *rest)
    evaluator.eval(model)
    share = list(sizes)
    alone, shared = ([*embed(model, evaluator.img_loader, 'image', distributed=distributed),
                      *embed(model, evaluator.txt_loader, 'text', distributed=distributed)]
                     for distributed in (False, True))
    same = [torch.equal(one, other) for one, other in zip(alone, shared)]
    return share, same, evaluator.results


@pytest.mark.parametrize('size, shares', [(2, [[2, 2], [2, 1]]), (3, [[3, 1], [3]]), (64, [[7], []])])
def test_each_embeds_its_batches_and_all_have_the_results(processes, tmp_path, size, shares):
    archive = small_archive(tmp_path / 'clip.pt')
    _, _, alone = evaluated(archive, size)
    found = processes.run(evaluated, archive, size)
    assert [share for share, _, _ in found] == shares
    for _, same, results in found:
        assert same == [True] * 4 and results == alone


class FirstToken(PredictsAttributes, Head):
    def predict_attributes(self, image_tokens):
        return image_tokens[:, 0, :3]


def recognised(archive):
    """(this process's share of the batches, the measures of attributes that a head tells of 7 images)."""
    model, evaluator = small(archive)
    images, sizes, encode = evaluator(2).img_loader, [], model.backbone.encode_image
    images.dataset.attributes = torch.arange(21).view(7, 3) % 2, None
    model.heads = (FirstToken(),)
    model.backbone.encode_image = lambda images, *rest: sizes.append(len(images)) or encode(images, *rest)
    return recognize_attributes(model, images), sizes


def test_attributes_without_prompts_are_told_by_turns(processes, tmp_path):
    archive = small_archive(tmp_path / 'clip.pt')
    alone, sizes = recognised(archive)
    assert sizes == [2, 2, 2, 1]
    assert processes.run(recognised, archive) == [(alone, [2, 2]), (alone, [2, 1])]


def what_went_wrong(archive, broken):
    model, evaluator = small(archive, broken)
    with pytest.raises(UserError) as error:
        evaluator(2).eval(model)
    return str(error.value)


@pytest.mark.parametrize('broken, message', [(2, 'image 2 cannot be read'), ('nan', '1 of 7 image embeddings are NaN')])
def test_what_one_process_cannot_read_or_rank_ends_all(processes, tmp_path, broken, message):
    one, other = processes.run(what_went_wrong, small_archive(tmp_path / 'clip.pt'), broken)
    assert one == other and message in one


# -- the program -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The configs.yaml of a run with attributes to recognise and pairs to match."""
    folder = tmp_path_factory.mktemp('run')
    generate(str(folder), 13, images_per_id=2, size=(96, 32), format='synthpedes', val_ids=0, test_ids=7, workers=1)
    train_program.main(['--backbone', 'aptm', '--pretrain_choice', 'scratch:aptm-tiny',
                        '--loss_names', 'itc+itm+mlm+attr', '--dataset_name', 'synthpedes', '--root_dir', str(folder),
                        '--img_size', '96', '32', '--text_length', '40', '--batch_size', '8', '--num_workers', '0',
                        '--device', 'cpu', '--num_epoch', '1', '--lr_rule', 'pretrain', '--lrscheduler', 'step_linear',
                        '--output_dir', str(folder / 'logs')])
    name, = os.listdir(folder / 'logs' / 'synthpedes')
    return str(folder / 'logs' / 'synthpedes' / name / 'configs.yaml')


def command(run, *more):
    return ['--config_file', run, '--num_workers', '0', '--device', 'cpu', '--test_batch_size', '4', *more]


def results(run):
    with open(os.path.join(os.path.dirname(run), 'metrics.json'), encoding='utf-8') as file:
        content = json.load(file)
    return [content[part] for part in ('results', 'intervals', 'baselines', 'attributes', 'queries', 'independence')]


def outcome(argv):
    """(status, what was printed, without the time) of test.py."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        return test_program.main(argv), re.sub(r'(?m)^[-\d]+ [:,\d]+ ', '', printed.getvalue())


def test_every_table_is_that_of_one_process(processes, run):
    argv = command(run, '--rerank', '3', '--one_by_one', '--i2t')
    alone = outcome(argv), results(run)
    assert len(alone[1][0]) == 4 and alone[1][3]     # as loaded, re-ranked, shuffled, one by one; and attributes
    (status, printed), second = processes.run(outcome, argv)
    assert ((status, printed), results(run)) == alone
    assert second == (0, '')


def test_torchrun(run):
    assert test_program.main(command(run, '--rerank', '3')) == 0
    alone = results(run)
    os.remove(os.path.join(os.path.dirname(run), 'metrics.json'))
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', 'test.py',
                           *command(run, '--rerank', '3')], cwd=ROOT, capture_output=True, text=True,
                          timeout=HANG_TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('each embedding depends on its own sample alone') == 1 and results(run) == alone
