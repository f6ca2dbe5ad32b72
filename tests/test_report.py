"""The report of a run: one page, right numbers, no trust in what it is given."""

import html.parser
import json
import math
import re

import pytest

from mtpt import report
from mtpt.config import UserError
from mtpt.report import charts, scores

NASTY = '<script>alert("x")</script>'


def run_folder(folder, steps=10, **files):
    """A folder as a run leaves it: two good tasks and one that was skipped."""
    lines = [
        {
            'step': step,
            'train/loss': 5.0 / step,
            'train/accuracy': step / 20,
            'train/grad_norm': 1.0,
            'train/learning_rate': 1e-3,
            'train/skipped': 0,
            'task/a/loss': 4.0 / step,
            'task/b/loss': 6.0 / step,
            'time/tokens_per_s': 1000.0,
            'time/step': 30.0,
        }
        for step in range(1, steps + 1)
    ]
    tasks = [
        dict(name='a', id=1, family='logic', dataset='d', kind='pairs', asked=0.75, examples=60)
        | dict(tokens=900, status='ok', reason='', available=40, truncated=0),
        dict(name='b', id=2, family='dates', dataset='d', kind='pairs', asked=0.25, examples=40)
        | dict(tokens=100, status='ok', reason='', available=400, truncated=0),
        dict(name='c', id=3, family='dates', dataset='d', kind='pairs', asked=0.0, examples=0)
        | dict(tokens=0, status='skipped', reason='c.jsonl, line 3', available=0, truncated=0),
    ]
    contents = {
        'metrics.jsonl': '\n'.join(map(json.dumps, lines)) + '\n',
        'tasks.json': json.dumps(tasks),
        'config.json': json.dumps({'name': 'first', 'config': {'model': {'size': 'tiny'}}}),
    } | files
    (folder / 'eval').mkdir(exist_ok=True)
    for name, text in contents.items():
        if text is not None:
            (folder / name).write_text(text)
    return folder


def row(task='a', prompt='exam', value=0.6, chance=0.5, **more):
    fields = dict(kind='new tasks', family='logic', dataset='d', metric='accuracy', examples=100)
    fields |= dict(low=value - 0.1, high=value + 0.1, majority=0.5, empty=0.5)
    fields |= dict(normalisation='sum', label_shares={'yes': 0.9, 'no': 0.1})
    return fields | dict(task=task, prompt=prompt, value=value, chance=chance) | more


