"""One page of results, from any number of runs.

`reading.py` reads untrusted JSON, `kinds.py` says what kinds of result there are and knows them by what they hold,
`finding.py` goes through the files and folders that a person names, `results.py` is what was found, as one typed model,
`records.py` is tables of whatever else measures things. `summary.py` computes the figures that no run states;
`charts.py` draws, `sections.py` and its kin make HTML, `page.py` writes it.
"""
