"""The report of test.py: the independence check, the three tables, and the report of the experts."""
import argparse
import json
import os

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from model import build_model
from model.heads.php import entropy, usage_figure
from processor.head_figures import draw_figure
from processor.head_reports import requested_heads, write_report
from processor.provenance import describe_selection
from processor.report import evaluate
from processor.results import ONE_BY_ONE, find_results
from processor.runs import TrainedRun, Split
from tests.support import evaluation_options, golden_archive, golden_json, options
from utils import precision
from utils.errors import UserError
from utils.figures import import_pyplot
from utils.tables import METRICS
from processor.evaluation import Evaluator, evaluate_embeddings
from processor.independence import SAMPLES, check_independence, neighbor_indices

PRECISIONS = ['off', 'bf16', 'fp16']
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


@pytest.fixture(autouse=True)
def fp16_on_the_cpu(monkeypatch):
    """Allow --amp fp16 on a CPU, where it works but is not useful."""
    original = precision.amp_dtype
    monkeypatch.setattr(precision, 'amp_dtype',
                        lambda amp, device: torch.float16 if amp == 'fp16' else original(amp, device))


def test_which_dataset_chose_the_epoch():
    """The first of several datasets, or the one that --eval_dataset names."""
    def describe(trained_on, **settings):
        return describe_selection(evaluation_options(trained_on, checkpoint='best.pth', **settings), {'epoch': 3})
    expected = 'best.pth: epoch 3, chosen by the test split of A, the split it is tested on'
    assert describe(trained_on='A+B', dataset_name='A') == expected
    assert describe(trained_on='A+B', dataset_name='B').endswith('of A')
    assert describe(trained_on='M', dataset_name='C', eval_dataset='C').endswith('of C, the split it is tested on')


class Images(Dataset):
    def __init__(self, images, pids):
        self.images, self.image_pids = images, pids

    def __len__(self):
        return len(self.image_pids)

    def __getitem__(self, index):
        return self.image_pids[index], self.images[index]


class Captions(Images):
    @property
    def caption_pids(self):
        return self.image_pids


def loaders(batch_size, identities=10, each=4):
    """The loaders of a split ordered by identity. The images of an identity are similar, and so are its captions."""
    generator = torch.Generator().manual_seed(5)
    pids = torch.arange(identities).repeat_interleave(each)
    images = torch.randn(identities, 3, 96, 32, generator=generator)[pids]
    images = images + 0.3 * torch.randn(len(pids), 3, 96, 32, generator=generator)
    ids = torch.randint(1, 500, (identities, 20), generator=generator)[pids]
    ids[:, 3] = torch.randint(1, 500, (len(pids),), generator=generator)
    ids[:, 0], ids[:, 12], ids[:, 13:] = 510, 511, 0
    datasets = Images(images, pids.tolist()), Captions(ids, pids.tolist())
    return [DataLoader(dataset, batch_size) for dataset in datasets]


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('archive') / 'clip.pt')


def settings(archive, loss_names='sdm+itc+aux', **changes):
    values = dict(loss_names=loss_names, pretrain_choice=archive, img_size=(96, 32), text_length=20, vocab_size=512,
                  num_experts=4, topk=2, moe_layers=2, moe_heads=2, cnum=5, dataset_name='toy', num_workers=0)
    return options(**{**values, **changes})


def make(archive, *names, **changes):
    torch.manual_seed(0)
    return build_model(settings(archive, *names, **changes), 6).to(DEVICE)


def check(model, batch_size, shuffle=False):
    """Check an evaluation whose batches may be shuffled. Its embeddings are put back into the split's order."""
    loader = images, texts = loaders(batch_size, identities=5)
    order = torch.arange(len(images.dataset))
    if shuffle:
        order = torch.randperm(len(order), generator=torch.Generator().manual_seed(1))
        loader = [DataLoader(side.dataset, batch_size, sampler=order.tolist()) for side in loader]
    qfeats, gfeats, _, _ = Evaluator(*loader)._compute_embedding(model)
    return check_independence(model, images, texts, (qfeats[order.argsort()], gfeats[order.argsort()]))


@pytest.mark.parametrize('amp', PRECISIONS)
@pytest.mark.parametrize('batch_size, shuffle',
                         [(1, False), (2, False), (7, False), (7, True), (64, False), (64, True)])
