"""One name for one dataset and one family, for collections that each have their own.

Super-NaturalInstructions and T0 call the same data by different names (`multinli`, `glue/mnli`),
and a task of one may hide the test data of the other: what a run holds out is compared by the names
from here, which are those of `mtpt.tasks.families` wherever it knows one.
"""

from mtpt.tasks import canonical_dataset, canonical_family, clean_name

# Groups of the hubs, which say where a dataset is kept and not what it is; other parts after a
# slash are configurations of one dataset.
GROUPS = ('glue/', 'super_glue/', 'kilt_tasks/')

# Copies, translations, annotations and re-issues of the same examples.
DATASETS = dict(
    ai2_arc='arc',
    aqua='aqua_rat',
    clue_cmrc2018='cmrc2018',
    commongen='common_gen',
    commonsenseqa='commonsense_qa',
    copa_hr='copa',
    cos_e='commonsense_qa',
    cosmosqa='cosmos_qa',
    e_snli='snli',
    e2e='e2e_nlg',
    e2e_nlg_cleaned='e2e_nlg',
    enhanced_wsc='wsc',
    math_qa='mathqa',
    multinli='mnli',
    mwsc='wsc',
    nq_open='natural_questions',
    pasinlu='parsinlu',
    paws_x='paws',
    rocstories='roc_stories',
    rotten_tomatoe='rotten_tomatoes',
    scitailv1_1='scitail',
    social_iqa='social_i_qa',
    squad_v2='squad',
    trivia_qa='triviaqa',
    winograd_wsc='wsc',
    winowhy='wsc',
    wsc_fiexed='wsc',
    wsc_fixed='wsc',
    xcopa='copa',
    xl_wic='wic',
    xquad='squad',
)

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
    return None if name in NO_DATASET else canonical_dataset(DATASETS.get(name, name))


def family(name: str) -> str:
    """The canonical name of a task family: `NLI` and `Textual Entailment` are one."""
    name = canonical_family(name)
    return canonical_family(FAMILIES.get(name, name))
