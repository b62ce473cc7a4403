"""Hostile input by the thousand: ``python -m tests.campaign --minutes 10``.

A case takes a small dataset, a small model and a small trained run, spoils one thing of them by a seed, and starts a program on it.
It passes if the program ends by itself, in bounded time, with success or with one clear sentence and status 2; if nothing is left
half-written; and if what was there before is still there. ``mutate.py`` spoils, ``cases.py`` says what is spoilt and which program is
started, ``judge.py`` starts it and judges what it leaves.
"""
