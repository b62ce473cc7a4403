"""The losses of RDE, TBPS-CLIP, FMFA and CONQUER against values and gradients of the reference implementations."""
import pytest
import torch

from model import objectives
from model.heads.conquer import TransportCost
from tests.support import golden, golden_cases

def triplets(case):
    return {'tau': float(case['tau']), 'margin': float(case['margin'])}


def inverse_temperature(case):
    return 1 / float(case['temperature'])


RDE = {
    'TAL': lambda image, text, case: objectives.tal(image, text, case['pids'], **triplets(case), reduction='none'),
    'TRL': lambda image, text, case: objectives.trl(image, text, case['pids'], **triplets(case), reduction='none'),
    'InfoNCE': lambda image, text, case: objectives.itc(image, text, scale=inverse_temperature(case), reduction='none'),
    'SDM': lambda image, text, case: objectives.sdm(image, text, case['pids'], reduction='none',
                                                    scale=inverse_temperature(case)),
}


def entries(file, case):
    """The case's entries, by names without the case."""
    return {name[len(case) + 1:]: value for name, value in golden(file)[0].items() if name.startswith(f'{case}/')}


def inputs(case, *names):
    return [case[name].clone().requires_grad_() for name in names]


def assert_close(ours, official, relative=1e-5, absolute=1e-6, what=None):
    assert float((ours.detach() - official).norm()) <= relative * float(official.norm()) + absolute, what


def assert_gradients(case, tag, absolute=1e-6, **tensors):
    for name, tensor in tensors.items():
        grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        official = case.get(f'{tag}/grad_{name}', torch.zeros_like(tensor))
        assert_close(grad, official, absolute=absolute, what=f'{tag} {name}')


@pytest.mark.parametrize('loss', RDE)
@pytest.mark.parametrize('file, name', golden_cases('rde_objectives_*', 'image_tse'))
def test_rde(file, name, loss):
    case = entries(file, name)
    image, text, image_tse, text_tse = tensors = inputs(case, 'image', 'text', 'image_tse', 'text_tse')
    per_pair = RDE[loss](image, text, case)
    total = 0
    for part, ours in (('bge', per_pair), ('tse', RDE[loss](image_tse, text_tse, case))):
        summed = objectives.reduce_clean_pairs(ours, case['label_hat'], 'mean' if loss in ('InfoNCE', 'SDM') else 'sum')
        assert_close(summed, case[f'{loss}/{part}_loss'])
        total = total + summed
    assert_close(per_pair, case[f'{loss}/bge_per_sample'])
    total.backward()
    assert_gradients(case, loss, **dict(zip(('image', 'text', 'image_tse', 'text_tse'), tensors)))


def tbps_losses(case, tensors, simclr_mlp):
    """{tag: loss} of a case."""
    image, image_aug, text, ss_1, ss_2, log_scale = tensors
    scale = objectives.clamped_scale(log_scale)

    def nitc(view):
        return objectives.nitc(view, text, view, case['text_soft'], case['pids'], scale=scale,
                               alpha=float(case['alpha']))
    return {
        'nitc': nitc(image), 'nitc_mvs': (nitc(image) + nitc(image_aug)) / 2,
        'ritc': objectives.ritc(image, text, case['pids'], scale=scale, eps=float(case['ritc_eps'])),
        'citc': objectives.citc(image, text), 'ss': objectives.simclr(simclr_mlp(ss_1), simclr_mlp(ss_2))}


RATIOS = {'full': {'nitc_mvs': 1, 'ritc': 1, 'citc': 0.1, 'ss': 0.4}, 'simplified': {'nitc': 1, 'ritc': 1}}


@pytest.mark.parametrize('tag', ['nitc', 'nitc_mvs', 'ritc', 'citc', 'ss', 'full', 'simplified'])
@pytest.mark.parametrize('file, name', golden_cases('tbps_objectives_*', 'log_scale'))
def test_tbps(file, name, tag):
    case = entries(file, name)
    names = 'image', 'image_aug', 'text', 'ss_1', 'ss_2', 'log_scale'
    tensors = inputs(case, *names)
    shape = case['simclr_mlp.0.weight'].shape, case['simclr_mlp.2.weight'].shape
    mlp = torch.nn.Sequential(torch.nn.Linear(*shape[0][::-1]), torch.nn.ReLU(), torch.nn.Linear(*shape[1][::-1]))
    prefix = 'simclr_mlp.'
    mlp.load_state_dict({name[len(prefix):]: value for name, value in case.items() if name.startswith(prefix)})
    losses = tbps_losses(case, tensors, mlp)
    ratios = RATIOS.get(tag, {tag: 1})
    weighted = {part: ratio * losses[part] for part, ratio in ratios.items()}
    for part, loss in weighted.items():
        official = case[tag] if tag in losses else case[f'{tag}/{part.removesuffix("_mvs")}_loss']
        assert_close(loss, official, absolute=1e-7)
    total = sum(weighted.values())
    if tag in RATIOS:
        assert_close(total, case[f'{tag}/total'])
    total.backward()
    *embeddings, log_scale = tensors
    assert_gradients(case, tag, **dict(zip(names, embeddings)))
    grad = log_scale.grad if log_scale.grad is not None else torch.zeros(())   # near 0 at a scale of 100
    assert_close(grad, case[f'{tag}/grad_log_scale'], relative=1e-4)
    for entry, parameter in mlp.named_parameters():
        norm = 0.0 if parameter.grad is None else float(parameter.grad.norm())
        official = float(case.get(f'{tag}/grad_norm_simclr_mlp.{entry}', 0))
        assert norm == pytest.approx(official, rel=1e-5, abs=1e-6), entry


