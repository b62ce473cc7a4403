"""The open_clip backbone, on random weights of small architectures, against the library's own embeddings."""
import json
import logging
import os
import shutil

import pytest
import torch

from datasets.bases import tokenize
from datasets.truncation import describe_truncation, find_truncated
from model import build_model
from model.backbones import open_clip as backbones
from model.backbones.__main__ import runs
from model.backbones.open_clip import OpenClip
from model.build import total_loss
from model.head_registry import heads_for_backbone
from tests.support import options, small_archive
from utils.checkpoint import load_weights
from utils.errors import UserError

open_clip = pytest.importorskip('open_clip', reason='the open_clip library is not installed: pip install '
                                                    'open_clip_torch')

WORDS = {'vocab_size': 49408, 'width': 64, 'heads': 2, 'layers': 2}
VIT = {'image_size': 64, 'layers': 2, 'width': 96, 'head_width': 32, 'patch_size': 16}
SHAPES = {
    'tiny-clip': {'embed_dim': 64, 'vision_cfg': VIT, 'text_cfg': {'context_length': 40, **WORDS}},
    # SigLIP's ways: timm's tower, pooled by attention and not projected; words see each other and the padding, and the
    # last place counts
    'tiny-sig': {
        'embed_dim': 64,
        'init_logit_bias': -10,
        'custom_text': True,
        'vision_cfg': {'image_size': 160, 'timm_model_name': 'test_vit', 'timm_pool': 'map', 'timm_proj': 'none'},
        'text_cfg': {'context_length': 24, 'no_causal_mask': True, 'pool_type': 'last', 'proj_bias': True, **WORDS},
    },
    'tiny-average': {
        'embed_dim': 64,
        'vision_cfg': {**VIT, 'pool_type': 'avg', 'final_ln_after_pool': True, 'no_ln_pre': True},
        'text_cfg': {'context_length': 40, 'pool_type': 'eos', 'eos_id': 49407, **WORDS},
    },
    'tiny-conv': {
        'embed_dim': 64,
        'vision_cfg': {'image_size': 160, 'timm_model_name': 'test_convnext', 'timm_pool': '', 'timm_proj': 'linear'},
        'text_cfg': {'context_length': 40, **WORDS},
    },
    'tiny-resnet': {
        'embed_dim': 64,
        'vision_cfg': {'image_size': 64, 'layers': [1, 1, 1, 1], 'width': 16, 'head_width': 32},
        'text_cfg': {'context_length': 40, **WORDS},
    },
}
LENGTH = {'tiny-sig': 24}
TEXTS = ['a man in a red coat', 'The woman, wearing black trousers & carrying a bag!', 'a']


@pytest.fixture(scope='module', autouse=True)
def shapes(tmp_path_factory):
    """The small architectures, beside the library's own."""
    folder = tmp_path_factory.mktemp('shapes')
    for name, shape in SHAPES.items():
        (folder / f'{name}.json').write_text(json.dumps(shape))
    before = list(open_clip.factory._MODEL_CONFIG_PATHS), dict(open_clip.factory._MODEL_CONFIGS)
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS[:], open_clip.factory._MODEL_CONFIGS = before


def small(name='tiny-clip', loss_names='itc', weights='', **changes):
    torch.manual_seed(0)
    settings = dict(
        backbone='open_clip',
        pretrain_choice=name + weights,
        loss_names=loss_names,
        text_length=LENGTH.get(name, 40),
        img_size=(96, 32),
        temperature=0.1,
        cmt_depth=1,
    )
    return build_model(options(**{**settings, **changes}), 4)


def theirs(name, size):
    """The library's model as the library makes it."""
    torch.manual_seed(1)
    return open_clip.create_model(name, force_image_size=size[0] if size and size[0] == size[1] else size).eval()


def saved(model, path):
    torch.save(model.state_dict(), path)
    return f':{path}'


def captions(name):
    return open_clip.get_tokenizer(name)(TEXTS)


@pytest.mark.parametrize('name, size', [('tiny-clip', (96, 32)), ('tiny-sig', (160, 160)), ('tiny-average', (96, 32)),
                                        ('tiny-conv', (96, 32)), ('tiny-resnet', (64, 64))])
