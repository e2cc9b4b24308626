"""Small data sets that ship with the package: one file `<name>.csv` each, with the header `text,label,split`.

`minillmclf.text.data.load_data("<name>")` reads one by its name from any working directory. No code lives here.
"""