def evaluation(folder, rows, step=10, mixture='exams', name='one'):
    found = dict(step=step, mixture=mixture, split='test', normalisation='sum', rows=rows)
    (folder / 'eval').mkdir(exist_ok=True)
    (folder / f'eval/{name}.json').write_text(json.dumps(found | dict(summary={})))


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; raises where a tag is closed that was not open."""

    VOID = ('meta', 'path', 'br')

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ['style']:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r'\s+', ' ', ' '.join(self.words))


def page_of(folder):
    path = report.write(folder)
    assert path == folder / 'report.html'
    return Page(path.read_text(encoding='utf-8'))


def test_a_whole_run_becomes_one_page_with_every_section(tmp_path):
    evaluation(run_folder(tmp_path), [row(), row(prompt='other', value=0.8)])
    page = page_of(tmp_path)
    for heading in ('Learning curves', 'Scores', 'Tasks, asked for and drawn', 'Loss of each task'):
        assert heading in page.text
    assert '10 steps' in page.text and '1000 tokens seen' in page.text
    assert '5.0 minutes' in page.text
    assert 'size tiny' in page.text
    assert '0.700' in page.text  # the mean over the two prompts
    assert page.tags.count('details') == 1  # a task to open


def test_a_page_asks_for_nothing_from_outside(tmp_path):
    evaluation(run_folder(tmp_path), [row()])
    page = page_of(tmp_path)
    assert not {'script', 'link', 'img', 'iframe', 'object', 'base'} & set(page.tags)
    assert not {'src', 'href', 'srcset', 'action'} & {name for name, _ in page.attributes}
    assert 'url(' not in (tmp_path / 'report.html').read_text()
    policy = [value for name, value in page.attributes if name == 'content']
    assert any("default-src 'none'" in value for value in policy)


def test_names_and_texts_of_a_run_never_become_markup(tmp_path):
    evil = f'"\' onload=x {NASTY}'
    task = dict(name=evil, family=evil, dataset=evil, kind=evil, asked=1.0, examples=1, tokens=1)
    skipped = dict(name=evil + '2', family=evil, status='skipped', reason=evil)
    metrics = {'step': 1, 'train/loss': 1.0, f'task/{evil}/loss': 1.0}
    run_folder(
        tmp_path,
        **{
            'metrics.jsonl': json.dumps(metrics),
            'tasks.json': json.dumps([task, skipped]),
            'config.json': json.dumps(
                dict(name=evil, command=evil, devices=evil, started=evil, parameters=evil)
                | dict(versions={evil: evil}, config={evil: {evil: [evil]}})
            ),
        },
    )
    words = dict.fromkeys(('prompt', 'kind', 'family', 'dataset', 'metric'), evil)
    rows = [row(evil, **words, label_shares={evil: 1.0}), row('b', **words | dict(prompt='p'))]
    for step in (1, 2):
        evaluation(tmp_path, rows, step=step, mixture=evil, name=f'{step}')
    (tmp_path / 'eval' / '<b>broken.json').write_text('{')
    page = page_of(tmp_path)
    assert 'script' not in page.tags and 'b>broken.json' not in page.tags
    assert not any(name.startswith('on') for name, _ in page.attributes)
    styles = [value for name, value in page.attributes if name == 'style']
    assert all(re.fullmatch(r'((top|left|width):[\d.]+%;?)+', style) for style in styles)
    paths = [value for name, value in page.attributes if name == 'd']
    assert paths and all(re.fullmatch(r'[MLHhZ\d. -]*', path) for path in paths)
    assert page.text.count(NASTY) > 15


def test_a_killed_run_is_reported_up_to_its_last_whole_line(tmp_path):
    folder = run_folder(tmp_path)
    whole = (folder / 'metrics.jsonl').read_text()
    (folder / 'metrics.jsonl').write_text(whole + '{"step": 11, "train/loss": 0.4')
    assert report.read(folder).curves['train/loss'][-1] == (10, 0.5)
    assert '10 steps' in page_of(folder).text


def test_the_time_of_a_run_is_that_of_all_its_steps():
    assert report.seconds({'time/step': [(10, 0.5), (30, 2.0)]}) == 10 * 0.5 + 20 * 2.0


def test_tokens_of_both_sides_are_counted_where_they_were_logged(tmp_path):
    line = {'train/loss': 1.0, 'train/tokens': 100, 'train/encoder_tokens': 450}
    lines = [json.dumps(line | {'step': s}) for s in (1, 2)]
    run_folder(tmp_path, **{'metrics.jsonl': '\n'.join(lines)})
    assert '1100 tokens seen' in page_of(tmp_path).text


def test_tasks_of_an_earlier_table_that_are_no_longer_used_are_left_out(tmp_path):
    tasks = [dict(name='old', status='unused'), dict(name='a', status='ok', tokens=5)]
    page = page_of(run_folder(tmp_path, **{'tasks.json': json.dumps(tasks)}))
    assert 'old' not in page.text.split()


def test_a_page_is_made_of_metrics_alone(tmp_path):
    page = page_of(run_folder(tmp_path, **{'tasks.json': None, 'config.json': None}))
    assert 'No evaluation has been written yet' in page.text
    assert 'has no list of tasks' in page.text and 'config.json' in page.text
    assert tmp_path.name in page.text


def test_broken_files_are_named_and_do_not_stop_the_page(tmp_path):
    run_folder(tmp_path, **{'tasks.json': '{"not": "a list"}', 'config.json': '{'})
    (tmp_path / 'eval/bad.json').write_text('[1, 2')
    evaluation(tmp_path, [dict(task='a', value='not a number'), 7], name='empty')
    text = page_of(tmp_path).text
    for name in ('tasks.json', 'config.json', 'bad.json', 'empty.json'):
        assert name in text


@pytest.mark.parametrize('make', [lambda f: None, lambda f: f.mkdir()])
def test_a_folder_without_metrics_is_refused_in_one_sentence(tmp_path, make):
    make(tmp_path / 'run')
    with pytest.raises(UserError, match='run') as caught:
        report.write(tmp_path / 'run')
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'run/report.html').exists()


def test_realised_shares_and_epochs_follow_from_what_was_drawn(tmp_path):
    run = report.read(run_folder(tmp_path))
    families = report.task_table(run.tasks, run.curves)
    assert [f['name'] for f in families] == ['dates', 'logic']
    (a,) = families[1]['tasks']
    assert (a['asked'], a['examples_share'], a['tokens_share']) == (0.75, 0.6, 0.9)
    assert a['epochs'] == 1.5
    assert math.isclose(families[0]['examples_share'], 0.4)


def test_a_skipped_task_is_shown_with_its_reason_at_the_top(tmp_path):
    text = page_of(run_folder(tmp_path)).text
    assert '1 of 3 tasks was skipped' in text
    assert text.index('c.jsonl, line 3') < text.index('Learning curves')


def test_steps_that_were_left_out_are_counted(tmp_path):
    lines = [{'step': s, 'train/loss': math.nan, 'train/skipped': 2} for s in (1, 2)]
    run_folder(tmp_path, **{'metrics.jsonl': '\n'.join(map(json.dumps, lines))})
    assert '4 steps with a loss or gradient that was not finite were left out.' in (
        page_of(tmp_path).text
    )
    (tmp_path / 'nonfinite').mkdir()
    (tmp_path / 'nonfinite' / '00000002.json').write_text('{"sentence": "encoder/layers/1 <b>"}')
    (tmp_path / 'nonfinite' / '00000003.json').write_text('{"sentence":')
    text = page_of(tmp_path).text
    assert 'left out; what was behind' in text and 'encoder/layers/1 <b>' in text


def test_tasks_count_equally_however_many_prompts_they_have():
    rows = [row('a', str(i), 0.9) for i in range(3)] + [row('b', 'x', 0.3)]
    (section,) = scores.judge(rows)
    assert math.isclose(section['value'], 0.6)
    assert math.isclose(section['gain'], 0.1)
    assert section['low'] < 0.6 < section['high']


def test_a_gain_over_chance_is_claimed_only_when_its_interval_excludes_none(tmp_path):
    def words(values):
        evaluation(run_folder(tmp_path), [row(str(i), value=v) for i, v in enumerate(values)])
        return page_of(tmp_path).text

    assert 'above chance' in words([0.7, 0.72, 0.8, 0.75])
    assert 'below chance' in words([0.3, 0.31, 0.2, 0.25])
    assert 'not told apart from chance' in words([0.2, 0.8, 0.45, 0.55])
    assert 'too few tasks' in words([0.9, 0.9])


def test_answers_that_are_written_freely_have_no_chance_level(tmp_path):
    rows = [row(t, metric='rouge1', chance=0.0, method='greedy decoding') for t in 'abc']
    evaluation(run_folder(tmp_path), rows)
    text = page_of(tmp_path).text
    assert 'no chance level' in text and 'above chance' not in text


def test_the_newest_evaluation_is_shown_and_the_older_ones_make_its_course(tmp_path):
    run_folder(tmp_path)
    for step, value in ((5, 0.11), (10, 0.62)):
        evaluation(tmp_path, [row(value=value)], step=step, name=f'{step}')
    (group,) = scores.grouped(report.read(tmp_path).evaluations)
    found = scores.scored(group)
    assert found['step'] == 10 and found['sections'][0]['value'] == 0.62
    (chart,) = found['course']
    assert len(chart['lines'][0]['dots']) == 2
    assert 'The course of exams' in page_of(tmp_path).text


def test_scores_on_other_numbers_of_examples_are_not_put_into_one_course(tmp_path):
    run_folder(tmp_path)
    for i, examples in enumerate((100, 100, 64, 100), start=1):
        told = row(value=i / 10, examples=examples, cut=examples < 100)
        evaluation(tmp_path, [told], step=i, name=str(i))
    (group,) = scores.grouped(report.read(tmp_path).evaluations)
    found = scores.scored(group)
    assert len(found['course'][0]['lines'][0]['dots']) == 3 and found['unlike'] == 1
    page = report.page(report.read(tmp_path))
    assert '1 evaluation on other numbers of examples is left out' in page
    evaluation(tmp_path, [row(examples=64, cut=True)], step=5, name='5')
    assert 'cut for want of time, 64 examples' in report.page(report.read(tmp_path))


def test_new_tasks_come_before_new_wordings_and_trained_tasks(tmp_path):
    run_folder(tmp_path)
    for kind in ('trained', 'new tasks', 'new wordings'):
        evaluation(tmp_path, [row(kind=kind)], mixture=kind.split()[-1], name=kind)
    groups = scores.grouped(report.read(tmp_path).evaluations)
    assert [g[0]['rows'][0]['kind'] for g in groups] == list(scores.KINDS)


def test_thinning_keeps_the_mean_and_the_extremes():
    curve = [(i, float(i % 7)) for i in range(1000)] + [(1000, math.nan)]
    thinned = charts.thin(curve, 100)
    assert len(thinned) <= 100
    assert math.isclose(sum(v for _, v, _, _ in thinned) / len(thinned), 3.0, rel_tol=0.01)
    assert {low for _, _, low, _ in thinned} == {0.0} and {h for *_, h in thinned} == {6.0}


@pytest.mark.parametrize('top', [1e-7, 7e-4, 0.3, 1.0, 4.9, 60, 14321, 3e9])
def test_ticks_are_few_round_and_reach_the_top(top):
    ticks = charts.ticks_to(top)
    assert ticks[0] == 0 and ticks[-1] >= top * (1 - 1e-9) and 2 <= len(ticks) <= 5
    assert len({charts.short(t) for t in ticks}) == len(ticks)


def test_a_small_chart_is_named_by_what_its_family_does_not_say(tmp_path):
    lines = json.dumps({'step': 1, 'train/loss': 1.0, 'task/dates_weekday/loss': 1.0})
    tasks = json.dumps([dict(name='dates_weekday', family='dates')])
    run = report.read(run_folder(tmp_path, **{'metrics.jsonl': lines, 'tasks.json': tasks}))
    ((cell,),) = [
        f['cells'] for f in report.multiples(run, report.task_table(run.tasks, run.curves))
    ]
    assert (cell['name'], cell['label']) == ('dates_weekday', 'weekday')


def large_run(folder, number=1000):
    """A run of many tasks in ten families; the third had ten times what was asked for."""
    names = [f'task_{i:04}' for i in range(number)]
    line = {f'task/{name}/loss': 1.0 for name in names} | {'train/loss': 1.0}
    lines = [json.dumps(line | {'step': s}) for s in range(1, 21)]
    tasks = [
        dict(name=n, family=f'family {n[-1]}', asked=1 / number, examples=100, tokens=900)
        | dict(all_tokens=4000, available=50 + i, epochs=100 / (50 + i), truncated=int(i % 7 == 0))
        | dict(dropped=0)
        for i, n in enumerate(names)
    ]
    tasks[3]['examples'] = 1000
    tasks[4] |= dict(examples=10, dropped=9)
    return run_folder(
        folder, **{'metrics.jsonl': '\n'.join(lines), 'tasks.json': json.dumps(tasks)}
    )


def test_a_large_run_shows_families_and_what_stands_out_and_stays_a_small_file(tmp_path):
    page = page_of(large_run(tmp_path))
    assert page.tags.count('details') == 10  # the losses of each family
    assert (tmp_path / 'report.html').stat().st_size < 2_000_000
    tables = page.text[page.text.index('Tasks, asked for') : page.text.index('Loss of each task')]
    assert all(f'family {i}' in tables for i in range(10))
    more, less = (tables.index(f'Drawn {word} than') for word in ('more', 'less'))
    assert more < tables.index('task_0003') < less < tables.index('task_0004')
    assert tables.count('task_') < 60 and 'All 1000 tasks' in tables and 'tasks.json' in tables


def test_epochs_that_nobody_knows_are_not_made_up(tmp_path):
    task = dict(name='a', family='f', asked=1.0, examples=9, tokens=9, available=3, epochs=None)
    run = report.read(run_folder(tmp_path, **{'tasks.json': json.dumps([task])}))
    [[row]] = [f['tasks'] for f in report.task_table(run.tasks, run.curves)]
    assert row['epochs'] is None


def overlapping(name, share, **more):
    worst = [dict(example=4, share=0.5, task='web', shard='s/x', place=9, words=f'a b {NASTY}')]
    found = dict(name=name, split='test', kind='new tasks', dataset='d', examples=10, short=1)
    return found | dict(seen=round(9 * share), share=share, worst=worst if share else []) | more


def test_what_exams_share_with_training_is_a_section_the_worst_first(tmp_path):
    assert 'Exams and training' not in page_of(run_folder(tmp_path)).text
    exams = [overlapping(f'e{i}', 0) for i in range(50)] + [overlapping(NASTY, 1 / 3)]
    exams.append(overlapping('brief', 0) | dict(short=10, share=None))
    told = dict(n=13, source='some paper', exams=exams)
    page = page_of(run_folder(tmp_path, **{'overlap.json': json.dumps(told)}))
    assert '50 of 52 evaluation sets' in page.text and '13 words in a row' in page.text
    assert '12 more sets' in page.text and 'script' not in page.tags
    assert '1 cannot be judged' in page.text
    section = page.text[page.text.index('Exams and training') :]
    assert section.index(NASTY) < section.index('e0')
    broken = dict(exams=[None, {}, dict(name='x', worst=[None], share='much')])
    assert 'x' in page_of(run_folder(tmp_path, **{'overlap.json': json.dumps(broken)})).text