def test_embeddings_are_the_library_s(name, size, tmp_path):
    reference = theirs(name, size)
    model = small(name, weights=saved(reference, tmp_path / 'weights.pt'), img_size=size).eval()
    images, ids = torch.randn(3, 3, *size), captions(name)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images), reference.encode_image(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.encode_text(ids), reference.encode_text(ids), rtol=1e-5, atol=1e-5)
        short = model.trim_padding(ids)      # as evaluation cuts captions
        torch.testing.assert_close(model.encode_text(short), reference.encode_text(ids), rtol=1e-5, atol=1e-5)
    assert (short.shape[1] < ids.shape[1]) == (name != 'tiny-sig')


@pytest.mark.parametrize('name', ['tiny-clip', 'tiny-sig'])
def test_position_tables_are_resized_as_by_the_library(name, tmp_path):
    square = theirs(name, None)
    path = tmp_path / 'weights.pt'
    torch.save(square.state_dict(), path)
    reference = open_clip.create_model(name, pretrained=str(path), force_image_size=(96, 32)).eval()
    model = small(name, weights=f':{path}').eval()
    images = torch.randn(2, 3, 96, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images), reference.encode_image(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['tiny-clip', 'tiny-sig', 'tiny-average'])
def test_tokens_are_in_the_embeddings_space(name):
    model = small(name).eval()
    with torch.no_grad():
        tokens, _ = model.backbone.encode_image(torch.randn(3, 3, 96, 32))
        words, _ = model.backbone.encode_text(captions(name))
    assert tokens.shape == (3, 13, 64) and words.shape == (3, LENGTH.get(name, 40), 64)
    torch.testing.assert_close(tokens[:, 0], model.backbone.image_embedding(tokens))


def test_captions_become_the_library_s_ids():
    args = options(backbone='open_clip', pretrain_choice='tiny-clip', loss_names='itc', text_length=10)
    tokenizer = OpenClip.tokenizer(args)
    ours = torch.stack([tokenize(text, tokenizer, 10) for text in TEXTS])
    assert torch.equal(ours, open_clip.tokenize(TEXTS, context_length=10))
    assert find_truncated(TEXTS, ours, tokenizer) == [(index, count) for index, text in enumerate(TEXTS)
                                                     if (count := 2 + len(tokenizer.encode(text))) > 10]
    assert (
        tokenizer.lengths(ours).tolist() == [8, 10, 3]
        and tokenizer.decode(tokenizer.encode('a red coat')) == 'a red coat '
    )


def sentencepieces(folder):
    """A tokenizer's folder in SigLIP's ways: no start, and padding that is the end."""
    tokenizers = pytest.importorskip('tokenizers', reason='the tokenizers library is not installed')
    transformers = pytest.importorskip('transformers', reason='the transformers library is not installed')
    words = {
        word: number
        for number, word in enumerate(['<unk>', '</s>', *'a man in red coat woman wearing black bag the'.split()])
    }
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='<unk>'))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    whole = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token='</s>', pad_token='</s>', unk_token='<unk>'
    )
    whole.save_pretrained(folder)
    return str(folder)


def with_tokenizer(monkeypatch, name):
    text = {
        **SHAPES['tiny-sig']['text_cfg'],
        'vocab_size': 12,
        'hf_tokenizer_name': name,
        'tokenizer_kwargs': {'clean': 'canonicalize'},
    }
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS,
        'tiny-pieces',
        {**SHAPES['tiny-sig'], 'text_cfg': {**text, 'context_length': 8}},
    )
    return options(backbone='open_clip', pretrain_choice='tiny-pieces', loss_names='itc', text_length=8)


