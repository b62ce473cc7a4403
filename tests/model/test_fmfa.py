"""FMFA's heads in a model; test_golden_method_losses.py has the reference values of the losses."""
import pytest
import torch

from model import objectives
from model.heads import fmfa
from model.loss_names import parse_loss_names
from tests.support import golden_archive, golden_json, small_batch, small_model


@pytest.fixture(scope='module')
def archive(tmp_path_factory):
    return golden_archive(golden_json('irra_tiny'), tmp_path_factory.mktemp('fmfa') / 'clip.pt')


def test_heads_by_name():
    assert parse_loss_names('a-sdm+efa') == [fmfa.AdaptiveSDM, fmfa.ExplicitAlignment]


def test_losses_are_those_of_the_models_tokens(archive):
    model, batch = small_model(archive, 'a-sdm+efa', minmax_loss_weight=0.5, temperature=0.05), small_batch()
    results = model.eval()(batch)
    encoded = model.encode(batch)
    efa = objectives.explicit_alignment(encoded.image_tokens[:, 1:], encoded.text_tokens)
    torch.testing.assert_close(results['efa_loss'], 0.5 * efa)
    a_sdm = objectives.a_sdm(encoded.image, encoded.text, batch['pids'], scale=20.0)
    torch.testing.assert_close(results['a-sdm_loss'], a_sdm)


def test_explicit_alignment_falls_until_each_sample_is_its_best_match(archive):
    model, batch = small_model(archive, 'efa').train(), small_batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    history = []
    for _ in range(40):
        loss = model(batch)['efa_loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] - 0.2
    with torch.no_grad():
        encoded = model.eval().encode(batch)
        patches, words = encoded.image_tokens[:, 1:], encoded.text_tokens
        scores = objectives.token_similarity(words, objectives.group_patches_by_word(patches, words), chunk_size=4)
    assert scores.argmax(dim=1).tolist() == list(range(6))
