"""One name for one dataset and one family, for collections that each have their own.

Super-NaturalInstructions and T0 call the same data by different names (`multinli`, `glue/mnli`),
and a task of one may hide the test data of the other: what a run holds out is compared by the names
from here, which are those of `mtpt.tasks.families` wherever it knows one.
"""

from mtpt.tasks import canonical_dataset, canonical_family, clean_name

# Groups of the hubs, which say where a dataset is kept and not what it is; other parts after a
# slash are configurations of one dataset.
GROUPS = ('glue/', 'super_glue/', 'kilt_tasks/')

# Names under which a collection files what comes from no dataset at all.
NO_DATASET = ('', 'synthetic', 'missing', 'miscellaneous')

FAMILIES = dict(
    bias_and_fairness='stereotype_detection',
    commonsense_classification='commonsense',
    dialogue_generation='dialogue',
    math_word_problems='mathematics',
    misc='miscellaneous',
    paraphrasing='paraphrase',
    question_classification='topic_classification',
    text_categorization='topic_classification',
    text_completion='sentence_completion',
    text_matching='paraphrase',
    text_to_code='semantic_parsing',
    text_to_sql='semantic_parsing',
)


def dataset(name: str | None) -> str | None:
    """The canonical name of a source dataset, `None` for machine-made tasks.

    >>> dataset('glue/mnli') == dataset('multinli')
    True
    """
    name = (name or '').split(';')[0].strip().lower()
    for group in GROUPS:
        name = name.removeprefix(group)
    name = clean_name(name.split('/')[0]) if name else ''
    return None if name in NO_DATASET else canonical_dataset(name)


def family(name: str) -> str:
    """The canonical name of a task family: `NLI` and `Textual Entailment` are one."""
    name = canonical_family(name)
    return canonical_family(FAMILIES.get(name, name))
