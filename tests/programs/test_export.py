"""run_scripts/export.py: what is written, that its embeddings are the model's, and what is refused."""
import json
import os
import re
import runpy
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import pedestal
import train as train_program
from model import build_model
from run_scripts import export
from run_scripts.exports import TEST_SENTENCES, hugging_face, onnx
from tests.support import options
from utils import simple_tokenizer
from utils.errors import UserError

needs_onnx = pytest.mark.skipif(any(__import__('importlib').util.find_spec(name) is None
                                    for name in ('onnx', 'onnxruntime', 'onnxscript')),
                                reason='ONNX is not installed: pip install onnx onnxruntime onnxscript')
needs_exporter = pytest.mark.skipif(not onnx.supports_export(), reason='the ONNX exporter of PyTorch 2.6 crashes')
SENTENCE = 'a woman in a red coat'


@needs_onnx
def test_a_pytorch_whose_exporter_crashes_is_refused(monkeypatch):
    monkeypatch.setattr(onnx, 'supports_export', lambda: False)
    with pytest.raises(UserError, match='--to onnx needs PyTorch 2.7 or later, because the exporter of .* crashes'):
        onnx.import_onnx()


@needs_exporter
@needs_onnx
def test_onnx_gives_the_models_embeddings_for_any_batch(trained, data, tmp_path, capsys):
    import onnxruntime
    out = str(tmp_path / 'new' / 'model')
    export.main(['--config_file', trained, '--out', out])
    assert "onnxruntime's embeddings equal the model's: largest cosine distance" in capsys.readouterr().out
    assert sorted(os.listdir(out)) == [
        'bpe_simple_vocab_16e6.txt.gz', 'config.json', 'example.py', 'image_encoder.onnx', 'merges.txt',
        'simple_tokenizer.py', 'text_encoder.onnx', 'vocab.json']
    assert os.listdir(tmp_path / 'new') == ['model']
    people = pedestal.load(os.path.dirname(trained), device='cpu', amp='off')
    with open(os.path.join(out, 'config.json')) as file:
        config = json.load(file)

    def run(name, inputs):
        session = onnxruntime.InferenceSession(os.path.join(out, f'{name}_encoder.onnx'),
                                               providers=['CPUExecutionProvider'])
        return session.run(None, {session.get_inputs()[0].name: inputs})[0]
    # as config.json says, and with nothing of ours
    photos = [Image.new('RGB', (20 + n, 50), (60 * n, 80, 200)) for n in range(5)]
    image = config['image']
    pixels = [np.asarray(photo.resize((image['width'], image['height']), Image.BILINEAR), np.float32) / 255
              for photo in photos]
    prepared = np.stack([((one - image['mean']) / image['std']).transpose(2, 0, 1)
                         for one in pixels]).astype(np.float32)
    given = run('image', prepared)
    assert np.allclose(np.linalg.norm(given, axis=1), 1, atol=1e-5) and given.shape == (5, config['embedding']['width'])
    assert torch.allclose(torch.from_numpy(given), people.encode_images(photos), atol=1e-4)
    with open(os.path.join(out, 'vocab.json'), encoding='utf-8') as file:
        vocabulary = json.load(file)
    ids = np.zeros((1, config['text']['length']), np.int64)
    words = [config['text']['start'], *(vocabulary[f'{word}</w>'] for word in SENTENCE.split()), config['text']['end']]
    ids[0, :len(words)] = words
    assert torch.allclose(torch.from_numpy(run('text', ids)), people.encode_captions([SENTENCE]), atol=1e-5)
    check_example(out, people, os.path.join(data, 'CUHK-PEDES', 'imgs'), capsys)


