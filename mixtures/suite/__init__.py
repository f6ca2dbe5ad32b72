"""The built-in suite: a miniature of ExMix that needs no network, one file a family of tasks.

`recipe.py` says what a task is here and how its examples are split, `words.py` holds the words, the
other files the families; `mtpt.mixtures.builtin` registers them all. No file here imports SeqIO.
"""
