"""Fuzzing: harnesses for the parsers, the three cores and the bounds on JSON Schemas; see docs/security.md.

Internal: may change in any release. A harness is a function from bytes to None. It fails, with any exception, on an
input that breaks one of its invariants. Three engines call it: hypothesis in `tests/unit/fuzz`, the long run of
`python -m fuzz run`, and atheris in `python -m fuzz atheris`.
"""
