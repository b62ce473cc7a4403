"""Swin's and BERT's own weights, under APTM's names and fitted to its windows."""
import pytest
import torch
from torch import nn

from model.aptm_weights import (
    bert_file,
    bert_folder,
    fit_position_table,
    from_bert,
    from_swin,
    load_encoders,
    progression,
    ratio_to_reach,
    swin_file,
)
from model.bert import BertShape, TextEncoder
from model.swin import SwinTransformer, explain_misfit
from utils.errors import UserError


def encoders(img_size=(96, 32), window=4):
    module = nn.Module()
    module.vision_encoder = SwinTransformer(img_size, 4, 16, (2, 2), (1, 2), window)
    module.text_encoder = TextEncoder(BertShape(50, 32, 4, 2, 2, 64, 20, module.vision_encoder.width))
    return module


def test_progression_reaches_the_new_side():
    ratio = ratio_to_reach(6, 7)
    assert sum(ratio ** power for power in range(6)) == pytest.approx(7, abs=1e-3)
    assert progression(6, ratio)[:2] == pytest.approx([1, 1 + ratio]) and progression(6, ratio)[-1] == pytest.approx(
        7, abs=1e-3
    )
    assert ratio_to_reach(6, 3) == pytest.approx(1.01, abs=1e-5)


def test_position_tables_are_read_between_known_places():
    side, known = 15, 13
    ratio = ratio_to_reach(6, 7)
    places = torch.tensor(
        [-place for place in reversed(progression(6, ratio))] + [0] + progression(6, ratio), dtype=torch.float64
    )
    # A cubic spline gives a cubic back exactly.
    of = [lambda x, y: x + 2 * y, lambda x, y: x ** 3 - y ** 2 * x]
    table = torch.stack([f(places[:, None], places[None, :]).flatten() for f in of], dim=1)
    wanted = torch.arange(side, dtype=torch.float64) - 7
    expected = torch.stack([f(wanted[:, None], wanted[None, :]).flatten() for f in of], dim=1)
    assert table.shape == (known * known, 2)
    torch.testing.assert_close(fit_position_table(table, side), expected, rtol=1e-5, atol=1e-4)
    assert fit_position_table(table, known) is table


def test_weights_of_both_families_load_under_their_own_names():
    torch.manual_seed(0)
    source, target = encoders(), encoders(window=8)
    swin = {
        name.removeprefix('vision_encoder.'): value
        for name, value in source.state_dict().items()
        if name.startswith('vision_')
    }
    swin |= {'head.weight': torch.zeros(5, 32), 'head.bias': torch.zeros(5)}
    bert = {name.removeprefix('text_encoder.'): value for name, value in source.state_dict().items()
            if name.startswith('text_') and '.crossattention.' not in name and not name.endswith('position_ids')}
    del bert['cls.predictions.decoder.bias']                       # as Hugging Face keeps it
    bert = {name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): value
            for name, value in bert.items()}
    bert |= {'bert.pooler.dense.weight': torch.zeros(32, 32), 'cls.seq_relationship.bias': torch.zeros(2)}
    before = target.state_dict()['text_encoder.bert.encoder.layer.3.crossattention.self.key.weight'].clone()
    load_encoders(target, {**from_swin(swin), **from_bert(bert)}, 'files', lambda name: '.crossattention.' in name)
    ours, theirs = target.state_dict(), source.state_dict()
    assert torch.equal(ours['text_encoder.bert.encoder.layer.3.crossattention.self.key.weight'], before)
    for name in (
        'vision_encoder.layers.0.blocks.1.attn.qkv.weight',
        'text_encoder.bert.embeddings.LayerNorm.weight',
        'text_encoder.cls.predictions.decoder.weight',
        'text_encoder.cls.predictions.bias',
        'vision_encoder.norm.bias',
    ):
        assert torch.equal(ours[name], theirs[name]), name
    table = 'vision_encoder.layers.0.blocks.0.attn.relative_position_bias_table'
    assert theirs[table].shape == (49, 1) and ours[table].shape == (225, 1)


def test_what_does_not_fit_is_one_sentence():
    state = {name: value for name, value in encoders().state_dict().items() if 'norm.bias' not in name}
    with pytest.raises(UserError, match="mals.pth does not hold the parameters of APTM's encoders .missing: "
                                        "vision_encoder"):
        load_encoders(encoders(), {**state, 'visual.conv1.weight': torch.zeros(1)}, 'mals.pth')


def test_files_are_looked_for_where_the_ecosystem_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
    with pytest.raises(UserError, match='no weights of Swin-B at .*checkpoints'):
        swin_file()
    with pytest.raises(UserError, match='--vocab_file'):
        bert_folder()
    folder = tmp_path / 'hub' / 'models--google-bert--bert-base-uncased' / 'snapshots' / 'abc'
    folder.mkdir(parents=True)
    (folder / 'vocab.txt').touch()
    assert bert_folder() == str(folder)
    with pytest.raises(UserError, match='holds no weights of a BERT'):
        bert_file(str(folder))


@pytest.mark.parametrize('img_size, reason', [((384, 128), None), ((96, 32), None), ((384, 100), 'multiples of 32'),
                                              ((512, 128), None), ((384, 192), 'cannot cover')])
def test_images_that_windows_cannot_cover(img_size, reason):
    found = explain_misfit(img_size, 4, 4, 8)
    assert found is None if reason is None else reason in found


def test_published_shape():
    with torch.device('meta'):
        model = SwinTransformer()
    blocks = model.layers[2].blocks
    assert len(blocks) == 18 and blocks[1].attn.shift_size == [0, 0] and blocks[0].attn.window_size == [8, 8]
    assert model.layers[3].blocks[0].attn.window_size == [4, 4]
    assert model.layers[0].blocks[1].attn.shift_size == [4, 4] and model.layers[0].blocks[1].attn_mask.shape == (
        48,
        64,
        64,
    )
    assert blocks[-1].drop_path.p == pytest.approx(0.1 * 21 / 23)
    assert model(torch.zeros(2, 3, 384, 128, device='meta')).shape == (2, 49, 1024)
