"""``make test-matrix``: tests on every supported set of versions, and between two of them."""
