"""Prompts: what templates write, and what they may not do."""

import json
import time
import tracemalloc

import pytest

from mtpt.config import UserError
from mtpt.tasks.prompts import Prompt, clean_name, render

EXAMPLE = {
    'premise': 'A man walks.',
    'hypothesis': 'Who ||| walks?',
    'label': 2,
    'options': {'text': ['one', ' two ', 'three']},
    'tags': ['x', 'y', 'x'],
}


DOUBLE = '{{% set ns = {} %}}{{% for i in range(99) %}}{{% set ns.s = {} %}}{{% endfor %}}'


def written(template, example=EXAMPLE):
    return render(Prompt('p', template, 'x'), example).inputs


def test_inputs_targets_and_choices_are_rendered_and_stripped():
    prompt = Prompt(
        'p', ' {{premise}} Q: {{hypothesis}}\n', ' {{answer_choices[label]}} ', ('a', 'b', ' c')
    )
    found = render(prompt, EXAMPLE)
    assert found == ('A man walks. Q: Who ||| walks?', ('c',), ('a', 'b', 'c'), 2)


def test_choices_come_from_a_tuple_a_field_or_a_template():
    target = '{{options.text[1]}}'
    for choices in ('options.text', '{{ options.text | join("|||") }}', 'one ||| two ||| three'):
        found = render(Prompt('p', 'q', target, choices), EXAMPLE)
        assert found.choices == ('one', 'two', 'three') and found.answer == 1
    assert render(Prompt('p', 'q', target), EXAMPLE).choices is None


def test_targets_may_have_several_references():
    found = render(Prompt('p', 'q', '{{ tags | join("|||") }}'), EXAMPLE)
    assert found.targets == ('x', 'y', 'x') and found.answer is None


def test_bars_inside_the_data_do_not_separate():
    assert render(Prompt('p', 'q', '{{hypothesis}}'), EXAMPLE).targets == ('Who ||| walks?',)
    found = render(Prompt('p', '{{hypothesis}} ||| yes', None), EXAMPLE)
    assert found.inputs == 'Who ||| walks?' and found.targets == ('yes',)


def test_one_template_may_write_both_sides_and_share_what_it_sets():
    found = render(Prompt('p', '{% set x = tags[1] %}in {{x}} ||| out {{x}}', None), EXAMPLE)
    assert found.inputs == 'in y' and found.targets == ('out y',)


def test_a_template_that_writes_nothing_does_not_apply():
    assert render(Prompt('p', '{% if label == 0 %}q{% endif %}', 'x'), EXAMPLE) is None
    assert render(Prompt('p', 'q', '{% if label == 0 %}x{% endif %}'), EXAMPLE) is None
    assert render(Prompt('p', '{% if label == 0 %}q ||| x{% endif %}', None), EXAMPLE) is None


def test_the_filters_of_promptsource_are_there_and_a_draw_belongs_to_the_example():
    assert written('{{ tags | most_frequent | join(",") }}') == 'x'
    assert written('{{ ["b","a","b","a"] | most_frequent | join }}') == 'ba'
    assert written('{% for a, b in zip(tags, [1,2,3]) %}{{a}}{{b}}{% endfor %}') == 'x1y2x3'
    template = '{{ range(1000) | choice }}'
    turned = dict(reversed(EXAMPLE.items()))
    assert (
        written(template)
        == written(template, turned)
        == written(template, json.loads(json.dumps(EXAMPLE)))
    )
    drawn = {written(template, {**EXAMPLE, 'label': i}) for i in range(20)}
    assert len(drawn) > 10


def test_a_template_cannot_change_the_example():
    example = json.loads(json.dumps(EXAMPLE))
    assert written('{{ tags.append("z") or tags | length }}', example) == '4'
    assert example == EXAMPLE


