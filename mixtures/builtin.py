"""The built-in suite as SeqIO tasks and mixtures: no network, the same on every machine.

builtin               every trained task, and 2 draws of span corruption for 100 of them
builtin_supervised    the trained tasks alone
builtin_text          span corruption alone, on the documentation of Python
builtin_trained       every trained task under every wording of training, to be validated on
builtin_new_wordings  trained tasks under wordings that training never shows
builtin_new_tasks     held-out tasks, in families of their own

A task of the suite is about 15 lines in a file of `mixtures/suite/`; `suite/tasks.py` lists them.
"""

from mtpt.mixtures.suite import documentation, tasks
from mtpt.mixtures.suite.recipe import SPLITS, Recipe
from mtpt.tasks.prompts import Prompt
from mtpt.tasks.register import mixture, task, text_task
from mtpt.tasks.sources import function

R = 0.02  # draws of text for a supervised one; a text fills a row, which holds four examples


def prompts(templates: dict[str, str]) -> tuple[Prompt, ...]:
    return tuple(Prompt(name, text, '{{ answer }}', 'choices') for name, text in templates.items())


def add(recipe: Recipe) -> None:
    """One call into SeqIO's registry."""
    source = function(recipe.examples, SPLITS)
    task(
        recipe.name,
        source,
        prompts(recipe.templates),
        family=recipe.family,
        held_out_prompts=prompts(recipe.new_templates),
    )


for each in tasks.TRAINED + tasks.NEW:
    add(each)

text_task('python_docs', function(documentation.documents, ('train', 'validation')))

TRAINED = [each.name for each in tasks.TRAINED]
mixture('builtin_supervised', TRAINED)
mixture('builtin_text', ['python_docs'])
mixture('builtin', [*TRAINED, 'python_docs'], rule='ext5', R=R)
mixture(
    'builtin_trained', [f'{t.name}.{w}' for t in tasks.TRAINED for w in t.wordings], rule='equal'
)
mixture(
    'builtin_new_wordings',
    [f'{t.name}.{w}' for t in tasks.TRAINED for w in t.new_wordings],
    rule='equal',
)
mixture('builtin_new_tasks', [t.name for t in tasks.NEW], rule='equal')
