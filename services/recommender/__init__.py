"""The front door of reading: candidates, filters, ranking, slates.

Owns retrieval (FAISS, popular, fresh), the in-memory catalogue, filter expressions, the pipeline and its routes. Owns
no event, item or profile: it reads those through `services.features.reader`. Owns no weights: scores come from
`services.inference.client`.
"""
