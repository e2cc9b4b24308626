"""Small data sets that ship with the package, a file `<name>.csv` each: text,label,split.

`minillmclf.text.data.load_data("<name>")` reads one from any working directory.
"""
