"""Canonical names of task families and of source data sets.

A run holds out families and data sets by name, so one thing may have one name only: names are lower
case with `_` between words, and the synonyms in use here are folded into one. Unknown names are
welcome.
"""

import re

FAMILIES = dict(
    natural_language_inference='does one text follow from another',
    paraphrase='do two texts say the same',
    sentiment='how the writer feels',
    topic_classification='what a text is about',
    text_classification='any other label of a text',
    multiple_choice_qa='a question with options',
    closed_book_qa='a question answered from memory',
    reading_comprehension='a question answered from a given text',
    commonsense='what everybody knows',
    coreference='what a word refers to',
    word_sense='what a word means here',
    sentence_completion='which ending fits',
    summarisation='a text made shorter',
    simplification='a text made easier',
    structure_to_text='a text made from fields or tables',
    semantic_parsing='a text turned into a formal language',
    dialogue='the next turn of a conversation',
    translation='the same in another language',
    mathematics='a calculation',
    reasoning='conclusions in steps',
    self_supervised='raw text',
)

_SYNONYMS = dict(
    nli='natural_language_inference',
    textual_entailment='natural_language_inference',
    entailment='natural_language_inference',
    paraphrase_identification='paraphrase',
    sentiment_analysis='sentiment',
    classification='text_classification',
    topic='topic_classification',
    qa_multiple_choice='multiple_choice_qa',
    multiple_choice='multiple_choice_qa',
    qa_closed_book='closed_book_qa',
    cbqa='closed_book_qa',
    closed_book_question_answering='closed_book_qa',
    qa_extractive='reading_comprehension',
    commonsense_reasoning='commonsense',
    coreference_resolution='coreference',
    word_sense_disambiguation='word_sense',
    story_completion='sentence_completion',
    summarization='summarisation',
    text_simplification='simplification',
    data_to_text='structure_to_text',
    math='mathematics',
    dialog='dialogue',
    selfsupervised='self_supervised',
)

# Copies, translations, annotations and re-issues of the same examples have one name.
_SAME_DATA = dict(
    ai2_arc='arc',
    aqua='aqua_rat',
    bool_q='boolq',
    clue_cmrc2018='cmrc2018',
    commongen='common_gen',
    commonsenseqa='commonsense_qa',
    copa_hr='copa',
    cos_e='commonsense_qa',
    cosmosqa='cosmos_qa',
    e2e='e2e_nlg',
    e2e_nlg_cleaned='e2e_nlg',
    e_snli='snli',
    enhanced_wsc='wsc',
    glue_cola='cola',
    glue_mnli='mnli',
    glue_mrpc='mrpc',
    glue_qnli='qnli',
    glue_qqp='qqp',
    glue_rte='rte',
    glue_sst2='sst2',
    glue_stsb='stsb',
    glue_wnli='wnli',
    math_qa='mathqa',
    multi_nli='mnli',
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
    super_glue_boolq='boolq',
    super_glue_cb='cb',
    super_glue_copa='copa',
    super_glue_multirc='multirc',
    super_glue_record='record',
    super_glue_rte='rte',
    super_glue_wic='wic',
    super_glue_wsc='wsc',
    super_glue_wsc_fixed='wsc',
    trivia_qa='triviaqa',
    winograd_wsc='wsc',
    winowhy='wsc',
    wsc_fiexed='wsc',
    wsc_fixed='wsc',
    xcopa='copa',
    xl_wic='wic',
    xquad='squad',
)


def _words(name: str) -> str:
    """Lower case; everything between letters and digits becomes one `_`."""
    return re.sub(r'[\W_]+', '_', name.strip().lower()).strip('_')


def canonical_family(name: str) -> str:
    """The one name of a family: `Textual Entailment` and `NLI` are `natural_language_inference`."""
    name = _words(name)
    return _SYNONYMS.get(name, name)


def canonical_dataset(name: str) -> str:
    """The one name of a source data set: `super_glue/rte:1.0.2` and `glue/rte` are `rte`."""
    name = _words(re.sub(r':\d[\d.]*$', '', name.strip()))
    return _SAME_DATA.get(name, name)
