"""Training of any model: a run that can be stopped anywhere and resumed to the same bits, and its folder."""