def test_another_vocabulary_padded_its_own_way(tmp_path, monkeypatch):
    args = with_tokenizer(monkeypatch, sentencepieces(tmp_path))
    tokenizer = OpenClip.tokenizer(args)
    ours = torch.stack([tokenize(text, tokenizer, 8) for text in [*TEXTS, 'a ' * 20]])
    assert torch.equal(ours, open_clip.get_tokenizer('tiny-pieces')([*TEXTS, 'a ' * 20]))
    assert ours[0].tolist() == [2, 3, 4, 2, 5, 6, 1, 1]     # padding is 1
    sentence = describe_truncation([*TEXTS, 'a ' * 19 + 'bag'], ours, tokenizer)
    cut = len(find_truncated(TEXTS, ours[:-1], tokenizer)) + 1
    assert f'{cut} of {len(TEXTS) + 1} captions have more than 8 tokens' in sentence
    reference = theirs('tiny-pieces', (160, 160))
    model = build_model(
        options(
            **{
                **vars(args),
                'pretrain_choice': 'tiny-pieces' + saved(reference, tmp_path / 'weights.pt'),
                'img_size': (160, 160),
            }
        ),
        4,
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(ours), reference.encode_text(ours), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="the loss 'mlm' reads masked text tokens and tiny-pieces has none to give: its "
                                        "captions are not"):
        build_model(options(**{**vars(args), 'loss_names': 'itc+mlm'}), 4)


def test_a_tokenizer_that_is_not_there(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="the tokenizer .*missing is not in Hugging Face's cache and cannot be "
                                        "downloaded"):
        OpenClip.tokenizer(with_tokenizer(monkeypatch, str(tmp_path / 'missing')))
    with pytest.raises(UserError, match='give the folder of its files with --vocab_file, .* for random weights, give '
                                        '--vocab_file clip'):
        OpenClip.tokenizer(with_tokenizer(monkeypatch, str(tmp_path / 'missing')))
    args = with_tokenizer(monkeypatch, str(tmp_path / 'missing'))       # random weights and a local tokenizer, offline
    local = options(**{**vars(args), 'vocab_file': sentencepieces(tmp_path / 'local')})
    assert tokenize('a man in a red coat', OpenClip.tokenizer(local), 8).tolist() == [2, 3, 4, 2, 5, 6, 1, 1]


def test_a_run_keeps_a_copy_of_its_tokenizer(monkeypatch, tmp_path):
    args = {**vars(with_tokenizer(monkeypatch, str(tmp_path / 'missing'))), 'output_dir': str(tmp_path / 'run')}
    os.makedirs(tmp_path / 'run')
    given = sentencepieces(tmp_path / 'given')
    OpenClip.tokenizer(options(**{**args, 'vocab_file': given}), list)
    shutil.rmtree(given)
    for changes in ({'vocab_file': given, 'resume': True}, {'training': False, 'checkpoint': str(tmp_path / 'run/b')}):
        tokenizer = OpenClip.tokenizer(options(**{**args, **changes}))
        assert tokenize('a man in a red coat', tokenizer, 8).tolist() == [2, 3, 4, 2, 5, 6, 1, 1]
    with pytest.raises(UserError, match='--vocab_file'):
        OpenClip.tokenizer(options(**{**args, 'vocab_file': given}))


def with_word_shape(monkeypatch, **changes):
    """SigLIP's shape with words of another tokenizer, which no file here has, and random weights."""
    args = with_tokenizer(monkeypatch, 'missing/tokenizer')
    text = open_clip.factory._MODEL_CONFIGS['tiny-pieces']['text_cfg']
    text.update(changes)
    return options(**{**vars(args), 'vocab_file': 'clip', 'training': True, 'img_size': (96, 32)})


def test_random_weights_read_clip_s_words_without_another_file(monkeypatch, tmp_path):
    args = with_word_shape(monkeypatch)
    args.output_dir = str(tmp_path)
    tokenizer, model = OpenClip.tokenizer(args, TEXTS), build_model(args, 4).eval()
    ids = torch.stack([tokenize(text, tokenizer, 8) for text in TEXTS])
    assert torch.equal(ids, open_clip.tokenizer.SimpleTokenizer(context_length=8, clean='canonicalize')(TEXTS))
    assert ids.max() == tokenizer.end_id and model.backbone.vocab_size == tokenizer.vocab_size == 49408
    assert torch.isfinite(model.encode_text(ids)).all() and 'masked_text_tokens' in model.backbone.provides
    recorded = json.loads((tmp_path / 'open_clip_config.json').read_text())['model_cfg']['text_cfg']
    assert recorded['vocab_size'] == 49408 and 'hf_tokenizer_name' not in recorded
    # The run's folder says it from then on.
    again = options(**{**vars(args), 'training': False, 'vocab_file': ''})
    assert torch.equal(tokenize(TEXTS[0], OpenClip.tokenizer(again), 8), ids[0])


