"""What the site is made of: the style, the script, the page's frame, and two drawers in Python.

columns.py sets a quotation in two columns, flowchart.py draws a diagram; build.py uses both.
"""
