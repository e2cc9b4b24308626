"""What the site is made of.

markdown.py makes a page, with columns.py for quotations and flowchart.py for diagrams; page.html is
the frame, style.css the look, page.js the switch and the questions. build.py puts it together.
"""
