"""The examples of docs/adding_a_tuning.md are found without a change, have their options, train and are merged."""
import os
import re

import pytest
import torch

from model import tunings as tunings_package
from model.build import total_loss
from model.tunings import registry
from processor.build import build_step
from run_scripts import ROOT
from solver import build_optimizer
from tests.support import golden_archive, golden_json, options, small_batch, small_model
from utils.errors import UserError


@pytest.fixture
def documented(tmp_path, monkeypatch):
    """Add the page's files to the tunings: {file name: code}."""
    with open(os.path.join(ROOT, 'docs', 'adding_a_tuning.md'), encoding='utf-8') as file:
        code = dict(re.findall(r'```python\n# model/tunings/(\w+\.py)\n(.*?)```', file.read(), flags=re.DOTALL))
    for name, text in code.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(tunings_package, '__path__', [*tunings_package.__path__, str(tmp_path)])
    registry.cache_clear()
    yield code
    registry.cache_clear()


def train_two_steps(tmp_path, **settings):
    """Train a small model and return (model, names of what changed)."""
    archive = golden_archive(golden_json('irra_tiny'), tmp_path / 'clip.pt')
    args = options(loss_names='sdm', lr=1e-2, **settings)
    model = small_model(archive, 'sdm', **settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = build_step(model, build_optimizer(args, model))
    for _ in range(2):
        assert total_loss(step(small_batch())) > 0
    return model, {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_the_pages_complete_example_works(documented, tmp_path):
    from solver.build import parameter_settings
    assert len(documented['ia3.py'].splitlines()) <= 36
    model, changed = train_two_steps(tmp_path, tuning='ia3', ia3_lr_factor=5.0)
    names = [f'base_model.{side}transformer.resblocks.{number}.ia3_{part}' for side in ('visual.', '')
             for number in range(2) for part in ('keys', 'values')]
    assert changed == set(names) == set(model.tuning.parameter_names)
    args = options(loss_names='sdm', tuning='ia3', ia3_lr_factor=5.0)
    assert parameter_settings(names[0], args) == (5 * args.lr, 0.0)
    with pytest.raises(UserError, match='--tuning ia3 cannot be merged, because merge is not written'):
        model.tuning.merge(model.backbone)


def test_bitfit_trains_the_biases(documented, tmp_path):
    model, changed = train_two_steps(tmp_path, tuning='bitfit')
    biases = {name for name in model.state_dict() if name.endswith('bias')}
    # The bias of the keys has no effect, and its gradient is rounding.
    assert changed <= biases and len(changed) > 0.9 * len(biases)
    assert model.tuning.merge(model.backbone) == {}
