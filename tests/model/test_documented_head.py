"""The README's example of a head is found without a change, has its option, trains and is saved."""
import os
import re

import pytest
import torch

from model import build_model
from model import heads as heads_package
from model.head_registry import aliases, registry
from tests.support import golden_archive, golden_json, options

README = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), 'README.md')


@pytest.fixture
def readme_head(tmp_path, monkeypatch):
    """Add the README's file to the heads."""
    code, = re.findall(r'```python\n(.*?class Pull.*?)```', open(README).read(), flags=re.DOTALL)
    (tmp_path / 'pull.py').write_text(code)
    monkeypatch.setattr(heads_package, '__path__', [*heads_package.__path__, str(tmp_path)])
    caches = (registry, aliases)
    for cache in caches:
        cache.cache_clear()
    yield code
    for cache in caches:
        cache.cache_clear()


def test_the_readmes_head_works(readme_head, tmp_path):
    from solver.build import parameter_settings
    assert len(readme_head.splitlines()) <= 35
    archive = golden_archive(golden_json('irra_tiny'), tmp_path / 'clip.pt')
    args = options(loss_names='sdm+pull', pull_weight=0.5, pretrain_choice=archive, img_size=(96, 32), text_length=20)
    model = build_model(args, 4)
    assert {'pull_proj.weight', 'pull_proj.bias'} <= set(model.state_dict())
    assert parameter_settings('pull_proj.weight', args)[0] == pytest.approx(args.lr * args.lr_factor)
    captions = torch.randint(1, 500, (3, 20))
    captions[:, -1] = 511
    images = torch.randn(3, 3, 96, 32)
    results = model.eval()({'pids': torch.arange(3), 'image_ids': torch.arange(3), 'images': images,
                            'caption_ids': captions})
    difference = model.pull_proj(model.encode_image(images)) - model.pull_proj(model.encode_text(captions))
    torch.testing.assert_close(results['pull_loss'], 0.5 * difference.square().sum(dim=1).mean())
    assert 'pull_norm' in results
