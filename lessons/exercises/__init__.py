"""What each exercise is tried with: its cases, its known-wrong variants, its stored answers.

A file lesson_NN.py imports nothing of minillmclf at its top: the grader's process reads it too, and
the code of a student must not run there. Its `call` may: it runs in the worker process.
"""
