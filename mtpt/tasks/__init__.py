"""What the model learns from; the only package with SeqIO and TensorFlow.

Names are loaded when first asked for: `Prompt` and the sources need neither SeqIO nor TensorFlow,
`task`, `mixture` and the readers import both.
"""

import importlib

_PLACES = {
    'prompts': ('Prompt', 'Rendered', 'clean_name', 'render'),
    'sources': ('Source', 'csv', 'function', 'jsonl', 'parquet', 'text', 'tfds'),
    'families': ('FAMILIES', 'canonical_dataset', 'canonical_family'),
    'mixing': ('MIXING',),
    'register': (
        'Member',
        'bind_objectives',
        'card_of',
        'exam_info',
        'exam_names',
        'find',
        'inputs_eos',
        'member_names',
        'members',
        'mixture',
        'mixture_names',
        'task',
        'task_names',
        'text_task',
    ),
    'read': ('check', 'document_stream', 'documents', 'exams', 'show', 'stream', 'training_examples'),
}
_HOMES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    found = getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
    globals()[name] = found
    return found


def __dir__():
    return sorted([*globals(), *__all__])