def test_the_end_of_clip_s_words_is_where_a_model_pools(monkeypatch):
    args = with_word_shape(monkeypatch, pool_type='eos', eos_id=2, no_causal_mask=False)
    tokenizer, model = OpenClip.tokenizer(args), build_model(args, 4)
    ids = tokenize('a man', tokenizer, 8)[None]
    assert model.backbone.end_positions(ids).tolist() == [3]


def test_clip_s_words_where_they_do_not_fit(monkeypatch, tmp_path):
    named = options(backbone='open_clip', pretrain_choice='ViT-B-16-SigLIP:webli', loss_names='itc', text_length=64,
                    vocab_file='clip')
    with pytest.raises(UserError, match='ViT-B-16-SigLIP:webli was trained with its own tokenizer: leave it out'):
        OpenClip.tokenizer(named)
    with pytest.raises(UserError, match='is roberta-base, which has its own vocabulary: choose another model'):
        OpenClip.tokenizer(options(**{**vars(named), 'pretrain_choice': 'roberta-ViT-B-32'}))
    args = with_tokenizer(monkeypatch, sentencepieces(tmp_path))
    args.output_dir = str(tmp_path)
    OpenClip.tokenizer(args, TEXTS)
    with pytest.raises(UserError, match='the run was trained with the tokenizer .*: leave it out'):
        OpenClip.tokenizer(options(**{**vars(args), 'vocab_file': 'clip'}))


def batch(length, size=4):
    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.zeros(size, length, dtype=torch.long), torch.zeros(size, length, dtype=torch.long)
    for row in ids:
        words = int(torch.randint(5, length - 2, (1,), generator=generator))
        row[0], row[words + 1] = 49406, 49407
        row[1:words + 1] = torch.randint(1, 49405, (words,), generator=generator)
    masked = ids.clone()
    labels[:, 2], masked[:, 2] = ids[:, 2], 49405
    images = torch.randn(size, 3, 1, 1, generator=generator) + 0.1 * torch.randn(size, 3, 96, 32, generator=generator)
    return {
        'pids': torch.arange(size),
        'image_ids': torch.arange(size),
        'images': images,
        'caption_ids': ids,
        'mlm_ids': masked,
        'mlm_labels': labels,
    }


@pytest.mark.parametrize(
    'loss', sorted(name for name, head in heads_for_backbone('open_clip').items() if runs(head, OpenClip))
)
def test_what_the_table_says_runs(loss):
    # rematch trains on the pairs that --ccd classifies as noisy, by the losses of infonce
    settings = {'loss_names': 'infonce+rematch', 'ccd': True} if loss == 'rematch' else {'loss_names': loss}
    model, samples = small(**settings), batch(40)
    results = model(
        {
            **samples,
            'second_caption_ids': samples['caption_ids'],
            'clean': (samples['pids'] > 1).float(),
            'attributes_mask': (samples['mlm_labels'] > 0).long(),
            'second_images': samples['images'],
            'simclr_images': torch.stack([samples['images']] * 2, dim=1),
        }
    )
    total_loss(results).backward()
    assert all(value.isfinite().all() for value in results.values())
    assert any(p.grad is not None for p in model.base_model.parameters())


@pytest.mark.parametrize('name', ['tiny-clip', 'tiny-sig', 'tiny-conv'])
def test_a_fixed_batch_is_learned(name):
    model, samples = small(name, 'sdm+itc' if name == 'tiny-conv' else 'sdm+itc+mlm'), batch(LENGTH.get(name, 40))
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(15):
        losses.append(total_loss(model(samples)))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize('name', ['tiny-clip', 'tiny-sig', 'tiny-conv'])
def test_grad_checkpoint_changes_nothing(name):
    found = []
    for switch in (False, True):
        model = small(name, 'sdm+itc', grad_checkpoint=switch).train()
        loss = total_loss(model(batch(LENGTH.get(name, 40))))
        loss.backward()
        found.append((loss.item(), *(p.grad.norm().item() for p in model.parameters() if p.grad is not None)))
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-7)