def test_attention_across_the_batch_is_found(archive, amp, batch_size, shuffle):
    """For every batch size, also 1, and for every order."""
    independence = check(make(archive, php_attention='batch', amp=amp), batch_size, shuffle)
    assert not independence.is_independent
    assert 'EMBEDDINGS DEPEND ON THE BATCH' in str(independence)
    assert all(distance > 1e-4 for distance in independence.company.values())


@pytest.mark.parametrize('amp', PRECISIONS)
@pytest.mark.parametrize('changes', [
    dict(php_attention='slots'), dict(php_parts='crfm', php_attention='batch'), dict(php_parts='efp'),
    dict(loss_names='sdm+itc')], ids=str)
@pytest.mark.parametrize('batch_size', [1, 7, 64])
def test_independent_embeddings_pass(archive, amp, changes, batch_size):
    independence = check(make(archive, amp=amp, **changes), batch_size)
    assert independence.is_independent, str(independence)
    assert max(independence.company.values()) < 1e-9


class FaintLeak(torch.nn.Module):
    """A leak so small that the rounding of half precision hides it from a comparison with batches of one sample."""
    amp = 'bf16'

    def __init__(self, strength):
        super().__init__()
        self.strength, self.anchor = strength, torch.nn.Parameter(torch.zeros(1))

    def encode_image(self, x):
        x = x.flatten(1).float()
        return x + self.strength * x.mean(dim=0)

    encode_text = encode_image


def test_a_leak_that_half_precision_would_hide(archive):
    assert check(FaintLeak(0.0), 64).is_independent
    independence = check(FaintLeak(0.08), 1)
    assert all(distance <= independence.threshold for distance in independence.worst.values())
    assert not independence.is_independent


def test_the_check_is_cheap_and_leaves_the_model_in_its_mode(archive):
    """At most 2% of the 1,000 images of the smallest published test split are embedded again."""
    model, passes = make(archive).train(), {'image': 0, 'text': 0}
    for side, encode in (('image', model.base_model.encode_image), ('text', model.base_model.encode_text)):
        def encode_and_count(inputs, *settings, side=side, encode=encode):
            passes[side] += len(inputs)
            return encode(inputs, *settings)
        setattr(model.base_model, f'encode_{side}', encode_and_count)
    images, texts = loaders(64)
    embeddings = [torch.randn(40, 128)] * 2
    check_independence(model, images, texts, embeddings)
    assert passes == {'image': 18, 'text': 18} and model.training


def test_the_sample_is_neighbours_spread_over_the_split():
    assert neighbor_indices(1000, 6) == [0, 499, 998, 1, 500, 999]
    assert neighbor_indices(2, SAMPLES) == [0, 0, 0, 1, 1, 1] and neighbor_indices(1, SAMPLES) == [0] * 6


# -- three tables ------------------------------------------------------------------------------------------------------

def report_on(archive, tmp_path, batch_size=8, one_by_one=False, **changes):
    args = evaluation_options('toy', i2t=True, one_by_one=one_by_one, checkpoint=str(tmp_path / 'best.pth'),
                              **vars(settings(archive, **changes)))
    (tmp_path / 'best.pth').write_bytes(b'weights')
    model = make(archive, **changes)
    return evaluate(args, TrainedRun(model, *loaders(batch_size), {'epoch': 3})), model


def test_a_dependent_evaluation_is_reported_three_ways(archive, tmp_path):
    report, model = report_on(archive, tmp_path, php_attention='batch', seed=4)
    ordered, shuffled, single = report.tables
    expected = ['toy test: 40 captions, 40 images', 'the same, shuffled (seed 4)', ONE_BY_ONE]
    assert list(report.tables) == expected
    assert not report.is_independent and all(name in report.text for name in report.tables)
    images, texts = loaders(1)
    expected = evaluate_embeddings(*Evaluator(images, texts)._compute_embedding(model), True)
    assert report.tables[single] == expected
    assert report.tables[ordered] != report.tables[shuffled] != report.tables[single]
    again, _ = report_on(archive, tmp_path, php_attention='batch', seed=4)
    assert again.tables == report.tables


def test_an_independent_evaluation_is_one_table(archive, tmp_path):
    report, _ = report_on(archive, tmp_path)
    assert len(report.tables) == 1 and report.is_independent and 'depends on its own sample alone' in report.text


