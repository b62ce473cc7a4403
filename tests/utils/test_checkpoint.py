"""Checkpoints of Pedestal and published ones: strict loading, atomic writes, and no code."""
import os
import resource

import pytest
import torch
from easydict import EasyDict
from torch import nn

from solver import build_lr_scheduler, build_optimizer
from tests.support import options
from utils.checkpoint import Checkpointer, load_weights, read_checkpoint, init_from_checkpoint
from utils.weight_files import compute_sha256
from utils.errors import UserError


class Model(nn.Module):
    """An encoder and a classifier, under the official names."""

    def __init__(self, classes=3, width=4):
        super().__init__()
        self.base_model = nn.Linear(4, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x):
        return self.classifier(self.base_model(x)).square().mean()


def trained(model, steps=3):
    args = options(lr=1e-2, num_epoch=10, warmup_epochs=2)
    optimizer = build_optimizer(args, model)
    scheduler = build_lr_scheduler(args, optimizer)
    for step in range(steps):
        train_step(model, optimizer, scheduler, step)
    return optimizer, scheduler


def train_step(model, optimizer, scheduler, step):
    torch.manual_seed(step)
    loss = model(torch.randn(5, 4))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()


def equal(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items()) and a.keys() == b.keys()


def test_best_holds_the_model_and_what_is_said_of_it(tmp_path):
    model = Model()
    Checkpointer(model, *trained(model), str(tmp_path), True).save('best', epoch=4, metrics={'R1': 50.0})
    content = read_checkpoint(tmp_path / 'best.pth')
    assert set(content) == {'model', 'epoch', 'metrics'} and content['epoch'] == 4
    assert equal(content['model'], model.state_dict())


def test_a_resumed_optimizer_goes_on_as_if_never_stopped(tmp_path):
    torch.manual_seed(0)
    model = Model()
    optimizer, scheduler = trained(model)
    Checkpointer(model, optimizer, scheduler, str(tmp_path), True).save('last', training_state=True, epoch=2, step=7)
    again = Model()
    resumed = trained(again, steps=0)
    rest = Checkpointer(again, *resumed, str(tmp_path), True).resume(tmp_path / 'last.pth')
    assert (rest['epoch'], rest['step']) == (2, 7)
    for step in range(3, 6):
        train_step(model, optimizer, scheduler, step)
        train_step(again, *resumed, step)
    assert equal(model.state_dict(), again.state_dict())


def published_checkpoint(path, model, epoch=5):
    """Write a checkpoint as IRRA's reference implementation does.

    It has one optimizer group per parameter, in the model's order, and the finished epoch.
    """
    optimizer = torch.optim.Adam([{'params': [parameter], 'lr': 1e-3} for parameter in model.parameters()], lr=1e-3,
                                 eps=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    for step in range(3):
        train_step(model, optimizer, scheduler, step)
    torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict(), 'epoch': epoch,
                'scheduler': {'last_epoch': epoch, 'milestones': (20, 50)}}, path)
    return optimizer


def test_an_optimizer_saved_unfused_goes_on_fused(tmp_path):
    torch.manual_seed(0)
    model = Model()
    optimizer, scheduler = trained(model)
    for group in optimizer.param_groups:
        group['fused'] = None
    Checkpointer(model, optimizer, scheduler, str(tmp_path), True).save('last', training_state=True, epoch=2, step=7)
    again = Model()
    other, schedule = trained(again, steps=0)
    Checkpointer(again, other, schedule, str(tmp_path), True).resume(str(tmp_path / 'last.pth'))
    assert all(group['fused'] for group in other.param_groups)
    train_step(model, optimizer, scheduler, 3)
    train_step(again, other, schedule, 3)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-6, atol=1e-7)


def test_a_published_checkpoint_resumes_after_its_epoch(tmp_path):
    model = Model()
    official = published_checkpoint(tmp_path / 'best.pth', model)
    again = Model()
    optimizer, scheduler = trained(again, steps=0)
    assert Checkpointer(again, optimizer, scheduler).resume(tmp_path / 'best.pth')['epoch'] == 6
    assert equal(model.state_dict(), again.state_dict()) and scheduler.last_epoch == 5
    moments = {name: official.state[parameter]['exp_avg'] for name, parameter in model.named_parameters()}
    for name, parameter in again.named_parameters():
        assert torch.equal(optimizer.state[parameter]['exp_avg'], moments[name]), name