def check_example(out, people, photos, capsys):
    """Check that example.py ranks photos as the library does, with none of Pedestal's modules."""
    names = sorted(os.path.join(folder, name) for folder, _, names in os.walk(photos) for name in names)[:6]
    words = f'{SENTENCE}, with (2) bags & a hat!'
    example, module = (runpy.run_path(os.path.join(out, f'{name}.py')) for name in ('example', 'simple_tokenizer'))
    # The vocabulary of these tests is small.
    module['SimpleTokenizer'].__init__.__globals__['MERGES'] = simple_tokenizer.MERGES
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'simple_tokenizer', SimpleNamespace(**module))
        example['main'](words, *names)
    printed = [line.split(' ', 1) for line in capsys.readouterr().out.splitlines()]
    expected = (people.encode_images(names) @ people.encode_captions([words]).T)[:, 0].tolist()
    similarities = {path: float(value) for value, path in printed}
    assert similarities == pytest.approx(dict(zip(names, expected)), abs=1e-3)
    assert list(similarities.values()) == sorted(similarities.values(), reverse=True)
    with open(os.path.join(out, 'example.py')) as file:
        assert not re.search(r'^\s*(import|from) (torch|utils|model|pedestal)', file.read(), flags=re.MULTILINE)


@needs_exporter
@pytest.mark.parametrize('changes', [
    {'loss_names': 'tal+tse'},
    {'loss_names': 'cl', 'backbone': 'albef', 'pretrain_choice': 'scratch:albef-tiny'}], ids=['tse', 'albef'])
def test_an_encoder_is_exported_for_any_batch_size(clip, changes):
    model = build_model(options(**{'pretrain_choice': clip, 'img_size': (64, 32), **changes}), 3)
    images = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    encoder = onnx.NormalizedEncoder(model, model.encode_image).eval()
    program = torch.export.export(encoder, (images,), dynamic_shapes=({0: torch.export.Dim('batch', min=1)},))
    with torch.no_grad():
        assert torch.allclose(program.module()(images[:3]), encoder(images)[:3], atol=1e-5)


@needs_exporter
@needs_onnx
def test_what_is_not_the_models_is_not_written(trained, tmp_path, monkeypatch):
    # not of length 1
    monkeypatch.setattr(onnx.NormalizedEncoder, 'forward', lambda self, inputs: self.encode(inputs) * 1.001)
    with pytest.raises(UserError, match='largest cosine distance is .* nothing is written'):
        export.main(['--config_file', trained, '--out', str(tmp_path / 'model')])
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope='module')
def square(data, clip, tmp_path_factory):
    """The configs.yaml of a plain run on square images."""
    logs = tmp_path_factory.mktemp('square')
    train_program.main(['--name', 'square', '--loss_names', 'sdm', '--dataset_name', 'CUHK-PEDES', '--root_dir', data,
                        '--num_epoch', '1', '--pretrain_choice', clip, '--img_size', '64', '64', '--batch_size', '8',
                        '--num_workers', '0', '--device', 'cpu', '--output_dir', str(logs)])
    folder, = os.listdir(logs / 'CUHK-PEDES')
    return str(logs / 'CUHK-PEDES' / folder / 'configs.yaml')


@pytest.mark.parametrize('shape', ['square', 'oblong'])
def test_transformers_loads_a_plain_run(shape, square, trained, tmp_path, capsys):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed: pip install transformers')
    out, run, oblong = str(tmp_path / 'clip'), square if shape == 'square' else trained, shape == 'oblong'
    export.main(['--config_file', run, '--out', out, '--to', 'huggingface'])
    output = capsys.readouterr().out
    assert "transformers' embeddings equal the model's" in output
    assert oblong == ('interpolate_pos_encoding=True' in output)
    people = pedestal.load(os.path.dirname(run), device='cpu', amp='off')
    tokenizer = transformers.CLIPTokenizer.from_pretrained(out)
    model = transformers.CLIPModel.from_pretrained(out).eval()
    ids = tokenizer([SENTENCE, *TEST_SENTENCES], padding='max_length', truncation=True,
                    return_tensors='pt').input_ids
    assert torch.equal(ids, people.tokenize([SENTENCE, *TEST_SENTENCES]))
    photo = Image.new('RGB', (40, 90), (200, 30, 60))
    photo.paste((0, 100, 0), (10, 20, 30, 60))
    pixels = transformers.CLIPImageProcessor.from_pretrained(out)(photo, return_tensors='pt').pixel_values
    with torch.no_grad():
        given = model(input_ids=ids, pixel_values=pixels, interpolate_pos_encoding=oblong)
        if oblong:
            with pytest.raises(ValueError, match="doesn't match model"):       # nobody gets other embeddings unawares
                model(input_ids=ids, pixel_values=pixels)
    # resized by another library
    assert (given.image_embeds * people.encode_images([photo])).sum().item() > 1 - 1e-3
    assert torch.allclose(given.text_embeds, people.encode_captions([SENTENCE, *TEST_SENTENCES]), atol=1e-5)


