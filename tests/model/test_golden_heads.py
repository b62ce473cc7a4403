"""Embeddings, losses, metrics and gradients of models against vectors of the reference implementations."""
import pytest
import torch

from model.build import total_loss
from tests.support import golden_batch, golden_files, golden_json, golden_model, options

RELATIVE = 1e-5


def close(value, reference):
    return value == pytest.approx(float(reference), rel=RELATIVE, abs=1e-7)


@pytest.fixture(scope='module', params=golden_files('irra_*') + golden_files('agm_*'))
def reference(request, tmp_path_factory):
    model, vectors, description = golden_model(request.param, tmp_path_factory.mktemp(request.param))
    results = model(golden_batch(vectors))
    total_loss(results).backward()
    return model, vectors, description, results


def test_state_dict_has_the_official_names_and_shapes(reference):
    model, _, description, _ = reference
    official = {name: shape for name, (shape, _) in description['official_keys'].items()}
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == official


def test_fitted_positions(reference):
    model, vectors, _, _ = reference
    positions = model.base_model.visual.positional_embedding.data
    torch.testing.assert_close(positions, vectors['pos_embed_resized'], rtol=1e-5, atol=1e-6)


def test_embeddings(reference):
    model, vectors, _, _ = reference
    batch = golden_batch(vectors)
    with torch.no_grad():
        for ours, official in ((model.encode_image(batch['images']), vectors['out/image_embedding']),
                               (model.encode_text(batch['caption_ids']), vectors['out/text_embedding'])):
            assert ours.dtype == torch.float32
            assert (ours - official).norm() <= RELATIVE * official.norm()


def test_losses_and_read_outs(reference):
    _, vectors, _, results = reference
    official = {name[len('out/'):]: value for name, value in vectors.items()
                if name.startswith('out/') and not name.endswith(('embedding', 'total'))}
    assert set(official) == set(results)
    for name, value in official.items():
        assert close(results[name].item(), value), name
    assert close(total_loss(results).item(), vectors['out/total'])


def test_gradients(reference):
    model, vectors, _, _ = reference
    official = {name[len('grad/'):]: float(value) for name, value in vectors.items() if name.startswith('grad/')}
    parameters = dict(model.named_parameters())
    assert official and set(official) <= set(parameters)
    for name, value in official.items():
        assert close(parameters[name].grad.norm().item(), value), name


@pytest.mark.parametrize('name', golden_files('official_irra_*'))
def test_full_size_state_dict_loads_both_ways(name):
    """A published IRRA checkpoint loads strictly, and ours has exactly its entries."""
    from model import build_model
    from utils.checkpoint import load_weights
    official = golden_json(name)
    args = options(loss_names=official['loss_names'], training=False)
    model = build_model(args, official['num_classes'])
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert ours == {name: shape for name, (shape, _) in official['state_dict'].items()}
    published = {name: torch.full(shape, 0.5, dtype=getattr(torch, dtype))
                 for name, (shape, dtype) in official['state_dict'].items()}
    load_weights(model, published)
    assert all((value == 0.5).all() and value.dtype == torch.float32 for value in model.state_dict().values())
