"""The grader of the exercises: python -m minillmclf.grade hands over to it.

The code of an exercise runs in a process of its own, and what it returns is compared with stored
answers. worker.py and limits.py run in that process, too. Part of the clone, not of the installed
package.
"""