@pytest.mark.parametrize('grid', [(24, 8), (16, 8), (14, 5), (4, 6)])
def test_a_square_table_of_positions_is_resized_to_our_own(grid):
    original = torch.randn(1 + grid[0] * grid[1], 5, generator=torch.Generator().manual_seed(0))
    results, side = hugging_face.square_position_table(original, grid), max(grid)
    assert results.shape == (1 + side * side, 5) and torch.equal(results[0], original[0])
    resized = F.interpolate(results[1:].t().view(1, 5, side, side), size=grid, mode='bicubic', align_corners=False)
    assert torch.allclose(resized[0].flatten(1).t(), original[1:], atol=1e-5)


@pytest.mark.parametrize('changes, sentence',
                         [({'loss_names': 'sdm+aux', 'php_parts': 'crfm'},
                           'not a plain CLIP .a head refines its embeddings.; use --to onnx, which supports every run'),
                          ({'stride_size': 12}, 'not a plain CLIP .its patches overlap'),
                          ({'img_size': (72, 32)}, '72x32 are not a multiple of its patches of 16')])
def test_a_run_that_is_no_plain_clip_is_told(clip, changes, sentence):
    args = options(**{'pretrain_choice': clip, 'loss_names': 'sdm', 'img_size': (64, 32), **changes})
    with pytest.raises(UserError, match=sentence):
        hugging_face.require_plain_clip(SimpleNamespace(args=args, model=build_model(args, 3)))


def test_an_older_transformers_reads_square_images_alone(monkeypatch):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed: pip install transformers')
    clip = transformers.CLIPModel
    monkeypatch.setattr(clip, 'forward', lambda self, input_ids=None, pixel_values=None: None)
    with pytest.raises(UserError, match="supports only square images: pip install -U transformers, or use --to onnx"):
        hugging_face.import_transformers(oblong=True)
    # transformers replaces its module object when it is used first
    assert hugging_face.import_transformers().CLIPModel is clip


@pytest.mark.parametrize('module, to, sentence', [('onnxruntime', 'onnx', 'pip install onnx onnxruntime onnxscript'),
                                                  ('transformers', 'huggingface', 'pip install transformers')])
def test_a_missing_library_is_one_sentence(trained, tmp_path, monkeypatch, module, to, sentence):
    monkeypatch.setitem(__import__('sys').modules, module, None)
    with pytest.raises(UserError, match=sentence):
        export.main(['--config_file', trained, '--out', str(tmp_path / 'model'), '--to', to])
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_there_is_left_alone(trained, tmp_path):
    with pytest.raises(UserError, match='already exists: choose another name'):
        export.main(['--config_file', trained, '--out', str(tmp_path)])


@pytest.mark.parametrize('words', [['--to', 'full'], ['--to', 'full', '--merge'], ['--merge']])
def test_the_released_layout_reads_no_other_format(trained, tmp_path, words):
    with pytest.raises(UserError, match='--released_layout .* reads neither --to nor --merge: remove them'):
        export.main(['--config_file', trained, '--out', str(tmp_path / 'x.pth'), '--released_layout', *words])
    assert os.listdir(tmp_path) == []


def test_transformers_gets_the_activation(trained, tmp_path):
    pytest.importorskip('transformers')
    recipe = tmp_path / 'configs.yaml'
    with open(trained) as file:
        recipe.write_text(file.read().replace('activation: quick_gelu', 'activation: gelu'))
    people = pedestal.load(str(recipe), checkpoint=os.path.join(os.path.dirname(trained), 'best.pth'), amp='off',
                           device='cpu')
    assert "transformers' embeddings equal the model's" in hugging_face.export_clip(people, str(tmp_path / 'gelu'))
    with open(tmp_path / 'gelu' / 'config.json') as file:
        content = json.load(file)
    assert [content[f'{side}_config']['hidden_act'] for side in ('text', 'vision')] == ['gelu', 'gelu']