def test_data_parallel_names(tmp_path):
    model = Model()
    torch.save({'model': {f'module.{name}': value for name, value in model.state_dict().items()}},
               tmp_path / 'best.pth')
    again = Model()
    Checkpointer(again).load(f=str(tmp_path / 'best.pth'))
    assert equal(model.state_dict(), again.state_dict())


@pytest.mark.parametrize('change, message', [
    (lambda w: w.pop('base_model.bias'), r'1 entries are missing \(base_model.bias\)'),
    (lambda w: w.update(surplus=torch.zeros(1)), r'1 have no place in the model \(surplus\)'),
    (lambda w: w.update({'classifier.weight': torch.zeros(9, 4)}), r'classifier.weight: \[9, 4\] for \[3, 4\]'),
])
def test_loading_is_strict_and_leaves_the_model_alone(change, message):
    model, weights = Model(), Model().state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change(weights)
    with pytest.raises(UserError, match=message):
        load_weights(model, weights)
    assert equal(model.state_dict(), before)


class Evil:
    def __reduce__(self):
        return os.mkdir, ('carried_code_ran',)


@pytest.mark.parametrize('name, content, message', [
    ('missing.pth', None, 'there is no file'),
    ('text.pth', b'not a checkpoint at all', 'truncated or no file of weights'),
    ('empty.pth', b'', 'truncated or no file of weights'),
    ('list.pth', [1, 2], 'holds a list'),
    ('other.pth', {'something': 1}, "has no 'model', only something"),
    ('evil.pth', {'model': {}, 'x': Evil()}, 'can carry code'),
    ('truncated.pth', 'truncate', 'truncated or no file of weights'),
])
def test_broken_checkpoints(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        open(name, 'wb').write(content)
    elif content == 'truncate':
        torch.save({'model': Model(width=64).state_dict()}, name)
        whole = open(name, 'rb').read()
        open(name, 'wb').write(whole[:len(whole) // 2])
    elif content is not None:
        torch.save(content, name)
    with pytest.raises(UserError, match=message):
        read_checkpoint(name)
    assert not os.path.exists('carried_code_ran')


def test_resume_needs_the_optimizer(tmp_path):
    model = Model()
    optimizer, scheduler = trained(model, 1)
    checkpointer = Checkpointer(model, optimizer, scheduler, str(tmp_path), True)
    checkpointer.save('best', epoch=1)
    with pytest.raises(UserError, match='holds no optimizer; resume from a last.pth.*--init_from'):
        checkpointer.resume(tmp_path / 'best.pth')


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    model = Model(width=4000)
    checkpointer = Checkpointer(model, save_dir=str(tmp_path), save_to_disk=True)
    checkpointer.save('best', epoch=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UserError, match='cannot write .*best.pth'):
            checkpointer.save('best', epoch=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_checkpoint(tmp_path / 'best.pth')['epoch'] == 1
    assert os.listdir(tmp_path) == ['best.pth']


def test_init_from_checkpoint_keeps_the_initial_weights_of_another_classifier(tmp_path, caplog):
    source, model = Model(classes=3), Model(classes=5)
    torch.save({'model': {**source.state_dict(), 'mlm_head.bias': torch.zeros(1)}, 'epoch': 3}, tmp_path / 'best.pth')
    fresh = model.classifier.weight.clone()
    with caplog.at_level('INFO', logger='Pedestal'):
        init_from_checkpoint(model, str(tmp_path / 'best.pth'))
    assert torch.equal(model.base_model.weight, source.base_model.weight)
    assert torch.equal(model.classifier.weight, fresh)
    assert 'with initial weights: classifier.weight, classifier.bias' in caplog.text
    assert 'skipped: mlm_head.bias' in caplog.text


def test_init_from_another_encoder_is_refused(tmp_path):
    torch.save({'model': Model(width=6).state_dict()}, tmp_path / 'best.pth')
    with pytest.raises(UserError, match='another encoder.*base_model.weight'):
        init_from_checkpoint(Model(), str(tmp_path / 'best.pth'))


# -- damage and entries of other kinds ---------------------------------------------------------------------------------

def test_a_flipped_bit_in_any_weight_is_seen(tmp_path):
    path = tmp_path / 'best.pth'
    model = Model(width=64)
    torch.save({'model': model.state_dict(), 'epoch': 1}, path)
    content = path.read_bytes()
    weights = content.index(model.base_model.weight.detach().numpy().tobytes())
    for position in range(weights, weights + 4 * model.base_model.weight.numel(), 37):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match='best.pth is damaged: its part best/data/0 does not have '
                           'the checksum.*copy or download it again'):
            read_checkpoint(path)


def test_files_without_checksums_are_read_and_said_to_have_none(tmp_path, caplog):
    model = Model()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'model': model.state_dict()}, tmp_path / 'unchecked.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save({'model': model.state_dict()}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    for name in ('unchecked', 'old'):
        with caplog.at_level('INFO', logger='Pedestal'):
            assert equal(read_checkpoint(tmp_path / f'{name}.pth')['model'], model.state_dict())
        assert 'without checksums' in caplog.text and 'damage to' in caplog.text
        caplog.clear()


def test_the_checksum_is_of_the_file_that_was_read(tmp_path, monkeypatch):
    """A run replaces its best.pth while the file is read."""
    old, new, path = Model(), Model(), tmp_path / 'best.pth'
    for model, name in ((old, 'best.pth'), (new, 'new.pth')):
        torch.save({'model': model.state_dict()}, tmp_path / name)
    load = torch.load

    def replaced_meanwhile(*inputs, **settings):
        content = load(*inputs, **settings)
        if (tmp_path / 'new.pth').exists():
            os.replace(tmp_path / 'new.pth', path)
        return content
    monkeypatch.setattr(torch, 'load', replaced_meanwhile)
    checkpoint = read_checkpoint(path, with_sha256=True)
    assert equal(checkpoint['model'], new.state_dict()) and checkpoint['sha256'] == compute_sha256(path)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('changed, message', [
    (lambda value: value.expand(2, *value.shape), 'expanded from fewer numbers'),
    (lambda value: torch.empty_like(value, device='meta'), 'without values'),
    (lambda value: value.to_sparse(), 'a sparse tensor'),
    (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), 'a quantized tensor'),
    (lambda value: value.to(torch.complex64), 'a tensor of complex64'),
    (lambda value: 'text', 'a str'), (lambda value: None, 'a NoneType'),
])
def test_model_entries_that_are_no_plain_tensors(tmp_path, changed, message):
    weights = Model().state_dict()
    torch.save({'model': {**weights, 'classifier.weight': changed(weights['classifier.weight'])}},
               tmp_path / 'best.pth')
    with pytest.raises(UserError, match=f'entries that are no weights: classifier.weight is .*{message}'):
        read_checkpoint(tmp_path / 'best.pth')


@pytest.mark.parametrize('model', [None, [torch.zeros(1)], torch.zeros(1), {3: torch.zeros(1)}])
def test_a_model_that_is_no_state_dict(tmp_path, model):
    torch.save({'model': model}, tmp_path / 'best.pth')
    with pytest.raises(UserError, match='holds no state dict'):
        read_checkpoint(tmp_path / 'best.pth')


def test_whole_numbers_do_not_become_weights():
    weights = Model().state_dict()
    weights['classifier.bias'] = weights['classifier.bias'].long()
    with pytest.raises(UserError, match='1 have another shape or type .classifier.bias: int64 for float32'):
        load_weights(Model(), weights)


def test_tbps_clips_checkpoint_is_read_by_its_names(tmp_path):
    from tests.support import small_archive, small_model as with_heads
    model = with_heads(small_archive(tmp_path / 'clip.pt'), 'nitc+ritc+citc+ss', text_length=77)
    own = {name: torch.full_like(value, 0.25) for name, value in model.state_dict().items()}
    released = {}
    for name, value in own.items():
        bare = name.removeprefix('base_model.')
        released[name if bare == name else bare if bare.startswith('visual.') else f'encode_text.{bare}'] = value
    assert {'visual.conv1.weight', 'encode_text.token_embedding.weight', 'logit_scale',
            'simclr_mlp.2.bias'} <= set(released)
    wrapped = {f'module.{name}': value for name, value in released.items()}
    options = EasyDict({'experiment': {'ss': True, 'ratios': [1, {'citc': 0.1}]}})
    torch.save({'model': wrapped, 'optimizer': {}, 'config': options}, tmp_path / 'best.pth')
    assert read_checkpoint(str(tmp_path / 'best.pth'))['config'] == options
    load_weights(model, read_checkpoint(str(tmp_path / 'best.pth'))['model'])
    assert all((value == 0.25).all() for value in model.state_dict().values())
