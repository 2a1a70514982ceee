"""How good images are: the judge, its blocks, its records, the final report."""
