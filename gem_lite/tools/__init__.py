"""Tools: the command line, the web page, evaluation on data sets, quality on labelled collages.

They use the library as any program would; nothing outside this folder but `__main__` imports them.
"""
