"""The course: Markdown lessons whose cells run, and what runs, exports and publishes them.

Part of the clone, not of the installed package. README.md here says how to use it.
"""
