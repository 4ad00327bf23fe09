"""Mutation testing: put one small fault into the code, run the tests that execute its line, see whether one fails.

``cd tests && python -m mutants --seed 0 --count 200`` (``make mutants``). docs/testing.md says how to read the result.
"""