def test_a_tbps_clip_run_in_the_released_layout(data, clip, tmp_path, run_folder, capsys):
    """The released eval.py loads what it finds under these names, and says nothing of the rest."""
    train_program.main(['--loss_names', 'nitc+ritc+citc+ss', '--mvs_image', '--preparation', 'tbps', '--root_dir', data,
                        '--dataset_name', 'CUHK-PEDES', '--num_epoch', '1', '--pretrain_choice', clip,
                        '--img_size', '64', '32', '--batch_size', '8', '--num_workers', '0', '--device', 'cpu',
                        '--limit_train', '8', '--output_dir', str(tmp_path / 'logs')])
    config, out = os.path.join(run_folder(), 'configs.yaml'), str(tmp_path / 'checkpoint_best.pth')
    export.main(['--config_file', config, '--released_layout', '--out', out])
    assert f'wrote {out}' in capsys.readouterr().out
    content = torch.load(out, weights_only=True)
    names = {name.partition('.')[0] for name in content['model']}
    assert names == {'visual', 'encode_text', 'logit_scale', 'simclr_mlp'} and content['epoch'] == 1
    ours, theirs = (pedestal.load(run_folder(), checkpoint=checkpoint).model.state_dict() for checkpoint in (None, out))
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    with pytest.raises(UserError, match='checkpoint_best.pth already exists'):
        export.main(['--config_file', config, '--released_layout', '--out', out])


def exporting(trained, out, to):
    export.main(['--config_file', trained, '--out', out, '--to', to])


@needs_exporter
@needs_onnx
def test_a_disk_that_is_full_is_named_as_such(trained, tmp_path, file_size_limit):
    """Not as a model that cannot be exported."""
    out = str(tmp_path / 'model')
    file_size_limit(5000)
    message = f'^cannot write {out}: File too large; free some space, or name another folder with --out$'
    with pytest.raises(UserError, match=message):
        exporting(trained, out, 'onnx')
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('error, reason', [(OSError(28, os.strerror(28)), 'No space left on device'),
                                           (PermissionError(13, os.strerror(13)), 'Permission denied'),
                                           (RuntimeError('I/O error: No space left on device (os error 28)'),
                                            'No space left on device')])
@pytest.mark.parametrize('to', ['onnx', 'huggingface'])
def test_what_a_library_says_of_a_full_disk(trained, tmp_path, monkeypatch, error, reason, to):
    def fail(*_, **__):
        try:
            raise error
        except Exception as cause:
            raise ValueError('the exporter failed') from cause
    monkeypatch.setattr(torch.onnx, 'export', fail)
    monkeypatch.setattr(onnx, 'import_onnx', lambda: None)
    monkeypatch.setattr(hugging_face, 'export_clip', fail)
    out = str(tmp_path / 'model')
    with pytest.raises(UserError, match=f'^cannot write {out}: {reason}; free some space'):
        exporting(trained, out, to)
    assert os.listdir(tmp_path) == []


def test_a_place_that_is_no_folder(trained, tmp_path):
    (tmp_path / 'file').write_text('')
    message = f'^cannot write {tmp_path}/file/model: (File exists|Not a directory); free some space, or name'
    with pytest.raises(UserError, match=message):
        exporting(trained, str(tmp_path / 'file' / 'model'), 'onnx')


@pytest.mark.parametrize('number, error', [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_stopped_export_leaves_nothing(trained, tmp_path, monkeypatch, number, error):
    def stopped(encoder, inputs, path, **settings):
        with open(path, 'w') as file:
            file.write('half')
        os.kill(os.getpid(), number)
        raise AssertionError('not reached')
    monkeypatch.setattr(torch.onnx, 'export', stopped)
    monkeypatch.setattr(onnx, 'import_onnx', lambda: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(error) as left:
            exporting(trained, str(tmp_path / 'model'), 'onnx')
    finally:
        signal.signal(signal.SIGINT, before)
    assert os.listdir(tmp_path) == [] and getattr(left.value, 'code', 143) == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
