"""Writing tables as CSV and as Markdown. Reading them: text/table_files.py."""
import csv
import io


def csv_text(header, rows):
    """A CSV file as text: the header, then a line for each row."""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    return out.getvalue()


def markdown_table(header, rows):
    """A Markdown table -> its lines."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |")
    return lines