def test_a_missing_field_is_named_with_what_there_is():
    with pytest.raises(UserError) as error:
        render(Prompt('p', '{{ premis }}', 'x'), EXAMPLE, 'nli')
    assert str(error.value) == (
        "prompt 'p' of task 'nli' names the field 'premis'; the example has: "
        'hypothesis, label, options, premise, tags'
    )
    with pytest.raises(UserError, match=r"names the field 'options.words'"):
        render(Prompt('p', 'q', 'x', 'options.words'), EXAMPLE)
    with pytest.raises(UserError, match='no attribute'):
        written('{{ options.words }}')


def test_a_target_outside_the_choices_is_an_error():
    with pytest.raises(UserError, match="writes 'x', which is not one of its choices"):
        render(Prompt('p', 'q', 'x', ('a', 'b')), EXAMPLE)


@pytest.mark.parametrize(
    'template',
    [
        '{{ "".__class__ }}',
        '{{ ""["__cla" ~ "ss__"] }}',
        '{{ premise | attr("__class__") }}',
        '{{ zip.__self__ }}',
        '{{ self.__init__.__globals__ }}',
        '{{ _room._example }}',
        '{{ premise.format.__globals__ }}',
        '{% include "x" %}',
        '{% for k in namespace.__mro__ %}{% endfor %}',
    ],
)
def test_a_template_cannot_reach_pythons_insides(template):
    with pytest.raises(UserError, match=r'insides|another template'):
        written(template)


@pytest.mark.parametrize(
    'template',
    [
        '{{ "a" * 10**9 }}',
        '{{ [1] * 10**8 }}',
        '{{ 2 ** 100000000 }}',
        '{{ "%999999999d" % 1 }}',
        '{{ "{:>999999999}".format(1) }}',
        '{{ "{:>{w}}".format(1, w=999999999) }}',
        '{{ "a".ljust(10**9) }}',
        '{{ "a" | center(10**9) }}',
        '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
        '{% for i in range(99999) %}{{ premise }}{% endfor %}',
        # A number, a text or a list that doubles at each turn.
        DOUBLE.format('namespace(s="ab")', 'ns.s + ns.s'),
        DOUBLE.format('namespace(s="ab")', 'ns.s ~ ns.s'),
        DOUBLE.format('namespace(s="ab")', '"%s%s" % (ns.s, ns.s)'),
        DOUBLE.format('namespace(s="ab")', '"{0}{0}".format(ns.s)'),
        DOUBLE.format('namespace(s="ab")', '"%(a)s%(a)s" | format(a=ns.s)'),
        DOUBLE.format('namespace(s="ab")', 'ns.s.replace("a", ns.s)'),
        DOUBLE.format('namespace(s="ab")', 'ns.s | replace("a", ns.s)'),
        DOUBLE.format('namespace(s="ab")', 'ns.s.join(ns.s)'),
        DOUBLE.format('namespace(s="ab")', '[ns.s, ns.s] | join'),
        DOUBLE.format('namespace(s=["ab"])', 'ns.s + ns.s'),
        DOUBLE.format('namespace(s=["ab"])', '[ns.s, ns.s]') + '{{ ns.s }}',
        DOUBLE.format('namespace(s=["ab"])', 'dict(a=ns.s, b=ns.s).values()') + '{{ ns.s }}',
        DOUBLE.format('namespace(s=["ab"])', 'ns.s | map("replace", "a", ns.s) | list'),
        DOUBLE.format('namespace(s=3)', 'ns.s * ns.s'),
        '{% set l = [1] %}{% for i in range(99) %}{{ l.extend(l) or "" }}{% endfor %}',
        '{% set ns = namespace(s="ab") %}{% for i in range(99) %}'
        '{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}',
        '{% set x %}{% for i in range(99999) %}{{ "%99999d" % 1 }}{% endfor %}{% endset %}',
        '{{ [[[1] * 1000] * 1000] * 1000 }}',
        '{{ "%*d" % (10**9, 1) }}',
        # Loops in loops over numbers that were counted once.
        '{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}',
        '{% set r = range(99999) | list %}{% for a in r %}{% for b in r if 0 %}{% endfor %}'
        '{% endfor %}',
        '{% set r = range(999) %}{% for a in r recursive %}{{ loop(r) }}{% endfor %}',
        '{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}'
        '{{ f(60) }}',
        '{% set r = range(99999) | list %}{% for a in r %}{{ r | sum and "" }}{% endfor %}',
        '{% set s = "a" * 999999 %}{% for a in range(99999) %}'
        '{{ "" if s ~ a == s else "" }}{% endfor %}',
        '{{ range(10**12) | sum }}',
        '{{ range(10**12) | choice }}',
        '{% for a in zip(range(10**9), range(10**9)) %}{% endfor %}',
    ],
)
def test_a_template_cannot_fill_memory_or_run_for_ever(template):
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            written(template)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    # Of this process, whatever else the machine does: half a second untraced; else it is for ever.
    assert time.process_time() - started < 30


