"""RDE's selection of clean pairs against the reference implementation, which uses scikit-learn."""
import pytest
import torch

from model import noise_mixture
from tests.support import golden, golden_cases


def settings_of(description, case):
    gmm = description['cases'][case]['gmm']
    return {name: gmm[name] for name in ('max_iter', 'tol', 'reg_covar')}


@pytest.mark.parametrize('part', ['bge', 'tse'])
@pytest.mark.parametrize('file, case', golden_cases('rde_ccd_*', 'in/coin'))
def test_clean_probabilities_of_a_similarity(file, case, part):
    vectors, description = golden(file)
    losses = vectors[f'{case}/in/loss_{part}']
    probabilities = noise_mixture.clean_probabilities(losses, settings_of(description, case))
    torch.testing.assert_close(probabilities, vectors[f'{case}/out/prob_{part}'], rtol=1e-5, atol=1e-5)
    selected = noise_mixture.select_likely_clean(probabilities)
    assert torch.equal(selected.float(), vectors[f'{case}/out/pred_{part}'])


@pytest.mark.parametrize('file, case', golden_cases('rde_ccd_*', 'in/coin'))
def test_consensus(file, case):
    vectors, description = golden(file)
    losses = [vectors[f'{case}/in/loss_{part}'] for part in ('bge', 'tse')]
    clean = noise_mixture.select_by_consensus(losses, vectors[f'{case}/in/coin'], settings_of(description, case))
    assert torch.equal(clean, vectors[f'{case}/out/label_hat'])


@pytest.mark.parametrize('file, case', golden_cases('rde_ccd_*', 'in/prob'))
def test_threshold(file, case):
    vectors, _ = golden(file)
    selected = noise_mixture.select_likely_clean(vectors[f'{case}/in/prob'])
    assert torch.equal(selected.float(), vectors[f'{case}/out/pred'])


def test_settings_are_those_of_the_reference():
    description = golden('rde_ccd_tiny')[1]
    assert settings_of(description, 'gentle') == noise_mixture.COARSE_FIT
    assert settings_of(description, 'thorough') == settings_of(description, 'rstp') == noise_mixture.FINE_FIT


@pytest.mark.parametrize('part', ['bge', 'tse'])
@pytest.mark.parametrize('case', ['gentle', 'thorough', 'rstp'])
def test_start_is_that_of_k_means(case, part):
    vectors, _ = golden('rde_ccd_tiny')
    low = noise_mixture.lower_cluster(vectors[f'{case}/in/loss_{part}'])
    assert torch.equal(low, vectors[f'{case}/in/start_low_{part}'].bool())


def test_lower_cluster_is_the_best_of_all_cuts():
    values = torch.tensor([0.9, 0.1, 0.35, 0.2, 0.8, 0.15])

    def variance_within(low):
        return sum(float((part - part.mean()).square().sum()) for part in (values[low], values[~low]))
    cuts = [values <= bound for bound in sorted(values.tolist())[:-1]]
    assert torch.equal(noise_mixture.lower_cluster(values), min(cuts, key=variance_within))


def test_equal_losses_and_very_few_losses():
    assert torch.equal(noise_mixture.clean_probabilities(torch.full((5,), 0.3)), torch.ones(5))
    # If all pairs are likely clean, the lowest percentile counts as noisy, here the only pair.
    single = [torch.tensor([0.5]), torch.tensor([0.1])]
    assert noise_mixture.select_by_consensus(single, torch.zeros(1)).tolist() == [0.0]
    two = [torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])]
    assert noise_mixture.select_by_consensus(two, torch.zeros(2)).tolist() == [1.0, 0.0]