@pytest.mark.parametrize('tag', ['a_sdm', 'sdm'])
@pytest.mark.parametrize('file, name', golden_cases('fmfa_objectives_*', 'a_sdm'))
def test_fmfa_similarity_distributions(file, name, tag):
    case = entries(file, name)
    image, text = inputs(case, 'image', 'text')
    loss = getattr(objectives, tag)(image, text, case['pids'], scale=1 / float(case['temperature']))
    loss.backward()
    assert_close(loss, case[tag])
    assert_gradients(case, tag, image=image, text=text)


@pytest.mark.parametrize('chunk_size', [1, 4, 100])
@pytest.mark.parametrize('file, name', golden_cases('fmfa_objectives_*', 'efa'))
def test_fmfa_explicit_alignment(file, name, chunk_size):
    case = entries(file, name)
    image_tokens, text_tokens = inputs(case, 'image_tokens', 'text_tokens')
    patches = image_tokens[:, 1:]
    grouped = objectives.group_patches_by_word(patches, text_tokens)
    assert_close(objectives.patch_weights(patches, text_tokens), case['weights'])
    assert_close(grouped, case['aggregated'])
    assert_close(objectives.token_triplet_loss(text_tokens, grouped, margin=0.1), case['efa_text'])
    assert_close(objectives.token_triplet_loss(patches, grouped, margin=0.9), case['efa_image'])
    loss = objectives.explicit_alignment(patches, text_tokens, chunk_size=chunk_size)
    assert_close(loss, case['efa'])
    loss.backward()
    assert_gradients(case, 'efa', absolute=1e-7, image_tokens=image_tokens, text_tokens=text_tokens)


@pytest.mark.parametrize('file, name', golden_cases('conquer_objectives_*', 'ccl'))
def test_conquer(file, name):
    case = entries(file, name)
    weights = {tag: golden(file)[1][f'{tag}_weight'] for tag in ('ccl', 'rematch')}
    cost = case['cost_weight_after'].flatten()[0], case['cost_bias_after'][0]
    is_noisy, total = case['label_hat'] == 0, {}
    for tag, loss in (('ccl', objectives.complementary_contrast),
                      ('rematch', lambda image, text: objectives.rematching(image, text, is_noisy, *cost))):
        image, text = inputs(case, 'image', 'text')
        value = loss(image, text)
        value.backward()
        assert_close(value, case[tag])
        assert_gradients({name.replace(f'{tag}_grad', f'{tag}/grad'): value for name, value in case.items()}, tag,
                         image=image, text=text)
        total[tag] = weights[tag] * value.detach()
    assert_close(sum(total.values()), case['total'])
    if 'plan' in case:
        cosine = objectives.cosine_similarity(case['image'], case['text'])
        plan = objectives.transport_plan(objectives.transport_cost(cosine, *cost), is_noisy)
        torch.testing.assert_close(plan[is_noisy][:, is_noisy].double(), case['plan'], rtol=0, atol=1e-7)
        assert plan.count_nonzero() <= is_noisy.sum() ** 2


@pytest.mark.parametrize('file, name', golden_cases('conquer_objectives_*', 'pairs'))
def test_conquers_learned_cost(file, name):
    case, cost = entries(file, name), TransportCost()
    cost.values.copy_(torch.cat([case['cost_weight'].flatten(), case['cost_bias']]))
    cosine, (images, captions) = objectives.cosine_similarity(case['image'], case['text']), case['pairs'].t()
    costs = objectives.transport_cost(cosine, *cost.values)
    assert_close(costs[images, captions].sum(), case['ot_loss'])
    cost.train_step(cosine, images, captions)
    torch.testing.assert_close(cost.values[0], case['cost_weight_after'].flatten()[0], rtol=0, atol=1e-7)
    torch.testing.assert_close(cost.values[1], case['cost_bias_after'][0], rtol=0, atol=1e-7)
