"""SEN's restoration and triplets: parity with its released code, and by plain re-computation what the vectors cannot see."""
import math

import pytest
import torch

from model import build_model, objectives
from model.build import total_loss
from model.heads import parse_loss_names
from model.heads import sen
from solver.build import parameter_settings
from tests.support import golden, golden_archive, golden_batch, golden_json, golden_model, options
from utils.checkpoint import load_weights
from utils.errors import UserError
from utils.options import get_args

RELATIVE = 1e-5


def close(value, reference):
    return value == pytest.approx(float(reference), rel=RELATIVE, abs=1e-7)


class Noise:
    """Stands in for torch.rand: gives the noise, and remembers what was asked for."""

    def __init__(self, noise):
        self.noise, self.shapes = noise, []

    def __call__(self, *shape, **_):
        self.shapes.append(tuple(shape[0]) if len(shape) == 1 else shape)
        return self.noise


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
    model, vectors, description = golden_model('sen_tiny', tmp_path_factory.mktemp('sen'))
    noise = Noise(vectors['in/mae_noise'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'rand', noise)
        results = model(golden_batch(vectors))
    total_loss(results).backward()
    return model, vectors, description, results, noise


def test_one_draw_of_noise(reference):
    _, vectors, _, _, noise = reference
    assert noise.shapes == [tuple(vectors['in/mae_noise'].shape)]


def test_losses_and_read_outs(reference):
    _, vectors, _, results, _ = reference
    official = {name[len('out/'):]: value for name, value in vectors.items()
                if name.startswith('out/') and not name.endswith(('embedding', 'total'))}
    assert set(official) == set(results)
    for name, value in official.items():
        assert close(float(results[name].detach()), value), name
    assert close(float(total_loss(results).detach()), vectors['out/total'])


def test_embeddings(reference):
    model, vectors, _, _, _ = reference
    batch = golden_batch(vectors)
    with torch.no_grad():
        for ours, official in ((model.encode_image(batch['images']), vectors['out/image_embedding']),
                               (model.encode_text(batch['caption_ids']), vectors['out/text_embedding'])):
            assert (ours - official).norm() <= RELATIVE * official.norm()


def test_gradients(reference):
    model, vectors, _, _, _ = reference
    official = {name[len('grad/'):]: float(value) for name, value in vectors.items() if name.startswith('grad/')}
    parameters = dict(model.named_parameters())
    assert official and set(official) <= set(parameters)
    for name, value in official.items():
        assert close(float(parameters[name].grad.norm()), value), name


def test_names_shapes_and_what_never_learns(reference):
    model, _, description, _, _ = reference
    official = {name: shape for name, (shape, _) in description['official_keys'].items()}
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == official
    assert not model.decoder_pos_embed.requires_grad
    assert model.cross_attn_TextImage.in_proj_weight.grad is None and model.norm_3.weight.grad is None