def test_weights_go_both_ways(tmp_path):
    model = small('tiny-sig', 'sdm+id').eval()
    path = tmp_path / 'best.pth'
    torch.save({'model': model.state_dict()}, path)
    assert all(
        name.startswith(('base_model.visual.', 'base_model.text.', 'classifier.')) for name in model.state_dict()
    )
    images, ids = torch.randn(2, 3, 96, 32), captions('tiny-sig')
    reference = open_clip.create_model('tiny-sig', force_image_size=(96, 32), force_custom_text=True).eval()
    missing = reference.load_state_dict({name[len('base_model.'):]: value for name, value in model.state_dict().items()
                                         if name.startswith('base_model.')}, strict=False)
    assert missing.missing_keys == ['logit_scale', 'logit_bias'] and not missing.unexpected_keys
    again = small('tiny-sig', weights=f':{path}').eval()
    tested = small('tiny-sig', 'sdm+id', training=False)
    load_weights(tested, model.state_dict())
    with torch.no_grad():
        for other in (reference, again, tested.eval()):
            torch.testing.assert_close(other.encode_image(images), model.encode_image(images), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(other.encode_text(ids), model.encode_text(ids), rtol=1e-5, atol=1e-5)


def test_the_weights_temperature_starts_the_learned_one(tmp_path):
    reference = theirs('tiny-clip', None)
    with torch.no_grad():
        reference.logit_scale.fill_(3.0)
    assert small(weights=saved(reference, tmp_path / 'weights.pt')).backbone.encoder.pretrained_scale == 3.0


def test_random_weights_are_said(caplog):
    logging.getLogger('Pedestal').propagate = logging.getLogger('Pedestal.model').propagate = True
    small()
    assert 'tiny-clip names no weights: the encoders start from random ones' in caplog.text


@pytest.mark.parametrize(
    'choice, mean',
    [
        ('ViT-B-16-SigLIP', 0.5),
        ('ViT-B-16-SigLIP:webli', 0.5),
        ('ViT-B/16', 0.48145466),
        ('ViT-B-16:openai', 0.48145466),
    ],
)
def test_images_are_prepared_as_for_the_weights(choice, mean):
    image_stats = OpenClip.image_stats(options(backbone='open_clip', pretrain_choice=choice, loss_names='itc'))
    assert image_stats.mean[0] == pytest.approx(mean) and image_stats.interpolation == 'bicubic'


def test_the_activation_is_the_weights():
    def of(choice):
        return backbones.describe(options(backbone='open_clip', pretrain_choice=choice, loss_names='itc'))[
            'model_cfg'
        ].get('quick_gelu')

    assert of('ViT-B-16:openai') and not of('ViT-B-16:laion2b_s34b_b88k') and not of('ViT-B-16')


def test_the_activation_of_a_file_is_said_next_to_it(tmp_path, caplog):
    logging.getLogger('Pedestal').propagate = logging.getLogger('Pedestal.model').propagate = True
    caplog.set_level('INFO', logger='Pedestal.model')
    path = saved(theirs('tiny-clip', (96, 32)), tmp_path / 'weights.pt')
    small(weights=path)
    assert "activation of the encoders: gelu (assumed: open_clip's tiny-clip has it)" in caplog.text
    (tmp_path / 'open_clip_config.json').write_text(json.dumps({'model_cfg': {'quick_gelu': True}}))
    model = small(weights=path)
    assert {type(block.mlp.gelu) for block in model.base_model.text.transformer.resblocks} == {
        open_clip.transformer.QuickGELU
    }
    assert f"activation of the encoders: quick_gelu ({tmp_path / 'open_clip_config.json'} says so)" in caplog.text


def test_a_file_of_another_activation_than_the_models_is_refused(tmp_path):
    path = saved(theirs('tiny-clip', (96, 32)), tmp_path / 'weights.pt')
    (tmp_path / 'open_clip_config.json').write_text(json.dumps({'model_cfg': {}}))
    args = options(backbone='open_clip', pretrain_choice='ViT-B-16-quickgelu' + path, loss_names='itc')
    with pytest.raises(UserError, match='has quick_gelu and .*open_clip_config.json says gelu.*such as ViT-B-16$'):
        backbones.describe(args)


@pytest.mark.parametrize('change, message', [
    (dict(pretrain_choice='tiny-clup'), "unknown open_clip model 'tiny-clup'.*did you mean tiny-clip"),
    (dict(pretrain_choice='ViT-B-16:opennai'), "unknown tag of ViT-B-16, and no file 'opennai'.*did you mean openai"),
    (dict(pretrain_choice='coca_ViT-B-32'), 'coca_ViT-B-32 has a text decoder'),
    (dict(text_length=41), '--text_length 41: tiny-clip reads at most 40 tokens'),
    (dict(pretrain_choice='tiny-sig', text_length=20), '--text_length 20: tiny-sig reads exactly 24 tokens'),
    (dict(pretrain_choice='tiny-sig', img_size=(8, 8), text_length=24), '--img_size 8 8: the image encoder of tiny-sig '
                                                                        'takes no such'),
    (dict(pretrain_choice='tiny-resnet'), 'open_clip cannot build tiny-resnet for images of 96 x 32'),
    (dict(stride_size=12), '--stride_size 12 is for the CLIP of --backbone clip'),
    (dict(preparation='tbps'), '--preparation tbps is for the CLIP'),
    (dict(freeze_conv1=True), '--freeze_conv1 is for CLIP'),
    (dict(pretrain_choice='tiny-conv', loss_names='itc+mlm'), "the loss 'mlm' reads image tokens and the image encoder "
                                                              'of tiny-conv returns one vector per image'),
    (dict(loss_names='mae'), "open_clip's encoders are not ours"),
    (dict(loss_names='itc+itm'), "unknown loss 'itm' for --backbone open_clip: it needs --backbone aptm"),
    (dict(pretrain_choice='tiny-resnet', img_size=(64, 64), micro_batch=2), '--micro_batch cannot split a batch for an '
                                                                            'encoder that norm'),
])
def test_bad_input_is_one_sentence(change, message):
    settings = dict(
        backbone='open_clip', pretrain_choice='tiny-clip', loss_names='itc', text_length=40, img_size=(96, 32)
    )
    with pytest.raises(UserError, match=message) as raised:
        args = options(**{**settings, **change})
        OpenClip.tokenizer(args)
        build_model(args, 4)
    assert '\n' not in str(raised.value)


def test_weights_of_another_shape(tmp_path):
    with pytest.raises(UserError, match='does not fit the model that the options describe'):
        small(weights=saved(theirs('tiny-average', None), tmp_path / 'weights.pt'))
    (tmp_path / 'broken.pt').write_bytes(b'PK\3\4 nothing')
    with pytest.raises(UserError, match='broken.pt is truncated or no file of weights'):
        small(weights=f":{tmp_path / 'broken.pt'}")


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def refuse(*_, **__):
        raise OSError('no route\nto host')
    monkeypatch.setattr(open_clip, 'download_pretrained', refuse)
    with pytest.raises(
        UserError,
        match=r'ViT-B-16:openai: open_clip cannot download the weights \(no route to host\); give ViT-B-16:<f',
    ):
        small('ViT-B-16', weights=':openai')


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'open_clip', None)
    with pytest.raises(UserError, match='--backbone open_clip needs the open_clip library: pip install '
                                        'open_clip_torch'):
        small()


def test_a_checkpoint_of_another_backbone(tmp_path):
    state = small().state_dict()
    with pytest.raises(UserError, match='holds a model with --backbone open_clip, and the options have --backbone '
                                        'clip: give --backbone open_clip'):
        build_model(options(loss_names='itc', training=False), 1, state)
    clip = {f'base_model.{name}': value for name, value in torch.load(small_archive(tmp_path / 'clip.pt')).items()}
    with pytest.raises(UserError, match='holds a model with --backbone clip, and the options have --backbone '
                                        'open_clip'):
        build_model(
            options(loss_names='itc', backbone='open_clip', pretrain_choice='tiny-clip', training=False), 1, clip
        )
