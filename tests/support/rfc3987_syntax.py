"""Stands before the package of this name, of which jsonschema thinks that it is not installed then.

Jupyter imports jsonschema, which imports that package, which spends two seconds on a grammar of
international addresses. Nothing in the tests has one.
"""

raise ImportError(__doc__)
