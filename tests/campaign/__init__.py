"""Thousands of cases with hostile input: ``python -m tests.campaign --minutes 10``.

A case copies a small dataset, a small model and a small trained run. It corrupts one thing in the copy, chosen by a
seed, and starts a program on it. The case passes if

- the program exits by itself, in limited time, with success or with one clear sentence and status 2,
- nothing is left half-written,
- the files from before are still there.

``mutate.py`` corrupts, ``cases.py`` defines what is corrupted and which program is started, and ``judge.py`` starts the
program and judges the result.
"""