def test_three_tables_on_request_are_the_same(archive, tmp_path):
    report, _ = report_on(archive, tmp_path, one_by_one=True)
    first, *others = report.tables.values()
    assert len(others) == 2
    for other in others:
        assert {task: pytest.approx(figures) for task, figures in other.items()} == first


# -- experts -----------------------------------------------------------------------------------------------------------

def moe_report(model, images, texts, path):
    """Write the report of test.py --moe_report."""
    head, = requested_heads(argparse.Namespace(moe_report=True, restoration=False), model)
    return write_report(head, Split(argparse.Namespace(seed=1), TrainedRun(model, images, texts, {})), path)


def test_moe_report(archive, tmp_path):
    model = make(archive).eval()
    images, texts = loaders(16)
    text = moe_report(model, images, texts, str(tmp_path / 'moe_report'))
    content = json.load(open(tmp_path / 'moe_report.json'))
    assert os.path.getsize(tmp_path / 'moe_report.png') > 1000
    assert content['largest_entropy'] == 2.0 and [len(content[side]) for side in ('image', 'text')] == [2, 2]

    # Compute the first block's choices from its input.
    with torch.no_grad():
        tokens = torch.cat([model.base_model.encode_text(ids.to(DEVICE))[0] for _, ids in texts])
        block = model.shared_transformer.resblocks[0]
        slots = model.safl(tokens)
        x = block.ln_3(slots + block.attend(block.ln_1(slots)))
        gate = block.feed_forward
        logits = (1 - gate.alpha) * gate.input_gate(x) + gate.alpha * gate.task_gate(block.comb_param)
        usage = F.one_hot(logits.topk(2).indices, 4).sum(dim=(0, 1, 2)).double()
    usage = (usage / usage.sum()).tolist()
    assert content['text'][0]['usage'] == pytest.approx(usage, abs=1e-3)
    expected = -sum(p * torch.tensor(p).log2().item() for p in usage if p)
    assert content['text'][0]['entropy'] == pytest.approx(expected, abs=1e-3)
    assert f"{content['image'][1]['entropy']:.3f}" in text and 'expert 3' in text
    assert not gate._forward_hooks


def test_entropy():
    assert entropy(torch.tensor([0.25] * 4)) == pytest.approx(2)
    assert entropy(torch.tensor([1.0, 0, 0])) == 0


def test_moe_report_that_cannot_be_saved_is_still_returned(archive, tmp_path, caplog):
    assert 'expert 3' in moe_report(make(archive), *loaders(8), str(tmp_path / 'nowhere' / 'moe_report'))
    assert 'not saved' in caplog.text


def test_moe_report_without_experts(archive, tmp_path):
    with pytest.raises(UserError, match='no experts.*PHP'):
        moe_report(make(archive, php_parts='crfm'), *loaders(8), str(tmp_path / 'moe_report'))


@pytest.mark.parametrize('experts', [4, 13])
def test_four_experts_have_a_bar_each(experts):
    """A radar chart would hide the two experts that are hardly used."""
    usage = {side: [torch.tensor([0.5, 0.5] + [0.0] * (experts - 2))] * 5 for side in ('image', 'text')}
    figure = draw_figure(usage_figure(usage))
    shown = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title() for axis in shown] == [f'block {number}' for number in range(5)]
    for axis in shown:
        assert [bar.get_height() for bar in axis.patches] == 2 * ([50.0, 50.0] + [0.0] * (experts - 2))
    import_pyplot().close(figure)


@pytest.mark.parametrize('figure, is_valid',
                         [(50.0, True), (50, True), ({'a': 1}, False), (None, False), ('50', False)])
def test_results_whose_figures_are_no_numbers_are_not_taken(tmp_path, figure, is_valid):
    metrics = dict.fromkeys(METRICS, 40.0) | {'mINP': figure}
    content = {'produced_by': {'checkpoint_sha256': 'abc', 'dataset': 'CUHK-PEDES'},
               'results': {'as loaded': {'t2i': metrics}}, 'independence': {'holds': True}}
    (tmp_path / 'metrics.json').write_text(json.dumps(content))
    assert (find_results(tmp_path / 'metrics.json', 'abc') is not None) is is_valid
