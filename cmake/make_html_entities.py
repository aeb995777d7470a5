"""Writes html_entities.inc and html_capitals.inc from Python's table of HTML5 entities.

usage: make_html_entities.py models/text/tokenizer

Two lists of {name, code points}: the HTML5 names, most with their semicolon, and the names in
capitals that ftfy reads too (those whose small form is a name and that mean nothing by themselves).
"""

import html
import html.entities
import sys


def lines(entries):
    row = ""
    for name, text in sorted(entries.items(), key=lambda item: item[0].encode()):
        codes = ",".join(f"{ord(c):#x}" for c in text)
        entry = f'{{"{name}",{{{codes}}}}},'
        if len(row) + len(entry) > 99:
            yield row
            row = ""
        row += entry
    yield row


def main():
    names = html.entities.html5
    capitals = {}
    for name, text in names.items():
        if name.endswith(";") and name == name.lower():
            upper = "&" + name.upper()
            if html.unescape(upper) == upper:
                capitals[name.upper()] = text.upper()
    for file, title, entries in (
        ("html_entities.inc", "kNames", names),
        ("html_capitals.inc", "kCapitalNames", capitals),
    ):
        with open(f"{sys.argv[1]}/{file}", "w", encoding="ascii") as out:
            out.write("// Made by cmake/make_html_entities.py from Python's html.entities.html5.\n")
            out.write(f"constexpr Entity {title}[] = {{\n")
            out.write("\n".join(lines(entries)))
            out.write("\n};\n")


if __name__ == "__main__":
    main()
