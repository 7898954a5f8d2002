"""Embeddings of Sonolex in the forms that the field's evaluations read: HEAR, X-ARES, MTEB and ARCH (docs/embeddings.md)."""