@pytest.mark.parametrize(
    'template',
    [
        '{% set _room = namespace(_left=9e9) %}',
        '{% set ns = namespace() %}{% set _x = 1 %}',
        '{% for _item in tags %}{% endfor %}',
        '{% macro _f() %}{% endmacro %}',
        '{{ tags | _each | list }}',
        '{{ _room }}',
    ],
)
def test_names_of_a_template_begin_with_a_letter(template):
    with pytest.raises(UserError, match="insides: '_"):
        Prompt('p', template, 'x')
    assert written('{% for _, b in zip(tags, tags) %}{{ b }}{% endfor %}') == 'xyx'


def test_what_one_rendering_spends_is_not_missing_from_the_next():
    template = (
        '{% for i in range(99999) %}{% endfor %}{% for t in tags %}{{ loop.index }}{% endfor %}'
    )
    for _ in range(4):
        assert written(template) == '123'


def test_large_texts_and_long_lists_are_no_offence():
    text, items = 'word ' * 40_000, [f'item {i}' for i in range(3000)]
    example = {'text': text, 'items': items}
    assert written('{{ text }}{{ "Q: " + text[:9] ~ items[0] }}', example).endswith('item 0')
    assert written('{{ text.replace("word", "a") | trim | length }}', example) == '79999'
    template = '{% set l = [] %}{% for i in items if i %}{{ l.append(i) or "" }}{% endfor %}'
    assert written(template + '{{ l | join(", ") }}', example) == ', '.join(items)
    assert written('{{ items | map("upper") | join("") }}', example).startswith('ITEM 0ITEM 1')
    assert (
        written('{% for i in items %}{{ "-" if not loop.last }}{% endfor %}', example) == '-' * 2999
    )


def test_large_numbers_in_the_data_are_no_offence():
    example = {'n': 7_800_000_000, 'x': 12_345_678.9}
    assert written('{{ n }} {{ x | round(1) }} {{ "{:,}".format(n) }} {{ n * 2 }}', example) == (
        '7800000000 12345678.9 7,800,000,000 15600000000'
    )


def test_bad_syntax_and_bad_names_are_refused_at_once():
    with pytest.raises(UserError, match="prompt 'p', line 1"):
        Prompt('p', '{{ premise ', 'x')
    with pytest.raises(UserError, match='letters, digits'):
        Prompt('two words', 'a', 'b')
    assert Prompt(clean_name('two words?'), 'a', 'b').name == 'two_words'


def test_any_other_failure_is_told_with_its_prompt():
    with pytest.raises(UserError, match="prompt 'p' failed with ZeroDivisionError"):
        written('{{ 1 / 0 }}')


def test_rendering_is_fast():
    prompt = Prompt(
        'p', '{{premise}} Q: {{hypothesis}}', '{{answer_choices[label]}}', ('a', 'b', 'c')
    )
    render(prompt, EXAMPLE)
    started = time.perf_counter()
    for _ in range(2000):
        render(prompt, EXAMPLE)
    assert (time.perf_counter() - started) / 2000 < 200e-6  # about 15 us on an idle core
