"""Writing tables as CSV and as Markdown. Reading them: text/table_files.py."""
import csv
import io


def csv_text(header, rows):
    """A CSV file as text: the header, then a line for each row."""
    return "".join(map(csv_line, [header, *rows]))


def csv_line(fields):
    """A row of a CSV file, with \\n at its end. A field that holds a line end is quoted, also one
    with a lone \\r: Python 3.11 quotes only the characters of its own line end, here both."""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\r\n").writerow(fields)
    return out.getvalue().removesuffix("\r\n") + "\n"


def markdown_table(header, rows):
    """A Markdown table -> its lines."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |")
    return lines
