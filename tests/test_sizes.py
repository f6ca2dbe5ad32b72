"""The published sizes against counts from elsewhere: Hugging Face's models, papers' tables."""

import math

import pytest

from mtpt.convert import names
from mtpt.model.config import SIZES, ModelConfig, resolve

# What transformers 5.23 makes of each config, counted on its meta device (untied heads included).
COUNTED = dict(
    t5_small=60_506_624,
    t5_base=222_903_552,
    t5_large=737_668_096,
    t5_3b=2_851_598_336,
    t5_11b=11_307_321_344,
    small=76_961_152,
    base=247_577_856,
    large=783_150_080,
    xl=2_849_757_184,
    xxl=11_135_332_352,
    mt5_small=300_176_768,
    mt5_base=582_401_280,
    mt5_large=1_229_581_312,
    mt5_xl=3_742_619_648,
    mt5_xxl=12_921_057_280,
    byt5_small=299_637_760,
    byt5_base=581_653_248,
    byt5_large=1_228_183_552,
    byt5_xl=3_737_801_728,
    byt5_xxl=12_906_899_328,
    ul2_20b=19_459_613_696,
    switch_base_8=619_339_008,
    switch_base_16=1_072_397_568,
    switch_base_32=1_978_514_688,
    switch_base_64=3_790_748_928,
    switch_base_128=7_415_217_408,
    switch_base_256=14_664_154_368,
    switch_large_128=26_309_291_008,
)

# Totals that the papers print: Switch (2101.03961, table 9) and ST-MoE (2202.08906, abstract).
PRINTED = dict(
    switch_base_128=7e9,
    switch_large_128=26e9,
    switch_xxl_128=395e9,
    switch_c_2048=1571e9,
    st_moe_32b=269e9,
)


def count(size):
    shapes = names.shapes(resolve(ModelConfig(size=size)))
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize('size', COUNTED)
def test_a_published_size_has_the_published_number_of_parameters(size):
    assert count(size) == COUNTED[size]


@pytest.mark.parametrize('size', PRINTED)
def test_a_sparse_size_has_the_total_that_its_paper_prints(size):
    assert round(count(size) / 1e9) == round(PRINTED[size] / 1e9)


def test_every_published_size_is_counted():
    own = {'micro', 'tiny', 'mini', 'midi'}
    unprinted = {'st_moe_base', 'st_moe_xl'}  # known from published configs, without a total
    assert SIZES.keys() - own - unprinted == COUNTED.keys() | PRINTED.keys()


@pytest.mark.parametrize('size', COUNTED)
def test_the_live_library_counts_the_same(size):
    assert live_count(size) == COUNTED[size]


def live_count(size):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    from mtpt.convert.hugging_face import config_from

    cfg = resolve(ModelConfig(size=size))
    with torch.device('meta'):
        if cfg.moe.E:
            told = config_from(cfg, {})
            model = transformers.SwitchTransformersForConditionalGeneration(
                transformers.SwitchTransformersConfig(**told)
            )
        else:
            kind = 'MT5' if size.startswith('mt5') else 'T5'
            config = getattr(transformers, f'{kind}Config')
            told = config_from(cfg, dict(model_type=kind.lower()))
            model = getattr(transformers, f'{kind}ForConditionalGeneration')(config(**told))
    head = 0 if cfg.tied else cfg.V * cfg.D  # this version ties all heads until weights are loaded
    return sum(p.numel() for p in model.parameters()) + head
